"""A whole prompt through one layer: openmsa and its halves, other kernels for the same layer, and dense attention."""

from __future__ import annotations

import functools

from .._problem import Problem
from .._section import Case, Options, Section, tokens
from ..contenders import flash_attn, flashinfer, ours, pytorch, sglang, vllm


def cases(options: Options) -> list[Case]:
    return [prompt(options, size) for size in options.sizes()]


def prompt(options: Options, size: int) -> Case:
    make = functools.partial(Problem, options.layer, [(size, size)], **options.problem_options())
    return Case(tokens(size), size, 1, make)


SECTION = Section(
    "prefill",
    "a whole prompt, forward",
    cases,
    (
        *ours.STAGES,
        vllm.VLLM,
        sglang.SGLANG,
        pytorch.CUDNN,
        pytorch.FLASH,
        *flash_attn.ATTENTION,
        flash_attn.OF_VLLM,
        flashinfer.FLASHINFER,
        ours.DENSE,
    ),
    rate="tflops",
    is_plotted=True,
)
