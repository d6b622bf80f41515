"""Decode of sequences whose lengths differ a thousandfold, beside an even batch: equal rates are a fair share."""

from __future__ import annotations

import functools

from .._problem import Problem, log_uniform
from .._section import Case, K, Options, Section, tokens
from ..contenders import ours
from .decode import step


def cases(options: Options) -> list[Case]:
    most = options.size(1024 * K)
    least, even = max(most // 1024, 1), max(most // 8, 1)
    lengths = log_uniform(64, least, most)
    sequences = [(1, n) for n in lengths]
    make = functools.partial(Problem, options.layer, sequences, is_paged=True, **options.problem_options())
    label = f"{len(lengths)} of {tokens(least)} to {tokens(most)}"
    return [step(options, even, 32), Case(label, most, len(lengths), make)]


SECTION = Section(
    "mixed",
    "one new token of sequences of very different lengths, beside an even batch",
    cases,
    ours.STAGES,
    rate="gb_per_s",
    in_graph=True,
)
