"""Attention alone in a decode step, over selections of two kinds: random, and recorded of a model, whose last tokens are the
new ones of the sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from .._problem import Problem
from .._section import Case, K, Options, Section, tokens
from ..contenders import ours
from .attend import best_blocks, recorded

BATCH = 32


def cases(options: Options) -> list[Case]:
    size, batch = options.size(128 * K), max(options.batches or [BATCH])
    result = [_case(options, size, batch, "random", _random)]
    if options.selection is not None:
        for length, indices in recorded(options.selection, options.layer).items():
            if length <= size:
                last = functools.partial(_recorded, indices=indices[:, -batch:])
                result.append(_case(options, length, batch, "recorded", last))
    return result


def _case(options: Options, size: int, batch: int, kind: str, select: Callable[[Problem], np.ndarray]) -> Case:
    return Case(f"{tokens(size)} x {batch} {kind}", size, batch, functools.partial(_make, options, size, batch, select))


def _make(options: Options, size: int, batch: int, select) -> Problem:
    problem = Problem(options.layer, [(1, size)] * batch, is_paged=True, **options.problem_options())
    problem.selection = problem.source.on_device(np.ascontiguousarray(select(problem)))
    return problem


def _recorded(problem: Problem, indices: np.ndarray) -> np.ndarray:
    return indices


def _random(problem: Problem, seed: int = 3) -> np.ndarray:
    """topk_indices of the last token of every sequence: its own kv_block and others at random."""
    import torch

    layer = problem.layer
    own = torch.full((layer.num_heads_kv * problem.batch, 1), (problem.max_seqlen_k - 1) // layer.block_size)
    wish = torch.rand(len(own), int(own[0]) + 1, generator=torch.Generator().manual_seed(seed))
    result = torch.full((len(own), layer.topk), -1, dtype=torch.int32)
    chosen = best_blocks(wish, own, layer.topk)
    result[:, : chosen.shape[1]] = chosen
    return result.view(layer.num_heads_kv, problem.batch, layer.topk).numpy()


SECTION = Section(
    "attend_step",
    "attention alone in a decode step, over selections made for it",
    cases,
    (ours.ATTEND,),
    rate="gb_per_s",
    in_graph=True,
)
