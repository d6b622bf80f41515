"""A caller's process group: what its ranks agree on, and what they send each other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ... import __version__


class Ranks:
    """The ranks of `group`, which have been found to agree on `facts` by name.

    Raises ValueError where they differ, on all of them, with the values of two; RuntimeError where one does not answer
    within the group's timeout.
    """

    def __init__(self, group: dist.ProcessGroup, facts: dict[str, Any]):
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group: expected a torch.distributed.ProcessGroup, got {type(group).__name__}")
        self._group = group
        self.count, self.rank = dist.get_world_size(group), dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("group: expected one that this process belongs to, got one of others")
        self._agree({"version of openmsa": __version__, **facts})

    def _agree(self, facts: dict[str, Any]) -> None:
        of_all: list[Any] = [None] * self.count
        with self._waiting_for("shapes"):
            dist.all_gather_object(of_all, facts, group=self._group)
        for rank, theirs in enumerate(of_all):
            for name in {**of_all[0], **theirs}:
                first, other = of_all[0].get(name), theirs.get(name)
                if first != other:
                    raise ValueError(
                        f"{name}: expected the same on all ranks, got {first!r} on rank 0 and {other!r} on rank {rank}"
                    )

    def exchanged(self, what: str, slices: torch.Tensor) -> torch.Tensor:
        """[count, ...]: slice r goes to rank r, and slice s of the result comes from rank s."""
        sent = _as_bytes(slices)
        received = torch.empty_like(sent)
        with self._waiting_for(what):
            dist.all_to_all_single(received, sent, group=self._group)
        return received.view(slices.dtype).view(slices.shape)

    def gathered(self, what: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, [count, ...]."""
        return self.gathering(what, tensor)()

    def gathering(self, what: str, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """The same while other work goes on: what is returned waits for it."""
        sent = _as_bytes(tensor)
        received = sent.new_empty(self.count * sent.numel())
        with self._waiting_for(what):
            work = dist.all_gather_into_tensor(received, sent, group=self._group, async_op=True)

        def wait() -> torch.Tensor:
            with self._waiting_for(what):
                work.wait()
            return received.view(tensor.dtype).view(self.count, *tensor.shape)

        return wait

    def exchanged_rows(self, what: str, rows: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """rows [sum(lengths), ...], of which lengths[r] go to rank r. Returns [count, lengths[rank], ...]: slice s is what rank s
        has sent here."""
        sent = _as_bytes(rows)
        received = sent.new_empty(self.count * lengths[self.rank] * _row_bytes(rows))
        sizes = [length * _row_bytes(rows) for length in lengths]
        with self._waiting_for(what):
            dist.all_to_all_single(received, sent, [sizes[self.rank]] * self.count, sizes, group=self._group)
        return received.view(rows.dtype).view(self.count, lengths[self.rank], *rows.shape[1:])

    def gathered_rows(self, what: str, rows: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """rows [lengths[rank], ...] of each rank as [sum(lengths), ...]: those of rank 0, of rank 1, and so on."""
        return self.gathering_rows(what, rows, lengths)()

    def gathering_rows(self, what: str, rows: torch.Tensor, lengths: Sequence[int]) -> Callable[[], torch.Tensor]:
        """The same while other work goes on. What travels is as long as the longest."""
        longest = max(lengths)
        padded = rows
        if len(rows) < longest:
            padded = rows.new_zeros(longest, *rows.shape[1:])
            padded[: len(rows)] = rows
        wait = self.gathering(what, padded)

        def joined() -> torch.Tensor:
            of_ranks = wait()
            if min(lengths) == longest:
                return of_ranks.flatten(0, 1)
            return torch.cat([theirs[:length] for theirs, length in zip(of_ranks, lengths)])

        return joined

    @contextlib.contextmanager
    def _waiting_for(self, what: str):
        """What a group says of a rank that is gone, it says in the words of its transport."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.rank} of {self.count} did not get the {what} of the other ranks; one of them has failed or "
                f"did not come within the group's timeout: {error}"
            ) from error


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes in one row: not every transport knows every dtype."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _row_bytes(rows: torch.Tensor) -> int:
    return math.prod(rows.shape[1:]) * rows.element_size()
