"""A whole prompt over ranks: each has the queries of two pieces, and gathers the keys of all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ... import select_blocks, sparse_attention
from ._ranks import Ranks


class PromptAttention:
    """A layer on a prompt of `seqlen` tokens over P ranks, forward.

    The prompt is cut into 2 P pieces of equal length, a multiple of block_size, of which the last ones may be shorter or
    empty. Rank r has the pieces r and 2 P - 1 - r: together they see as many keys as those of any other rank. Keys are
    gathered, index keys first; K and V travel while kv_blocks are selected.

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
        self, q, k, v, index_q, index_k, *, return_lse=False, return_indices=False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """o of the rank's tokens, as of one process.

        q, k, v, index_q, index_k  of the rank's tokens, as `openmsa.msa_attention` takes them and `split` orders them
        returns       o like q; with return_lse lse; with return_indices topk_indices, kv_blocks of the prompt
        """
        for name, rows in {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k}.items():
            if len(rows) != sum(self.lengths):
                raise ValueError(f"{name}: expected the rank's {sum(self.lengths)} tokens, got {len(rows)}")
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
        wanted = (o, *[lse] * return_lse, *[topk_indices] * return_indices)
        return wanted[0] if len(wanted) == 1 else wanted

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

    def _sequences(self, device: torch.device) -> dict[str, Any]:
        """The rank's pieces as two chunks behind prefixes of one and the same sequence."""
        count = self._ranks.count
        piece = torch.arange(2 * count)
        place = torch.where(piece < count, 2 * piece, 2 * (2 * count - 1 - piece) + 1)  # in the gathered keys
        pages = place[:, None] * self._blocks_per_piece + torch.arange(self._blocks_per_piece)
        first, second = self.lengths
        return {
            "cu_seqlens_q": torch.tensor([0, first, first + second], dtype=torch.int32, device=device),
            "seqlens_k": torch.tensor([end for _, end in self.pieces], dtype=torch.int32, device=device),
            "block_table": pages.flatten().to(device, torch.int32).expand(2, -1),
        }
