"""One new token per sequence on paged caches, in each of several layers: openmsa, its halves and fp8 caches, other
kernels for the same layer, and dense attention."""

from __future__ import annotations

import functools

from .._judge import judge_layer
from .._problem import Problem
from .._section import Case, Contender, Options, Section, tokens
from ..contenders import flash_attn, flashinfer, ours, pytorch, sglang, split_kv, vllm


def cases(options: Options) -> list[Case]:
    batches = options.batches or ([1, 32] if options.device == "cuda" else [1])
    return [step(options, size, batch) for size in options.sizes() for batch in batches]


def step(options: Options, size: int, batch: int, **more) -> Case:
    make = functools.partial(
        Problem, options.layer, [(1, size)] * batch, is_paged=True, **options.problem_options(), **more
    )
    return Case(f"{tokens(size)} x {batch}", size, batch, make)


FP8_INDEX = Contender("openmsa fp8 index", "layer", ours.layer(Problem.with_fp8_index), judge_layer)
FP8_CACHES = Contender("openmsa fp8 caches", "layer", ours.layer(Problem.with_fp8_caches), judge_layer)

SECTION = Section(
    "decode",
    "one new token per sequence, on a paged cache",
    cases,
    (
        *ours.STAGES,
        FP8_INDEX,
        FP8_CACHES,
        vllm.VLLM,
        sglang.SGLANG,
        split_kv.SPLIT_KV,
        pytorch.CUDNN,
        pytorch.FLASH,
        *flash_attn.ATTENTION,
        flashinfer.FLASHINFER,
        ours.DENSE,
    ),
    rate="gb_per_s",
    in_graph=True,
    is_plotted=True,
)
