"""The sparse layers of a rank: one plan for all of them and every step, on views of the engine's caches."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ... import msa_attention
from ..._plan import cached_plan

_log = logging.getLogger(__name__)


class SparseAttention:
    """pool      the engine's MiniMaxSparseKVPool
    page_size    tokens per page of the block tables
    options      of the plan, capacities included

    Raises openmsa.Error or ValueError for shapes that the backend does not serve.
    """

    def __init__(self, pool, page_size: int, options: dict[str, Any]):
        self._pool = pool
        self._options = options | {"page_size": page_size}
        self._plan = cached_plan(**self._options)
        self._scales: dict[float, torch.Tensor] = {}

    def __str__(self) -> str:
        plan = self._plan
        return (
            f"{plan.num_heads_q}/{plan.num_heads_kv} heads, topk {plan.topk}, {plan.dtype} on caches in "
            f"{plan.kv_dtype}, pages of {plan.page_size}, steps of up to {plan.max_total_q} tokens, workspace "
            f"{plan.workspace_bytes('msa_attention') / 2**20:.1f} MiB"
        )

    def __call__(self, q, index_q, layer, step: dict[str, torch.Tensor]) -> torch.Tensor:
        """o [tokens, num_heads_q * head_dim]; rows of no request, padding, are zeros.

        q        [tokens, num_heads_q, head_dim], index_q [tokens, num_heads_kv, index_dim]
        layer    the engine's RadixAttention, whose keys of this step are in the caches
        step     of StepTensors
        """
        self._reserve(len(q), len(step["seqlens_k"]))
        k_cache, v_cache = self._pool.get_kv_buffer(layer.layer_id)
        o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        msa_attention(
            q,
            index_q=index_q,
            k_cache=self._paged(k_cache),
            v_cache=self._paged(v_cache),
            index_k_cache=self._paged(self._pool.get_index_k_buffer(layer.layer_id)).squeeze(2),
            k_scale=self._scale(layer.k_scale_float, q.device),
            v_scale=self._scale(layer.v_scale_float, q.device),
            plan=self._plan,
            o=o,
            **step,
        )
        return o.flatten(1)

    def _reserve(self, num_tokens: int, batch: int) -> None:
        """A larger plan where the engine goes beyond what its configuration says: it costs nothing but workspace."""
        options = self._options
        if num_tokens <= options["max_total_q"] and batch <= options["max_batch"]:
            return
        for name, needed in (("max_total_q", num_tokens), ("max_batch", batch)):
            if needed > options[name]:
                options[name] = 1 << (needed - 1).bit_length()
        self._plan = cached_plan(**options)
        _log.info("openmsa: a step of %d tokens and %d requests, now %s", num_tokens, batch, self)

    def _paged(self, cache: torch.Tensor) -> torch.Tensor:
        """[pages, page_size, heads, dim] of the engine's [slots, heads, dim], or of its [pages, heads, page_size, dim]."""
        if cache.dim() == 4:
            return cache.transpose(1, 2)
        page_size = self._options["page_size"]
        return cache[: len(cache) // page_size * page_size].unflatten(0, (-1, page_size))

    def _scale(self, number: float | None, device) -> torch.Tensor | None:
        """[1]. Made in the first call with it: the engine warms up before it captures a CUDA graph."""
        if number is None or number == 1.0:
            return None
        if number not in self._scales:
            self._scales[number] = torch.full((1,), number, dtype=torch.float32, device=device)
        return self._scales[number]
