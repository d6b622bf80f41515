"""The next chunk of a prompt whose beginning is cached, beside a whole prompt: equal rates are a fair share."""

from __future__ import annotations

import functools

from .._problem import Problem
from .._section import Case, K, Options, Section, tokens
from ..contenders import ours
from .prefill import prompt


def cases(options: Options) -> list[Case]:
    before = options.size(512 * K)
    queries = max(before // 64, 1)
    sequences = [(queries, before + queries)]
    make = functools.partial(Problem, options.layer, sequences, **options.problem_options())
    return [prompt(options, before), Case(f"{tokens(queries)} after {tokens(before)}", before + queries, 1, make)]


SECTION = Section("chunk", "queries after a long prefix, beside a whole prompt", cases, ours.STAGES, rate="tflops")
