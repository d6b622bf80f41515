"""openmsa for PyTorch: the functions of the package as operators that torch.compile and torch.export trace through, with
gradients; a module, `MSAAttention`; and a paged cache, `KVCache`.

Names, shapes and keyword arguments are those of the package's functions; `plan` and given results are theirs alone, for
calls outside of a compiled graph. Under torch.autocast the operators take its dtype, as PyTorch's own attention does.
"""

from __future__ import annotations

import torch

from .._options import documented
from . import _kl_in_backward
from ._kv_cache import KVCache
from ._module import MSAAttention
from ._operators import ARGUMENTS, OPS, TENSORS

__all__ = [
    "KVCache",
    "MSAAttention",
    "append_kv",
    "block_recall",
    "block_scores",
    "dense_attention",
    "kl_loss",
    "merge_candidates",
    "merge_partials",
    "msa_attention",
    "select_blocks",
    "select_candidates",
    "sparse_attention",
    "topk",
]


def _options(operation: str):
    """Shows the operator's keyword arguments in a function's signature and docstring."""
    return documented(*ARGUMENTS[operation])


def _check(operation: str, **arguments) -> None:
    """Refuses by name what the operator would answer with its whole schema."""
    for name, value in arguments.items():
        if name not in ARGUMENTS[operation]:
            hint = ""
            if name in ("plan", "o", "lse", "topk_indices", "block_scores"):
                hint = f"; operators plan and allocate for themselves, openmsa.{operation} takes it"
            raise TypeError(f"{operation}: unexpected argument {name}{hint}")
        if name in TENSORS[operation] and value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


@_options("block_scores")
def block_scores(index_q, index_k=None, **batch):
    """`openmsa.block_scores`."""
    _check("block_scores", index_q=index_q, index_k=index_k, **batch)
    return OPS.block_scores(index_q, index_k, **batch)


@_options("topk")
def topk(block_scores, seqlens_k, **batch):
    """`openmsa.topk`."""
    _check("topk", block_scores=block_scores, seqlens_k=seqlens_k, **batch)
    return OPS.topk(block_scores, seqlens_k, **batch)


@_options("select_blocks")
def select_blocks(index_q, index_k=None, **batch):
    """`openmsa.select_blocks`. The selection has no gradient."""
    _check("select_blocks", index_q=index_q, index_k=index_k, **batch)
    detached = None if index_k is None else index_k.detach()
    return OPS.select_blocks(index_q.detach(), detached, **batch)


@_options("sparse_attention")
def sparse_attention(q, k=None, v=None, topk_indices=None, *, return_lse=False, **batch):
    """`openmsa.sparse_attention`, with gradients of q, k and v (contiguous keys), through o and through lse."""
    _check("sparse_attention", q=q, k=k, v=v, topk_indices=topk_indices, **batch)
    o, lse = OPS.sparse_attention(q, k, v, topk_indices, **batch)
    return (o, lse) if return_lse else o


@_options("dense_attention")
def dense_attention(q, k=None, v=None, *, return_lse=False, **batch):
    """`openmsa.dense_attention`, with gradients of q, k and v (contiguous keys), through o and through lse."""
    _check("dense_attention", q=q, k=k, v=v, **batch)
    o, lse = OPS.dense_attention(q, k, v, **batch)
    return (o, lse) if return_lse else o


@_options("kl_loss")
def kl_loss(q, k, lse, index_q, index_k, topk_indices=None, *, kl_weights=None, reduction="mean", **batch):
    """`openmsa.kl_loss`, a scalar with gradients of index_q and index_k alone: q, k and lse are the teacher.

    kl_weights    [total_q] how much each query counts, of any dtype: a mask of the tokens that are no padding, for example.
                  Queries of weight 0 give exactly nothing, even where they are NaN. None: all count alike
    reduction     "mean" over queries and KV heads, weighted: the sum over the sum of the weights times KV heads; or "sum",
                  for batches of unequal size: add up the sums of all micro-batches or ranks and divide by all their weights
                  (queries, without weights) times KV heads
    """
    arguments = {"q": q, "k": k, "lse": lse, "index_q": index_q, "index_k": index_k, "topk_indices": topk_indices}
    _check("kl_loss", **arguments, kl_weights=kl_weights, **batch)
    for name, tensor in arguments.items():
        if tensor is None and name != "topk_indices":
            got = "a cache" if name in ("k", "index_k") else "None"
            raise ValueError(f"{name}: expected contiguous keys and queries for kl_loss, got {got}")
    kl_weights, divisor = _kl_weights(kl_weights, index_q, batch.get("cu_seqlens_q"), reduction)
    teacher = (q.detach(), k.detach(), lse.detach())
    loss = OPS.kl_loss(*teacher, index_q, index_k, topk_indices, kl_weights, **batch)[0][0]
    return loss if divisor is None else loss / divisor


