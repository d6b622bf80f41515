"""flash-msa: forward with its own selection, backward with the gradients of the index branch's loss."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from .._errors import Refused
from .._judge import judge_sparse
from .._problem import Problem
from .._section import Contender, Prepared, Result


def training(part: str = "") -> Callable[[Problem], Prepared]:
    def prepare(problem):
        library = importlib.import_module("flash_msa")
        layer = problem.layer
        if (layer.block_size, layer.head_dim, layer.index_dim) != (128, 128, 128) or problem.total_q % 128:
            raise Refused("kv_blocks, heads and full blocks of 128 only")
        tokens, scale = layer.topk * layer.block_size, layer.head_dim**-0.5
        leaves = _leaves(problem)
        attend = lambda: library.flash_msa_func(*leaves, tokens, scale)  # noqa: E731
        return Prepared(_step(attend, leaves, part, (problem.total_q, layer.num_heads_q, layer.head_dim)))

    return prepare


def _leaves(problem: Problem) -> list:
    """index_q, index_k, q, k, v [1, heads, tokens, dim]."""
    tensors = (problem.index_q[0], problem.index_k[:, None], problem.q[0], problem.k, problem.v)
    return [tensor.transpose(0, 1)[None].contiguous().requires_grad_() for tensor in tensors]


def _step(attend, leaves: list, part: str, shape: tuple[int, int, int]) -> Callable[[int], Result]:
    import torch

    made = attend() if part == "backward" else None

    def step(call: int) -> Result:
        o, kl_loss = attend() if made is None else made
        result = Result(o.detach().reshape(shape))
        if part != "forward":
            d_results = (o.detach(), torch.ones_like(kl_loss))
            gradients = torch.autograd.grad((o, kl_loss), leaves, d_results, retain_graph=made is not None)
            result.d_q = gradients[2][0].transpose(0, 1)
        return result

    return step


TRAINING = tuple(
    Contender(" ".join(("flash-msa", part)).strip(), part or "layer", training(part), judge_sparse, ("cuda",))
    for part in ("", "forward", "backward")
)
