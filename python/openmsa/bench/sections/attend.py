"""Attention alone over selections of several kinds: random, shared by neighbouring queries, and recorded of a model."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from .._problem import Layer, Problem
from .._section import Case, K, Options, Section, tokens
from .._tensors import as_torch
from ..contenders import ours

# Neighbouring queries that share kv_blocks, how many they share, and queries drawn at once.
RUN, SHARED, PART = 64, 12, 16384
DRAWN = ("random", "clustered")


def cases(options: Options) -> list[Case]:
    size = options.size(128 * K)
    result = [_case(options, size, kind, functools.partial(draw, is_clustered=kind == "clustered")) for kind in DRAWN]
    if options.selection is not None:
        for length, indices in recorded(options.selection, options.layer).items():
            if length <= size:
                result.append(_case(options, length, "recorded", functools.partial(_on_device, indices=indices)))
    return result


def _case(options: Options, size: int, kind: str, select) -> Case:
    def make() -> Problem:
        problem = Problem(options.layer, [(size, size)], **options.problem_options())
        selection = select(problem)
        problem.selection = selection if options.device == "cuda" else selection.numpy()
        return problem

    return Case(f"{tokens(size)} {kind}", size, 1, make)


def recorded(path: Path, layer: Layer) -> dict[int, np.ndarray]:
    """topk_indices of a model by the length of its sequence: as many of its layers' KV heads as the layer has, evenly
    spread, or all of them in turn.

    path  .npz: block_size, and topk_<tokens> uint16 [layers, num_heads_kv, tokens, topk], -1 as 65535
    """
    with np.load(path) as file:
        block_size = int(file["block_size"])
        arrays = {int(name.removeprefix("topk_")): file[name] for name in file.files if name.startswith("topk_")}
    result = {}
    for length, indices in arrays.items():
        if (block_size, indices.shape[-1]) != (layer.block_size, layer.topk):
            raise ValueError(
                f"--selection: expected {layer.topk} kv_blocks of {layer.block_size}, got {indices.shape[-1]} of {block_size}"
            )
        heads = indices.reshape(-1, *indices.shape[2:]).astype(np.int32)
        chosen = np.arange(layer.num_heads_kv) * max(len(heads) // layer.num_heads_kv, 1) % len(heads)
        result[length] = np.where(heads[chosen] == 0xFFFF, -1, heads[chosen])
    return result


def _on_device(problem: Problem, indices: np.ndarray):
    import torch

    return torch.from_numpy(indices).to(as_torch(problem.q).device)


def draw(problem: Problem, is_clustered: bool, seed: int = 3):
    """topk_indices of one prompt: a query's own kv_block and others at random. Clustered: runs of queries share SHARED
    kv_blocks, among them the first and their own; the others are each query's."""
    import torch

    layer, size = problem.layer, problem.total_q
    device = as_torch(problem.q).device
    generator = torch.Generator(device=device).manual_seed(seed)
    own = torch.arange(size, device=device) // layer.block_size
    result = torch.full((layer.num_heads_kv, size, layer.topk), -1, dtype=torch.int32, device=device)
    for rows in result:
        for begin in range(0, size, PART):
            part = own[begin : begin + PART, None]
            wish = torch.rand(len(part), int(own[-1]) + 1, device=device, generator=generator)
            if is_clustered:
                wish += _shared(part[::RUN], wish.shape[1], generator).repeat_interleave(RUN, 0)[: len(part)]
            chosen = best_blocks(wish, part, layer.topk)
            rows[begin : begin + PART, : chosen.shape[1]] = chosen
    return result


def _shared(leaders, num_blocks: int, generator):
    """1 for the kv_blocks that the queries after each leader share."""
    import torch

    column = torch.arange(num_blocks, device=leaders.device)
    wish = torch.rand(len(leaders), num_blocks, device=leaders.device, generator=generator)
    wish[:, 0] = 2
    wish.masked_fill_(column > leaders, -1).scatter_(1, leaders, 3)
    return torch.zeros_like(wish).scatter_(1, wish.topk(min(SHARED, num_blocks), 1).indices, 1)


def best_blocks(wish, own, topk: int):
    """The kv_blocks of highest wish that a query sees, its own among them; ascending, then -1."""
    import torch

    num_blocks = wish.shape[1]
    column = torch.arange(num_blocks, device=wish.device)
    best = wish.masked_fill_(column > own, -1).scatter_(1, own, 4).topk(min(topk, num_blocks), 1)
    chosen = best.indices.masked_fill(best.values < 0, num_blocks).sort(1).values
    return chosen.masked_fill(chosen == num_blocks, -1).int()


SECTION = Section("attend", "attention alone over selections made for it", cases, (ours.ATTEND,), rate="tflops")
