"""PyTorch's scaled_dot_product_attention, by one of its kernels."""

from __future__ import annotations

from collections.abc import Callable

from .._errors import Refused
from .._judge import judge_contiguous
from .._problem import Problem
from .._section import Contender, Prepared, Result
from .._tensors import as_torch


def attention(backend: str) -> Callable[[Problem], Prepared]:
    def prepare(problem):
        attend, is_prompt = _attend(backend, problem)
        inputs = [_inputs(problem, call) for call in range(problem.calls)]

        def run(call: int) -> Result:
            o = attend(*inputs[call])
            return Result(o[0].transpose(0, 1) if is_prompt else o[:, :, 0])

        return Prepared(run)

    return prepare


def training(backend: str, part: str = "") -> Callable[[Problem], Prepared]:
    """Forward and backward of a prompt, d_o = o; part: "forward" or "backward" alone."""

    def prepare(problem):
        attend, _ = _attend(backend, problem)
        return Prepared(with_backward(attend, _inputs(problem, 0), lambda x: x[0].transpose(0, 1), part))

    return prepare


def with_backward(attend, tensors, finish, part: str = "") -> Callable[[int], Result]:
    """finish turns a tensor in the layout of `attend` into [tokens, heads, dim]."""
    import torch

    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    made = attend(*leaves) if part == "backward" else None

    def step(call: int) -> Result:
        o = attend(*leaves) if made is None else made
        if part == "forward":
            return Result(finish(o.detach()))
        gradients = torch.autograd.grad(o, leaves, o.detach(), retain_graph=made is not None)
        return Result(finish(o.detach()), d_q=finish(gradients[0]))

    return step


def _attend(backend: str, problem: Problem):
    """The call, and whether a prompt is what it gets: a new token sees every key, so it needs no mask."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    is_prompt = problem.sequences == [(problem.max_seqlen_k, problem.max_seqlen_k)]
    if not is_prompt and set(problem.queries) != {1}:
        raise Refused("whole prompts and single new tokens only")

    if problem.threads:
        torch.set_num_threads(problem.threads)

    def attend(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, backend)):
            is_grouped = q.shape[1] != k.shape[1]
            return scaled_dot_product_attention(q, k, v, is_causal=is_prompt, enable_gqa=is_grouped)

    return attend, is_prompt


def _inputs(problem: Problem, call: int):
    """q, k, v [batch, heads, tokens, dim] as views. On the CPU every KV head is repeated beforehand for its query
    heads, since that is not what is compared."""
    q = as_torch(problem.q[call]).unflatten(0, (problem.batch, -1)).transpose(1, 2)
    k, v = (as_torch(x).transpose(1, 2) for x in problem.contiguous(call))
    if problem.device == "cpu":
        k, v = (x.repeat_interleave(problem.layer.group_size, 1) for x in (k, v))
    return q, k, v


CUDNN = Contender("PyTorch cuDNN", "dense", attention("CUDNN_ATTENTION"), judge_contiguous, ("cuda",))
FLASH = Contender("PyTorch flash", "dense", attention("FLASH_ATTENTION"), judge_contiguous)
#: Of a training step: both directions, and each alone.
TRAINING = (
    Contender("PyTorch cuDNN", "dense", training("CUDNN_ATTENTION"), judge_contiguous, ("cuda",)),
    *(
        Contender(f"PyTorch cuDNN {part}", part, training("CUDNN_ATTENTION", part), judge_contiguous, ("cuda",))
        for part in ("forward", "backward")
    ),
    Contender("PyTorch flash", "dense", training("FLASH_ATTENTION"), judge_contiguous),
)
