"""The index branch of an engine's layer on ranks of tensor parallelism: each scores its share of the kv_blocks for the heads of
all ranks, and their candidates change hands. The engine's caches stay as they are, with all index keys on every rank."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist

import openmsa

from .._plan import cached_plan
from ..torch.distributed._ranks import Ranks


class IndexPlans(NamedTuple):
    """candidates of the rank's kv_blocks, for the heads of all ranks; the merge of those that all ranks have for its heads."""

    candidates: openmsa.Plan
    merge: openmsa.Plan

    def workspace_bytes(self) -> int:
        return max(self.candidates.workspace_bytes("select_candidates"), self.merge.workspace_bytes("merge_candidates"))


class IndexRanks:
    """P ranks that have all index keys, in pages of a kv_block each, and the index queries of their own heads.

    Rank r scores the kv_blocks b with b % P = r. They are a shard as `openmsa.Plan` has it, whose block table is every P-th
    column of the engine's: nothing is copied or stored otherwise. With more ranks than heads the ranks of a head follow each
    other, as in the engines.

    group         a ProcessGroup, the same on all of its ranks
    num_heads_kv  of the whole layer: a multiple or a divisor of P
    facts         what else all ranks have to agree on

    Raises ValueError, on all ranks, where they differ in an argument or in the version of openmsa.
    """

    def __init__(self, group: dist.ProcessGroup, *, num_heads_kv: int, **facts):
        self._ranks = Ranks(group, {"num_heads_kv": num_heads_kv, **facts})
        self.count, self._num_heads_kv = self._ranks.count, num_heads_kv
        if num_heads_kv % self.count and self.count % num_heads_kv:
            raise ValueError(
                f"num_heads_kv: expected a multiple or a divisor of {self.count} ranks, got {num_heads_kv}"
            )
        self._copies = max(self.count // num_heads_kv, 1)  # ranks that have the same head

    def plans(self, **options: Any) -> IndexPlans:
        """options: of the rank's own plan of the index branch. Raises openmsa.Error or ValueError for what the backend does not
        serve."""
        if options["page_size"] != options["block_size"]:
            raise ValueError(
                f"page_size: expected block_size = {options['block_size']} to divide the index branch over ranks, got "
                f"{options['page_size']}"
            )
        of_shard = options | {"shard_count": self.count, "shard_rank": self._ranks.rank}
        group_size = options["num_heads_q"] // options["num_heads_kv"]
        of_all = {"num_heads_q": group_size * self._num_heads_kv, "num_heads_kv": self._num_heads_kv}
        plans = IndexPlans(cached_plan(**of_shard | of_all), cached_plan(**of_shard))
        plans.workspace_bytes()  # some are refused here
        return plans

    def select(
        self, plans: IndexPlans, index_q, *, index_k_cache, seqlens_k, block_table, cu_seqlens_q, topk_indices, **scale
    ) -> None:
        """Writes topk_indices [heads, total_q, topk], those of `openmsa.select_blocks`, bit by bit.

        index_q       [total_q, heads, index_dim] of the rank's heads; other arguments as of `openmsa.select_blocks`, the same on
                      all ranks
        """
        of_ranks = self._ranks.gathered("index queries", index_q)[:: self._copies]
        candidates = openmsa.select_candidates(
            of_ranks.transpose(0, 1).flatten(1, 2),
            index_k_cache=index_k_cache,
            seqlens_k=seqlens_k,
            block_table=block_table[:, self._ranks.rank :: self.count],
            cu_seqlens_q=cu_seqlens_q,
            plan=plans.candidates,
            **scale,
        )
        for_heads = candidates.unflatten(0, (-1, index_q.shape[1]))
        for_ranks = for_heads.repeat_interleave(self._copies, 0) if self._copies > 1 else for_heads
        openmsa.merge_candidates(
            self._ranks.exchanged("candidates", for_ranks),
            seqlens_k,
            cu_seqlens_q=cu_seqlens_q,
            topk_indices=topk_indices,
            plan=plans.merge,
        )
