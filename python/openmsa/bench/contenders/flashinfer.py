"""FlashInfer: one prompt, or one new token per sequence on a paged cache."""

from __future__ import annotations

import importlib

from .._errors import Refused
from .._judge import judge_dense
from .._problem import Problem
from .._section import Contender, Prepared, Result

WORKSPACE_BYTES = 256 << 20


def prepare(problem: Problem) -> Prepared:
    library = importlib.import_module("flashinfer")
    if not problem.is_paged:

        def run(call: int) -> Result:
            return Result(library.single_prefill_with_kv_cache(problem.q[call], problem.k, problem.v, causal=True))

        return Prepared(run)
    if len(set(problem.lengths)) > 1 or set(problem.queries) != {1}:
        raise Refused("one new token of sequences of one length only")
    pages = [problem.pages(call) for call in range(problem.calls)]
    wrappers = [_planned(library, problem, pages[call]) for call in range(problem.sets)]

    def run_decode(call: int) -> Result:
        cache = (pages[call]["k_cache"], pages[call]["v_cache"])
        return Result(wrappers[call % problem.sets].run(problem.q[call], cache))

    return Prepared(run_decode)


def _planned(library, problem: Problem, pages):
    import torch

    layer = problem.layer
    device = problem.q.device
    memory = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(memory, "NHD", use_tensor_cores=True)
    per_sequence = pages["block_table"].shape[1]
    bounds = torch.arange(problem.batch + 1, dtype=torch.int32, device=device) * per_sequence
    in_last = problem.max_seqlen_k - (per_sequence - 1) * layer.block_size
    wrapper.plan(
        bounds,
        pages["block_table"].flatten(),
        torch.full((problem.batch,), in_last, dtype=torch.int32, device=device),
        layer.num_heads_q,
        layer.num_heads_kv,
        layer.head_dim,
        layer.block_size,
        q_data_type=problem.q.dtype,
        kv_data_type=problem.q.dtype,
    )
    return wrapper


FLASHINFER = Contender("FlashInfer", "dense", prepare, judge_dense, ("cuda",))
