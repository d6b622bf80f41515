"""openmsa's functions as registered operators, torch.ops.openmsa.*: each with a fake kernel, so that torch.compile and
torch.export trace through, with autograd where the library has a backward, and with a rule for autocast."""

from __future__ import annotations

import torch

from .._call import call, fake_results
from .._namespace import NAMESPACE
from .._workspace import workspace_per_call
from ._autocast import register_autocast

_BATCH = """Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? seqlens_k=None, Tensor? block_table=None,
    Tensor? k_cache=None, Tensor? v_cache=None, Tensor? index_k_cache=None,
    Tensor? k_scale=None, Tensor? v_scale=None, Tensor? index_k_scale=None"""
SEQUENCES = "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None"
OPTIONS = """int? block_size=None, int? topk=None, int? num_init_blocks=None, int? num_local_blocks=None,
    float? softmax_scale=None, SymInt? max_seqlen_k=None, int? num_threads=None, str? index_q_rounding=None,
    str? backend=None"""
_SHARD = "int? shard_count=None, int? shard_rank=None"
_KEYS = "Tensor q, Tensor? k=None, Tensor? v=None"

OPS = getattr(torch.ops, NAMESPACE)

#: The arguments of each operator by name, as its schema has them, and which of them are tensors.
ARGUMENTS: dict[str, tuple[str, ...]] = {}
TENSORS: dict[str, frozenset[str]] = {}


