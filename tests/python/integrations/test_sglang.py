"""The backend of SGLang's sparse layers on fakes of the engine's objects: caches in pages, ragged steps, what stays with the
engine, and what a CUDA graph needs."""

import importlib
import logging
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import openmsa  # noqa: E402
from openmsa.integrations import sglang as integration  # noqa: E402
from openmsa.integrations.sglang._backend import Sizes  # noqa: E402
from openmsa.integrations.sglang._step import StepTensors  # noqa: E402
from sglang_fakes import TOPK, Backend, Batch, Engine, ForwardMode, Layer, error, expected, new_tokens  # noqa: E402

EXTEND, DECODE, MIXED = ForwardMode.EXTEND, ForwardMode.DECODE, ForwardMode.MIXED
BF16 = 5e-3  # of the result's norm


@pytest.mark.parametrize("page_size, layout", [(128, "nhd"), (64, "nhd"), (16, "nhd"), (256, "nhd"), (64, "hnd")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prompts_chunks_and_decodes(page_size, layout, dtype):
    """Two prompts at once, a chunk behind a prefix beside a whole prompt, then decodes of all three: 600 tokens are five
    kv_blocks, of which two are read."""
    engine = Engine(page_size=page_size, layout=layout, dtype=dtype)
    tolerance = BF16 if dtype == torch.bfloat16 else 1e-3
    first, second, third = (engine.add(length) for length in (610, 200, 300))
    for mode, requests, num_tokens in (
        (EXTEND, (first, second), (400, 1)),
        (EXTEND, (first, third), (200, 129)),
        (MIXED, (second, third), (1, 128)),
        (DECODE, (third, first, second), (1, 1, 1)),
        (DECODE, (first, second), (1, 1)),
    ):
        (index_o, o), tensors = engine.step(mode, requests, num_tokens, seed=len(requests[0].keys))
        assert index_o is None and o.dtype == dtype and o.is_contiguous()
        assert error(o, expected(requests, num_tokens, tensors)) < tolerance
    assert engine.backend.stock_calls.count("out_graph") == 5
    assert not {"decode", "extend"} & set(engine.backend.stock_calls)


def test_selection_matters():
    """What makes the other tests mean something: with all kv_blocks chosen the result is another one."""
    engine = Engine()
    request = engine.add(600)
    (_, o), tensors = engine.step(EXTEND, [request], [600], seed=0)
    layer = {name: t.double().numpy() for name, t in (tensors | request.keys).items()}
    dense = torch.from_numpy(openmsa.msa_attention(**layer, topk=5, backend="reference")).flatten(1)
    assert TOPK < 5 and error(o, dense) > 10 * BF16


@pytest.mark.parametrize("num_heads_q, num_heads_kv", [(16, 1), (8, 1), (64, 4)])
def test_ranks_of_tensor_parallel(num_heads_q, num_heads_kv):
    """M3 on four and eight of them, and on one."""

    class Rank(Backend):
        sizes = Sizes(num_heads_q=num_heads_q, num_index_heads=num_heads_kv, max_tokens=1024, dtype=torch.bfloat16)

    engine = Engine(backend_class=Rank)
    request = engine.add(400)
    for mode, count in ((EXTEND, 390), (DECODE, 1)):
        (_, o), tensors = engine.step(mode, [request], [count], seed=count)
        assert o.shape == (count, num_heads_q * 128)
        assert error(o, expected([request], [count], tensors)) < BF16


def test_rows_and_tokens_that_are_padding():
    """Padded requests of a decode have length 1 in row 0; padded tokens of a prefill lie behind the last request."""
    engine = Engine()
    requests = [engine.add(300), engine.add(140)]
    (_, o), tensors = engine.step(EXTEND, requests, (290, 130), seed=1, padded_rows=1, padded_tokens=5)
    assert error(o[:420], expected(requests, (290, 130), tensors)) < BF16
    assert len(o) == 426 and not o[420:].any()
    (_, o), tensors = engine.step(DECODE, requests, (1, 1), seed=2, padded_rows=3)
    assert error(o[:2], expected(requests, (1, 1), tensors)) < BF16
    assert len(o) == 5 and o.isfinite().all()


def test_two_layers_have_caches_of_their_own_and_share_the_step(monkeypatch):
    made = []
    of_decode = StepTensors.of_decode
    monkeypatch.setattr(StepTensors, "of_decode", lambda *arguments: made.append(1) or of_decode(*arguments))
    engine = Engine()
    request = engine.add(200)
    (_, first), tensors = engine.step(EXTEND, [request], [150], seed=0)
    batch = Batch(EXTEND, torch.tensor([1]), torch.tensor([150]), request.slots[:150], torch.tensor([150]))
    other = new_tokens(150, Backend.sizes, torch.bfloat16, 1)
    _, second = engine.run(batch, other, Layer(1))
    assert torch.equal(engine.run(batch, tensors, Layer(0))[1], first)
    request.keys = {}
    request.keep(other)
    assert error(second, expected([request], [150], other)) < BF16
    batch = Batch(DECODE, torch.tensor([1]), torch.tensor([151]), request.slots[150:151])
    one = {name: tensor[:1] for name, tensor in other.items()}
    engine.run(batch, one, Layer(0))
    engine.run(batch, one, Layer(1), prepare=False)
    assert len(made) == 1


def test_batches_of_one_metadata():
    """The halves of a batch, or one that is padded after its metadata was made, come without metadata of their own."""
    engine = Engine()
    requests = [engine.add(200), engine.add(300)]
    engine.step(EXTEND, requests, (150, 290), seed=0)
    for number, request in enumerate(requests):
        lengths, slots = torch.tensor([request.length + 1, 1]), torch.cat([request.take(1), torch.tensor([0])])
        batch = engine.make_batch(DECODE, torch.tensor([request.row]), lengths[:1], slots, None)
        if number == 0:
            engine.backend.init_forward_metadata_in_graph(batch)
            batch.req_pool_indices, batch.seq_lens = torch.tensor([request.row, 0]), lengths
        tensors = new_tokens(2, Backend.sizes, torch.bfloat16, number)
        request.keep({name: tensor[:1] for name, tensor in tensors.items()})
        _, o = engine.run(batch, tensors, Layer(0), prepare=False)
        assert error(o[:1], expected([request], [1], tensors)) < BF16


def test_keys_that_a_fused_kernel_has_stored_are_not_stored_again():
    engine = Engine()
    request = engine.add(130)
    (_, o), tensors = engine.step(EXTEND, [request], [130], seed=3)
    before = engine.pool.k.clone()
    batch = Batch(EXTEND, torch.tensor([1]), torch.tensor([130]), request.slots, torch.tensor([130]))
    batch.minimax_m3_precached_sparse_layers = {0}
    wrong = tensors | {name: tensors[name] + 1 for name in ("k", "v", "index_k")}
    assert torch.equal(engine.run(batch, wrong, Layer(0))[1], o)
    assert torch.equal(engine.pool.k.view(torch.int16), before.view(torch.int16))


def test_fp8_caches_with_and_without_scales():
    for k_scale, v_scale in ((None, None), (0.5, 0.25), (1.0, 2.0)):
        engine = Engine(kv_dtype=torch.float8_e4m3fn)
        request = engine.add(400)
        layer = Layer(0, k_scale_float=k_scale, v_scale_float=v_scale)
        for mode, count in ((EXTEND, 390), (DECODE, 1)):
            (_, o), tensors = engine.step(mode, [request], [count], seed=count, layer=layer)
            kept = request.keys
            for name, scale in (("k", k_scale or 1), ("v", v_scale or 1)):
                request.keys = request.keys | {name: (kept[name] / scale).to(torch.float8_e4m3fn).double() * scale}
            assert error(o, expected([request], [count], tensors)) < BF16
            request.keys = kept


@pytest.mark.parametrize("kv_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, BF16), (torch.float16, 1e-3)])
def test_fp8_index_keys_meet_queries_of_16_bits(kv_dtype, dtype, tolerance):
    """As in SGLang's kernels, nothing of the queries is rounded."""
    for scale in (None, 0.25):
        engine = Engine(dtype=dtype, kv_dtype=kv_dtype, index_dtype=torch.float8_e4m3fn)
        request, layer = engine.add(700), Layer(0, idx_k_scale_float=scale)
        for mode, count in ((EXTEND, 690), (DECODE, 1)):
            (_, o), tensors = engine.step(mode, [request], [count], seed=count, layer=layer)
            kept, rounded = request.keys, ("k", "v") if kv_dtype else ()
            request.keys = kept | {name: kept[name].to(torch.float8_e4m3fn).double() for name in rounded}
            index_k = (kept["index_k"] / (scale or 1)).to(torch.float8_e4m3fn).double() * (scale or 1)
            request.keys |= {"index_k": index_k}
            assert error(o, expected([request], [count], tensors)) < tolerance
            request.keys = kept


def test_a_strided_query_and_a_batch_of_none():
    engine = Engine()
    request = engine.add(200)
    tensors = new_tokens(200, Backend.sizes, torch.bfloat16, 0)
    request.keep(tensors)
    packed = torch.cat([tensors["q"], tensors["index_q"]], 1)
    split = tensors | {"q": packed[:, :32], "index_q": packed[:, 32:]}
    batch = Batch(EXTEND, torch.tensor([1]), torch.tensor([200]), request.slots, torch.tensor([200]))
    assert error(engine.run(batch, split, Layer(0))[1], expected([request], [200], tensors)) < BF16
    nothing = {name: tensor[:0] for name, tensor in tensors.items()}
    none = torch.zeros(0, dtype=torch.long)
    assert engine.run(Batch(DECODE, none, none, none), nothing, Layer(0))[1].shape == (0, 32 * 128)


def test_a_graph_that_is_replayed_sees_the_tensors_of_the_new_step():
    """What is captured is init_forward_metadata_in_graph and forward_decode, on tensors that the engine changes in place: so
    the calls of a replay are those with the addresses of the capture."""
    engine = Engine()
    requests = [engine.add(300), engine.add(400)]
    engine.step(EXTEND, requests, (290, 260), seed=0)
    rows, lengths = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
    static = Batch(DECODE, rows, lengths, torch.zeros(3, dtype=torch.long))
    tensors = new_tokens(3, Backend.sizes, torch.bfloat16, 5)
    engine.run(static, tensors, Layer(0))  # the warm-up
    step = engine.backend._openmsa_step.tensors
    addresses = {name: tensor.data_ptr() for name, tensor in step.items()}
    lengths.fill_(2)
    engine.backend.init_forward_metadata_in_graph(static)  # the capture, of the same batch
    assert step["seqlens_k"].tolist() == [2, 2, 2]
    engine.step(EXTEND, requests[1:], [140], seed=3)  # an eager step between
    rows.copy_(torch.tensor([2, 1, 0]))
    lengths.copy_(torch.tensor([400, 290, 1]))
    static.out_cache_loc.copy_(torch.tensor([requests[1].slots[399], requests[0].slots[289], 0]))
    engine.backend.init_forward_metadata_in_graph(static)
    assert {name: t.data_ptr() for name, t in engine.backend._openmsa_step.tensors.items()} == addresses
    assert step["seqlens_k"].tolist() == [400, 290, 1] and step["cu_seqlens_q"].tolist() == [0, 1, 2, 3]
    pages = engine.req_to_token[[2, 1, 0]][:, ::128] // 128
    assert torch.equal(step["block_table"], pages)


def test_nothing_of_a_step_is_read_on_the_host():
    """Tensors without numbers."""
    step = StepTensors(torch.zeros(9, 1000, dtype=torch.int32, device="meta"), 128, 4)
    rows, lengths = (torch.zeros(6, dtype=torch.long, device="meta") for _ in range(2))
    tensors = step.of_decode(rows, lengths)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "block_table": (6, 8),
        "seqlens_k": (6,),
        "cu_seqlens_q": (7,),
    }
    assert all(tensor.dtype == torch.int32 for tensor in step.of_extend(rows, lengths, lengths).values())


def test_a_larger_batch_leaves_the_memory_of_earlier_graphs():
    req_to_token = torch.arange(5 * 256, dtype=torch.int32).view(5, 256)
    step = StepTensors(req_to_token, 128, 1)
    with torch.inference_mode():
        before = step.of_decode(torch.tensor([1, 2]), torch.tensor([5, 6]))
        kept = {name: tensor.clone() for name, tensor in before.items()}
        step.of_decode(torch.tensor([4, 3, 2, 1]), torch.tensor([9, 9, 9, 9]))
    assert step.max_batch == 4 and len(step._outgrown) == 8
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    after = step.of_decode(torch.tensor([3]), torch.tensor([7]))  # outside of inference mode
    assert after["seqlens_k"].tolist() == [7] and after["block_table"].tolist() == [[6, 7]]


def plans_of(monkeypatch, engine):
    """Capacities of the plans of the calls that follow."""
    sizes = []
    make = type(engine.backend._openmsa).plan

    def plan(self, *arguments):
        result = make(self, *arguments)
        sizes.append((result.max_total_q, result.max_batch, result.max_seqlen_k))
        return result

    monkeypatch.setattr(type(engine.backend._openmsa), "plan", plan)
    return sizes


def test_plans_have_the_size_of_the_step(monkeypatch):
    """A prefill's, rounded up; a decode's with room for every length, since a graph of it is replayed with others."""
    engine = Engine()
    sizes = plans_of(monkeypatch, engine)
    requests = [engine.add(300), engine.add(10), engine.add(10)]
    engine.step(EXTEND, requests, (290, 1, 1), seed=0, padded_rows=2, padded_tokens=3)
    engine.step(EXTEND, requests, (1, 1, 1), seed=0, seq_lens_cpu=None)
    engine.step(DECODE, requests, (1, 1, 1), seed=0, padded_rows=14)
    assert sizes == [(320, 5, 512), (3, 3, 1024), (18, 18, 1024)]


def test_a_prompt_longer_than_the_configuration_says():
    class Small(Backend):
        sizes = Sizes(num_heads_q=32, num_index_heads=2, max_tokens=16, dtype=torch.bfloat16)

    engine = Engine(max_requests=3, backend_class=Small)
    requests = [engine.add(300), engine.add(10), engine.add(10)]
    (_, o), tensors = engine.step(EXTEND, requests, (300, 1, 1), seed=0, padded_rows=3)
    assert error(o[:302], expected(requests, (300, 1, 1), tensors)) < BF16


def test_all_backends_of_a_rank_share_plans(caplog):
    """Two-batch overlap makes three."""
    with caplog.at_level(logging.INFO):
        plans = {id(Engine().backend._openmsa.plan(100, 2, 1000)) for _ in range(3)}
    assert len(plans) == 1
    line = (
        f"openmsa {openmsa.__version__} serves the sparse layers: 32/2 heads, topk 2, bfloat16 on caches in bfloat16 and "
        "bfloat16, pages of 128; a prefill of 1024 tokens needs "
    )
    assert sum(record.message.startswith(line) for record in caplog.records) == 3


def test_the_log_says_once_what_ran(caplog):
    engine = Engine()
    request = engine.add(20)
    with caplog.at_level(logging.INFO):
        for mode, count in ((EXTEND, 5), (EXTEND, 4), (DECODE, 1), (DECODE, 1)):
            engine.step(mode, [request], [count], seed=0)
    said = [record.message for record in caplog.records if "openmsa runs" in record.message]
    assert said == [
        "openmsa runs prefill, first 5 tokens of 1 requests",
        "openmsa runs decode, first 1 tokens of 1 requests",
    ]


class OneIndexHead(Backend):
    sizes = Sizes(num_heads_q=32, num_index_heads=2, max_tokens=1024, dtype=torch.bfloat16)

    def engine_sizes(self, runner):
        return super().engine_sizes(runner)._replace(num_index_heads=1)


LEFT = {
    "hisparse": ({"changes": {"hisparse_coordinator": object()}}, "HiSparse"),
    "indexer_cp": ({"changes": {"indexer_cp": object()}}, "SGLANG_MINIMAX_M3_INDEXER_CP"),
    "index_cache": ({"changes": {"index_cache_enabled": True}}, "a selection that layers share"),
    "dense_decode": ({"changes": {"use_dense_sparse_decode": True}}, "SGLANG_OPT_USE_MINIMAX_DENSE_SPARSE_DECODE"),
    "lse": ({"changes": {"score_type": "lse"}}, "sparse_score_type: expected max, got lse"),
    "index_heads": ({"backend_class": OneIndexHead}, "index heads: expected 2 as of KV heads, got 1"),
    "fp8_queries": ({"changes": {"fp8_attn_gemm": True}}, "queries rounded to fp8 with a scale"),
    "index_e5m2": (
        {"kv_dtype": torch.float8_e4m3fn, "index_dtype": torch.float8_e5m2},
        "index keys: expected bfloat16 or float8_e4m3fn, got float8_e5m2",
    ),
    "e5m2": ({"kv_dtype": torch.float8_e5m2}, "k and v: expected bfloat16 or float8_e4m3fn, got float8_e5m2"),
    "layout": ({"layout": "vectorized_5d"}, "layout of k and v: expected nhd or hnd, got vectorized_5d"),
    "page_size": ({"page_size": 96, "max_context": 960}, "page_size: expected a divisor or a multiple of 128, got 96"),
    "hnd_page": ({"page_size": 256, "layout": "hnd"}, "page_size: expected at most 128 with layout hnd, got 256"),
    "plan": ({"changes": {"topk_blocks": 0}}, "topk: expected"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_the_engine(name, caplog):
    options, reason = LEFT[name]
    engine = Engine(**options)
    assert engine.backend._openmsa is None
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1 and lines[0].startswith(f"openmsa leaves the sparse layers to SGLang: {reason}")
    request = engine.add(20)
    for mode, count in ((EXTEND, 9), (DECODE, 1)):
        assert engine.step(mode, [request], [count], seed=0)[0] == "stock"
    assert engine.backend.stock_calls == ["out_graph", "in_graph", "extend", "out_graph", "in_graph", "decode"]


def test_no_layer_without_index_values(caplog):
    class Values(Backend):
        def __init__(self, runner):
            runner.token_to_kv_pool.index_k_pool = None
            super().__init__(runner)

    assert Engine(backend_class=Values).backend._openmsa is None
    assert "index values: expected layers without, got none" in caplog.text


@pytest.mark.parametrize(
    "layer, reason",
    [
        (Layer(7), "its index branch has values"),
        (Layer(0, k_scale_float=0.5), "k_scale_float: expected none where numbers are 16-bit, got 0.5"),
        (Layer(0, idx_q_scale_float=2.0), "idx_q_scale_float: expected none where numbers are 16-bit, got 2.0"),
        (Layer(0, idx_k_scale_float=0.5), "idx_k_scale_float: expected none where numbers are 16-bit, got 0.5"),
    ],
)
def test_layers_that_are_left_to_the_engine(layer, reason, caplog):
    engine = Engine()
    request = engine.add(20)
    for mode, count in ((EXTEND, 9), (DECODE, 1)):
        assert engine.step(mode, [request], [count], seed=0, layer=layer)[0] == "stock"
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [f"openmsa leaves layer {layer.layer_id} to SGLang: {reason}"]
    assert engine.step(DECODE, [request], [1], seed=0, layer=Layer(1))[0] != "stock"


def test_verification_of_drafts_is_left_to_the_engine(caplog):
    engine = Engine()
    request = engine.add(20)
    for _ in range(2):
        assert engine.step(ForwardMode.TARGET_VERIFY, [request], [4], seed=0, extend_seq_lens=None)[0] == "stock"
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == ["openmsa leaves the verification of drafts to SGLang"]


@pytest.fixture
def registered(monkeypatch):
    """A stand-in for the engine's registry: what was registered there."""
    calls = []
    registry = SimpleNamespace(register=lambda *arguments: calls.append(arguments))
    hooks = SimpleNamespace(HookRegistry=registry, HookType=SimpleNamespace(REPLACE="replace"))
    modules = {"sglang": SimpleNamespace(), "sglang.srt": SimpleNamespace(), "sglang.srt.plugins": SimpleNamespace()}
    modules |= {"sglang.srt.plugins.hook_registry": hooks, "sglang.version": SimpleNamespace(__version__="0.5.23")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        importlib.import_module(f"{integration.__name__}._backend"), "backend_of_engine", lambda: Backend
    )
    integration._replace_backend.cache_clear()
    yield calls
    integration._replace_backend.cache_clear()


def test_register_with_the_flag(registered, monkeypatch, caplog):
    monkeypatch.setenv("OPENMSA_SGLANG", "1")
    integration.register()
    integration.register()
    target = "sglang.srt.layers.attention.minimax_sparse_backend.MiniMaxSparseAttnBackend"
    assert registered == [(target, Backend, "replace")]
    assert not caplog.records


@pytest.mark.parametrize(
    "flag, said", [(None, ""), ("", ""), ("0", ""), ("yes", "OPENMSA_SGLANG: expected 0 or 1, got 'yes'")]
)
def test_register_without_the_flag(flag, said, registered, monkeypatch, caplog):
    monkeypatch.delenv("OPENMSA_SGLANG", raising=False)
    if flag is not None:
        monkeypatch.setenv("OPENMSA_SGLANG", flag)
    integration.register()
    assert not registered
    assert [record.message for record in caplog.records] == (
        [f"{said}; SGLang keeps its own sparse attention"] if said else []
    )


@pytest.mark.parametrize("version", ["0.5.22", "0.5.23.post1", "0.6.0"])
def test_other_versions_stay_as_they_are(version, registered, monkeypatch, caplog):
    monkeypatch.setenv("OPENMSA_SGLANG", "1")
    sys.modules["sglang.version"].__version__ = version
    integration.register()
    assert not registered
    assert [record.message for record in caplog.records] == [
        f"openmsa: expected SGLang 0.5.23, got {version}; SGLang keeps its own sparse attention"
    ]


def test_a_build_of_a_tested_version(registered, monkeypatch):
    monkeypatch.setenv("OPENMSA_SGLANG", "1")
    sys.modules["sglang.version"].__version__ = "0.5.23+cu129"
    integration.register()
    assert len(registered) == 1


def test_entry_point():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["sglang.srt.plugins"]["openmsa"].partition(":")
    assert getattr(importlib.import_module(module), function) is integration.register
