"""The benchmark's calls of vLLM's and SGLang's kernels, with stand-ins that have their signatures and layouts and compute by
openmsa: what the kernels would be given is the layer that openmsa is given."""

import dataclasses
import sys
import types

import numpy as np
import openmsa
import pytest
import torch
from openmsa.bench import _contenders
from openmsa.bench._case import Case, Layer

LAYER = Layer(num_heads_q=4, num_heads_kv=2, head_dim=16, block_size=16, topk=2)
OPTIONS = {"block_size": 16, "topk": 2}


def select(idx_q, keys, block_table, cu_seqlens_q, seq_lens):
    tensors = {"seqlens_k": seq_lens, "block_table": block_table, "cu_seqlens_q": cu_seqlens_q}
    return openmsa.select_blocks(idx_q, index_k_cache=keys, **tensors, **OPTIONS)


def attend(q, k, v, topk_idx, block_table, cu_seqlens_q, seq_lens, scale):
    tensors = {"seqlens_k": seq_lens, "block_table": block_table, "cu_seqlens_q": cu_seqlens_q, "softmax_scale": scale}
    return openmsa.sparse_attention(q, topk_indices=topk_idx, k_cache=k, v_cache=v, **tensors, block_size=16)


class VllmIndex:
    SPARSE_BLOCK_SIZE = 16

    @staticmethod
    def minimax_m3_index_score(
        idx_q,
        index_kv_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        prefix_lens,
        max_query_len,
        max_seq_len,
        num_kv_heads,
    ):
        assert (seq_lens - prefix_lens == max_query_len).all()
        return idx_q, index_kv_cache, block_table, cu_seqlens_q, seq_lens

    @staticmethod
    def minimax_m3_index_topk(
        score, cu_seqlens_q, prefix_lens, max_query_len, topk, init_blocks, local_blocks, out=None
    ):
        assert (topk, init_blocks, local_blocks) == (2, 0, 1)
        return select(*score)

    @staticmethod
    def minimax_m3_index_decode(
        idx_q, index_kv_cache, block_table, seq_lens, max_seq_len, topk, init_blocks, local_blocks, num_kv_heads,
        decode_query_len, max_decode_query_len, out=None,
    ):  # fmt: skip
        bounds = np.arange(len(seq_lens) + 1, dtype=np.int32) * decode_query_len
        return select(idx_q, index_kv_cache, *as_tensors(block_table, bounds, seq_lens))


class VllmAttend:
    @staticmethod
    def minimax_m3_sparse_attn(
        q, kv_cache, topk_idx, block_table, cu_seqlens_q, seq_lens, prefix_lens, max_query_len, num_kv_heads, sm_scale,
        output, k_scale=None, v_scale=None,
    ):  # fmt: skip
        assert kv_cache.shape[1:] == (num_kv_heads, 16, 32)
        k, v = kv_cache.transpose(1, 2).split(16, -1)
        output.copy_(attend(q, k, v, topk_idx, *as_tensors(block_table, cu_seqlens_q, seq_lens), sm_scale))

    @staticmethod
    def minimax_m3_sparse_attn_decode(
        q, kv_cache, topk_idx, block_table, seq_lens, num_kv_heads, sm_scale, output, decode_query_len
    ):
        bounds = np.arange(len(seq_lens) + 1, dtype=np.int32) * decode_query_len
        VllmAttend.minimax_m3_sparse_attn(
            q, kv_cache, topk_idx, block_table, bounds, seq_lens, None, None, num_kv_heads, sm_scale, output
        )


class Sglang:
    @staticmethod
    def minimax_sparse_prefill(
        q, k_cache, v_cache, sink, idx_q, idx_k_cache, idx_v_cache, idx_sink, req_to_token, slot_ids, cu_seqlens, seq_lens,
        prefix_lens, max_seqlen_q, max_seqlen_k, block_size_q, block_size_k, topk, init_blocks, local_blocks,
        disable_index_value=False, seqlens_cpu=None, page_size=1,
    ):  # fmt: skip
        assert torch.diff(torch.as_tensor(cu_seqlens)).tolist() == seqlens_cpu and page_size == block_size_k
        pages = req_to_token[slot_ids][:, ::block_size_k] // block_size_k
        where = as_tensors(pages.int(), cu_seqlens, seq_lens)
        paged = [cache.unflatten(0, (-1, block_size_k)) for cache in (k_cache, v_cache, idx_k_cache.squeeze(1))]
        return None, attend(q, *paged[:2], select(idx_q, paged[2], *where), *where, None)

    @staticmethod
    def minimax_sparse_decode(
        q, sink, k_cache, v_cache, idx_q, idx_sink, idx_k_cache, idx_v_cache, req_to_token, slot_ids, seq_lens, max_seqlen,
        block_size_q, block_size_k, topk, init_blocks, local_blocks, disable_index_value=False, page_size=1,
    ):  # fmt: skip
        bounds = np.arange(len(seq_lens) + 1, dtype=np.int32)
        rest = (seq_lens - 1, 1, max_seqlen, block_size_q, block_size_k, topk, init_blocks, local_blocks)
        sinks = (None, idx_q, idx_k_cache, idx_v_cache, None)
        return Sglang.minimax_sparse_prefill(
            q, k_cache, v_cache, *sinks, req_to_token, slot_ids, bounds, seq_lens, *rest,
            seqlens_cpu=[1] * len(seq_lens), page_size=page_size,
        )  # fmt: skip


def as_tensors(*arrays):
    return [torch.as_tensor(array) for array in arrays]


MODULES = {
    "vllm.models.minimax_m3.common.ops.index_topk": VllmIndex,
    "vllm.models.minimax_m3.common.ops.sparse_attn": VllmAttend,
    "sglang.srt.layers.attention.minimax_sparse_ops.minimax_sparse": Sglang,
}


@pytest.fixture
def stand_ins(monkeypatch):
    for path, functions in MODULES.items():
        module = types.ModuleType(path)
        for key in vars(functions):
            if not key.startswith("__"):
                setattr(module, key, getattr(functions, key))
        parts = path.split(".")
        for end in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.setattr(Case, "pages", as_torch(Case.pages))


def contender(name):
    return next(one for one in _contenders.CONTENDERS if one.name == name)


@pytest.mark.parametrize("section, context, batch", [("prefill", 96, 1), ("decode", 96, 3)])
@pytest.mark.parametrize("name", ["vLLM Triton", "SGLang Triton"])
def test_what_peers_are_given(stand_ins, name, section, context, batch):
    case = Case(section, context, batch, LAYER, "cpu")
    inputs = {key: torch.from_numpy(array) for key, array in case.inputs().items()}
    result, expected = (contender(one).prepare(case, inputs)() for one in (name, "openmsa"))
    torch.testing.assert_close(result, expected)


def test_vllm_has_one_block_size(stand_ins):
    case = Case("decode", 96, 1, dataclasses.replace(LAYER, block_size=32), "cpu")
    with pytest.raises(_contenders.Refused, match="kv_blocks of 16 only"):
        contender("vLLM Triton").prepare(case, {key: torch.from_numpy(x) for key, x in case.inputs().items()})


def as_torch(pages):
    return lambda case, inputs: {key: torch.as_tensor(value) for key, value in pages(case, inputs).items()}