def _define(operation: str, parameters: str, results: tuple[str, ...]):
    """Registers NAMESPACE::`operation`, whose arguments go to the library by name and whose results it allocates."""
    schema = f"({parameters}, {OPTIONS}) -> ({', '.join('Tensor' for _ in results)})"
    names = arguments_of(operation, schema)
    keyed = lambda args, keywords: dict(zip(names, args)) | keywords  # noqa: E731

    def run(*args, **keywords):
        arguments = keyed(args, keywords)
        for name in ("d_o", "d_lse"):
            if arguments.get(name) is not None:
                arguments[name] = _aligned(arguments[name])
        with workspace_per_call():
            written = call(operation, {}, {}, results, arguments)
        return _unpacked([written[name] for name in results])

    def fake(*args, **keywords):
        return _unpacked(fake_results(operation, {}, results, keyed(args, keywords)))

    operator = torch.library.custom_op(f"{NAMESPACE}::{operation}", run, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    register_autocast(operation, names)
    return operator, names


def arguments_of(operation: str, schema: str) -> tuple[str, ...]:
    parsed = torch._C.parse_schema(f"{operation}{schema}")
    ARGUMENTS[operation] = tuple(argument.name for argument in parsed.arguments)
    TENSORS[operation] = frozenset(argument.name for argument in parsed.arguments if "Tensor" in str(argument.type))
    return ARGUMENTS[operation]


def _aligned(gradient):
    """A gradient as kernels read it: autograd hands over views that no caller has chosen, such as an expanded scalar or a
    slice of what is added up at an odd offset."""
    gradient = gradient.contiguous()
    return gradient.clone() if gradient.is_cuda and gradient.data_ptr() % 16 else gradient


def _unpacked(results: list):
    return results[0] if len(results) == 1 else tuple(results)


def _register_gradient(defined, saved: tuple[str, ...], results: tuple[str, ...], num_differentiable: int, gradients):
    """Autograd of an operator that _define returned: `gradients(tensors, keywords, *d_results)` maps the names of inputs to
    their gradients, given those of the first `num_differentiable` results, None for one that no loss used."""
    operator, names = defined

    def setup_context(ctx, inputs, output):
        arguments = dict(zip(names, inputs)) | dict(zip(results, output))
        ctx.save_for_backward(*(arguments[name] for name in saved))
        tensors = {name for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        ctx.keywords = {name: value for name, value in arguments.items() if name not in tensors and value is not None}
        ctx.mark_non_differentiable(*output[num_differentiable:])
        ctx.set_materialize_grads(False)

    def backward(ctx, *d_results):
        d_results = d_results[:num_differentiable]
        if all(gradient is None for gradient in d_results):
            return (None,) * len(names)
        tensors = dict(zip(saved, ctx.saved_tensors))
        found = gradients(tensors, ctx.keywords, *d_results)
        return tuple(found.get(name) for name in names)

    operator.register_autograd(backward, setup_context=setup_context)


def _attention_gradients(backward_name: str):
    run_backward = getattr(OPS, backward_name)

    def gradients(tensors, keywords, d_o, d_lse):
        if tensors["k"] is None:
            raise ValueError("k: expected contiguous keys for a gradient, got a cache")
        keywords = {name: value for name, value in keywords.items() if name not in ("shard_count", "shard_rank")}
        if d_o is None:
            d_o = torch.zeros_like(tensors["o"])
        return dict(zip("qkv", run_backward(d_o, **tensors, d_lse=d_lse, **keywords)))

    return gradients


def kl_gradients(tensors, keywords, d_kl_loss):
    """The product is taken in fp32: a loss scale of 65536 is infinite in fp16."""
    found = {name: tensors[f"d_{name}"] for name in ("index_q", "index_k")}
    found = {name: (d_kl_loss * d.to(d_kl_loss.dtype)).to(d.dtype) for name, d in found.items()}
    if not torch.is_grad_enabled():
        return found
    # Backward with create_graph=True: whoever differentiates again hears that there is no second derivative.
    refuse = torch._C._functions.DelayedError(b"openmsa: kl_loss has no second derivative", len(found))
    return dict(zip(found, refuse(*(gradient.detach().requires_grad_() for gradient in found.values()))))


_define("block_scores", f"Tensor index_q, Tensor? index_k=None, {_BATCH}", ("block_scores",))
_define("topk", "Tensor block_scores, Tensor seqlens_k, Tensor? cu_seqlens_q=None", ("topk_indices",))
_define("select_blocks", f"Tensor index_q, Tensor? index_k=None, {_BATCH}", ("topk_indices",))
_define("select_candidates", f"Tensor index_q, Tensor? index_k=None, {_BATCH}, {_SHARD}", ("candidates",))
_define(
    "merge_candidates",
    f"Tensor all_candidates, Tensor seqlens_k, Tensor? cu_seqlens_q=None, {_SHARD}",
    ("topk_indices",),
)
_define("merge_partials", f"Tensor partial_o, Tensor partial_lse, Tensor? cu_seqlens_q=None, {_SHARD}", ("o", "lse"))
_define("block_recall", f"Tensor q, Tensor k, Tensor topk_indices, {SEQUENCES}", ("block_recall", "score_recall"))
_define(
    "msa_attention",
    f"{_KEYS}, Tensor? index_q=None, Tensor? index_k=None, {_BATCH}",
    ("o", "lse", "topk_indices"),
)
_SAVED = ("q", "k", "v", "o", "lse", "cu_seqlens_q", "cu_seqlens_k")
for _kind, _indices in (("sparse", "topk_indices"), ("dense", None)):
    _argument, _shard = (f", Tensor? {_indices}=None", f", {_SHARD}") if _indices else ("", "")
    _required = f"Tensor q, Tensor k, Tensor v{', Tensor topk_indices' if _indices else ''}, Tensor o, Tensor lse"
    _optional = f"Tensor? d_lse=None, {SEQUENCES}"
    _define(f"{_kind}_attention_backward", f"Tensor d_o, {_required}, {_optional}", ("d_q", "d_k", "d_v"))
    _register_gradient(
        _define(f"{_kind}_attention", f"{_KEYS}{_argument}, {_BATCH}{_shard}", ("o", "lse")),
        saved=_SAVED + ((_indices,) if _indices else ()),
        results=("o", "lse"),
        num_differentiable=2,
        gradients=_attention_gradients(f"{_kind}_attention_backward"),
    )
_register_gradient(
    _define(
        "kl_loss",
        f"""Tensor q, Tensor k, Tensor lse, Tensor index_q, Tensor index_k, Tensor? topk_indices=None,
        Tensor? kl_weights=None, {SEQUENCES}""",
        ("kl_loss", "d_index_q", "d_index_k"),
    ),
    saved=("d_index_q", "d_index_k"),
    results=("kl_loss", "d_index_q", "d_index_k"),
    num_differentiable=1,
    gradients=kl_gradients,
)
_define(
    "msa_attention_backward",
    f"""Tensor d_o, Tensor q, Tensor k, Tensor v, Tensor index_q, Tensor index_k, Tensor topk_indices, Tensor o,
    Tensor lse, Tensor? d_lse=None, Tensor? kl_weights=None, {SEQUENCES}""",
    ("d_q", "d_k", "d_v", "kl_loss", "d_index_q", "d_index_k"),
)


def _append_kv(k, v, index_k, k_cache, v_cache, index_k_cache, seqlens_k, block_table, *rest):
    from .. import append_kv

    names = ("cu_seqlens_q", "k_scale", "v_scale", "index_k_scale", "block_size", "num_threads", "backend")
    names += ("shard_count", "shard_rank")
    caches = {"k_cache": k_cache, "v_cache": v_cache, "index_k_cache": index_k_cache}
    with workspace_per_call():
        append_kv(k, v, index_k, **caches, seqlens_k=seqlens_k, block_table=block_table, **dict(zip(names, rest)))


_APPEND_KV = """(Tensor? k, Tensor? v, Tensor? index_k, Tensor(a!)? k_cache, Tensor(b!)? v_cache, Tensor(c!)? index_k_cache,
    Tensor seqlens_k, Tensor block_table, Tensor? cu_seqlens_q=None, Tensor(d!)? k_scale=None,
    Tensor(e!)? v_scale=None, Tensor(f!)? index_k_scale=None, int? block_size=None, int? num_threads=None,
    str? backend=None, int? shard_count=None, int? shard_rank=None) -> ()"""
torch.library.custom_op(
    f"{NAMESPACE}::append_kv",
    _append_kv,
    mutates_args=("k_cache", "v_cache", "index_k_cache", "k_scale", "v_scale", "index_k_scale"),
    schema=_APPEND_KV,
).register_fake(lambda *args, **keywords: None)
register_autocast("append_kv", arguments_of("append_kv", _APPEND_KV))
