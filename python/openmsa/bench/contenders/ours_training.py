"""openmsa's operations of a training step: together, and each alone."""

from __future__ import annotations

from collections.abc import Callable

import openmsa

from .._judge import judge_gradients, judge_kl, judge_layer, judge_step
from .._problem import Problem
from .._section import Contender, Prepared, Result
from .ours import plan_of


class Step:
    """One sequence forward and backward, d_o = o, and the loss of the index branch with its gradients. What an operation
    reads from those before it is made when it is first asked for."""

    def __init__(self, problem: Problem):
        self.plan = plan_of(problem)
        self.q, self.k, self.v = problem.q[0], problem.k, problem.v
        self.index = (problem.index_q[0], problem.index_k)
        self.selection, self.where = problem.selection, problem.where(0)
        self._forward: Result | None = None

    def select(self):
        return openmsa.select_blocks(*self.index, **self.where, plan=self.plan)

    def forward(self, call: int) -> Result:
        """Over the problem's selection, where it has one, once the index branch has made its own."""
        indices = self.select()
        indices = indices if self.selection is None else self.selection
        keys = (self.q, self.k, self.v, indices)
        o, lse = openmsa.sparse_attention(*keys, **self.where, return_lse=True, plan=self.plan)
        return Result(o, lse, indices)

    def dense_forward(self, call: int) -> Result:
        keys = (self.q, self.k, self.v)
        o, lse = openmsa.dense_attention(*keys, **self.where, return_lse=True, plan=self.plan)
        return Result(o, lse)

    def backward(self, call: int, forward: Result | None = None) -> Result:
        made = forward or self._made(self.forward)
        tensors = (made.o, self.q, self.k, self.v, made.topk_indices, made.o, made.lse)
        gradients = openmsa.sparse_attention_backward(*tensors, **self.where, plan=self.plan)
        return Result(made.o, made.lse, made.topk_indices, *gradients)

    def dense_backward(self, call: int, forward: Result | None = None) -> Result:
        made = forward or self._made(self.dense_forward)
        tensors = (made.o, self.q, self.k, self.v, made.o, made.lse)
        return Result(made.o, made.lse, None, *openmsa.dense_attention_backward(*tensors, **self.where, plan=self.plan))

    def kl(self, call: int, forward: Result | None = None) -> Result:
        return self._kl(forward or self._made(self.forward))

    def whole_kl(self, call: int) -> Result:
        """Over the whole history, as an index branch warms up."""
        return self._kl(self._made(self.dense_forward))

    def step(self, call: int) -> Result:
        forward = self.forward(call)
        self.kl(call, forward)
        return self.backward(call, forward)

    def fused_backward(self, call: int, forward: Result | None = None) -> Result:
        """backward and kl in one call."""
        made = forward or self._made(self.forward)
        tensors = (made.o, self.q, self.k, self.v, *self.index, made.topk_indices, made.o, made.lse)
        gradients = openmsa.msa_attention_backward(*tensors, **self.where, plan=self.plan)
        return Result(made.o, made.lse, made.topk_indices, *gradients[:3], d_index_q=gradients[4])

    def fused_step(self, call: int) -> Result:
        return self.fused_backward(call, self.forward(call))

    def dense_step(self, call: int) -> Result:
        return self.dense_backward(call, self.dense_forward(call))

    def _kl(self, made: Result) -> Result:
        tensors = (self.q, self.k, made.lse, *self.index, made.topk_indices)
        _, d_index_q, _ = openmsa.kl_loss(*tensors, **self.where, return_gradients=True, plan=self.plan)
        return Result(topk_indices=made.topk_indices, d_index_q=d_index_q)

    def _made(self, forward: Callable[[int], Result]) -> Result:
        if self._forward is None:
            self._forward = forward(0)
        return self._forward


def _contender(name: str, part: str, function, judge) -> Contender:
    return Contender(name, part, lambda problem: Prepared(function.__get__(Step(problem))), judge)


BACKWARD = _contender("openmsa backward", "backward", Step.backward, judge_gradients)
KL = _contender("openmsa KL", "kl", Step.kl, judge_kl)
FUSED_BACKWARD = _contender("openmsa fused backward", "backward", Step.fused_backward, judge_step)
PARTS = (
    _contender("openmsa", "layer", Step.step, judge_gradients),
    _contender("openmsa fused", "layer", Step.fused_step, judge_step),
    _contender("openmsa forward", "forward", Step.forward, judge_layer),
    BACKWARD,
    KL,
    FUSED_BACKWARD,
    _contender("openmsa dense", "dense", Step.dense_step, judge_gradients),
    _contender("openmsa dense forward", "forward", Step.dense_forward, judge_gradients),
    _contender("openmsa dense backward", "backward", Step.dense_backward, judge_gradients),
    _contender("openmsa whole KL", "kl", Step.whole_kl, judge_kl),
)
