"""The Triton kernels for selected attention of XunhaoLai/native-sparse-attention-triton, over a selection that openmsa
made."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

import openmsa

from .._judge import judge_attention
from .._problem import Problem
from .._section import Contender, Prepared, Result
from .ours import plan_of
from .pytorch import with_backward


def training(part: str = "") -> Callable[[Problem], Prepared]:
    def prepare(problem):
        kernels = importlib.import_module("native_sparse_attention.ops")
        indices = problem.selection
        if indices is None:
            indices = openmsa.select_blocks(problem.index_q[0], problem.index_k, plan=plan_of(problem))
        lengths = problem.source.on_device(np.array([0, problem.total_q], np.int32))

        def attend(q, k, v):
            return kernels.topk_sparse_attention(q, k, v, indices, problem.layer.block_size, lengths)

        step = with_backward(attend, (problem.q[0], problem.k, problem.v), lambda x: x, part)

        def run(call: int) -> Result:
            result = step(call)
            result.topk_indices = indices
            return result

        return Prepared(run)

    return prepare


BACKWARD = Contender("NSA Triton backward", "backward", training("backward"), judge_attention, ("cuda",))
TRAINING = (
    Contender("NSA Triton", "attend", training(), judge_attention, ("cuda",)),
    Contender("NSA Triton forward", "forward", training("forward"), judge_attention, ("cuda",)),
    BACKWARD,
)
