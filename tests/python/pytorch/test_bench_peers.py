"""The benchmark's calls of other libraries, with stand-ins that have their signatures and layouts and compute by
openmsa or PyTorch: the kernels would be given the problem that the judge knows. Also what of a GPU's part runs without one: the
Triton kernels in Triton's interpreter, and the order of events of the timer."""

import dataclasses
import os
import subprocess
import sys
import types

import numpy as np
import openmsa.torch
import pytest
import torch
from openmsa.bench import _problem, _timing
from openmsa.bench._errors import Refused
from openmsa.bench._problem import Layer, Problem
from openmsa.bench._tensors import Torch, to_fp8
from openmsa.bench.contenders import flashinfer_msa
from openmsa.bench.sections import SECTIONS
from openmsa.bench.sections import attend as attend_section
from torch.nn.functional import scaled_dot_product_attention

LAYER = Layer(num_heads_q=4, num_heads_kv=2, head_dim=16, index_dim=16, block_size=16, topk=2)
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


class FlashAttn:
    @staticmethod
    def flash_attn_func(q, k, v, causal):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2), "lse"

    @staticmethod
    def flash_attn_with_kvcache(q, k, v, cache_seqlens, causal):
        assert q.shape[1] == 1 and cache_seqlens.tolist() == [k.shape[1]] * len(k)
        return FlashAttn.flash_attn_func(q, k, v, causal=False)[0]


class FlashInfer:
    @staticmethod
    def single_prefill_with_kv_cache(q, k, v, causal):
        return FlashAttn.flash_attn_func(q[None], k[None], v[None], causal)[0][0]

    class BatchDecodeWithPagedKVCacheWrapper:
        def __init__(self, workspace, layout, use_tensor_cores):
            assert layout == "NHD" and workspace.dtype == torch.uint8

        def plan(self, bounds, pages, in_last, heads_q, heads_kv, head_dim, page_size, q_data_type, kv_data_type):
            assert (heads_q, heads_kv, head_dim, page_size, in_last.tolist()) == (4, 2, 16, 16, [16] * len(in_last))
            self.table = pages.view(len(in_last), -1)
            assert bounds.tolist() == [row * self.table.shape[1] for row in range(len(in_last) + 1)]

        def run(self, q, cache):
            lengths = torch.full((len(q),), self.table.shape[1] * 16, dtype=torch.int32)
            bounds = torch.arange(len(q) + 1, dtype=torch.int32)
            tensors = {"seqlens_k": lengths, "block_table": self.table, "cu_seqlens_q": bounds}
            return openmsa.dense_attention(q, k_cache=cache[0], v_cache=cache[1], **tensors)


class VllmFlashAttn:
    FA3_AVAILABLE = True

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, cu_seqlens_k=None, causal=False, fa_version=2
    ):
        assert fa_version == 3 and torch.diff(cu_seqlens_k).tolist() == [max_seqlen_k] * (len(cu_seqlens_k) - 1)
        assert torch.diff(cu_seqlens_q).tolist() == [max_seqlen_q] * (len(cu_seqlens_q) - 1)
        q, k, v = (x.unflatten(0, (-1, most)) for x, most in ((q, max_seqlen_q), (k, max_seqlen_k), (v, max_seqlen_k)))
        return FlashAttn.flash_attn_func(q, k, v, causal and max_seqlen_q > 1)[0].flatten(0, 1)


