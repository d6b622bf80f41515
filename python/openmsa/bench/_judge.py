"""The one judge: results of a few queries against the equations in float64, on the inputs that the contender takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ._errors import Wrong
from ._problem import Problem
from ._section import Result
from ._tensors import cast, host, library, take

SAMPLED_QUERIES = 6


@dataclasses.dataclass(frozen=True)
class Tolerance:
    o: float  # ||x - expected|| / ||expected||
    lse: float  # largest |x - expected|
    gradient: float  # ||x - expected|| / ||expected||
    score: float  # of a row's largest magnitude: closer contenders for a place in the selection may be swapped


# The numbers of core/tolerance.h, which has no C API; a test compares.
TOLERANCES = {
    "bfloat16": Tolerance(5e-3, 1e-3, 2e-2, 1e-3),
    "float16": Tolerance(1e-3, 1e-3, 5e-3, 1e-3),
    "float32": Tolerance(1e-6, 1e-5, 1e-5, 1e-5),
}
FP8_INDEX_SCORE = 4e-3  # on a GPU: its fp8 tensor cores keep some 13 bits of the larger sums


def tolerance(problem: Problem) -> Tolerance:
    result = TOLERANCES[problem.dtype]
    if problem.device == "cuda" and problem.has_fp8_index:
        result = dataclasses.replace(result, score=FP8_INDEX_SCORE)
    return result


# --------------------------------------------------------------------------------------------------------------- judges


def judge_layer(problem: Problem, call: int, result: Result) -> float:
    """Judges the selection, and the attention over it."""
    judge_selection(problem, call, result)
    return judge_attention(problem, call, result)


def judge_selection(problem: Problem, call: int, result: Result) -> float:
    """The kv_blocks of a row are ascending, its own the last, and none that it left out is better by more than the
    tolerance. Returns the largest margin."""
    worst, allowed = 0.0, tolerance(problem).score
    for row, sequence, position in problem.sample(SAMPLED_QUERIES):
        scores = block_scores(problem, call, row, sequence, position)
        for head, indices in enumerate(host(result.topk_indices[:, row]).astype(int)):
            margin = _margin(indices, scores[head], problem.layer.topk, f"query {row}, KV head {head}")
            _expect(margin, allowed, f"query {row}, KV head {head}: a better kv_block was left out; relative score")
            worst = max(worst, margin)
    return worst


def judge_attention(problem: Problem, call: int, result: Result) -> float:
    """Judges attention over the kv_blocks in result.topk_indices, whatever they are."""

    def attended(row: int, head: int, position: int) -> np.ndarray:
        chosen = host(result.topk_indices[head, row]).astype(int)
        return _tokens_of(chosen[chosen >= 0], position, problem.layer.block_size)

    return _compare(problem, call, result, attended)


def judge_sparse(problem: Problem, call: int, result: Result) -> float:
    """Judges o of an untold selection, at queries where no kv_block left out is nearly as good as a chosen one."""
    chosen: dict[int, list[np.ndarray | None]] = {}
    allowed = tolerance(problem).score
    for row, sequence, position in problem.sample(8 * SAMPLED_QUERIES):
        scores = block_scores(problem, call, row, sequence, position)
        chosen[row] = [_clear_choice(row_scores, problem.layer.topk, allowed) for row_scores in scores]

    def attended(row: int, head: int, position: int) -> np.ndarray | None:
        blocks = chosen[row][head]
        return None if blocks is None else _tokens_of(blocks, position, problem.layer.block_size)

    return _compare(problem, call, result, attended, 8 * SAMPLED_QUERIES)


def judge_dense(problem: Problem, call: int, result: Result) -> float:
    return _compare(problem, call, result, lambda row, head, position: np.arange(position + 1))


def judge_contiguous(problem: Problem, call: int, result: Result) -> float:
    """Judges dense attention over Problem.contiguous."""
    return _compare(problem, call, result, lambda row, head, position: np.arange(position + 1), is_contiguous=True)


def judge_gradients(problem: Problem, call: int, result: Result) -> float:
    """Judges o, lse and d_q as judge_attention does, or judge_dense where there is no selection; and d_k and d_v."""
    judge_keys(problem, call, result)
    return (judge_dense if result.topk_indices is None else judge_attention)(problem, call, result)


def judge_step(problem: Problem, call: int, result: Result) -> float:
    """Judges attention with its gradients, and the gradient of the KL loss beside them."""
    judge_kl(problem, call, result)
    return judge_gradients(problem, call, result)


def judge_kl(problem: Problem, call: int, result: Result) -> float:
    """Judges d_index_q over the selection, or over the whole history where there is none. Returns its relative error."""
    d_index_q = _RelativeError()
    for row, sequence, position in problem.sample(SAMPLED_QUERIES):
        for head in range(problem.layer.num_heads_kv):
            tokens = np.arange(position + 1)
            if result.topk_indices is not None:
                chosen = host(result.topk_indices[head, row]).astype(int)
                tokens = _tokens_of(chosen[chosen >= 0], position, problem.layer.block_size)
            rows = problem.rows(call, sequence, tokens)
            d_index_q.add(result.d_index_q[row, head], _d_index_q(problem, call, row, head, rows))
    _expect(d_index_q.value(), tolerance(problem).gradient, "d_index_q differs from float64; relative error")
    return d_index_q.value()


# ------------------------------------------------------------------------------------------------------------ selection


def block_scores(problem: Problem, call: int, row: int, sequence: int, position: int) -> np.ndarray:
    """[num_heads_kv, kv_blocks up to the query's own] in float64."""
    size = problem.layer.block_size
    index_q, index_k = problem.judged_index(call, row, problem.rows(call, sequence, np.arange(position + 1)))
    scores = host(index_q @ index_k.T) / problem.layer.index_dim**0.5
    scores = np.pad(scores, ((0, 0), (0, -(position + 1) % size)), constant_values=-np.inf)
    return scores.reshape(len(scores), -1, size).max(-1)


def best_blocks(scores: np.ndarray, topk: int) -> np.ndarray:
    """The query's own kv_block, the last of `scores`, and the best ones before it; ascending."""
    before = np.argsort(-scores[:-1], kind="stable")[: topk - 1]
    return np.sort(np.append(before, len(scores) - 1))


def _clear_choice(scores: np.ndarray, topk: int, allowed: float) -> np.ndarray | None:
    """best_blocks, or None where rounding may decide."""
    order = np.sort(scores[:-1])[::-1]
    if 0 < topk - 1 < len(order) and order[topk - 2] - order[topk - 1] <= allowed * np.abs(scores).max():
        return None
    return best_blocks(scores, topk)


def _margin(indices: np.ndarray, scores: np.ndarray, topk: int, place: str) -> float:
    """How much better the best kv_block left out is than the worst chosen one, relative to the largest score."""
    chosen, visible = indices[indices >= 0], len(scores)
    if len(chosen) != min(topk, visible):
        raise Wrong(f"{place}: expected {min(topk, visible)} kv_blocks, got {len(chosen)}")
    if (np.diff(chosen) <= 0).any() or chosen[-1] != visible - 1:
        raise Wrong(f"{place}: expected ascending kv_blocks up to {visible - 1}, got {chosen.tolist()}")
    left_out = np.delete(scores, chosen)
    if len(chosen) == 1 or len(left_out) == 0:
        return 0.0
    return max(0.0, float((left_out.max() - scores[chosen[:-1]].min()) / np.abs(scores).max()))


# ------------------------------------------------------------------------------------------------------------ attention


def _tokens_of(blocks: np.ndarray, position: int, size: int) -> np.ndarray:
    tokens = (blocks[:, None] * size + np.arange(size)).flatten()
    return tokens[tokens <= position]


def attention(problem: Problem, call: int, row: int, head: int, rows: np.ndarray) -> dict[str, Any]:
    """A query's heads of one KV head over some rows of k and v: p [group_size, tokens], o, lse, and k as read."""
    q = cast(problem.q[call, row, problem.group(head)], "float64")
    k, v = (cast(take(x[:, head], rows), "float64") for x in (problem.k, problem.v))
    xp, logits = library(q), q @ k.T / problem.layer.head_dim**0.5
    most = xp.amax(logits, -1)[:, None]
    p = xp.exp(logits - most)
    total = p.sum(-1)[:, None]
    p = p / total
    return {"p": p, "k": k, "v": v, "o": p @ v, "lse": (most + xp.log(total))[:, 0]}


def _d_q(problem: Problem, expected: dict[str, Any]):
    """ds = p (d_o.v - d_o.o), d_q = softmax_scale ds k, with d_o = o."""
    p, o = expected["p"], expected["o"]
    ds = p * (o @ expected["v"].T - (o * o).sum(-1)[:, None])
    return ds @ expected["k"] / problem.layer.head_dim**0.5


def _d_index_q(problem: Problem, call: int, row: int, head: int, rows: np.ndarray) -> np.ndarray:
    """(P_idx - P) index_k / sqrt(index_dim) of a query and KV head, over the mean of all of them."""
    teacher = host(attention(problem, call, row, head, rows)["p"].mean(0))
    index_q, index_k = (host(x) for x in problem.judged_index(call, row, rows))
    scale = problem.layer.index_dim**-0.5
    logits = scale * (index_k @ index_q[head])
    student = np.exp(logits - logits.max())
    return scale * ((student / student.sum() - teacher) @ index_k) / (problem.total_q * problem.layer.num_heads_kv)


SAMPLED_KEYS = 4
# Queries that are looked at together.
QUERIES_PART = 1 << 14


def judge_keys(problem: Problem, call: int, result: Result) -> None:
    """d_k and d_v of a few keys of a single sequence, from all queries that see them, by the contender's own o and lse:
    p = exp(softmax_scale q.k - lse), ds = p (d_o.v - d_o.o), d_k = softmax_scale sum ds q, d_v = sum p d_o, d_o = o."""
    if result.d_k is None or problem.batch > 1:
        return
    keys = sorted(
        {0, problem.total_q - 1, *np.random.default_rng(13).integers(problem.total_q, size=SAMPLED_KEYS).tolist()}
    )
    d_k, d_v = _RelativeError(), _RelativeError()
    for head in range(problem.layer.num_heads_kv):
        for key in keys:
            expected_k, expected_v = _key_gradients(problem, call, result, head, key)
            d_k.add(result.d_k[key, head], expected_k)
            d_v.add(result.d_v[key, head], expected_v)
    allowed = tolerance(problem).gradient
    _expect(d_k.value(), allowed, "d_k differs from float64; relative error")
    _expect(d_v.value(), allowed, "d_v differs from float64; relative error")


def _key_gradients(problem: Problem, call: int, result: Result, head: int, key: int):
    """d_k and d_v of a key in float64."""
    heads, scale = problem.group(head), problem.layer.head_dim**-0.5
    k, v = (cast(x[key, head], "float64") for x in (problem.k, problem.v))
    d_k = d_v = 0
    for begin in range(key, problem.total_q, QUERIES_PART):
        part = slice(begin, begin + QUERIES_PART)
        q, o, lse = (cast(x[part, heads], "float64") for x in (problem.q[call], result.o, result.lse))
        p = library(q).exp(scale * (q @ k) - lse)  # [queries, group_size]
        if result.topk_indices is not None:
            p = p * (result.topk_indices[head, part] == key // problem.layer.block_size).any(-1)[:, None]
        ds = p * (o @ v - (o * o).sum(-1))
        d_k = d_k + scale * (ds[..., None] * q).sum((0, 1))
        d_v = d_v + (p[..., None] * o).sum((0, 1))
    return d_k, d_v


def _compare(
    problem: Problem, call: int, result: Result, attended, sampled=SAMPLED_QUERIES, is_contiguous=False
) -> float:
    """The relative error of o. attended(row, head, position): tokens that a query attends to, or None to leave it."""
    allowed, o, d_q = tolerance(problem), _RelativeError(), _RelativeError()
    rows_of = problem.contiguous_rows if is_contiguous else problem.rows
    for row, sequence, position in problem.sample(sampled):
        for head in range(problem.layer.num_heads_kv):
            tokens = attended(row, head, position)
            if tokens is None:
                continue
            expected = attention(problem, call, row, head, rows_of(call, sequence, tokens))
            heads = problem.group(head)
            o.add(result.o[row, heads], expected["o"])
            if result.lse is not None:
                difference = float(np.abs(host(result.lse[row, heads]) - host(expected["lse"])).max())
                _expect(difference, allowed.lse, f"query {row}: lse is off; by")
            if result.d_q is not None:
                d_q.add(result.d_q[row, heads], _d_q(problem, expected))
    _expect(d_q.value(), allowed.gradient, "d_q differs from float64; relative error")
    _expect(o.value(), allowed.o, "o differs from float64; relative error")
    return o.value()


class _RelativeError:
    """||x - expected|| / ||expected|| over all that is added."""

    def __init__(self):
        self._error = self._norm = 0.0

    def add(self, x, expected) -> None:
        expected = host(expected)
        self._error += float(np.square(host(x) - expected).sum())
        self._norm += float(np.square(expected).sum())

    def value(self) -> float:
        return (self._error / self._norm) ** 0.5 if self._norm else 0.0


def _expect(value: float, allowed: float, what: str) -> None:
    if not value <= allowed:
        raise Wrong(f"{what} {value:.3g}, allowed {allowed:g}")
