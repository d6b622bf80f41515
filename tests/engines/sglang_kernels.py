"""SGLang's kernel functions of sparse decode, as calls of openmsa: the names, arguments and results of
sglang.kernels.ops.attention.minimax_sparse.decode. SGLang's tests put every token where they like; here the tokens of a
request are first copied to pages of a kv_block, which is what the engine's caches have."""

from __future__ import annotations

import importlib

import openmsa
import pytest
import torch

_BLOCK_SIZES = (64, 128)
_SINKS = "attention sinks, which M3 does not have"
_MODULES = "sglang.kernels.ops.attention.minimax_sparse.decode"
_calls = 0


def num_calls() -> int:
    return _calls


def replace() -> None:
    """Before anybody imports the functions by name."""
    for module, function in (
        ("topk_sparse", flash_decode_with_gqa_share_sparse),
        ("flash_with_topk_idx", flash_decode_with_topk_idx),
    ):
        setattr(importlib.import_module(f"{_MODULES}.{module}"), function.__name__, function)


def flash_decode_with_gqa_share_sparse(
    q, sink, k_cache, v_cache, req_to_token, seq_lens, slot_ids, block_size, topk_idx, sm_scale=None, **options
):
    """Attention [batch, heads, dim] over the chosen kv_blocks."""
    _skip((sink is not None, _SINKS), (block_size not in _BLOCK_SIZES, f"kv_blocks of {block_size}, on a GPU"))
    _count()
    batch = _batch(req_to_token, slot_ids, seq_lens, block_size)
    caches = {name: _paged(cache, batch, block_size) for name, cache in (("k_cache", k_cache), ("v_cache", v_cache))}
    topk_indices = topk_idx.sort(dim=-1, descending=True).values.contiguous()  # -1 behind the kv_blocks
    options = {"softmax_scale": sm_scale, "block_size": block_size}
    return openmsa.sparse_attention(q, topk_indices=topk_indices, **caches, **_lengths(batch), **options)


def flash_decode_with_topk_idx(
    q,
    sink,
    k_cache,
    v_cache,
    req_to_token,
    seq_lens,
    max_seqlen,
    slot_ids,
    block_size,
    topk,
    init_blocks,
    local_blocks,
    sm_scale=None,
    score_type="max",
    disable_index_value=False,
    use_dense_main_attn=False,
    **options,
):
    """The index branch: of its queries, dense attention [batch, heads, dim] where it has values, and the kv_blocks of highest
    score [heads, batch, topk]."""
    _skip(
        (sink is not None, _SINKS),
        (score_type != "max", f"score type {score_type}, which M3 does not have"),
        (use_dense_main_attn, "a page table instead of a selection, an option of SGLang's"),
        (k_cache.shape[1] > 1, "index keys with several heads, which M3 does not have"),
        (block_size not in _BLOCK_SIZES, f"kv_blocks of {block_size}, on a GPU"),
    )
    _count()
    batch = _batch(req_to_token, slot_ids, seq_lens, block_size)
    index_k_cache = _paged(k_cache, batch, block_size)
    o = None
    if not disable_index_value:
        caches = {"k_cache": index_k_cache, "v_cache": _paged(v_cache, batch, block_size)}
        o = openmsa.dense_attention(q, **caches, **_lengths(batch), block_size=block_size)
    chosen = openmsa.select_blocks(
        q,
        index_k_cache=index_k_cache[:, :, 0],
        **_lengths(batch),
        block_size=block_size,
        topk=topk,
        num_init_blocks=init_blocks,
        num_local_blocks=local_blocks,
    )
    return o, chosen, None


def _skip(*cases: tuple[bool, str]) -> None:
    """A test that asks for what openmsa does not serve."""
    for is_asked, what in cases:
        if is_asked:
            pytest.skip(what)


def _count() -> None:
    global _calls
    _calls += 1


def _batch(req_to_token, slot_ids, seq_lens, block_size: int) -> dict[str, torch.Tensor]:
    """slots [batch, blocks, block_size] of all tokens, 0 for those behind a request, and what openmsa wants of a batch."""
    num_blocks = -(-int(seq_lens.max()) // block_size)
    slots = req_to_token[slot_ids][:, : num_blocks * block_size]
    slots = torch.nn.functional.pad(slots, (0, num_blocks * block_size - slots.shape[1])).long()
    pages = torch.arange(len(seq_lens) * num_blocks, dtype=torch.int32, device=slots.device)
    return {
        "slots": slots.view(-1, block_size),
        "block_table": pages.view(len(seq_lens), num_blocks),
        "seqlens_k": seq_lens,
        "cu_seqlens_q": torch.arange(len(seq_lens) + 1, dtype=torch.int32, device=slots.device),
    }


def _lengths(batch: dict) -> dict:
    return {name: tensor for name, tensor in batch.items() if name != "slots"}


def _paged(cache, batch, block_size: int):
    """[pages, block_size, heads, dim]"""
    return cache[batch["slots"]].contiguous()
