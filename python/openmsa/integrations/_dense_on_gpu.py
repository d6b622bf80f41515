"""PyTorch's attention in the place of the dense one that the CUDA backend lacks."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from ._masks import is_traced
from ._rows import Row


def dense_row_on_gpu(q, k, v, row: Row, scale):
    """q [total_q, heads, dim], k and v [total_k, kv_heads, dim]. A prompt, and each document of a packed one, needs no mask,
    so that flash attention takes it; otherwise queries lie behind a prefix, in a cache that may be longer than the row."""
    bounds = row.cu_seqlens_k
    if row.cu_seqlens_q is None and len(q) == len(k):
        return _attention(q, k, v, scale, is_causal=True)
    bounds_q = torch.stack((torch.zeros_like(bounds[-1]), torch.full_like(bounds[-1], len(q))))
    bounds_q = bounds_q if row.cu_seqlens_q is None else row.cu_seqlens_q
    if len(q) == len(k) and not is_traced(bounds):
        return _documents(q, k, v, bounds.tolist(), bounds_q.tolist(), scale)
    places = bounds[-1] - bounds_q[-1] + torch.arange(len(q), device=q.device, dtype=torch.int32)
    begins = bounds[torch.searchsorted(bounds, places, right=True).clamp(max=len(bounds) - 1) - 1]
    keys = torch.arange(len(k), device=q.device)
    return _attention(q, k, v, scale, attn_mask=(keys <= places[:, None]) & (keys >= begins[:, None]))


def _documents(q, k, v, bounds: list[int], bounds_q: list[int], scale):
    """Each for itself, where every document has as many queries as keys."""
    results = [
        _attention(q[first:last], k[begin:end], v[begin:end], scale, is_causal=True)
        for begin, end, first, last in zip(bounds, bounds[1:], bounds_q, bounds_q[1:])
    ]
    return torch.cat([*results, q.new_zeros(len(q) - bounds_q[-1], *q.shape[1:])])


def _attention(q, k, v, scale, **options):
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True, **options)[0].transpose(0, 1)
