"""What all layers of a step share: which pages a request's keys lie in, how many there are, where its queries begin."""

from __future__ import annotations

import torch


class StepTensors:
    """Block table and lengths of a step, int32, in memory that stays where it is: a CUDA graph that was captured with them
    writes them anew from the engine's tensors whenever it is replayed. Nothing is read on the host.

    req_to_token  [requests, tokens] int32, the engine's: row r, column j is the slot in the caches of token j of request r.
                  Slots of a page follow each other, so every page_size-th column names the pages.
    page_size     tokens per page
    """

    def __init__(self, req_to_token: torch.Tensor, page_size: int, max_batch: int):
        self._first_slots = req_to_token[:, ::page_size]
        self._page_size = page_size
        self._outgrown: list[torch.Tensor] = []
        self._allocate(max_batch)

    @torch.inference_mode(False)
    def _allocate(self, batch: int) -> None:
        """Tensors that can be written with and without inference mode, whichever of them the engine is in now."""
        device = self._first_slots.device
        self._block_table = torch.zeros(batch, self._first_slots.shape[1], dtype=torch.int32, device=device)
        self._seqlens_k = torch.zeros(batch, dtype=torch.int32, device=device)
        self._bounds = torch.zeros(batch + 1, dtype=torch.int32, device=device)
        self._one_each = torch.arange(batch + 1, dtype=torch.int32, device=device)

    @property
    def max_batch(self) -> int:
        return len(self._seqlens_k)

    def reserve(self, batch: int) -> None:
        """Room for so many requests. What earlier graphs read stays."""
        if batch > self.max_batch:
            self._outgrown += [self._block_table, self._seqlens_k, self._bounds, self._one_each]
            self._allocate(batch)

    def of_decode(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> dict[str, torch.Tensor]:
        """One query per request. req_pool_indices [batch]: rows of req_to_token; seq_lens [batch]: keys, the new one among
        them. Returns block_table [batch, pages], seqlens_k [batch] and cu_seqlens_q [batch + 1]."""
        return self._keys(req_pool_indices, seq_lens) | {"cu_seqlens_q": self._one_each[: len(seq_lens) + 1]}

    def of_extend(
        self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor, extend_seq_lens: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """extend_seq_lens [batch] queries per request, the last of its seq_lens keys."""
        keys = self._keys(req_pool_indices, seq_lens)
        bounds = self._bounds[: len(seq_lens) + 1]
        torch.cumsum(extend_seq_lens, 0, dtype=torch.int32, out=bounds[1:])
        return keys | {"cu_seqlens_q": bounds}

    def _keys(self, req_pool_indices, seq_lens) -> dict[str, torch.Tensor]:
        batch = len(seq_lens)
        self.reserve(batch)
        block_table, seqlens_k = self._block_table[:batch], self._seqlens_k[:batch]
        torch.index_select(self._first_slots, 0, req_pool_indices, out=block_table)
        block_table.floor_divide_(self._page_size)
        seqlens_k.copy_(seq_lens)
        return {"block_table": block_table, "seqlens_k": seqlens_k}
