"""flash-attn 2 and 3, and the FlashAttention-3 that comes with vLLM."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from .._errors import Refused
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


def of_vllm(problem: Problem) -> Prepared:
    library = importlib.import_module("vllm.vllm_flash_attn")
    if not library.FA3_AVAILABLE:
        raise ImportError("vLLM has no FlashAttention-3 here")
    if len(set(problem.queries)) > 1:
        raise Refused("as many new tokens of every sequence only")
    keys = [[x.flatten(0, 1) for x in problem.contiguous(call)] for call in range(problem.calls)]
    bounds = [
        problem.source.on_device(np.cumsum([0, *counts]).astype(np.int32))
        for counts in (problem.queries, problem.lengths)
    ]
    arguments = {
        "cu_seqlens_q": bounds[0],
        "cu_seqlens_k": bounds[1],
        "max_seqlen_q": problem.queries[0],
        "max_seqlen_k": problem.max_seqlen_k,
        "causal": True,
        "fa_version": 3,
    }

    def run(call: int) -> Result:
        return Result(_first(library.flash_attn_varlen_func(problem.q[call], *keys[call], **arguments)))

    return Prepared(run)


def _first(result):
    return result[0] if isinstance(result, tuple) else result


MODULES = {"flash-attn 3": "flash_attn_interface", "flash-attn 2": "flash_attn"}
ATTENTION = tuple(
    Contender(name, "dense", attention(module), judge_contiguous, ("cuda",)) for name, module in MODULES.items()
)
OF_VLLM = Contender("vLLM flash-attn 3", "dense", of_vllm, judge_contiguous, ("cuda",))
