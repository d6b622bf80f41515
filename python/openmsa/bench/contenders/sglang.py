"""The Triton kernels of SGLang for MiniMax-M3."""

from __future__ import annotations

import importlib

import numpy as np

from .._errors import Refused
from .._judge import judge_sparse
from .._problem import Problem
from .._section import Contender, Prepared, Result
from ._call import call_with


def prepare(problem: Problem) -> Prepared:
    kernels = importlib.import_module("sglang.srt.layers.attention.minimax_sparse_ops.minimax_sparse")
    run_kernels = kernels.minimax_sparse_decode if problem.is_paged else kernels.minimax_sparse_prefill
    if problem.is_paged and set(problem.queries) != {1}:
        raise Refused("one new token per sequence only")
    calls = [_arguments(problem, call) for call in range(problem.calls)]
    return Prepared(lambda call: Result(call_with(run_kernels, calls[call])[1]))


def _arguments(problem: Problem, call: int) -> dict:
    pages, layer, tokens = problem.pages(call), problem.layer, problem.queries[0]
    if len(set(problem.sequences)) > 1:
        raise Refused("sequences of one length only")
    every = np.arange(problem.max_seqlen_k)
    slots = np.stack([problem.rows(call, sequence, every) for sequence in range(problem.batch)])
    on_device = problem.source.on_device
    return {
        "q": problem.q[call],
        "k_cache": problem.k,
        "v_cache": problem.v,
        "sink": None,
        "idx_q": problem.index_q[call],
        "idx_k_cache": problem.index_k[:, None],
        "idx_v_cache": None,
        "idx_sink": None,
        "req_to_token": on_device(slots.astype(np.int32)),
        "slot_ids": on_device(np.arange(problem.batch)),
        "cu_seqlens": pages["cu_seqlens_q"],
        "seq_lens": pages["seqlens_k"],
        "prefix_lens": pages["seqlens_k"] - tokens,
        "max_seqlen_q": tokens,
        "max_seqlen_k": problem.max_seqlen_k,
        "max_seqlen": problem.max_seqlen_k,
        "seqlens_cpu": [tokens] * problem.batch,
        "page_size": layer.block_size,
        "block_size_q": 1,
        "block_size_k": layer.block_size,
        "topk": layer.topk,
        "init_blocks": 0,
        "local_blocks": 1,
        "disable_index_value": True,
    }


SGLANG = Contender("SGLang Triton", "layer", prepare, judge_sparse, ("cuda",))
