"""One call: arguments by name become a plan, the tensors it reads and those it writes."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Mapping
from typing import Any, TypedDict

from . import _openmsa
from ._arrays import library_of
from ._exchange import call_with_plan
from ._layout import SHAPES, extents_of, is_per_block, longest_sequence, new_result, plan_options
from ._plan import DEFAULTS, Plan, cached_plan, check_scale

Array = Any  # anything with DLPack or the buffer protocol


class Options(TypedDict, total=False):
    """Keyword arguments that every function takes."""

    cu_seqlens_q: Array
    block_size: int
    topk: int
    num_init_blocks: int
    num_local_blocks: int
    softmax_scale: float
    max_seqlen_k: int
    num_threads: int
    index_q_rounding: str
    backend: str
    plan: Plan


class Batch(Options, total=False):
    """Those of functions that read keys, in one piece or in pages."""

    cu_seqlens_k: Array
    seqlens_k: Array
    block_table: Array
    k_cache: Array
    v_cache: Array
    index_k_cache: Array
    k_scale: Array
    v_scale: Array
    index_k_scale: Array


class ShardOptions(Options, total=False):
    """Those of functions that serve shards."""

    shard_count: int
    shard_rank: int


class ShardBatch(Batch, ShardOptions, total=False):
    """Those of functions that read the keys of a shard."""


_OPTIONS = (*DEFAULTS, "max_seqlen_k", "num_threads", "index_q_rounding", "backend", "shard_count", "shard_rank")


def call(
    operation: str, reads: dict, writes: dict, wanted: tuple[str, ...], keywords: Mapping[str, Any]
) -> dict[str, Array]:
    """Runs `operation`. Of `writes`, results given by the caller, None stands for absent; those in `wanted` are made
    where absent. Returns what was written, by name."""
    if keywords.get("plan") is not None:
        written = call_with_plan(operation, reads, writes, wanted, keywords)
        if written is not None:
            return written
    reads, options, plan = _split(operation, reads, keywords)
    writes = {name: array for name, array in writes.items() if array is not None}
    device = _device_of(reads | writes)
    anchor_name, anchor = next(iter(reads.items()))
    library = library_of(anchor_name, anchor)
    extents = extents_of(reads | writes)
    dtypes = {name: library_of(name, array).dtype(array) for name, array in (reads | writes).items()}
    _check_dtypes(dtypes)
    if plan is None:
        options.setdefault("backend", device)
        has_block_scales = "index_k_scale" in dtypes and is_per_block(reads | writes)
        plan = cached_plan(**plan_options(operation, dtypes, extents, options, has_block_scales))
    with library.on_device_of(anchor):
        for name in wanted:
            if name not in writes:
                writes[name] = new_result(name, _with_plan(operation, extents, plan), plan.dtype, library, anchor)
        plan.run(operation, reads, writes)
    return writes


def fake_results(operation: str, reads: dict, wanted: tuple[str, ...], keywords: Mapping[str, Any]) -> list[Array]:
    """The results that `call` would make, unwritten; extents may be symbols."""
    reads, options, _ = _split(operation, reads, keywords)
    anchor_name, anchor = next(iter(reads.items()))
    library = library_of(anchor_name, anchor)
    extents = extents_of(reads)
    block_size = options.get("block_size") or DEFAULTS["block_size"]
    extents.setdefault("topk", options.get("topk") or DEFAULTS["topk"])
    extents.setdefault("num_blocks", -(-longest_sequence(operation, extents, options) // block_size))
    return [new_result(name, extents, library.dtype(anchor), library, anchor) for name in wanted]


def _split(operation: str, reads: dict, keywords: Mapping[str, Any]) -> tuple[dict, dict, Plan | None]:
    plan = keywords.get("plan")
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"plan: expected an openmsa.Plan, got {type(plan).__name__}")
    reads, options = dict(reads), {}
    for name, value in keywords.items():
        if name in SHAPES:
            reads[name] = value
        elif name in _OPTIONS:
            options[name] = _checked_option(name, value)
        elif name != "plan":
            raise TypeError(f"{operation}: unexpected argument {name}")
    options = {name: value for name, value in options.items() if value is not None}
    if plan is not None and options:
        raise ValueError(f"{next(iter(options))}: expected none beside a plan, got {next(iter(options.values()))!r}")
    reads = {name: array for name, array in reads.items() if array is not None}
    if not reads:
        raise ValueError(f"{operation}: expected arrays, got none")
    return reads, options, plan


def _checked_option(name: str, value):
    """Numbers of other libraries become Python's, so that equal options meet the same plan."""
    kinds: dict[str, Any] = {"softmax_scale": float, "backend": str, "index_q_rounding": str}
    kind = kinds.get(name, operator.index)
    check_scale(name, value)
    try:
        if value is None or (kind is str and isinstance(value, str)):
            return value
        if kind is not str:
            return kind(value)
    except (TypeError, ValueError):
        pass
    expected = {float: "a number", str: "a name"}.get(kind, "a whole number")
    raise TypeError(f"{name}: expected {expected}, got {value!r}")


_NUMBERS = ("int32", "int64")  # of lengths and places; of candidates
_NO_LAYER = re.compile(r"u?int\d+|bool|complex\d+|longdouble|object|float8_(?!e4m3fn$).*")


def _check_dtypes(dtypes: dict[str, str]) -> None:
    """Those that no call takes, by name: what PyTorch and NumPy make of lengths and sums where nobody says int32, above all.
    Which of the others fits which argument is the library's to say."""
    for name, dtype in dtypes.items():
        expected = _expected_instead(name, dtype)
        if expected is not None:
            raise TypeError(f"{name}: expected dtype {expected}, got {dtype}")


@functools.cache
def _expected_instead(name: str, dtype: str) -> str | None:
    number = _openmsa.tensor_dtype(name, "float32")
    if number in _NUMBERS:
        return None if dtype == number else number
    return "float32, bfloat16, float16, float64 or float8_e4m3fn" if _NO_LAYER.fullmatch(dtype) else None


def _device_of(arrays: dict[str, Array]) -> str:
    """ "cpu" or "cuda"; all arrays lie on one device."""
    places = {name: library_of(name, array).device(array) for name, array in arrays.items()}
    (first, expected), *rest = places.items()
    for name, place in rest:
        if place != expected:
            raise ValueError(
                f"{name}: expected device {expected[0]}:{expected[1]} as of {first}, got {place[0]}:{place[1]}"
            )
    if expected[0] not in ("cpu", "cuda"):
        raise TypeError(f"{first}: expected an array on cpu or cuda, got one on {expected[0]}")
    return expected[0]


def _with_plan(operation: str, extents: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The extents with what only the plan says."""
    known = {"num_heads_q": plan.num_heads_q, "num_heads_kv": plan.num_heads_kv, "topk": plan.topk} | extents
    known |= {"head_dim": plan.head_dim, "index_dim": plan.index_dim}
    if "num_blocks" not in known:
        longest = min(plan.max_seqlen_k, longest_sequence(operation, extents, {}))
        known["num_blocks"] = -(-longest // plan.block_size)
    return known
