"""A whole prompt over ranks: each has the queries of two pieces, and gathers the keys of all. Forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from .. import kl_loss, select_blocks, sparse_attention
from ._ranks import Ranks


class PromptAttention:
    """A layer on a prompt of `seqlen` tokens over P ranks, for training too.

    The prompt is cut into 2 P pieces of equal length, a multiple of block_size, of which the last ones may be shorter or
    empty. Rank r has the pieces r and 2 P - 1 - r: together they see as many keys as those of any other rank. Keys are
    gathered, index keys first; K and V travel while kv_blocks are selected.

    Where a gradient is asked for, backward sends each rank the gradients of its keys from all others, in fp32, and adds them
    up from rank 0 on: the sum of the ranks' losses is differentiated. So all ranks ask for the same gradients, and their
    losses use the same results.

    Made once per prompt, used for all layers of one shape.

    group         a ProcessGroup, the same on all of its ranks
    options       topk, num_init_blocks, num_local_blocks and softmax_scale, as of `openmsa.msa_attention`

    Raises ValueError, on all ranks, where they differ in an argument or in the version of openmsa.
    """

    def __init__(self, group: dist.ProcessGroup, *, seqlen: int, block_size: int = 128, **options):
        if seqlen < 1:
            raise ValueError(f"seqlen: expected at least 1, got {seqlen}")
        for name in options:
            if name not in ("topk", "num_init_blocks", "num_local_blocks", "softmax_scale"):
                raise TypeError(f"PromptAttention: unexpected argument {name}")
        facts = {"seqlen": seqlen, "block_size": block_size, **options}
        self._ranks = Ranks(group, {"kind of attention": "PromptAttention", **facts})
        self._seqlen, self._block_size, self._options = seqlen, block_size, options
        count, rank = self._ranks.count, self._ranks.rank
        blocks = -(-seqlen // block_size)
        self._blocks_per_piece = -(-blocks // (2 * count))
        #: The first token of each of the rank's pieces, and the one after its last.
        self.pieces = tuple(self._piece(piece) for piece in (rank, 2 * count - 1 - rank))

    def _piece(self, piece: int) -> tuple[int, int]:
        length = self._blocks_per_piece * self._block_size
        return min(piece * length, self._seqlen), min((piece + 1) * length, self._seqlen)

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the rank's pieces."""
        return tuple(end - begin for begin, end in self.pieces)  # type: ignore[return-value]

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """The rank's rows of a tensor of the whole prompt, those of its first piece, then those of its second."""
        if len(rows) != self._seqlen:
            raise ValueError(f"rows: expected the prompt's {self._seqlen} tokens, got {len(rows)}")
        return torch.cat([rows[begin:end] for begin, end in self.pieces])

    def __call__(
        self, q, k, v, index_q, index_k, *, return_kl=False, return_lse=False, return_indices=False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """o of the rank's tokens, as of one process, then whichever of kl_loss, lse and topk_indices are asked for.

        q, k, v, index_q, index_k  of the rank's tokens, as `openmsa.msa_attention` takes them and `split` orders them
        returns       o like q; with return_kl the rank's part of kl_loss, parts that add up to the mean over all queries
                      and KV heads; with return_lse lse; with return_indices topk_indices, kv_blocks of the prompt

        o and lse have gradients of q, k and v, kl_loss those of index_q and index_k, as those of
        `openmsa.torch.msa_attention`.
        """
        for name, rows in {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k}.items():
            if len(rows) != sum(self.lengths):
                raise ValueError(f"{name}: expected the rank's {sum(self.lengths)} tokens, got {len(rows)}")
        if return_kl or (torch.is_grad_enabled() and any(rows.requires_grad for rows in (q, k, v))):
            kl, o, lse, topk_indices = self._trained(q, k, v, index_q, index_k, return_kl)
        else:
            kl, (o, lse, topk_indices) = None, self._attended(q, k, v, index_q, index_k)
        wanted = (o, *[kl] * return_kl, *[lse] * return_lse, *[topk_indices] * return_indices)
        return wanted[0] if len(wanted) == 1 else wanted

    def _attended(self, q, k, v, index_q, index_k) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """o, lse and selection on gathered keys, as pages of the prompt."""
        sequences = self._sequences(q.device)
        index_k_cache = self._ranks.gathered("index keys", self._padded(index_k)).view(*self._pages, -1)
        keys = [self._ranks.gathering(name, self._padded(rows)) for name, rows in (("keys", k), ("values", v))]
        options = {"block_size": self._block_size, **self._options}
        scale: dict[str, Any] = {"softmax_scale": options.pop("softmax_scale", None)}
        topk_indices = select_blocks(index_q, index_k_cache=index_k_cache, **sequences, **options)
        k_cache, v_cache = (wait().view(*self._pages, *rows.shape[1:]) for wait, rows in zip(keys, (k, v)))
        o, lse = sparse_attention(
            q,
            topk_indices=topk_indices,
            k_cache=k_cache,
            v_cache=v_cache,
            return_lse=True,
            block_size=self._block_size,
            **scale,
            **sequences,
        )
        return o, lse, topk_indices

    def _trained(self, q, k, v, index_q, index_k, return_kl: bool):
        """The same with gradients, on keys in a row: those that the rank's first piece sees, then those of its second."""
        sequences = {name: self._sequences(q.device)[name] for name in ("cu_seqlens_q", "seqlens_k")}
        lengths = sequences.pop("seqlens_k")
        sequences["cu_seqlens_k"] = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        index_keys, keys, values = (
            _KeysOfPieces.apply(self, name, rows)
            for name, rows in (("index keys", index_k), ("keys", k), ("values", v))
        )
        options = {"block_size": self._block_size, **self._options}
        scale: dict[str, Any] = {"softmax_scale": options.pop("softmax_scale", None)}
        topk_indices = select_blocks(index_q.detach(), index_keys.detach(), **sequences, **options)
        scale["block_size"] = self._block_size
        o, lse = sparse_attention(q, keys, values, topk_indices, return_lse=True, **scale, **sequences)
        if not return_kl:
            return None, o, lse, topk_indices
        teacher = (q.detach(), keys.detach(), lse.detach())
        parts = kl_loss(*teacher, index_q, index_keys, topk_indices, reduction="sum", **scale, **sequences)
        return parts / (self._seqlen * index_q.shape[1]), o, lse, topk_indices

    @property
    def _pages(self) -> tuple[int, int]:
        """Of the gathered keys, a kv_block each: those of rank 0's pieces, of rank 1's, and so on."""
        return 2 * self._ranks.count * self._blocks_per_piece, self._block_size

    def _padded(self, rows: torch.Tensor) -> torch.Tensor:
        """The rank's two pieces at their full length."""
        length = self._blocks_per_piece * self._block_size
        result = rows.new_zeros(2, length, *rows.shape[1:])
        for piece, part in zip(result, rows.split(self.lengths)):
            piece[: len(part)] = part
        return result

    def _places(self, device: torch.device) -> list[torch.Tensor]:
        """For each of the rank's pieces, where the tokens that it sees are among the gathered rows."""
        tokens = torch.arange(self._block_size, device=device)
        of_prompt = (self._prompt_pages.to(device)[:, None] * self._block_size + tokens).flatten()
        return [of_prompt[:end] for _, end in self.pieces]

    @property
    def _prompt_pages(self) -> torch.Tensor:
        """The pages of the gathered keys in the order of the prompt."""
        count = self._ranks.count
        piece = torch.arange(2 * count)
        place = torch.where(piece < count, 2 * piece, 2 * (2 * count - 1 - piece) + 1)  # in the gathered keys
        return (place[:, None] * self._blocks_per_piece + torch.arange(self._blocks_per_piece)).flatten()

    def _sequences(self, device: torch.device) -> dict[str, Any]:
        """The rank's pieces as two chunks behind prefixes of one and the same sequence."""
        first, second = self.lengths
        return {
            "cu_seqlens_q": torch.tensor([0, first, first + second], dtype=torch.int32, device=device),
            "seqlens_k": torch.tensor([end for _, end in self.pieces], dtype=torch.int32, device=device),
            "block_table": self._prompt_pages.to(device, torch.int32).expand(2, -1),
        }


class _KeysOfPieces(torch.autograd.Function):
    """The rows of all ranks that a rank's first piece sees, then those of its second. Backward: to each rank the gradients
    of its rows."""

    @staticmethod
    def forward(ctx, prompt: PromptAttention, name: str, rows: torch.Tensor) -> torch.Tensor:
        ctx.prompt, ctx.name, ctx.dtype = prompt, name, rows.dtype
        gathered = prompt._ranks.gathered(name, prompt._padded(rows)).flatten(0, 2)
        return torch.cat([gathered[places] for places in prompt._places(rows.device)])

    @staticmethod
    def backward(ctx, *d_rows: torch.Tensor):
        prompt, (gradient,) = ctx.prompt, d_rows
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        pages, tokens = prompt._pages
        of_gathered = gradient.new_zeros(pages * tokens, *gradient.shape[1:], dtype=dtype)
        places = prompt._places(gradient.device)
        for at, part in zip(places, gradient.split([len(at) for at in places])):
            of_gathered[at] += part  # each at most once
        count = prompt._ranks.count
        of_ranks = of_gathered.view(count, 2, pages // (2 * count) * tokens, *gradient.shape[1:])
        received = prompt._ranks.exchanged(f"gradients of {ctx.name}", of_ranks)
        mine = received[0]
        for other in received[1:]:
            mine = mine + other
        rows = [piece[:length] for piece, length in zip(mine, prompt.lengths)]
        return None, None, torch.cat(rows).to(ctx.dtype)
