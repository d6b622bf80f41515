"""The short way of a call: with a plan and plain tensors of PyTorch, which DLPack's C exchange API shows (PyTorch from 2.10 on).
The library's own checks decide; whatever they or this module cannot take goes the long way, which says what is wrong."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from . import _openmsa
from ._arrays import library_of
from ._layout import SHAPES
from ._plan import Plan
from ._workspace import workspace


class _PyTorch:
    """PyTorch, as far as a call needs it."""

    def __init__(self, torch):
        self.torch, self.types = torch, (torch.Tensor, torch.nn.Parameter)
        self.api = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
        self.library = library_of("tensor", torch.empty(0))


_pytorch = functools.cache(_PyTorch)


def call_with_plan(
    operation: str, reads: dict, writes: dict, wanted: tuple[str, ...], keywords: Mapping[str, Any]
) -> dict[str, Any] | None:
    """As `_call.call`; None, before anything has happened, where the call has to go the long way."""
    plan, module = keywords["plan"], sys.modules.get("torch")
    if module is None or type(plan) is not Plan:
        return None
    pytorch = _pytorch(module)
    anchor: Any = next((tensor for tensor in reads.values() if tensor is not None), None)
    if pytorch.api is None or type(anchor) not in pytorch.types:
        return None
    written = {name: tensor for name, tensor in writes.items() if tensor is not None}
    for name in wanted:
        if name not in written:
            shape = _shape(name, plan, {**reads, **keywords})
            if shape is None:
                return None
            dtype = getattr(pytorch.torch, _result_dtype(name, plan.dtype))
            written[name] = pytorch.torch.empty(shape, dtype=dtype, device=anchor.device)
    views = _openmsa.view_tensors(pytorch.api, pytorch.types, (reads, keywords, written), plan)
    return written if views is not None and _run(operation, plan, pytorch, anchor, views, written) else None


def _run(operation: str, plan: Plan, pytorch: _PyTorch, anchor, views, written: dict) -> bool:
    is_cuda = views.is_cuda
    if is_cuda != plan.runs_on_cuda or (is_cuda and views.device != pytorch.torch.cuda.current_device()):
        return False
    op, num_bytes = plan.operation(operation)
    try:
        with workspace(num_bytes, pytorch.library, anchor, views.stream) as address:
            plan.run_views(op, views, address, num_bytes)
    except (ValueError, TypeError, _openmsa.Error):
        return False
    for tensor in written.values():
        pytorch.library.note_written(tensor)
    return True


@functools.cache
def _result_dtype(name: str, dtype: str) -> str:
    return _openmsa.tensor_dtype(name, dtype)


def _shape(name: str, plan: Plan, reads: dict) -> list[int] | None:
    """Of the result `name`; None where no tensor that is read has one of its extents."""
    sources = _sources(name, tuple(name for name, tensor in reads.items() if tensor is not None))
    if sources is None:
        return None
    return [reads[tensor].shape[at] if tensor else getattr(plan, at) for tensor, at in sources]


@functools.lru_cache(maxsize=256)
def _sources(name: str, read: tuple[str, ...]) -> list[tuple[str, Any]] | None:
    """Of each extent of the result, the tensor and dimension, or the option of the plan, that has it."""
    result: list[tuple[str, Any]] = []
    for extent in SHAPES[name] or ():
        having = [(tensor, SHAPES[tensor] or ()) for tensor in read if extent in (SHAPES.get(tensor) or ())]
        if having:
            tensor, extents = having[0]
            result.append((tensor, extents.index(extent)))
        elif extent in _OF_PLAN:
            result.append(("", extent))
        else:
            return None
    return result


_OF_PLAN = ("topk", "num_heads_q", "num_heads_kv", "head_dim", "index_dim")
