"""The Triton kernels that vLLM runs MiniMax-M3 with where nothing faster is built in."""

from __future__ import annotations

import importlib

from .._errors import Refused
from .._judge import judge_sparse
from .._problem import Problem
from .._section import Contender, Prepared, Result
from ._call import call_with, joined

#: Query tokens of a sequence that its kernels for decode take: a new one, and some that were speculated.
DECODED = 16


def prepare(problem: Problem) -> Prepared:
    index = importlib.import_module("vllm.models.minimax_m3.common.ops.index_topk")
    attend = importlib.import_module("vllm.models.minimax_m3.common.ops.sparse_attn")

    layer = problem.layer
    if layer.block_size != index.SPARSE_BLOCK_SIZE:
        raise Refused(f"kv_blocks of {index.SPARSE_BLOCK_SIZE} only")
    calls = [_arguments(problem, call) for call in range(problem.calls)]
    kv_cache = joined(*(problem.pages(0)[name] for name in ("k_cache", "v_cache")))
    is_decode = problem.is_paged and problem.queries[0] <= DECODED

    def run(call: int) -> Result:
        common = calls[call] | {"kv_cache": kv_cache}
        if is_decode:
            chosen = call_with(index.minimax_m3_index_decode, common)
            call_with(attend.minimax_m3_sparse_attn_decode, common | {"topk_idx": chosen})
        else:
            score = call_with(index.minimax_m3_index_score, common)
            chosen = call_with(index.minimax_m3_index_topk, common | {"score": score})
            call_with(attend.minimax_m3_sparse_attn, common | {"topk_idx": chosen})
        return Result(common["output"])

    return Prepared(run)


def _arguments(problem: Problem, call: int) -> dict:
    pages, layer, tokens = problem.pages(call), problem.layer, problem.queries[0]
    if set(problem.queries) != {tokens}:
        raise Refused("as many new tokens of every sequence only")
    return {
        "q": problem.q[call],
        "idx_q": problem.index_q[call],
        "index_kv_cache": pages["index_k_cache"],
        "block_table": pages["block_table"],
        "cu_seqlens_q": pages["cu_seqlens_q"],
        "seq_lens": pages["seqlens_k"],
        "prefix_lens": pages["seqlens_k"] - tokens,
        "max_query_len": tokens,
        "max_seq_len": problem.max_seqlen_k,
        "decode_query_len": tokens,
        "max_decode_query_len": tokens,
        "num_kv_heads": layer.num_heads_kv,
        "sm_scale": layer.head_dim**-0.5,
        "topk": layer.topk,
        "init_blocks": 0,
        "local_blocks": 1,
        "output": problem.source.full(tuple(problem.q[call].shape), 0.0, problem.dtype),
    }


VLLM = Contender("vLLM Triton", "layer", prepare, judge_sparse, ("cuda",))
