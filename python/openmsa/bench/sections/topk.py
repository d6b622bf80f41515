"""Top-k of given block scores, beside torch.topk."""

from __future__ import annotations

import functools

import numpy as np

import openmsa

from .._errors import Wrong
from .._section import Case, Contender, Options, Prepared, Result, Section
from .._tensors import as_torch, host, source_of, take

# rows, scores of a row, k
SIZES = {
    "cuda": ((131072, 1024, 16), (131072, 2048, 32), (524288, 4096, 16)),
    "cpu": ((4096, 256, 16), (4096, 1024, 16)),
}
HEADS, BLOCK = 4, 128
JUDGED_ROWS = 256


class Scores:
    """Rows that all see every column: sequences of BLOCK queries each, at the end of `columns` kv_blocks."""

    calls = 1

    def __init__(self, device: str, rows: int, columns: int, k: int, threads: int):
        self.device, self.columns, self.k, self.threads = device, columns, k, threads
        self.total_q = rows // HEADS
        self.batch = self.total_q // BLOCK
        self.source = source_of(device, 1)
        self.scores = self.source.normal(HEADS, self.total_q, columns)

    def work(self, part: str, rate: str) -> float:
        """Bytes of scores and indices."""
        return HEADS * self.total_q * (self.columns + self.k) * 4


def cases(options: Options) -> list[Case]:
    return [
        Case(
            f"{rows} rows of {columns}, k = {k}",
            columns * BLOCK,
            rows // HEADS // BLOCK,
            functools.partial(Scores, options.device, rows, columns, k, options.threads),
        )
        for rows, columns, k in SIZES[options.device]
    ]


def ours(problem: Scores) -> Prepared:
    plan = openmsa.Plan(
        num_heads_q=HEADS,
        num_heads_kv=HEADS,
        head_dim=128,
        index_dim=128,
        block_size=BLOCK,
        topk=problem.k,
        num_local_blocks=0,
        dtype="bfloat16" if problem.device == "cuda" else "float32",
        backend=problem.device,
        max_batch=problem.batch,
        max_total_q=problem.total_q,
        max_seqlen_k=problem.columns * BLOCK,
        num_threads=problem.threads,
    )
    on_device, full = problem.source.on_device, problem.source.full
    cu_seqlens_q = on_device(np.arange(0, problem.total_q + 1, BLOCK, dtype=np.int32))
    seqlens_k = full((problem.batch,), problem.columns * BLOCK, "int32")
    indices = full((HEADS, problem.total_q, problem.k), -2, "int32")

    def run(call: int) -> Result:
        openmsa.topk(problem.scores, seqlens_k, cu_seqlens_q=cu_seqlens_q, topk_indices=indices, plan=plan)
        return Result(topk_indices=indices)

    return Prepared(run)


def pytorch(problem: Scores) -> Prepared:
    """torch.topk. Its indices come by falling score."""
    import torch

    scores = as_torch(problem.scores).flatten(0, 1)

    def run(call: int) -> Result:
        return Result(topk_indices=torch.topk(scores, problem.k, dim=1).indices.unflatten(0, (HEADS, -1)))

    return Prepared(run)


def judge(problem: Scores, call: int, result: Result) -> float:
    """Some rows have the highest scores that they hold."""
    rows = np.unique(np.linspace(0, problem.total_q - 1, JUDGED_ROWS // HEADS).astype(int))
    for head in range(HEADS):
        scores, indices = (host(take(x[head], rows)) for x in (problem.scores, result.topk_indices))
        indices = indices.astype(int)
        if (indices < 0).any() or (indices >= problem.columns).any():
            raise Wrong("an index is out of range")
        if (np.diff(np.sort(indices, 1), axis=1) == 0).any():
            raise Wrong("an index occurs twice in a row")
        expected = np.sort(scores, 1)[:, -problem.k :]
        if not np.array_equal(np.sort(np.take_along_axis(scores, indices, 1), 1), expected):
            raise Wrong("not the highest scores")
    return 0.0


def judge_ascending(problem: Scores, call: int, result: Result) -> float:
    if not bool((result.topk_indices[..., 1:] > result.topk_indices[..., :-1]).all()):
        raise Wrong("indices do not ascend")
    return judge(problem, call, result)


SECTION = Section(
    "topk",
    "top-k of block scores",
    cases,
    (Contender("openmsa", "layer", ours, judge_ascending), Contender("torch.topk", "dense", pytorch, judge)),
    rate="gb_per_s",
)
