"""openmsa for PyTorch: the functions of the package as operators that torch.compile and torch.export trace through, with
gradients; a module, `MSAAttention`; and a paged cache, `KVCache`.

Names, shapes and keyword arguments are those of the package's functions; `plan` and given results are theirs alone, for
calls outside of a compiled graph.
"""

from __future__ import annotations

import torch

from . import _operators  # noqa: F401  registers torch.ops.openmsa
from ._kv_cache import KVCache
from ._module import MSAAttention

__all__ = [
    "KVCache",
    "MSAAttention",
    "append_kv",
    "block_recall",
    "block_scores",
    "dense_attention",
    "kl_loss",
    "msa_attention",
    "select_blocks",
    "sparse_attention",
    "topk",
]

_ops = torch.ops.openmsa


def block_scores(index_q, index_k=None, **batch):
    """`openmsa.block_scores`."""
    return _ops.block_scores(index_q, index_k, **batch)


def topk(block_scores, seqlens_k, **batch):
    """`openmsa.topk`."""
    return _ops.topk(block_scores, seqlens_k, **batch)


def select_blocks(index_q, index_k=None, **batch):
    """`openmsa.select_blocks`. The selection has no gradient."""
    detached = None if index_k is None else index_k.detach()
    return _ops.select_blocks(index_q.detach(), detached, **batch)


def sparse_attention(q, k=None, v=None, topk_indices=None, *, return_lse=False, **batch):
    """`openmsa.sparse_attention`, with gradients of q, k and v (contiguous keys)."""
    o, lse = _ops.sparse_attention(q, k, v, topk_indices, **batch)
    return (o, lse) if return_lse else o


def dense_attention(q, k=None, v=None, *, return_lse=False, **batch):
    """`openmsa.dense_attention`, with gradients of q, k and v (contiguous keys)."""
    o, lse = _ops.dense_attention(q, k, v, **batch)
    return (o, lse) if return_lse else o


def kl_loss(q, k, lse, index_q, index_k, topk_indices=None, **batch):
    """`openmsa.kl_loss`, a scalar with gradients of index_q and index_k alone: q, k and lse are the teacher."""
    if (
        index_q.dtype == torch.float16 and not index_q.is_cuda
    ):  # gradients of a mean over all queries are below its range
        q, k, index_q, index_k = q.float(), k.float(), index_q.float(), index_k.float()
    return _ops.kl_loss(q.detach(), k.detach(), lse.detach(), index_q, index_k, topk_indices, **batch)[0][0]


def block_recall(q, k, topk_indices, **batch):
    """`openmsa.block_recall`. Has no gradient."""
    return _ops.block_recall(q.detach(), k.detach(), topk_indices, **batch)


def append_kv(k, v, index_k=None, *, k_cache, v_cache, index_k_cache=None, seqlens_k, block_table, **batch):
    """`openmsa.append_kv`, in place."""
    _ops.append_kv(k, v, index_k, k_cache, v_cache, index_k_cache, seqlens_k, block_table, **batch)


def msa_attention(
    q,
    k=None,
    v=None,
    index_q=None,
    index_k=None,
    *,
    warmup: bool = False,
    return_kl: bool = False,
    return_lse: bool = False,
    return_indices: bool = False,
    **batch,
):
    """The whole layer, for training too: o, then whichever of kl_loss, lse and topk_indices are asked for.

        loss = loss_of(o) + weight * kl_loss

    o has gradients of q, k and v, attention restricted to the chosen kv_blocks; the scalar kl_loss has those of index_q
    and index_k, and of nothing else. Detach the hidden state in front of the index projections: the layer cannot.
    warmup: attention over all keys, kl_loss over the whole history; no selection, topk_indices are None.

    >>> import torch, openmsa.torch
    >>> q, k, index_q = (torch.randn(64, 2, 8).requires_grad_() for _ in range(3))
    >>> index_k = torch.randn(64, 8).requires_grad_()
    >>> o, kl_loss = openmsa.torch.msa_attention(q, k, k, index_q, index_k, block_size=8, topk=2, return_kl=True)
    >>> kl_loss.backward()
    >>> q.grad is None, index_k.grad.shape
    (True, torch.Size([64, 8]))
    """
    if not torch.is_grad_enabled() and not return_kl and not warmup:
        o, lse, topk_indices = _ops.msa_attention(q, k, v, index_q, index_k, **batch)
        kl = None
    else:
        indexing = {
            name: value for name, value in batch.items() if name not in ("k_cache", "v_cache", "k_scale", "v_scale")
        }
        attending = {name: value for name, value in batch.items() if name not in ("index_k_cache", "index_k_scale")}
        topk_indices = None if warmup else select_blocks(index_q, index_k, **indexing)
        attend = (_ops.dense_attention, (q, k, v)) if warmup else (_ops.sparse_attention, (q, k, v, topk_indices))
        o, lse = attend[0](*attend[1], **attending)
        kl = kl_loss(q, k, lse, index_q, index_k, topk_indices, **batch) if return_kl else None
    wanted = [o, *[kl] * return_kl, *[lse] * return_lse, *[topk_indices] * return_indices]
    return wanted[0] if len(wanted) == 1 else tuple(wanted)
