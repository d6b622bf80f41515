"""Chunks of prompts behind prefixes in shards: queries go to where the keys are, and their results come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from ... import merge_partials, select_candidates, sparse_attention
from ._decode import Divided


class ChunkAttention(Divided):
    """A layer on chunks of prompts whose tokens are divided among P ranks, as their keys are: for long prefixes, of which it
    would take longer to gather the keys than it takes to send the queries (docs/several-gpus.md has the volumes).

    Rank r has lengths[r] of the chunk's tokens, with all heads, and the kv_blocks of shard r of all sequences. Ranks gather
    the queries, index queries first; q travels while each rank scores the kv_blocks of its shard for all of them. The
    candidates go to the ranks of their queries, which make the selections; ranks gather these, attend with all queries to
    those chosen kv_blocks that they have, and send the parts back. How the queries are divided changes no result.

    Made once for chunks of such lengths, used for all of them and for all layers of one shape.

    group         a ProcessGroup, the same on all of its ranks
    lengths       query tokens of each rank, the same on all of them; 0 is allowed. Work is divided by the keys alone; what is
                  gathered travels as if all were as long as the longest
    partial_dtype torch.float32: parts of o travel as they are; the layer's dtype: at half the size, rounded once more
    the others    as of `openmsa.msa_attention`

    Raises ValueError, on all ranks, where they differ in an argument or in the version of openmsa.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        lengths: Sequence[int],
        partial_dtype: torch.dtype = torch.float32,
        **layer,
    ):
        lengths = [int(length) for length in lengths]
        super().__init__(group, {"lengths": lengths, "partial_dtype": partial_dtype}, **layer)
        if len(lengths) != self._ranks.count:
            raise ValueError(f"lengths: expected those of {self._ranks.count} ranks, got {lengths}")
        if min(lengths) < 0 or not any(lengths):
            raise ValueError(f"lengths: expected numbers of tokens, at least one of them positive, got {lengths}")
        self._lengths, self._partial_dtype = lengths, partial_dtype
        begin = sum(lengths[: self._ranks.rank])
        #: The rank's tokens among those of the chunk.
        self.tokens = slice(begin, begin + lengths[self._ranks.rank])

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """The rank's rows of a tensor of the whole chunk."""
        if len(rows) != sum(self._lengths):
            raise ValueError(f"rows: expected the chunk's {sum(self._lengths)} tokens, got {len(rows)}")
        return rows[self.tokens]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The whole chunk's rows [sum(lengths), ...] of those that each rank has: for `KVCache.append`, which takes new keys of
        whole sequences and stores those of its shard."""
        self._check_rows("rows", rows)
        return self._ranks.gathered_rows("new keys", rows, self._lengths)

    def __call__(
        self, q, index_q, *, cache, cu_seqlens_q=None, return_lse=False, return_indices=False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """o of the rank's tokens: that of one process, but for the rounding of sums; where all kv_blocks of a query are in one
        shard, that too.

        q             [lengths[r], H_q, head_dim] of the rank's tokens
        index_q       [lengths[r], H_kv, index_dim]
        cache         k_cache, v_cache, index_k_cache, seqlens_k and block_table of the rank's shard, and scales, as
                      `KVCache(shard_count=P, shard_rank=r, ...).tensors(layer)` has them, with the chunk's keys
        cu_seqlens_q  [batch + 1] of the whole chunk; None: one sequence
        returns       o like q; with return_lse lse [lengths[r], H_q]; with return_indices topk_indices
                      [H_kv, lengths[r], topk]

        There is no backward pass.
        """
        self._check("q", q, self._facts["num_heads_q"], "head_dim")
        self._check("index_q", index_q, self._facts["num_heads_kv"], "index_dim")
        self._check_rows("q", q)
        self._check_rows("index_q", index_q)
        all_index_q = self._ranks.gathered_rows("index queries", index_q, self._lengths)
        queries = self._ranks.gathering_rows("queries", q, self._lengths)
        topk_indices = self._selected(all_index_q, cache, cu_seqlens_q)
        of_all = self._ranks.gathered_rows("selections", topk_indices.transpose(0, 1), self._lengths)
        o, lse = self._parts(queries(), of_all.transpose(0, 1), cache, cu_seqlens_q)
        partial_o = self._ranks.exchanged_rows("parts of o", o, self._lengths)
        partial_lse = self._ranks.exchanged_rows("parts of lse", lse, self._lengths)
        o, lse = merge_partials(partial_o, partial_lse, o=torch.empty_like(q), return_lse=True)
        wanted = (o, *[lse] * return_lse, *[topk_indices] * return_indices)
        return wanted[0] if len(wanted) == 1 else wanted

    def _selected(self, all_index_q, cache, cu_seqlens_q) -> torch.Tensor:
        """topk_indices of the rank's tokens."""
        index = {name: cache[name] for name in cache if name not in ("k_cache", "v_cache", "k_scale", "v_scale")}
        shape = (len(all_index_q), self._facts["num_heads_kv"], self._facts["topk"])
        candidates = all_index_q.new_empty(shape, dtype=torch.int64)  # a token's in a row
        select_candidates(
            all_index_q,
            candidates=candidates.transpose(0, 1),
            cu_seqlens_q=cu_seqlens_q,
            **index,
            **self._selection,
            **self._shard,
        )
        all_candidates = self._ranks.exchanged_rows("candidates", candidates, self._lengths)
        return self._merged(all_candidates.transpose(1, 2), **self._own_sequences(cache["seqlens_k"], cu_seqlens_q))

    def _parts(self, all_q, topk_indices, cache, cu_seqlens_q) -> tuple[torch.Tensor, torch.Tensor]:
        """o and lse of all tokens over the kv_blocks of this shard."""
        return sparse_attention(
            all_q,
            topk_indices=topk_indices,
            o=torch.empty_like(all_q, dtype=self._partial_dtype),
            return_lse=True,
            cu_seqlens_q=cu_seqlens_q,
            **{name: tensor for name, tensor in cache.items() if not name.startswith("index_")},
            **self._attention,
            **self._shard,
        )

    def _own_sequences(self, seqlens_k: torch.Tensor, cu_seqlens_q: torch.Tensor | None) -> dict[str, Any]:
        """The chunk's sequences as if they ended with this rank's tokens, so that these keep their positions."""
        begin, end = self.tokens.start, self.tokens.stop
        bounds = cu_seqlens_q
        if bounds is None:
            bounds = torch.tensor([0, sum(self._lengths)], dtype=torch.int32, device=seqlens_k.device)
        left_out = bounds[1:] - bounds.clamp(max=end)[1:].maximum(bounds[:-1])  # a sequence's tokens of later ranks
        return {
            "seqlens_k": (seqlens_k - left_out).clamp(min=0),
            "cu_seqlens_q": bounds.clamp(begin, end) - begin,
        }

    def _check_rows(self, name: str, rows: torch.Tensor) -> None:
        expected = self._lengths[self._ranks.rank]
        if len(rows) != expected:
            raise ValueError(f"{name}: expected the rank's {expected} tokens, got {len(rows)}")
