"""Attention on caches that are divided among ranks: of steps and chunks, any number of query tokens per sequence."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ... import merge_candidates, merge_partials, select_candidates, sparse_attention
from ._ranks import Ranks


class Divided:
    """A layer whose ranks agree on it, and on what else there is to agree on."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        others: dict[str, Any],
        /,
        *,
        num_heads_q: int,
        num_heads_kv: int,
        head_dim: int,
        index_dim: int,
        block_size: int = 128,
        topk: int = 16,
        num_init_blocks: int = 0,
        num_local_blocks: int = 1,
        softmax_scale: float | None = None,
    ):
        facts = {name: value for name, value in locals().items() if name not in ("self", "group", "others")}
        self._ranks = Ranks(group, {"kind of attention": type(self).__name__, **facts, **others})
        self._facts = facts
        self._selection: dict[str, Any] = {
            name: facts[name] for name in ("block_size", "topk", "num_init_blocks", "num_local_blocks")
        }
        self._attention: dict[str, Any] = {"block_size": block_size, "topk": topk, "softmax_scale": softmax_scale}
        self._shard: dict[str, Any] = {"shard_count": self._ranks.count, "shard_rank": self._ranks.rank}

    def _divided(self, name: str) -> int:
        """A rank's share of some heads."""
        heads, count = self._facts[name], self._ranks.count
        if heads % count:
            raise ValueError(f"{name}: expected a multiple of the {count} ranks, got {heads}")
        return heads // count

    def _candidates(self, index_q: torch.Tensor, index: dict[str, Any], cu_seqlens_q) -> torch.Tensor:
        """Those of this rank's shard, for all heads."""
        return select_candidates(index_q, cu_seqlens_q=cu_seqlens_q, **index, **self._selection, **self._shard)

    def _merged(self, all_candidates: torch.Tensor, seqlens_k, cu_seqlens_q) -> torch.Tensor:
        return merge_candidates(all_candidates, seqlens_k, cu_seqlens_q=cu_seqlens_q, **self._selection)

    def _check(self, name: str, tensor: torch.Tensor, heads: int, dim: str) -> None:
        expected = (heads, self._facts[dim])
        if tensor.ndim != 3 or tuple(tensor.shape[1:]) != expected:
            raise ValueError(f"{name}: expected [total_q, {expected[0]}, {expected[1]}], got {list(tensor.shape)}")


