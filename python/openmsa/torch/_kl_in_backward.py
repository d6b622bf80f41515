"""The sparse layer of a training step as one operator: forward attends, and backward computes attention's gradient, the KL
loss and its gradients in one call, which share the probabilities."""

from __future__ import annotations

import torch

from .._namespace import NAMESPACE
from ._autocast import register_autocast
from ._operators import ARGUMENTS, OPS, OPTIONS, SEQUENCES, arguments_of, kl_gradients

_NAME = "sparse_attention_with_kl"
_SCHEMA = f"""(Tensor q, Tensor k, Tensor v, Tensor index_q, Tensor index_k, Tensor topk_indices, Tensor kl_out,
    Tensor? kl_weights=None, Tensor? kl_divisor=None, {SEQUENCES}, {OPTIONS}) -> (Tensor, Tensor, Tensor)"""
_NAMES = arguments_of(_NAME, _SCHEMA)
_SEQUENCES = ("cu_seqlens_q", "cu_seqlens_k")
_MAIN = ("q", "k", "v", "topk_indices", "o", "lse", *_SEQUENCES)
_INDEX = ("q", "k", "lse", "index_q", "index_k", "topk_indices", "kl_weights", *_SEQUENCES)
_SAVED = tuple(dict.fromkeys(_MAIN + _INDEX)) + ("kl_divisor",)


def zero_like_kl(q: torch.Tensor) -> torch.Tensor:
    """A 0 in the dtype of a layer's KL loss."""
    return q.new_zeros((), dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)


def _forward(*args, **keywords):
    """o and lse of sparse_attention; and a 0 that stands for the KL loss, whose gradient is that of the KL loss."""
    arguments = dict(zip(_NAMES, args)) | keywords
    attending = {name: value for name, value in arguments.items() if name in ARGUMENTS["sparse_attention"]}
    o, lse = OPS.sparse_attention(**attending)
    return o, lse, zero_like_kl(arguments["q"])


def _setup_context(ctx, inputs, output):
    arguments = dict(zip(_NAMES, inputs)) | dict(zip(("o", "lse"), output))
    ctx.save_for_backward(*(arguments[name] for name in _SAVED))
    # Not saved: who writes it in between, another micro-batch or layer, changes nothing here.
    ctx.kl_out = arguments["kl_out"]
    options = {name: arguments[name] for name in _NAMES if name not in (*_SAVED, "kl_out")}
    ctx.options = {name: value for name, value in options.items() if value is not None}
    ctx.set_materialize_grads(False)


def _backward(ctx, d_o, d_lse, d_kl):
    """What the loss used of o, lse and kl decides what is computed."""
    tensors = dict(zip(_SAVED, ctx.saved_tensors))
    main, index = ({name: tensors[name] for name in names} for names in (_MAIN, _INDEX))
    is_attention_used = not (d_o is None and d_lse is None)
    found: dict[str, torch.Tensor] = {}
    if is_attention_used:
        main["d_o"] = torch.zeros_like(tensors["o"]) if d_o is None else d_o
        main["d_lse"] = d_lse
    if is_attention_used and d_kl is not None:
        results = OPS.msa_attention_backward(**main | index, **ctx.options)
        found, of_kl = dict(zip("qkv", results)), results[3:]
    elif is_attention_used:
        found = dict(zip("qkv", OPS.sparse_attention_backward(**main, **ctx.options)))
    elif d_kl is not None:
        of_kl = OPS.kl_loss(**index, **ctx.options)
    if d_kl is not None:
        kl_loss, d_index_q, d_index_k = of_kl
        divisor = 1 if tensors["kl_divisor"] is None else tensors["kl_divisor"]
        ctx.kl_out.copy_(kl_loss.detach()[0] / divisor)
        found |= kl_gradients({"d_index_q": d_index_q, "d_index_k": d_index_k}, {}, d_kl / divisor)
    return tuple(found.get(name) for name in _NAMES)


_operator = torch.library.custom_op(f"{NAMESPACE}::{_NAME}", _forward, mutates_args=(), schema=_SCHEMA)
_operator.register_fake(_forward)
_operator.register_autograd(_backward, setup_context=_setup_context)
register_autocast(_NAME, _NAMES)