def _kl_weights(weights, index_q, cu_seqlens_q, reduction: str):
    """The weights of the sum that the operator computes, and what it is divided by; None where nothing is. The gradients of
    a mean over N queries have no place in fp16's range, those of a sum over them may exceed it: 1 / sqrt(N) lies between."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected mean or sum, got {reduction}")
    is_half = _dtype_of(index_q) == torch.float16
    if weights is None and reduction == "mean" and not is_half:
        return None, None
    dtype = torch.float64 if index_q.dtype == torch.float64 else torch.float32
    if weights is None:
        weights = index_q.new_ones(index_q.shape[:1], dtype=dtype)
    if weights.shape != index_q.shape[:1]:
        raise ValueError(f"kl_weights: expected shape [total_q = {index_q.shape[0]}], got {list(weights.shape)}")
    weights = weights.detach().to(dtype)
    scale = index_q.shape[0] ** -0.5 if is_half and index_q.shape[0] else 1.0
    divisor = scale
    if reduction == "mean":
        if cu_seqlens_q is not None:  # rows of no sequence have no weight
            weights = weights.where(torch.arange(len(weights), device=weights.device) < cu_seqlens_q[-1], 0)
        total = weights.sum() * index_q.shape[1]
        divisor = scale * total.where(total != 0, 1)
    return weights * scale, divisor


def _dtype_of(tensor) -> torch.dtype:
    """In which an operator takes a layer's tensor."""
    device = tensor.device.type
    is_cast = torch.is_autocast_enabled(device) and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast else tensor.dtype


@_options("block_recall")
def block_recall(q, k, topk_indices, **batch):
    """`openmsa.block_recall`. Has no gradient."""
    _check("block_recall", q=q, k=k, topk_indices=topk_indices, **batch)
    return OPS.block_recall(q.detach(), k.detach(), topk_indices, **batch)


@_options("select_candidates")
def select_candidates(index_q, index_k=None, **batch):
    """`openmsa.select_candidates`. Has no gradient."""
    _check("select_candidates", index_q=index_q, index_k=index_k, **batch)
    detached = None if index_k is None else index_k.detach()
    return OPS.select_candidates(index_q.detach(), detached, **batch)


@_options("merge_candidates")
def merge_candidates(all_candidates, seqlens_k, **batch):
    """`openmsa.merge_candidates`."""
    _check("merge_candidates", all_candidates=all_candidates, seqlens_k=seqlens_k, **batch)
    return OPS.merge_candidates(all_candidates, seqlens_k, **batch)


@_options("merge_partials")
def merge_partials(partial_o, partial_lse, *, return_lse=False, **batch):
    """`openmsa.merge_partials`. Has no gradient."""
    _check("merge_partials", partial_o=partial_o, partial_lse=partial_lse, **batch)
    o, lse = OPS.merge_partials(partial_o.detach(), partial_lse.detach(), **batch)
    return (o, lse) if return_lse else o


@_options("append_kv")
def append_kv(
    k=None, v=None, index_k=None, *, k_cache=None, v_cache=None, index_k_cache=None, seqlens_k, block_table, **batch
):
    """`openmsa.append_kv`, in place."""
    given = {"k": k, "v": v, "index_k": index_k, "k_cache": k_cache, "v_cache": v_cache, "index_k_cache": index_k_cache}
    _check("append_kv", **given, seqlens_k=seqlens_k, block_table=block_table, **batch)
    OPS.append_kv(k, v, index_k, k_cache, v_cache, index_k_cache, seqlens_k, block_table, **batch)


