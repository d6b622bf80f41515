"""Several query tokens per sequence in a decode step, as a speculative decoder verifies them, beside one."""

from __future__ import annotations

import dataclasses
import functools

from .._problem import Problem
from .._section import Case, Contender, K, Options, Prepared, Result, Section, tokens
from .._tensors import host
from ..contenders import ours
from .decode import step

QUERIES, BATCH = 8, 8
# Queries of real text that follow one another choose mostly the same kv_blocks.
AGREEMENT = 0.99


def cases(options: Options) -> list[Case]:
    size = options.size(128 * K)
    result = [dataclasses.replace(step(options, size, BATCH), label=f"{tokens(size)} x {BATCH}, 1 token")]
    for agreement in (AGREEMENT, 0.0):
        make = functools.partial(
            Problem,
            options.layer,
            [(min(QUERIES, size), size)] * BATCH,
            is_paged=True,
            agreement=agreement,
            **options.problem_options(),
        )
        label = f"{tokens(size)} x {BATCH}, {QUERIES} tokens, agreement {agreement:g}"
        result.append(Case(label, size, BATCH, make))
    return result


def select(problem: Problem) -> Prepared:
    """Counts different kv_blocks that the queries of a sequence chose, mean over sequences and KV heads."""

    def chosen_blocks(result: Result) -> dict[str, float]:
        indices = host(result.topk_indices).reshape(problem.layer.num_heads_kv * problem.batch, -1)
        return {"chosen_blocks": sum(len(set(row[row >= 0].tolist())) for row in indices) / len(indices)}

    return dataclasses.replace(ours.SELECT.prepare(problem), figures=chosen_blocks)


SELECT: Contender = dataclasses.replace(ours.SELECT, prepare=select)
SECTION = Section(
    "tokens",
    "several query tokens per sequence and step, beside one",
    cases,
    (ours.LAYER, SELECT, ours.ATTEND),
    in_graph=True,
)
