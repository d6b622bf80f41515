"""The same backend in SGLang itself, where it is installed, without a GPU: its registry, its caches, its batches and its
hybrid backend; and whether the fakes of the other tests have the engine's fields."""

import dataclasses
import inspect
import logging
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

import sglang_fakes as fakes  # noqa: E402
from openmsa.integrations import sglang as integration  # noqa: E402
from sglang.version import __version__ as version  # noqa: E402
from sglang_fakes import BLOCK, DIM, TOPK, ForwardMode, error, expected, new_tokens  # noqa: E402

if version.partition("+")[0] not in integration.TESTED:
    pytest.skip(f"SGLang {version} is not one of {integration.TESTED}", allow_module_level=True)

from sglang.srt import plugins  # noqa: E402
from sglang.srt.layers.attention import minimax_sparse_backend as engine_backend  # noqa: E402
from sglang.srt.layers.attention.attention_registry import attn_backend_wrapper  # noqa: E402
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend  # noqa: E402
from sglang.srt.layers.radix_attention import RadixAttention  # noqa: E402
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MiniMaxSparseKVPool, ReqToTokenPool  # noqa: E402
from sglang.srt.model_executor import forward_batch_info  # noqa: E402
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context  # noqa: E402
from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402
from sglang.srt.runtime_context import get_context, get_parallel  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402

STOCK = SimpleNamespace(backend=engine_backend.MiniMaxSparseAttnBackend)  # the registry replaces names of modules
MODES = {mode: getattr(forward_batch_info.ForwardMode, mode.name) for mode in ForwardMode}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """load_plugins as every process of the engine calls it, on a distribution that has the entry point of pyproject.toml."""
    site = tmp_path_factory.mktemp("site")
    info = site / "openmsa_entry_point-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openmsa-entry-point\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\nopenmsa = openmsa.integrations.sglang:register\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_backend, "MiniMaxSparseAttnBackend", STOCK.backend)
        patch.setattr(plugins, "_plugins_loaded", False)
        patch.syspath_prepend(site)
        patch.setenv("SGLANG_PLUGINS", "openmsa")
        patch.setenv("OPENMSA_SGLANG", "1")
        integration._replace_backend.cache_clear()
        plugins.load_plugins()
        yield engine_backend.MiniMaxSparseAttnBackend
        HookRegistry.reset()
        integration._replace_backend.cache_clear()


class DenseBackend(AttentionBackend):
    """Of the dense layers, which these tests do not run."""

    def init_forward_metadata_out_graph(self, forward_batch, in_capture=False):
        pass


class Engine(fakes.Engine):
    """One rank of one, layers 1 and 2 of 3 sparse, with the engine's own pools, layers, batches and backends."""

    sparse_config: dict = {}

    def __post_init__(self):
        pages = self.max_requests * self.max_context // self.page_size
        dtypes = {"dtype": self.kv_dtype or self.dtype, "index_dtype": self.index_dtype or self.dtype}
        self.pool = MiniMaxSparseKVPool(
            size=pages * self.page_size, page_size=self.page_size, head_num=2, head_dim=DIM, idx_head_dim=DIM,
            dense_layer_ids=[0], sparse_layer_ids=[1, 2], disable_value_sparse_layer_ids=[1, 2], device="cpu",
            start_layer=0, end_layer=3, **dtypes,
        )  # fmt: skip
        self.free_pages = iter(range(pages, 0, -1))
        requests = ReqToTokenPool(self.max_requests, self.max_context, "cpu", False)
        self.req_to_token = requests.req_to_token
        config = PretrainedConfig(
            architectures=["MiniMaxM3SparseForCausalLM"],
            sparse_attention_config={
                "sparse_attention_freq": [0, 1, 1],
                "sparse_disable_index_value": [0, 1, 1],
                "sparse_block_size": BLOCK,
                "sparse_index_dim": DIM,
                "sparse_init_block": 0,
                "sparse_local_block": 1,
                "sparse_num_index_heads": 2,
                "sparse_topk_blocks": TOPK,
                **self.changes,
            },
        )
        model_config = SimpleNamespace(
            hf_config=config,
            hf_text_config=config,
            context_len=self.max_context,
            num_attention_heads=32,
            quantization=None,
            dtype=self.dtype,
        )
        with get_context().override_server_args(chunked_prefill_size=768) as server_args:
            with get_parallel().override(attn_tp_size=1):
                runner = SimpleNamespace(
                    token_to_kv_pool=self.pool,
                    req_to_token_pool=requests,
                    hisparse_coordinator=None,
                    model_config=model_config,
                    server_args=server_args,
                    use_mla_backend=False,
                )
                self.hybrid = attn_backend_wrapper(runner, DenseBackend())
        self.backend = self.hybrid.sparse
        self.backend.sizes = fakes.Backend.sizes
        self.requests = []

    def make_batch(self, mode, rows, lengths, slots, extend):
        cpu = (
            {"extend_seq_lens_cpu": extend.tolist(), "extend_prefix_lens": lengths - extend}
            if extend is not None
            else {}
        )
        return forward_batch_info.ForwardBatch(
            forward_mode=MODES[mode], batch_size=len(rows), input_ids=torch.zeros_like(slots), req_pool_indices=rows,
            seq_lens=lengths, seq_lens_cpu=lengths.clone(), out_cache_loc=slots, seq_lens_sum=int(lengths.sum()),
            extend_seq_lens=extend, **cpu,
        )  # fmt: skip

    def run(self, batch, tensors, layer, *, prepare=True):
        if prepare:
            self.hybrid.init_forward_metadata(batch)
            assert self.backend._openmsa_step is None or batch.forward_mode.is_decode()
        q, k, v, idx_q, idx_k = (tensors[name] for name in ("q", "k", "v", "index_q", "index_k"))
        context = ForwardContext(attn_backend=self.hybrid)
        with torch.inference_mode(), forward_context(context, forward_batch=batch):
            return layer(q, k, v, batch, idx_q=idx_q, idx_k=idx_k.unsqueeze(1), idx_v=None)