@_options("msa_attention")
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
    kl_reduction: str = "mean",
    kl_weights=None,
    kl_out=None,
    **batch,
):
    """The whole layer, for training too: o, then whichever of kl_loss, lse and topk_indices are asked for.

        loss = loss_of(o) + weight * kl_loss

    o and lse have gradients of q, k and v, attention restricted to the chosen kv_blocks; the scalar kl_loss has those of
    index_q and index_k, and of nothing else. Detach the hidden state in front of the index projections: the layer cannot.
    warmup: attention over all keys, kl_loss over the whole history; no selection, topk_indices are None.
    kl_reduction: "mean" or "sum", and kl_weights: [total_q], as `kl_loss` takes them.
    kl_out: a float32 tensor of shape [] for training steps that compute the KL loss in backward, with attention's gradient,
    where it costs a GPU little. The returned kl_loss is then 0 and has the gradient; the loss above stays as it is. Each
    backward that reaches it writes the value into kl_out (with warmup forward does). Without gradients, as under
    torch.no_grad, kl_loss is 0 and kl_out stays as it is.
    Derivatives are those of backward, once: torch.func.grad, forward mode and second derivatives are not there.

    >>> import torch, openmsa.torch
    >>> q, k, index_q = (torch.randn(64, 2, 8).requires_grad_() for _ in range(3))
    >>> index_k = torch.randn(64, 8).requires_grad_()
    >>> o, kl_loss = openmsa.torch.msa_attention(q, k, k, index_q, index_k, block_size=8, topk=2, return_kl=True)
    >>> kl_loss.backward()
    >>> q.grad is None, index_k.grad.shape
    (True, torch.Size([64, 8]))
    >>> layer, kl_out = (q, k, k, index_q, index_k), torch.zeros(())
    >>> _, in_backward = openmsa.torch.msa_attention(*layer, block_size=8, topk=2, return_kl=True, kl_out=kl_out)
    >>> in_backward.backward()
    >>> in_backward.item(), torch.equal(kl_out, kl_loss)
    (0.0, True)
    """
    _check("msa_attention", q=q, k=k, v=v, index_q=index_q, index_k=index_k, **batch)
    is_in_backward = kl_out is not None
    if is_in_backward:
        _check_kl_out(kl_out, q, return_kl)
    computes_kl = return_kl and (torch.is_grad_enabled() or not is_in_backward)
    kl = _kl_in_backward.zero_like_kl(q) if return_kl and not computes_kl else None
    if not torch.is_grad_enabled() and not computes_kl and not warmup:
        o, lse, topk_indices = OPS.msa_attention(q, k, v, index_q, index_k, **batch)
    else:
        indexing = {
            name: value for name, value in batch.items() if name not in ("k_cache", "v_cache", "k_scale", "v_scale")
        }
        index_alone = ("index_k_cache", "index_k_scale", "index_q_rounding")
        attending = {name: value for name, value in batch.items() if name not in index_alone}
        if return_kl and k is None:
            raise ValueError("k: expected contiguous keys for kl_loss, got a cache")
        topk_indices = None if warmup else select_blocks(index_q, index_k, **indexing)
        index = (index_q, index_k, topk_indices)
        how = {"kl_weights": kl_weights, "reduction": kl_reduction}
        if computes_kl and is_in_backward and not warmup:
            o, lse, kl = _with_kl_in_backward(kl_out, (q, k, v, *index), **how, **batch)
        else:
            attend = (OPS.dense_attention, (q, k, v)) if warmup else (OPS.sparse_attention, (q, k, v, topk_indices))
            o, lse = attend[0](*attend[1], **attending)
            if computes_kl:
                kl = kl_loss(q, k, lse, *index, **how, **batch)
                kl = _moved_to(kl_out, kl) if is_in_backward else kl
    wanted = [o, *[kl] * return_kl, *[lse] * return_lse, *[topk_indices] * return_indices]
    return wanted[0] if len(wanted) == 1 else tuple(wanted)


def _with_kl_in_backward(kl_out, layer: tuple, kl_weights, reduction: str, **batch):
    """o, lse and the KL loss, a 0 whose value backward writes into kl_out. layer: q, k, v, index_q, index_k, topk_indices"""
    _check("sparse_attention_with_kl", kl_weights=kl_weights, **batch)
    q, k, v, index_q, *_ = layer
    kl_weights, divisor = _kl_weights(kl_weights, index_q, batch.get("cu_seqlens_q"), reduction)
    if divisor is not None and not isinstance(divisor, torch.Tensor):
        divisor = kl_weights.new_full((), divisor)
    o, lse, kl = OPS.sparse_attention_with_kl(*layer, kl_out, kl_weights, divisor, **batch)
    if not any(tensor.requires_grad for tensor in (q, k, v)):  # the index branch learns alone
        o, lse = o.detach(), lse.detach()
    return o, lse, kl


def _moved_to(kl_out, kl):
    """0 with the gradient of kl, whose value goes to kl_out."""
    kl_out.copy_(kl.detach())
    return kl - kl.detach()


def _check_kl_out(kl_out, q, return_kl: bool) -> None:
    if not isinstance(kl_out, torch.Tensor):
        raise TypeError(f"kl_out: expected a torch.Tensor, got {type(kl_out).__name__}")
    if kl_out.dtype != torch.float32 or kl_out.shape != () or kl_out.device != q.device:
        got = f"{kl_out.dtype} {list(kl_out.shape)} on {kl_out.device}"
        raise ValueError(f"kl_out: expected torch.float32 of shape [] on {q.device} like q, got {got}")
    if kl_out.requires_grad:
        raise ValueError("kl_out: expected a tensor that needs no gradient, got one that does")
    if not return_kl:
        raise ValueError("kl_out: expected return_kl=True beside it, got False")
