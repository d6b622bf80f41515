"""A batch of prompts of very different lengths, beside one long prompt: equal rates are a fair share."""

from __future__ import annotations

import functools

from .._problem import Problem, log_uniform
from .._section import Case, K, Options, Section, tokens
from ..contenders import ours
from .prefill import prompt


def cases(options: Options) -> list[Case]:
    size = options.size(128 * K)
    least, most = max(size // 128, 1), max(size // 2, 1)
    lengths = log_uniform(32, least, most)
    make = functools.partial(Problem, options.layer, [(n, n) for n in lengths], **options.problem_options())
    label = f"{len(lengths)} of {tokens(least)} to {tokens(most)}"
    return [prompt(options, size), Case(label, sum(lengths), len(lengths), make)]


SECTION = Section("ragged", "many prompts in one call, beside one long prompt", cases, ours.STAGES, rate="tflops")
