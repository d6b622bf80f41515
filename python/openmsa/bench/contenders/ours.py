"""openmsa: the whole layer, its two halves, and dense attention."""

from __future__ import annotations

from collections.abc import Callable

import openmsa

from .._judge import judge_attention, judge_dense, judge_layer, judge_selection
from .._problem import Problem
from .._section import Contender, Prepared, Result

_FP8 = "float8_e4m3fn"


def plan_of(problem: Problem, **capacity: int) -> openmsa.Plan:
    """For the problem's calls, or with more room than they need."""
    layer = problem.layer
    needed = {"max_total_q": problem.total_q, "max_seqlen_k": problem.max_seqlen_k, "max_batch": problem.batch}
    return openmsa.Plan(
        num_heads_q=layer.num_heads_q,
        num_heads_kv=layer.num_heads_kv,
        head_dim=layer.head_dim,
        index_dim=layer.index_dim,
        block_size=layer.block_size,
        topk=layer.topk,
        dtype=problem.dtype,
        backend=problem.device,
        **needed | capacity,
        page_size=layer.block_size if problem.is_paged else 0,
        kv_dtype=_FP8 if problem.has_fp8_keys else None,
        index_dtype=_FP8 if problem.has_fp8_index else None,
        index_q_rounding=problem.index_q_rounding,
        num_threads=problem.threads,
    )


class Calls:
    """The operations of a problem's calls. They share o and lse; each has a selection of its own."""

    def __init__(self, problem: Problem, **capacity: int):
        layer, full = problem.layer, problem.source.full
        self.problem, self.plan = problem, plan_of(problem, **capacity)
        self.o = full((problem.total_q, layer.num_heads_q, layer.head_dim), float("nan"), problem.dtype)
        self.lse = full((problem.total_q, layer.num_heads_q), float("nan"), "float32")
        shape = (problem.calls, layer.num_heads_kv, problem.total_q, layer.topk)
        self.topk_indices = full(shape, -1, "int32")

    def layer(self, call: int, sequences: slice | None = None) -> Result:
        """Of all sequences of a paged problem, or of some."""
        problem, indices = self.problem, self.topk_indices[call]
        rows, where = slice(None), problem.where(call)
        if sequences is not None:
            rows, where = problem.part(call, sequences)
        openmsa.msa_attention(
            problem.q[call][rows],
            index_q=problem.index_q[call][rows],
            **problem.keys(),
            **problem.index_keys(),
            **where,
            o=self.o[rows],
            lse=self.lse[rows],
            topk_indices=indices[:, rows],
            plan=self.plan,
        )
        return Result(self.o, self.lse, indices)

    def select(self, call: int) -> Result:
        problem, indices = self.problem, self.topk_indices[call]
        keys = problem.index_keys() | problem.where(call)
        openmsa.select_blocks(problem.index_q[call], **keys, topk_indices=indices, plan=self.plan)
        return Result(topk_indices=indices)

    def attend(self, call: int) -> Result:
        problem = self.problem
        indices = self.topk_indices[call] if problem.selection is None else problem.selection
        keys = problem.keys() | problem.where(call)
        outputs = {"o": self.o, "lse": self.lse}
        openmsa.sparse_attention(problem.q[call], topk_indices=indices, **keys, **outputs, plan=self.plan)
        return Result(self.o, self.lse, indices)

    def dense(self, call: int) -> Result:
        problem = self.problem
        keys = problem.keys() | problem.where(call)
        openmsa.dense_attention(problem.q[call], **keys, o=self.o, lse=self.lse, plan=self.plan)
        return Result(self.o, self.lse)


Inputs = Callable[[Problem], Problem]


def layer(inputs: Inputs) -> Callable[[Problem], Prepared]:
    def prepare(problem):
        problem = inputs(problem)
        return Prepared(Calls(problem).layer, problem)

    return prepare


def select(inputs: Inputs) -> Callable[[Problem], Prepared]:
    def prepare(problem):
        problem = inputs(problem)
        return Prepared(Calls(problem).select, problem)

    return prepare


def attend(problem: Problem) -> Prepared:
    """Attention over the selection of the problem or, where it has none, over that of select_blocks, made here."""
    calls = Calls(problem)
    if problem.selection is None:
        for call in range(problem.calls):
            calls.select(call)
    return Prepared(calls.attend)


def dense(problem: Problem) -> Prepared:
    return Prepared(Calls(problem).dense)


def as_it_is(problem: Problem) -> Problem:
    return problem


LAYER = Contender("openmsa", "layer", layer(as_it_is), judge_layer)
SELECT = Contender("openmsa select", "select", select(as_it_is), judge_selection)
ATTEND = Contender("openmsa attend", "attend", attend, judge_attention)
DENSE = Contender("openmsa dense", "dense", dense, judge_dense)
STAGES = (LAYER, SELECT, ATTEND)