def sparse_layer(layer_id=1):
    return RadixAttention(32, DIM, DIM**-0.5, 2, layer_id)


def test_the_engine_makes_the_backend_of_the_plugin(plugin, caplog):
    assert issubclass(plugin, STOCK.backend) and plugin is not STOCK.backend
    with caplog.at_level(logging.INFO, logger="openmsa"):
        engine = Engine()
    assert type(engine.hybrid) is engine_backend.MiniMaxHybridAttnBackend
    assert type(engine.backend) is plugin
    served = "serves the sparse layers: 32/2 heads, topk 2, bfloat16 on caches in bfloat16 and bfloat16, pages of 128"
    assert served in caplog.text
    assert "a prefill of 768 tokens" in caplog.text


@pytest.mark.parametrize("num_ranks, num_heads_q, num_index_heads", [(1, 64, 4), (4, 16, 1), (8, 8, 1)])
@pytest.mark.parametrize("chunk, max_tokens", [(2048, 2048), (-1, 0)])
def test_sizes_of_a_rank(num_ranks, num_heads_q, num_index_heads, chunk, max_tokens, plugin):
    config = PretrainedConfig(sparse_attention_config={"sparse_num_index_heads": 4})
    model_config = SimpleNamespace(num_attention_heads=64, hf_config=config, dtype=torch.float16)
    runner = SimpleNamespace(model_config=model_config)
    with get_context().override_server_args(chunked_prefill_size=chunk, tp_size=num_ranks):
        assert plugin.engine_sizes(None, runner) == (num_heads_q, num_index_heads, max_tokens, torch.float16)


@pytest.mark.parametrize("page_size", [64, 128, 256])
def test_steps_through_the_hybrid_backend(page_size, plugin):
    engine = Engine(page_size=page_size)
    first, second = engine.add(620), engine.add(300)
    for mode, requests, num_tokens, padding in (
        (ForwardMode.EXTEND, (first, second), (400, 130), {"padded_rows": 1, "padded_tokens": 2}),
        (ForwardMode.MIXED, (first, second), (200, 1), {}),
        (ForwardMode.DECODE, (second, first), (1, 1), {"padded_rows": 2}),
    ):
        (index_o, o), tensors = engine.step(
            mode, requests, num_tokens, seed=num_tokens[0], layer=sparse_layer(), **padding
        )
        count = sum(num_tokens)
        assert index_o is None
        assert error(o[:count], expected(requests, num_tokens, tensors)) < 5e-3


def test_hnd_caches(plugin, monkeypatch):
    monkeypatch.setenv("SGLANG_USE_HND_KVCACHE", "1")
    engine = Engine(page_size=64)
    assert engine.pool.main_pool.kv_cache_layout == "hnd" and engine.pool.main_pool.k_buffer[1].dim() == 4
    request = engine.add(400)
    (_, o), tensors = engine.step(ForwardMode.EXTEND, [request], [390], seed=0, layer=sparse_layer())
    assert error(o, expected([request], [390], tensors)) < 5e-3


def test_fp8_caches_beside_16_bit_index_keys(plugin):
    engine = Engine(kv_dtype=torch.float8_e4m3fn)
    request, layer = engine.add(400), sparse_layer()
    layer.k_scale_float, layer.v_scale_float = 0.5, 0.25
    (_, o), tensors = engine.step(ForwardMode.EXTEND, [request], [400], seed=0, layer=layer)
    for name, scale in (("k", 0.5), ("v", 0.25)):
        original = new_tokens(400, fakes.Backend.sizes, torch.bfloat16, 0)[name]  # the engine divides in place
        request.keys[name] = (original / scale).to(torch.float8_e4m3fn).double() * scale
    assert error(o, expected([request], [400], tensors)) < 5e-3


