"""One sequence forward and backward: attention with its gradients, and the loss that trains the index branch."""

from __future__ import annotations

import openmsa

from .._judge import judge_attention, judge_contiguous, judge_dense
from .._problem import Problem
from .._section import Contender, Prepared, Result, Section
from ..contenders import flash_attn, ours, pytorch
from .prefill import cases


def sparse(problem: Problem) -> Prepared:
    plan, q, index_q = ours.plan_of(problem), problem.q[0], problem.index_q[0]
    k, v, index_k = problem.k, problem.v, problem.index_k

    def step(call: int) -> Result:
        indices = openmsa.select_blocks(index_q, index_k, plan=plan)
        o, lse = openmsa.sparse_attention(q, k, v, indices, return_lse=True, plan=plan)
        openmsa.kl_loss(q, k, lse, index_q, index_k, indices, return_gradients=True, plan=plan)
        d_q, *_ = openmsa.sparse_attention_backward(o, q, k, v, indices, o, lse, plan=plan)
        return Result(o, lse, indices, d_q)

    return Prepared(step)


def dense(problem: Problem) -> Prepared:
    plan, q, k, v = ours.plan_of(problem), problem.q[0], problem.k, problem.v

    def step(call: int) -> Result:
        o, lse = openmsa.dense_attention(q, k, v, return_lse=True, plan=plan)
        d_q, *_ = openmsa.dense_attention_backward(o, q, k, v, o, lse, plan=plan)
        return Result(o, lse, d_q=d_q)

    return Prepared(step)


SECTION = Section(
    "training",
    "one sequence, forward, loss of the index branch and backward",
    cases,
    (
        Contender("openmsa", "layer", sparse, judge_attention),
        Contender("PyTorch cuDNN", "dense", pytorch.training("CUDNN_ATTENTION"), judge_contiguous, ("cuda",)),
        Contender("PyTorch flash", "dense", pytorch.training("FLASH_ATTENTION"), judge_contiguous),
        *(
            Contender(name, "dense", flash_attn.training(module), judge_contiguous, ("cuda",))
            for name, module in flash_attn.MODULES.items()
        ),
        Contender("openmsa dense", "dense", dense, judge_dense),
    ),
    is_plotted=True,
)
