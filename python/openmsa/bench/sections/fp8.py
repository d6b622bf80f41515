"""Prompts with index keys in fp8 beside bf16: the time of the layer and of the selection, and what rounding costs in
recall, of independent branches and of a main branch whose heads are noisy copies of the index branch."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from .._judge import attention, best_blocks, block_scores, judge_layer, judge_selection
from .._problem import Problem
from .._section import Case, Contender, K, Options, Prepared, Result, Section
from .._tensors import host
from ..contenders import ours
from .prefill import prompt

RECALL_QUERIES = 64


def cases(options: Options) -> list[Case]:
    result = [prompt(options, size) for size in options.sizes()]
    if options.layer.head_dim == options.layer.index_dim:
        last = prompt(options, options.size(128 * K))
        make = functools.partial(last.make, is_correlated=True)
        result.append(dataclasses.replace(last, label=f"{last.label} correlated", make=make))
    return result


def recall(problem: Problem, result: Result) -> dict[str, float]:
    """Means over queries of the second half and over KV heads:

    kept          share of the kv_blocks that the unrounded index branch finds best in float64
    block_recall  share of the kv_blocks of highest attention mass under dense attention
    score_recall  share of the attention mass
    """
    topk, size = problem.layer.topk, problem.layer.block_size
    rows = np.linspace(problem.total_q // 2, problem.total_q - 1, RECALL_QUERIES).astype(int)
    figures = []
    for row in sorted(set(rows.tolist())):
        scores = block_scores(problem, 0, row, 0, row)
        for head, indices in enumerate(host(result.topk_indices[:, row]).astype(int)):
            p = host(attention(problem, 0, row, head, np.arange(row + 1))["p"].mean(0))
            masses = np.pad(p, (0, -len(p) % size)).reshape(-1, size).sum(1)
            chosen = indices[indices >= 0]
            wanted = best_blocks(scores[head], topk), np.argsort(-masses, kind="stable")[:topk]
            figures.append([*(len(np.intersect1d(chosen, w)) / len(w) for w in wanted), masses[chosen].sum()])
    return dict(zip(("kept", "block_recall", "score_recall"), np.mean(figures, 0).tolist()))


def with_recall(inputs: ours.Inputs):
    """Selection on rounded inputs, with its recall on the original ones."""

    def prepare(problem: Problem) -> Prepared:
        prepared = ours.select(inputs)(problem)
        return dataclasses.replace(prepared, figures=functools.partial(recall, problem))

    return prepare


INPUTS: dict[str, ours.Inputs] = {
    "openmsa": ours.as_it_is,
    "openmsa fp8 per token": functools.partial(Problem.with_fp8_index, scale="token"),
    "openmsa fp8 one scale": functools.partial(Problem.with_fp8_index, scale="one"),
}
SECTION = Section(
    "fp8",
    "prompts with index keys in fp8, and the recall that it costs",
    cases,
    tuple(
        contender
        for name, inputs in INPUTS.items()
        for contender in (
            Contender(name, "layer", ours.layer(inputs), judge_layer),
            Contender(f"{name} select", "select", with_recall(inputs), judge_selection),
        )
    ),
    rate="tflops",
)
