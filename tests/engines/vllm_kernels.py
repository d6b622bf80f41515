"""vLLM's kernel functions of MiniMax-M3's sparse attention, as calls of openmsa: the names, arguments and results of
vllm.models.minimax_m3.common.ops."""

from __future__ import annotations

import functools

import openmsa
import pytest
import torch
from openmsa.integrations.vllm._calls import PAGE_SIZE, caches_of

_calls = 0


def num_calls() -> int:
    return _calls


def replace() -> None:
    """Before anybody imports the functions by name."""
    from vllm.models.minimax_m3.common.ops import index_topk, sparse_attn

    for module, function in (
        (index_topk, index_score),
        (index_topk, index_topk_of_scores),
        (index_topk, index_decode),
        (sparse_attn, sparse_attention),
        (sparse_attn, sparse_attention_decode),
    ):
        setattr(module, _NAMES[function], _counted(function))


def _counted(function):
    @functools.wraps(function)
    def counted(*args, **keywords):
        global _calls
        _calls += 1
        return function(*args, **keywords)

    return counted


def index_score(
    idx_q, index_kv_cache, block_table, cu_seqlens_q, seq_lens, prefix_lens, max_query_len, max_seq_len, num_kv_heads
):
    """Block scores [num_kv_heads, total_q, blocks], which openmsa divides by sqrt(head_dim)."""
    return _index_branch(openmsa.block_scores, idx_q, index_kv_cache, block_table, cu_seqlens_q, seq_lens)


def index_topk_of_scores(score, cu_seqlens_q, prefix_lens, max_query_len, topk, init_blocks, local_blocks, out=None):
    seqlens_k = prefix_lens + cu_seqlens_q.diff()
    options = {"topk": topk, "num_init_blocks": init_blocks, "num_local_blocks": local_blocks, "block_size": PAGE_SIZE}
    options["max_seqlen_k"] = score.shape[2] * PAGE_SIZE
    return _written(openmsa.topk(score, seqlens_k.int(), cu_seqlens_q=cu_seqlens_q, **options), out)


def index_decode(
    idx_q,
    index_kv_cache,
    block_table,
    seq_lens,
    max_seq_len,
    topk,
    init_blocks,
    local_blocks,
    num_kv_heads,
    decode_query_len,
    max_decode_query_len,
    out=None,
    score_out=None,
):
    bounds = _decode_bounds(seq_lens, decode_query_len)
    options = {"topk": topk, "num_init_blocks": init_blocks, "num_local_blocks": local_blocks}
    select = functools.partial(openmsa.select_blocks, **options)
    return _written(_index_branch(select, idx_q, index_kv_cache, block_table, bounds, seq_lens), out)


def sparse_attention(
    q,
    kv_cache,
    topk_idx,
    block_table,
    cu_seqlens_q,
    seq_lens,
    prefix_lens,
    max_query_len,
    num_kv_heads,
    sm_scale,
    output,
    k_scale=None,
    v_scale=None,
):
    openmsa.sparse_attention(
        q,
        topk_indices=topk_idx,
        o=output,
        cu_seqlens_q=cu_seqlens_q,
        seqlens_k=seq_lens,
        block_table=block_table,
        block_size=PAGE_SIZE,
        softmax_scale=sm_scale,
        **caches_of(kv_cache, k_scale, v_scale),
    )


def sparse_attention_decode(
    q,
    kv_cache,
    topk_idx,
    block_table,
    seq_lens,
    num_kv_heads,
    sm_scale,
    output,
    decode_query_len,
    k_scale=None,
    v_scale=None,
):
    bounds = _decode_bounds(seq_lens, decode_query_len)
    is_there = topk_idx >= 0
    if (is_there[..., 1:] & ~is_there[..., :-1]).any() or (topk_idx >= block_table.shape[1]).any():
        pytest.skip("block numbers behind -1, or of no block: openmsa's selections have none")
    arguments = (q, kv_cache, topk_idx, block_table, bounds, seq_lens, None, decode_query_len, num_kv_heads, sm_scale)
    sparse_attention(*arguments, output, k_scale, v_scale)


_NAMES = {
    index_score: "minimax_m3_index_score",
    index_topk_of_scores: "minimax_m3_index_topk",
    index_decode: "minimax_m3_index_decode",
    sparse_attention: "minimax_m3_sparse_attn",
    sparse_attention_decode: "minimax_m3_sparse_attn_decode",
}


def _index_branch(function, idx_q, index_kv_cache, block_table, cu_seqlens_q, seq_lens):
    """On the GPU; on the CPU what openmsa has no CUDA kernels for, fp32 and 16 channels."""
    tensors = {
        "index_q": idx_q,
        "index_k_cache": index_kv_cache,
        "block_table": block_table,
        "cu_seqlens_q": cu_seqlens_q,
        "seqlens_k": seq_lens,
    }
    is_served = idx_q.dtype != torch.float32 and idx_q.shape[2] in (64, 128)
    if not is_served:
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    options: dict = {"block_size": PAGE_SIZE}
    if index_kv_cache.dtype == torch.float8_e4m3fn:
        options["index_q_rounding"] = "cast" if idx_q.dtype == torch.float8_e4m3fn else "exact"
    return function(**tensors, **options).to(idx_q.device)


def _decode_bounds(seq_lens, decode_query_len: int):
    """Padded requests have rows too."""
    return torch.arange(len(seq_lens) + 1, dtype=torch.int32, device=seq_lens.device) * decode_query_len


def _written(result, out):
    if out is None:
        return result
    out = out[:, : result.shape[1]]
    out.copy_(result)
    return out