class FlashInferMsa:
    """By PyTorch and openmsa, on widened tensors."""

    @staticmethod
    def msa_proxy_score(
        q, k, cu_seqlens_q, cu_seqlens_k=None, *, page_table=None, seqused_k=None, causal=True, max_seqlen_q=None,
        max_k_tiles=None, output=None,
    ):  # fmt: skip
        assert q.dtype == k.dtype and k.shape[1:] == (1, 128, 128) and output.is_contiguous() and causal
        output.fill_(-torch.inf)
        for b, (keys, begin) in enumerate(zip(seqused_k.tolist(), cu_seqlens_q.tolist())):
            blocks = -(-keys // 128)
            assert blocks <= max_k_tiles
            visible = torch.arange(keys) <= torch.arange(keys - max_seqlen_q, keys)[:, None]
            rows = slice(begin, begin + max_seqlen_q)
            index_k = k[page_table[b, :blocks].long()].flatten(0, 2)[:keys].float()
            scores = torch.einsum("thd,kd->htk", q[rows].float(), index_k).masked_fill(~visible, -torch.inf)
            scores = torch.nn.functional.pad(scores, (0, blocks * 128 - keys), value=-torch.inf)
            output[:, :blocks, rows] = scores.unflatten(-1, (blocks, 128)).amax(-1).transpose(1, 2)
        return output

    @staticmethod
    def msa_topk_select(max_score, topk, num_valid_pages=None, output=None, force_begin_blocks=0, force_end_blocks=0):
        assert (topk, force_begin_blocks, force_end_blocks) == (16, 0, 1) and output.dtype == torch.int32
        for token, visible in enumerate(num_valid_pages.tolist()):
            scores = max_score[:, :visible, token].clone()
            scores[:, -1] = torch.inf
            count = min(topk, visible)
            output[token].fill_(-1)
            output[token, :, :count] = scores.topk(count).indices.sort().values.int()
        return output

    @staticmethod
    def msa_sparse_decode_attention(q, k, v, q2k_indices, *, page_table, seqused_k, seqlen_q, out):
        bounds = torch.arange(len(seqused_k) + 1, dtype=torch.int32) * seqlen_q
        FlashInferMsa.msa_sparse_attention(
            q, k, v, q2k_indices, bounds, causal=True, page_table=page_table, seqused_k=seqused_k, out=out
        )

    @staticmethod
    def msa_sparse_attention(q, k, v, q2k_indices, cu_seqlens_q, *, causal, page_table, seqused_k, out):
        assert k.dtype == torch.float8_e4m3fn and v.data_ptr() - k.data_ptr() == 128 and q2k_indices.is_contiguous()
        keys = {"k_cache": k.float().transpose(1, 2), "v_cache": v.float().transpose(1, 2), "block_table": page_table}
        where = {"seqlens_k": seqused_k, "cu_seqlens_q": cu_seqlens_q}
        out.copy_(openmsa.sparse_attention(q, topk_indices=q2k_indices, **keys, **where, block_size=128))


class FlashMsa:
    @staticmethod
    def flash_msa_func(q_proxy, k_proxy, q, k, v, top_k, scale):
        index_q, index_k, q, k, v = (x[0].transpose(0, 1) for x in (q_proxy, k_proxy, q, k, v))
        options = {"block_size": 128, "topk": top_k // 128, "softmax_scale": scale}
        o, kl = openmsa.torch.msa_attention(q, k, v, index_q, index_k.squeeze(1), **options, return_kl=True)
        return o.flatten(1)[None], kl


class Nsa:
    @staticmethod
    def topk_sparse_attention(q, k, v, topk_idx, block_size, cu_seqlens, softmax_scale=None):
        where = {"cu_seqlens_q": torch.as_tensor(cu_seqlens), "cu_seqlens_k": torch.as_tensor(cu_seqlens)}
        return openmsa.torch.sparse_attention(q, k, v, topk_idx, **where, block_size=block_size)


MODULES = {
    "vllm.models.minimax_m3.common.ops.index_topk": VllmIndex,
    "vllm.models.minimax_m3.common.ops.sparse_attn": VllmAttend,
    "sglang.srt.layers.attention.minimax_sparse_ops.minimax_sparse": Sglang,
    "flash_attn_interface": FlashAttn,
    "flash_attn": FlashAttn,
    "flashinfer": FlashInfer,
    "flashinfer.msa_ops": FlashInferMsa,
    "vllm.vllm_flash_attn": VllmFlashAttn,
    "flash_msa": FlashMsa,
    "native_sparse_attention.ops": Nsa,
}


@pytest.fixture
def stand_ins(monkeypatch):
    """The libraries; and problems as on a GPU, of PyTorch's tensors and with several calls on two sets of pages."""
    for path, functions in MODULES.items():
        module = types.ModuleType(path)
        for key in vars(functions):
            if not key.startswith("__"):
                setattr(module, key, getattr(functions, key))
        parts = path.split(".")
        for parent in (".".join(parts[:end]) for end in range(1, len(parts))):
            if parent not in MODULES:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.setattr(_problem, "source_of", lambda device, seed: Torch(seed, "cpu"))
    monkeypatch.setattr(_problem, "sets_and_calls", lambda layer, lengths: (2, 3))


def problem_of(section, context, batch, layer=LAYER):
    """As on a GPU but for the device."""
    if section != "decode":
        return Problem(layer, [(context, context)])
    problem = Problem(layer, [(1, context)] * batch, is_paged=True, device="cuda")
    problem.device = "cpu"
    return problem


def contender(section, name):
    return next(one for one in SECTIONS[section].contenders if one.name == name)


PEERS = {
    "prefill": [
        *("vLLM Triton", "SGLang Triton", "PyTorch flash", "flash-attn 3", "flash-attn 2", "vLLM flash-attn 3"),
        "FlashInfer",
    ],
    "training": ["PyTorch flash", "flash-attn 3", "flash-attn 2", "NSA Triton", "NSA Triton backward"],
}
PEERS["decode"] = [name for name in PEERS["prefill"] if name != "vLLM flash-attn 3"]


@pytest.mark.parametrize("section, name", [(section, name) for section, names in PEERS.items() for name in names])
def test_what_peers_are_given(stand_ins, section, name):
    problem, one = problem_of(section, 96, 3), contender(section, name)
    prepared = one.prepare(problem)
    for call in range(problem.calls):
        assert one.judge(problem, call, prepared.run(call)) < 1e-6


M3_BLOCKS = Layer(num_heads_q=4, num_heads_kv=2, head_dim=128, index_dim=128, block_size=128, topk=16)
STEPS = {"decodes": [(1, 2200)] * 3, "speculated": [(4, 2200)] * 2, "chunk": [(40, 2300)], "prompt": [(2304, 2304)]}


@pytest.mark.parametrize("name", ["fp8 caches", "fp8 select", "select"])
@pytest.mark.parametrize("step", STEPS)
def test_what_flashinfer_msa_is_given(stand_ins, monkeypatch, name, step):
    """Prompts are scored in parts here, the last a smaller one."""
    monkeypatch.setattr(flashinfer_msa, "MOST_SCORES", 1000 * 2 * 18)
    problem = Problem(M3_BLOCKS, STEPS[step], is_paged=True, device="cuda")
    problem.device = "cpu"
    one = contender("serving", f"FlashInfer MSA {name}")
    if name == "select" and problem.queries[0] > 4:
        with pytest.raises(Refused, match="at most 4 new tokens"):
            one.prepare(problem)
        return
    prepared = one.prepare(problem)
    assert problem.calls == (1 if step == "prompt" else 3)
    for call in range(problem.calls):
        assert one.judge(prepared.problem or problem, call, prepared.run(call)) < 1e-5


def test_what_flashinfer_msa_does_not_serve(stand_ins):
    one = contender("serving", "FlashInfer MSA fp8 caches")
    for layer, sequences in ((LAYER, [(1, 96)]), (M3_BLOCKS, [(1, 300), (2, 300)])):
        with pytest.raises(Refused):
            one.prepare(Problem(layer, sequences, is_paged=True))


def test_dense_attention_of_whole_prompts_among_the_steps_of_a_server(stand_ins):
    one = contender("serving", "vLLM flash-attn 3")
    problem = Problem(LAYER, [(96, 96)], is_paged=True)
    assert one.judge(problem, 0, one.prepare(problem).run(0)) < 1e-6
    for sequences in ([(1, 96)], [(96, 96)] * 2):
        with pytest.raises(Refused, match="whole prompts only"):
            one.prepare(Problem(LAYER, sequences, is_paged=True))


@pytest.mark.parametrize("part", ["", " forward", " backward"])
def test_what_flash_msa_is_given(stand_ins, part):
    layer = Layer(num_heads_q=4, num_heads_kv=2, head_dim=128, index_dim=128, block_size=128, topk=2)
    problem, one = problem_of("training", 512, 1, layer), contender("training", f"flash-msa{part}")
    result = one.prepare(problem).run(0)
    assert one.judge(problem, 0, result) < 1e-6
    assert (result.d_q is None) == (part == " forward")
    with pytest.raises(Refused, match="full blocks of 128 only"):
        one.prepare(problem_of("training", 500, 1, layer))


def test_calls_have_inputs_of_their_own(stand_ins):
    """The result of one call is not that of another one; call 2 has the pages of call 0."""
    problem = problem_of("decode", 96, 3)
    tables = [problem.where(call)["block_table"] for call in range(3)]
    assert tables[0] is tables[2] and not set(tables[0].flatten().tolist()) & set(tables[1].flatten().tolist())
    o = [contender("decode", "openmsa dense").prepare(problem).run(call).o.clone() for call in range(3)]
    assert not torch.equal(o[0], o[2])


def test_rows_are_rounded_to_fp8_as_numpy_does():
    """Rows whose largest numbers have every mantissa of bf16: 448 over some is not 448 times the inverse."""
    pytest.importorskip("ml_dtypes")
    x = np.arange(1, 257, dtype=np.float32) / np.arange(128, 256, dtype=np.float32)[:, None]
    codes, scales = to_fp8(x)
    got = to_fp8(torch.from_numpy(x))
    assert np.array_equal(got[0].float().numpy(), codes.astype(np.float32)) and np.array_equal(got[1].numpy(), scales)


def test_vllm_has_one_block_size(stand_ins):
    problem = problem_of("decode", 96, 1, dataclasses.replace(LAYER, block_size=32))
    with pytest.raises(Refused, match="kv_blocks of 16 only"):
        contender("decode", "vLLM Triton").prepare(problem)


@pytest.mark.parametrize("is_clustered", [False, True])
def test_selections_for_attention_alone(is_clustered):
    """Ascending kv_blocks up to the query's own; clustered ones begin with the first, and neighbours share most."""
    layer = dataclasses.replace(LAYER, topk=16)
    indices = attend_section.draw(Problem(layer, [(1024, 1024)]), is_clustered).numpy()
    own = np.arange(1024) // 16
    chosen = (indices >= 0).sum(-1)
    assert (chosen == np.minimum(own + 1, 16)).all()
    assert (np.take_along_axis(indices, chosen[..., None] - 1, -1)[..., 0] == own).all()
    assert (np.where(indices[..., 1:] >= 0, np.diff(indices, axis=-1), 1) > 0).all()
    last = indices[0, -16:]  # one kv_block of queries, in one run
    shared = set.intersection(*(set(row) for row in last.tolist()))
    assert (indices[..., 0] == 0).all() == is_clustered and (len(shared) >= 12) == is_clustered


INTERPRETED = """
import torch
from openmsa.bench.triton_kernels import read_memory, split_kv
from triton.runtime import interpreter

patch = interpreter._patch_lang_tensor
def patch_for_numpy(tensor, scope):  # Triton 3.6 makes ints of arrays of one number, which NumPy 2.4 refuses
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())
interpreter._patch_lang_tensor = patch_for_numpy

torch.manual_seed(1)
q, k, v = torch.randn(2, 32, 16), torch.randn(2, 100, 2, 16), torch.randn(2, 100, 2, 16)
expected = torch.nn.functional.scaled_dot_product_attention(
    q[:, :, None], k.transpose(1, 2), v.transpose(1, 2), enable_gqa=True)[:, :, 0]
for ctas in (1, 16):
    o = torch.empty_like(q)
    way = split_kv.SplitKvDecode(q, k, (16, 4, 3), ctas)
    way.run(q, k, v, o)
    torch.testing.assert_close(o, expected, atol=1e-5, rtol=1e-5)
    print(way.describe())

data, out = torch.zeros(4 * read_memory.TILE, dtype=torch.int32), torch.empty(2, dtype=torch.int32)
data[3 * read_memory.TILE + 5] = 7
read_memory.read(data, out)
print(out.tolist())
"""


def test_triton_kernels():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 splits, 16 keys per step", "4 splits, 16 keys per step", "[0, 7]"]


class FakeCuda:
    """Says what is asked of a GPU, whose clock is the number of things asked."""

    def __init__(self, monkeypatch):
        self.log = log = []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                log.append("event")
                self.time = len(log)

            def elapsed_time(self, end):
                return float(end.time - self.time)

        class Stream:
            def wait_stream(self, other):
                log.append("wait for the caller's stream")

            def synchronize(self):
                log.append("synchronize")

        class Block:
            """torch.cuda.graph, torch.cuda.stream"""

            def __init__(self, *args, **keywords):
                pass

            def __enter__(self):
                pass

            def __exit__(self, *args):
                pass

        class Graph:
            def replay(self):
                log.append("replay")

        class Flush:
            def zero_(self):
                log.append("flush")

        cuda = {"Event": Event, "Stream": Stream, "stream": Block, "graph": Block, "CUDAGraph": Graph}
        cuda |= {"current_stream": lambda: None, "_sleep": lambda cycles: log.append("sleep")}
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "empty", lambda *args, **keywords: Flush())


@pytest.mark.parametrize("in_graph", [False, True])
def test_order_of_events(monkeypatch, in_graph):
    """A run begins with a cold cache and with its work enqueued, on a GPU that has been busy; a graph is captured from
    functions that have run."""
    gpu = FakeCuda(monkeypatch)
    monkeypatch.setattr(_timing, "BUSY_SECONDS", 0.001)
    functions = [lambda name=name: gpu.log.append(name) or name for name in ("a", "b")]
    timing, result = _timing.measure(functions, "cuda", 0.01, in_graph)
    assert result == "b" and timing["calls"] == 2
    work = ["replay"] if in_graph else ["a", "b"]
    run = ["flush", "sleep", "event", *work, "event"]
    warm = ["a", "synchronize", "a", "synchronize", "a", "b"] if in_graph else []
    busy = ["flush", "synchronize"] * ((gpu.log.index("sleep") - 2 - len(warm)) // 2)
    repeats = timing["repeats"]
    assert busy
    assert gpu.log == ["wait for the caller's stream", *warm, *busy, *run, "synchronize", *run * repeats, "synchronize"]
    assert timing["median_ms"] == (len(work) + 1) / 2
