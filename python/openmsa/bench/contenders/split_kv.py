"""A split-KV kernel in Triton: dense decode as fast as it gets, by whichever of a few ways to split is the fastest."""

from __future__ import annotations

import functools

from .._errors import Refused
from .._judge import judge_contiguous
from .._problem import Problem
from .._section import Contender, Prepared, Result
from .._timing import measure

# How long each way to split is tried.
TRIAL_SECONDS = 0.02


def prepare(problem: Problem) -> Prepared:
    import torch

    from ..triton_kernels.split_kv import CONFIGS, CTAS_PER_SM, SplitKvDecode

    keys = [problem.contiguous(call) for call in range(problem.calls)]
    if set(problem.queries) != {1}:
        raise Refused("one new token per sequence only")
    sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    ways = [
        SplitKvDecode(problem.q[0], keys[0][0], config, sms * per_sm) for config in CONFIGS for per_sm in CTAS_PER_SM
    ]
    o = torch.empty_like(problem.q[0])

    def run(way: SplitKvDecode, call: int) -> Result:
        way.run(problem.q[call], *keys[call], o)
        return Result(o)

    def milliseconds(way: SplitKvDecode) -> float:
        functions = [functools.partial(run, way, call) for call in range(problem.calls)]
        return measure(functions, problem.device, TRIAL_SECONDS, in_graph=True)[0]["median_ms"]

    best = min(ways, key=milliseconds)
    return Prepared(functools.partial(run, best), note=best.describe())


SPLIT_KV = Contender("split-KV Triton", "dense", prepare, judge_contiguous, ("cuda",))
