"""What a call must compute and read, for the rates. `part`: "select", "attend", "layer" (both) or "dense"."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._problem import Problem


def work(problem: Problem, part: str, rate: str) -> float:
    """Floating-point operations for the rate "tflops", bytes for "gb_per_s"."""
    count = operations if rate == "tflops" else bytes_read
    parts = ("select", "attend") if part == "layer" else (part,)
    return sum(count(problem, one) for one in parts)


def operations(problem: Problem, part: str) -> float:
    layer = problem.layer
    if part == "select":  # 2 H_kv d_idx for every query and visible key
        return 2 * layer.num_heads_kv * layer.index_dim * _pairs(problem, problem.max_seqlen_k)
    # 4 H_q d_h for every query and key that it attends to
    most = problem.max_seqlen_k if part == "dense" else layer.topk * layer.block_size
    return 4 * layer.num_heads_q * layer.head_dim * _pairs(problem, most)


def _pairs(problem: Problem, most: int) -> float:
    """Pairs of a query and a key up to its position, at most `most` of each query."""
    count = 0.0
    for queries, keys in problem.sequences:
        first = keys - queries
        short = max(min(keys, most) - first, 0)  # queries that see fewer
        count += short * (first + 1 + first + short) / 2 + (queries - short) * most
    return count


def bytes_read(problem: Problem, part: str) -> float:
    """Bytes of keys and values that one query per sequence must read."""
    layer = problem.layer
    chosen = layer.topk * layer.block_size
    if part == "select":  # where topk covers a sequence there is nothing to score
        return sum(n for n in problem.lengths if n > chosen) * layer.index_dim * problem.index_k.itemsize
    tokens = sum(n if part == "dense" else min(n, chosen) for n in problem.lengths)
    return tokens * 2 * layer.num_heads_kv * layer.head_dim * problem.k.itemsize