class TensorParallelAttention(Divided):
    """A layer with its heads on P ranks and its index branch in shards.

    Rank r has the query heads r H_q / P and on, with K and V of the KV heads r H_kv / P and on, of whole sequences; and the
    index keys of shard r. It scores the kv_blocks of its shard for all KV heads, and gets the candidates of its own KV
    heads from all ranks: topk 8 bytes per query, KV head and rank are all that is sent.

    num_heads_q, num_heads_kv  of the whole layer, multiples of P
    group         a ProcessGroup, the same on all of its ranks
    the others    as of `openmsa.msa_attention`

    Raises ValueError, on all ranks, where they differ in an argument or in the version of openmsa.
    """

    def __init__(self, group: dist.ProcessGroup, **layer):
        super().__init__(group, {}, **layer)
        self.num_heads_q, self.num_heads_kv = self._divided("num_heads_q"), self._divided("num_heads_kv")

    def __call__(
        self, q, index_q, *, kv, index, cu_seqlens_q=None, return_lse=False, return_indices=False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """o of the rank's query heads, equal to theirs of one process.

        q             [total_q, H_q / P, head_dim] of the rank's heads
        index_q       [total_q, H_kv, index_dim] of all heads, the same on all ranks
        kv            k_cache, v_cache, seqlens_k and block_table of the rank's heads, and scales, as
                      `KVCache(index_dim=0, ...).tensors(layer)` has them
        index         index_k_cache, seqlens_k and block_table of the rank's shard, and its scale, as
                      `KVCache(num_heads_kv=0, shard_count=P, shard_rank=r, ...).tensors(layer)` has them
        returns       o like q; with return_lse lse [total_q, H_q / P]; with return_indices topk_indices
                      [H_kv / P, total_q, topk]
        """
        self._check("q", q, self.num_heads_q, "head_dim")
        self._check("index_q", index_q, self._facts["num_heads_kv"], "index_dim")
        candidates = self._candidates(index_q, index, cu_seqlens_q)
        of_ranks = candidates.view(self._ranks.count, self.num_heads_kv, *candidates.shape[1:])
        all_candidates = self._ranks.exchanged("candidates", of_ranks)
        topk_indices = self._merged(all_candidates, index["seqlens_k"], cu_seqlens_q)
        o, lse = sparse_attention(
            q, topk_indices=topk_indices, cu_seqlens_q=cu_seqlens_q, return_lse=True, **kv, **self._attention
        )
        wanted = (o, *[lse] * return_lse, *[topk_indices] * return_indices)
        return wanted[0] if len(wanted) == 1 else wanted


class ContextParallelAttention(Divided):
    """A layer with K, V and index keys in shards on P ranks: for contexts that one rank's memory does not hold, and for more
    ranks than KV heads.

    Rank r has the kv_blocks of shard r, with all KV heads. It scores them, gets the candidates of all ranks, attends with all
    query heads to those chosen kv_blocks that it has, and merges the parts of all ranks for its share of the query heads.

    num_heads_q   a multiple of P
    group         a ProcessGroup, the same on all of its ranks
    the others    as of `openmsa.msa_attention`

    Raises ValueError, on all ranks, where they differ in an argument or in the version of openmsa.
    """

    def __init__(self, group: dist.ProcessGroup, **layer):
        super().__init__(group, {}, **layer)
        self.num_heads_q = self._divided("num_heads_q")

    def __call__(
        self, q, index_q, *, cache, cu_seqlens_q=None, return_lse=False, return_indices=False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """o of the rank's share of the query heads, r H_q / P and on: theirs of one process, but for the rounding of sums.

        q             [total_q, H_q, head_dim] of all heads, the same on all ranks
        index_q       [total_q, H_kv, index_dim], the same on all ranks
        cache         k_cache, v_cache, index_k_cache, seqlens_k and block_table of the rank's shard, and scales, as
                      `KVCache(shard_count=P, shard_rank=r, ...).tensors(layer)` has them
        returns       o [total_q, H_q / P, head_dim] in q's dtype; with return_lse lse [total_q, H_q / P]; with
                      return_indices topk_indices [H_kv, total_q, topk]
        """
        self._check("q", q, self._facts["num_heads_q"], "head_dim")
        self._check("index_q", index_q, self._facts["num_heads_kv"], "index_dim")
        index = {
            name: tensor for name, tensor in cache.items() if name not in ("k_cache", "v_cache", "k_scale", "v_scale")
        }
        kv = {name: tensor for name, tensor in cache.items() if not name.startswith("index_")}
        all_candidates = self._ranks.gathered("candidates", self._candidates(index_q, index, cu_seqlens_q))
        topk_indices = self._merged(all_candidates, cache["seqlens_k"], cu_seqlens_q)
        o, lse = sparse_attention(
            q,
            topk_indices=topk_indices,
            o=torch.empty_like(q, dtype=torch.float32, memory_format=torch.contiguous_format),
            return_lse=True,
            cu_seqlens_q=cu_seqlens_q,
            **kv,
            **self._attention,
            **self._shard,
        )
        partial_o = self._ranks.exchanged("parts of o", self._by_rank(o))
        partial_lse = self._ranks.exchanged("parts of lse", self._by_rank(lse))
        o, lse = merge_partials(
            partial_o, partial_lse, o=torch.empty_like(partial_o[0], dtype=q.dtype), return_lse=True
        )
        wanted = (o, *[lse] * return_lse, *[topk_indices] * return_indices)
        return wanted[0] if len(wanted) == 1 else wanted

    def _by_rank(self, rows: torch.Tensor) -> torch.Tensor:
        """[total_q, H_q, ...] as [P, total_q, H_q / P, ...], the heads of each rank."""
        return rows.unflatten(1, (self._ranks.count, self.num_heads_q)).movedim(1, 0).contiguous()
