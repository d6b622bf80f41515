"""What openmsa serves of what SGLang can be told to do; everything else stays with the engine."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def page_size_of(backend) -> int:
    """Tokens per page of openmsa's plan: a kv_block is made of pages, so larger pages of the engine's count as several."""
    return min(backend.kv_pool.page_size, backend.block_size_k)


def reason_against(backend, num_index_heads: int, dtype: torch.dtype) -> str | None:
    """Why all sparse layers stay with the engine, or None.

    backend          the engine's MiniMaxSparseAttnBackend, made
    num_index_heads  of this rank
    dtype            of the model
    """
    return next(_reasons(backend, num_index_heads, dtype), None)


def _reasons(backend, num_index_heads: int, dtype: torch.dtype) -> Iterator[str]:
    pool = backend.kv_pool
    if backend.hisparse_coordinator is not None:
        yield "HiSparse: openmsa reads caches that are whole"
    if backend.indexer_cp is not None:
        yield "SGLANG_MINIMAX_M3_INDEXER_CP: openmsa divides the index branch where OPENMSA_SGLANG_SHARD_INDEX is 1"
    if backend.index_cache_enabled:
        yield "a selection that layers share: openmsa selects in each layer"
    if backend.use_dense_sparse_decode:
        yield "SGLANG_OPT_USE_MINIMAX_DENSE_SPARSE_DECODE was chosen"
    if backend.fp8_attn_gemm:
        yield "queries rounded to fp8 with a scale: openmsa multiplies 16-bit ones"
    if backend.score_type != "max":
        yield f"sparse_score_type: expected max, got {backend.score_type}"
    if num_index_heads != pool.main_pool.head_num:
        yield f"index heads: expected {pool.main_pool.head_num} as of KV heads, got {num_index_heads}"
    if pool.index_k_pool is None:
        yield "index values: expected layers without, got none"
        return
    yield from _reasons_of_caches(pool, backend.block_size_k, dtype)


def _reasons_of_caches(pool, block_size: int, dtype: torch.dtype) -> Iterator[str]:
    for what, cache in (("k and v", pool.main_pool), ("index keys", pool.index_k_pool)):
        if cache.dtype not in (dtype, torch.float8_e4m3fn):
            yield f"{what}: expected {_name(dtype)} or float8_e4m3fn, got {_name(cache.dtype)}"
    layout = pool.main_pool.kv_cache_layout
    if layout not in ("nhd", "hnd"):
        yield f"layout of k and v: expected nhd or hnd, got {layout}"
    if block_size % pool.page_size and pool.page_size % block_size:
        yield f"page_size: expected a divisor or a multiple of {block_size}, got {pool.page_size}"
    if layout == "hnd" and pool.page_size > block_size:
        yield f"page_size: expected at most {block_size} with layout hnd, got {pool.page_size}"


def reason_against_layer(backend, layer) -> str | None:
    """Why one sparse layer, an engine's RadixAttention, stays with the engine, or None."""
    if layer.layer_id not in backend.disable_value_layer_ids:
        return "its index branch has values"
    pool, names = backend.kv_pool, ["q_scale_float", "idx_q_scale_float"]
    if pool.index_k_pool.dtype != torch.float8_e4m3fn:
        names.append("idx_k_scale_float")
    if pool.main_pool.dtype != torch.float8_e4m3fn:
        names += ["k_scale_float", "v_scale_float"]
    for name in names:
        if getattr(layer, name) not in (None, 1.0):
            return f"{name}: expected none where numbers are 16-bit, got {getattr(layer, name)}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