def test_fp8_index_keys(plugin):
    """What SGLang makes on Hopper of --kv-cache-dtype fp8_e4m3."""
    engine = Engine(kv_dtype=torch.float8_e4m3fn, index_dtype=torch.float8_e4m3fn)
    request = engine.add(400)
    (_, o), tensors = engine.step(ForwardMode.EXTEND, [request], [400], seed=0, layer=sparse_layer())
    request.keys = {name: keys.to(torch.float8_e4m3fn).double() for name, keys in request.keys.items()}
    assert error(o, expected([request], [400], tensors)) < 5e-3


def test_idle_ranks(plugin):
    engine = Engine()
    none = torch.zeros(0, dtype=torch.long)
    batch = engine.make_batch(ForwardMode.DECODE, none, none, none, None)
    batch.forward_mode = MODES[ForwardMode.IDLE]
    tensors = new_tokens(3, fakes.Backend.sizes, torch.bfloat16, 0)
    index_o, o = engine.hybrid.forward(
        tensors["q"],
        tensors["k"],
        tensors["v"],
        sparse_layer(),
        batch,
        idx_q=tensors["index_q"],
        idx_k=None,
        idx_v=None,
    )
    assert index_o is None and o.shape == (3, 32 * DIM) and not o.any()


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"changes": {"sparse_score_type": "lse"}}, "sparse_score_type: expected max, got lse"),
        ({"changes": {"sparse_num_index_heads": 4}}, "index heads: expected 2 as of KV heads, got 4"),
        ({"kv_dtype": torch.float8_e5m2}, "k and v: expected bfloat16 or float8_e4m3fn, got float8_e5m2"),
    ],
)
def test_what_is_left_to_the_engine(options, reason, plugin, monkeypatch, caplog):
    calls = []
    monkeypatch.setattr(
        STOCK.backend, "forward_extend", lambda self, *arguments, **keywords: calls.append(arguments) or "stock"
    )
    with caplog.at_level(logging.WARNING, logger="openmsa"):
        engine = Engine(**options)
    assert f"openmsa leaves the sparse layers to SGLang: {reason}" in caplog.text
    assert engine.step(ForwardMode.EXTEND, [engine.add(9)], [9], seed=0, layer=sparse_layer())[0] == "stock"
    assert len(calls) == 1


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_fakes_have_the_fields_of_the_engine(plugin):
    engine, fake = Engine(), fakes.Engine()
    batch_fields = {field.name for field in dataclasses.fields(forward_batch_info.ForwardBatch)}
    assert {field.name for field in dataclasses.fields(fakes.Batch)} <= batch_fields
    layer = sparse_layer()
    assert all(getattr(layer, name) == value for name, value in vars(fakes.Layer(1)).items())
    for name, fake_pool in (("main_pool", fake.pool.main_pool), ("index_k_pool", fake.pool.index_k_pool)):
        pool = getattr(engine.pool, name)
        shared = {"dtype", "head_num", "head_dim"} | ({"kv_cache_layout"} if name == "main_pool" else set())
        assert {field: getattr(pool, field) for field in shared} == {f: getattr(fake_pool, f) for f in shared}
    assert isinstance(engine.pool.main_pool, MHATokenToKVPool)
    for fake_buffer, buffer in zip(fake.pool.get_kv_buffer(1), engine.pool.get_kv_buffer(1)):
        assert fake_buffer.shape == buffer.shape and fake_buffer.stride() == buffer.stride()
    assert fake.pool.get_index_k_buffer(1).shape == engine.pool.get_index_k_buffer(1).shape
    fake_state = vars(fakes.StockBackend(SimpleNamespace(
        token_to_kv_pool=fake.pool, req_to_token_pool=SimpleNamespace(req_to_token=fake.req_to_token), changes={}
    )))  # fmt: skip
    state = vars(engine.backend)
    assert fake_state.keys() - {"stock_calls"} <= state.keys()
    same = ("idx_head_dim", "block_size_k", "topk_blocks", "init_blocks", "local_blocks", "score_type")
    assert {name: state[name] for name in same} == {name: fake_state[name] for name in same}
    assert state["req_to_token"].dtype == torch.int32 and state["req_to_token"].shape == fake.req_to_token.shape


@pytest.mark.parametrize(
    "name",
    ["init_forward_metadata_out_graph", "init_forward_metadata_in_graph", "forward_decode", "forward_extend"],
)
def test_the_interface_is_that_of_the_engine(name, plugin):
    assert parameters(getattr(plugin, name)) == parameters(getattr(STOCK.backend, name))
    assert parameters(getattr(fakes.StockBackend, name)) == parameters(getattr(STOCK.backend, name))


def test_the_calls_that_the_plugin_makes_are_those_of_the_engine():
    fused = [name for name, *_ in parameters(MiniMaxSparseKVPool.set_fused_kv_index_buffer)]
    assert fused == [name for name, *_ in parameters(fakes.Pool.set_fused_kv_index_buffer)]
    cached = parameters(STOCK.backend._is_sparse_kv_cached_by_fusion)
    assert [name for name, *_ in cached] == ["forward_batch", "layer_id"]
    for name in ("is_decode", "is_target_verify"):
        assert {mode: getattr(mode, name)() for mode in ForwardMode} == {
            mode: getattr(MODES[mode], name)() for mode in ForwardMode
        }
