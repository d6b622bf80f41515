"""flash-attn 2 and 3."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from .._judge import judge_contiguous
from .._problem import Problem
from .._section import Contender, Prepared, Result
from .pytorch import with_backward


def attention(module: str) -> Callable[[Problem], Prepared]:
    def prepare(problem):
        library = importlib.import_module(module)
        keys = [problem.contiguous(call) for call in range(problem.calls)]
        q = problem.q.unflatten(1, (problem.batch, -1))
        lengths = problem.source.full((problem.batch,), problem.max_seqlen_k, "int32")

        def run(call: int) -> Result:
            if problem.is_paged:
                o = library.flash_attn_with_kvcache(q[call], *keys[call], cache_seqlens=lengths, causal=True)
            else:
                o = library.flash_attn_func(q[call], *keys[call], causal=True)
            return Result(_first(o).flatten(0, 1))

        return Prepared(run)

    return prepare


def training(module: str) -> Callable[[Problem], Prepared]:
    def prepare(problem):
        library = importlib.import_module(module)

        def attend(q, k, v):
            return _first(library.flash_attn_func(q, k, v, causal=True))

        layer = (problem.q, problem.k[None], problem.v[None])
        return Prepared(with_backward(attend, layer, lambda x: x[0]))

    return prepare


def _first(result):
    return result[0] if isinstance(result, tuple) else result


MODULES = {"flash-attn 3": "flash_attn_interface", "flash-attn 2": "flash_attn"}
ATTENTION = tuple(
    Contender(name, "dense", attention(module), judge_contiguous, ("cuda",)) for name, module in MODULES.items()
)
