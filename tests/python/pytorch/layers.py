"""Layers as PyTorch tensors, and dense masked attention in plain PyTorch to compare with."""

import torch
from support import paged, random_layer

OPTIONS = {"block_size": 64, "topk": 3}


def torch_layer(seqlens_q, seqlens_k, *, device="cpu", dtype=torch.float32, pages=None, **shape):
    arrays = random_layer(seqlens_q, seqlens_k, **shape)
    if pages:
        arrays = paged(arrays, pages)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def masked_attention(q, k, v, mask):
    """o [total_q, heads_q, dim] and probabilities [heads_q, total_q, total_k]; mask [heads_kv, total_q, total_k]."""
    group = q.shape[1] // k.shape[1]
    k, v, mask = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), mask.repeat_interleave(group, 0)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    p = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", p, v), p


def mask_of(topk_indices, total_k, block_size):
    """Which keys each query may see, causality included: [heads_kv, total_q, total_k] for one sequence."""
    heads, total_q, _ = topk_indices.shape
    blocks = torch.zeros(heads, total_q, -(-total_k // block_size) + 1, dtype=torch.bool, device=topk_indices.device)
    blocks.scatter_(2, topk_indices.long() % blocks.shape[2], True)  # -1 falls into the last column
    chosen = blocks[..., :-1].repeat_interleave(block_size, 2)[..., :total_k]
    positions = torch.arange(total_q, device=chosen.device) + total_k - total_q
    return chosen & (torch.arange(total_k, device=chosen.device) <= positions[:, None])
