"""Shapes of a call: extents read off its arrays, the plan's configuration that follows, and new results."""

from __future__ import annotations

from typing import Any

from . import _openmsa
from ._plan import DEFAULTS

#: Shapes of the arrays by name, in the words of openmsa.h; None: [1] or per token of the keys.
SHAPES = {name: None if "key_tokens" in extents else extents for name, extents in _openmsa.tensor_extents().items()}
_FP8 = "float8_e4m3fn"
_BOUND_TOTAL_K = ("sparse_attention_backward", "dense_attention_backward", "kl_loss", "msa_attention_backward")


def extents_of(arrays: dict[str, Any]) -> dict[str, Any]:
    """What the arrays say of every extent; the first to name one wins, and the library finds who contradicts it."""
    extents: dict[str, Any] = {"1": 1}
    for name, array in arrays.items():
        names = SHAPES[name]
        if names is None:
            continue
        if len(array.shape) != len(names):
            raise ValueError(f"{name}: expected shape [{', '.join(names)}], got {list(array.shape)}")
        for extent, size in zip(names, array.shape):
            extents.setdefault(extent, size)
    if "batch + 1" in extents:
        extents.setdefault("batch", extents["batch + 1"] - 1)
    return extents


def longest_sequence(operation: str, extents: dict[str, Any], options: dict[str, Any]):
    """The most keys that a sequence of the call can have."""
    if options.get("max_seqlen_k") is not None:
        return options["max_seqlen_k"]
    if operation == "topk":
        return extents["num_blocks"] * (options.get("block_size") or DEFAULTS["block_size"])
    if operation in ("merge_candidates", "merge_partials"):  # read no keys, and no workspace depends on their number
        return 2**31 - 1
    if "max_pages" in extents and "page_size" in extents:
        return extents["max_pages"] * extents["page_size"] * (options.get("shard_count") or 1)
    return extents.get("total_k", 1)


def is_per_block(arrays: dict[str, Any]) -> bool:
    """Whether index_k_scale has a number per page, of which kv_blocks have that of their first one. Where a page is a token,
    that is a scale per token."""
    cache = arrays.get("index_k_cache")
    if cache is None or cache.shape[0] == 1 or cache.shape[1] == 1:
        return False
    return tuple(arrays["index_k_scale"].shape) == (cache.shape[0],)


def plan_options(
    operation: str, dtypes: dict[str, str], extents: dict[str, Any], options: dict[str, Any], has_block_scales: bool
) -> dict:
    """Arguments of the Plan that a call without one gets. Capacities that grow from call to call are rounded up, so that
    a decode loop meets the same plan again."""
    names = (*DEFAULTS, "num_threads", "index_q_rounding", "backend", "shard_count", "shard_rank")
    config = {name: value for name in names if (value := options.get(name)) is not None}
    for name in ("topk", "shard_count"):
        if name in extents:
            config.setdefault(name, extents[name])
    queries_and_keys = (dtypes.get(name, _FP8) for name in ("q", "index_q", "k", "index_k"))
    dtype = next((dtype for dtype in queries_and_keys if dtype != _FP8), None)
    if dtype is None:  # merge_partials: results in fp32 say nothing
        dtype = next((dtypes[name] for name in ("o", "partial_o") if dtypes.get(name, "float32") != "float32"), None)
    if dtype is None:  # topk, whose scores are fp32 whatever the layer's dtype; index queries that come in fp8
        dtype = "bfloat16" if config["backend"] == "cuda" else "float32"
    num_heads_kv = extents.get("num_heads_kv", extents.get("num_heads_q", 1))
    head_dim = extents.get("head_dim", extents.get("index_dim", 64))
    has_fp8_index = _FP8 in (dtypes.get("index_k_cache"), dtypes.get("index_k"))
    is_exact = options.get("max_seqlen_k") is not None
    max_seqlen_k = max(longest_sequence(operation, extents, options), 1)
    return config | {
        "dtype": dtype,
        "num_heads_q": extents.get("num_heads_q", num_heads_kv),
        "num_heads_kv": num_heads_kv,
        "head_dim": head_dim,
        "index_dim": extents.get("index_dim", head_dim),
        "page_size": extents.get("page_size", 0),
        "max_batch": capacity(extents.get("batch", 1)),
        "max_total_q": capacity(extents.get("total_k" if operation == "append_kv" else "total_q", 1)),
        "max_seqlen_k": max_seqlen_k if is_exact else min(1 << (max_seqlen_k - 1).bit_length(), 2**31 - 1),
        "max_total_k": capacity(extents.get("total_k", 1)) if operation in _BOUND_TOTAL_K else 0,
        "kv_dtype": _FP8 if dtypes.get("k_cache") == _FP8 else None,
        "index_dtype": _FP8 if has_fp8_index else None,
        "index_scale_per_block": has_fp8_index and has_block_scales,
    }


def capacity(extent: int) -> int:
    """The next of eight steps to each power of two, so that prompts of any length share a few plans, none of which needs an
    eighth more workspace than its largest prompt."""
    step = 1 << max(max(extent, 1).bit_length() - 4, 0)
    return min(-(-max(extent, 1) // step) * step, 2**31 - 1)


def new_result(name: str, extents: dict[str, Any], dtype: str, library, like):
    """An array for the result `name` of a layer in `dtype`."""
    names = SHAPES[name]
    assert names is not None, f"{name} is no result"
    return library.empty(tuple(extents[extent] for extent in names), _openmsa.tensor_dtype(name, dtype), like)
