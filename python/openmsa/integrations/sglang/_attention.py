"""The sparse layers of a rank, on views of the engine's caches."""

from __future__ import annotations

from typing import Any

import torch

from ... import Plan, msa_attention, sparse_attention
from ..._layout import capacity
from ..._plan import cached_plan
from .._index_ranks import IndexPlans, IndexRanks


class SparseAttention:
    """pool      the engine's MiniMaxSparseKVPool
    page_size    tokens per page of the block tables
    options      of plans, all but their capacities
    ranks        that divide the index branch among them; None: it is not divided

    A step gets the plan of its size, rounded up, which all layers and all backends of the process share. One plan for
    every size would be as fast, but a CUDA graph of a decode keeps the workspace of its plan, which grows with the rows.
    """

    def __init__(self, pool, page_size: int, options: dict[str, Any], ranks: IndexRanks | None = None):
        self._pool = pool
        self._page_size = page_size
        self._options = options | {"page_size": page_size}
        self._scales: dict[float, torch.Tensor] = {}
        self._last_sizes: tuple[int, int, int] | None = None
        self._last_plan: Plan
        self._ranks = ranks
        self._last_of_ranks: IndexPlans | None = None

    def plan(self, num_tokens: int, batch: int, max_seqlen_k: int) -> Plan:
        """Raises openmsa.Error or ValueError for what the backend does not serve."""
        sizes = (capacity(num_tokens), capacity(batch), 1 << (max_seqlen_k - 1).bit_length())
        if sizes != self._last_sizes:  # the layers of a step ask one after the other
            capacities = dict(zip(("max_total_q", "max_batch", "max_seqlen_k"), sizes))
            self._last_plan, self._last_sizes = cached_plan(**self._options, **capacities), sizes
            if self._ranks is not None:
                self._last_of_ranks = self._ranks.plans(**self._options, **capacities)
        return self._last_plan

    def workspace_bytes(self) -> int:
        """That a call of the latest plan's size takes."""
        if self._last_of_ranks is None:
            return self._last_plan.workspace_bytes("msa_attention")
        return max(self._last_plan.workspace_bytes("sparse_attention"), self._last_of_ranks.workspace_bytes())

    def __call__(self, q, index_q, layer, step: dict[str, Any], max_seqlen_k: int) -> torch.Tensor:
        """o [tokens, num_heads_q * head_dim]; rows of no request, padding, are zeros.

        q        [tokens, num_heads_q, head_dim], index_q [tokens, num_heads_kv, index_dim]
        layer    the engine's RadixAttention, whose keys of this step are in the caches
        step     of StepTensors; no request has more than max_seqlen_k keys
        """
        k_cache, v_cache = self._pool.get_kv_buffer(layer.layer_id)
        o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        plan = self.plan(len(q), len(step["seqlens_k"]), max_seqlen_k)
        keys: dict[str, Any] = {
            "k_cache": self._paged(k_cache),
            "v_cache": self._paged(v_cache),
            "k_scale": self._scale(layer.k_scale_float, q.device),
            "v_scale": self._scale(layer.v_scale_float, q.device),
        }
        index: dict[str, Any] = {
            "index_k_cache": self._paged(self._pool.get_index_k_buffer(layer.layer_id))[:, :, 0],
            "index_k_scale": self._scale(layer.idx_k_scale_float, q.device),
        }
        if self._ranks is None or self._last_of_ranks is None:
            msa_attention(q, index_q=index_q, plan=plan, o=o, **keys, **index, **step)
        else:
            shape = (plan.num_heads_kv, len(q), plan.topk)
            topk_indices = torch.empty(shape, dtype=torch.int32, device=q.device)
            self._ranks.select(self._last_of_ranks, index_q, topk_indices=topk_indices, **index, **step)
            sparse_attention(q, topk_indices=topk_indices, plan=plan, o=o, **keys, **step)
        return o.flatten(1)

    def _paged(self, cache: torch.Tensor) -> torch.Tensor:
        """[pages, page_size, heads, dim] of the engine's [slots, heads, dim], or of its [pages, heads, page_size, dim]."""
        if cache.dim() == 4:
            return cache.transpose(1, 2)
        rest = len(cache) % self._page_size  # slots of no page
        return (cache[:-rest] if rest else cache).view(-1, self._page_size, *cache.shape[1:])

    def _scale(self, number: float | None, device) -> torch.Tensor | None:
        """[1]. Made in the first call with it: the engine warms up before it captures a CUDA graph."""
        if number is None or number == 1.0:
            return None
        if number not in self._scales:
            self._scales[number] = torch.full((1,), number, dtype=torch.float32, device=device)
        return self._scales[number]
