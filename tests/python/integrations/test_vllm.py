"""The plug-in for vLLM on fakes of what it touches of the engine, with openmsa's CPU backend, and on a GPU where there
is one."""

import functools
import importlib
import sys
import tomllib
from pathlib import Path

import openmsa
import pytest
import torch
import vllm_fakes
from support import TOLERANCE, error
from torch.utils._python_dispatch import TorchDispatchMode
from vllm_fakes import Config
from vllm_steps import LAYOUTS, TENSORS, Step

E4M3 = torch.float8_e4m3fn
ON = {"openmsa": True}

STEPS = {
    "decode": {"decodes": (1, 127, 128, 129, 700, 1500)},
    "decode in a graph of eight": {"decodes": (1, 700, 1500), "padding": 5},
    "nothing but padding": {"padding": 3},
    "prefill": {"prefills": ((1, 1), (129, 129), (300, 300))},
    "chunks behind a prefix": {"prefills": ((100, 900), (1, 513), (200, 1000))},
    "mixed": {"decodes": (257, 1300, 64), "prefills": ((128, 128), (200, 777))},
    "verify 4": {"decodes": (4, 130, 900), "step": 4, "padding": 2},
    "verify 16, mixed": {"decodes": (16, 140, 1400), "step": 16, "prefills": ((60, 600),)},
}


@pytest.fixture
def vllm(monkeypatch):
    """The fake engine."""
    monkeypatch.delenv("OPENMSA_VLLM", raising=False)
    yield vllm_fakes.install(monkeypatch)
    for name in [name for name in sys.modules if name.startswith("openmsa.integrations.vllm")]:
        del sys.modules[name]


def model_of(config=None, device="cpu", **options):
    _model = importlib.import_module("openmsa.integrations.vllm._model")
    vllm_config = vllm_fakes.vllm_config(config, **{"additional_config": ON} | options)
    with torch.device(device):
        return _model.OpenmsaM3ForCausalLM(vllm_config=vllm_config)


def bind(layer, step):
    layer.kv_cache = step.kv_cache.view(torch.uint8) if step.kv_dtype else step.kv_cache
    layer.indexer.impl.index_cache.kv_cache = step.index_cache


def run(vllm, layer, step, index_table=None, spare_rows=3):
    """The layer's output for the rows of a step, in a buffer that has more rows."""
    vllm.context.attn_metadata = {
        layer.layer_name: step.metadata(vllm_fakes.SPARSE_METADATA),
        f"{layer.layer_name}.index_cache": step.metadata(vllm_fakes.INDEX_METADATA, index_table),
    }
    more = lambda rows: torch.cat((rows, rows.new_full((spare_rows, rows.shape[1]), float("nan"))))  # noqa: E731
    output = more(torch.full_like(step.query, 7.0)).fill_(7)
    assert layer.run_attention(more(step.query), more(step.index_query), output) is output
    assert (output[step.num_tokens :] == 7).all()
    return output[: step.num_tokens]


def tolerance(dtype):
    return TOLERANCE[str(dtype).removeprefix("torch.")]


def assert_close(output, step):
    assert error(output.double().cpu(), step.expected()) <= tolerance(step.dtype)


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_one_call_for_selection_and_attention(vllm, shape, device):
    step = Step(**shape, device=device)
    layer = model_of(device=device).layers[0]
    bind(layer, step)
    output = run(vllm, layer, step)
    assert_close(output, step)
    assert (layer.topk_indices_buffer == -2).all()


@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_block_tables_of_their_own_for_the_index_branch(vllm, shape, device):
    """Index keys lie in other pages than keys and values: two calls, with block numbers in vLLM's buffer."""
    step = Step(**shape, device=device)
    order = torch.randperm(step.num_pages, generator=torch.Generator().manual_seed(5)).to(device)
    index_table = step.block_table.clone()
    owned = index_table < step.num_pages
    index_table[owned] = order[index_table[owned].long()].int()
    layer = model_of(device=device).layers[0]
    bind(layer, step)
    moved = torch.empty_like(step.index_cache)
    moved[order] = step.index_cache
    layer.indexer.impl.index_cache.kv_cache = moved
    assert_close(run(vllm, layer, step, index_table), step)
    chosen = layer.topk_indices_buffer
    assert (chosen[: step.num_tokens] >= -1).all() and (chosen[step.num_tokens :] == -2).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_cache(vllm, layout, device):
    step = Step(**STEPS["mixed"], layout=layout, device=device)
    layer = model_of(device=device).layers[0]
    bind(layer, step)
    assert_close(run(vllm, layer, step), step)


@pytest.mark.parametrize("heads", [(4, 1), (8, 4), (16, 1)])
def test_heads_of_a_rank(vllm, heads, device):
    shape = {"heads_q": heads[0], "heads_kv": heads[1]}
    step = Step(**STEPS["mixed"], **shape, device=device)
    layer = model_of(Config(**shape), device).layers[0]
    bind(layer, step)
    assert_close(run(vllm, layer, step), step)


def test_fp16_has_a_plan_of_its_own_for_the_index_branch(vllm, device):
    """vLLM's index cache is bf16 whatever the model is."""
    step = Step(**STEPS["mixed"], dtype=torch.float16, device=device)
    layer = model_of(Config(dtype=torch.float16), device).layers[0]
    calls = layer.impl.calls
    for plans in (calls.any_rows, calls.few_rows):
        assert (plans.attention.dtype, plans.selection.dtype) == ("float16", "bfloat16")
    assert "float16, caches float16 and bfloat16" in vllm.lines[0][1]
    bind(layer, step)
    assert_close(run(vllm, layer, step), step)


@pytest.mark.parametrize("scales", ["one", "per token", "more slots than pages"])
@pytest.mark.parametrize("has_own_tables", [False, True])
def test_fp8_caches(vllm, scales, has_own_tables, device):
    step = Step(**STEPS["mixed"], kv_dtype=E4M3, device=device)
    layer = model_of(Config(kv_cache_dtype="fp8_e4m3", kv_cache_torch_dtype=torch.uint8), device).layers[0]
    if scales == "one":
        step.k_scale, step.v_scale = (torch.tensor(scale, device=device) for scale in (0.5, 3.0))
    else:
        slots = step.num_pages * 128 + (0 if scales == "per token" else 77)
        step.k_scale, step.v_scale = (torch.rand(2, slots).to(device) + 0.5 for _ in range(2))
    layer._k_scale, layer._v_scale = step.k_scale, step.v_scale
    bind(layer, step)
    assert_close(run(vllm, layer, step, step.block_table.clone() if has_own_tables else None), step)


@pytest.mark.parametrize("kv_dtype", [None, E4M3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_own_tables", [False, True])
def test_fp8_index_caches(vllm, kv_dtype, dtype, has_own_tables, device):
    """vLLM hands index queries over in e4m3, cast without a scale. One plan serves both branches, of a model in fp16 too."""
    step = Step(**STEPS["mixed"], dtype=dtype, kv_dtype=kv_dtype, index_dtype=E4M3, device=device)
    kv_cache = {"kv_cache_dtype": "fp8", "kv_cache_torch_dtype": torch.uint8} if kv_dtype else {}
    layer = model_of(Config(dtype=dtype, indexer_kv_dtype="fp8", **kv_cache), device).layers[0]
    for plans in (layer.impl.calls.any_rows, layer.impl.calls.few_rows):
        assert plans.can_fuse
        assert (plans.selection.index_dtype, plans.selection.index_q_rounding) == ("float8_e4m3fn", "cast")
    name = str(dtype).removeprefix("torch.")
    caches = f"caches {'float8_e4m3fn' if kv_dtype else name} and float8_e4m3fn"
    assert f"{name}, {caches}" in vllm.lines[0][1]
    bind(layer, step)
    assert_close(run(vllm, layer, step, step.block_table.clone() if has_own_tables else None), step)


class OnlyViews(TorchDispatchMode):
    """Refuses what PyTorch would allocate, copy, compute or read for the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.is_view or function is torch.ops.aten.detach.default, function
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("index_dtype", [torch.bfloat16, E4M3])
@pytest.mark.parametrize("has_own_tables", [False, True])
def test_a_step_makes_views_alone(vllm, has_own_tables, index_dtype):
    step = Step(**STEPS["mixed"], kv_dtype=E4M3, index_dtype=index_dtype, layout=LAYOUTS[-1])
    fp8_index = {"indexer_kv_dtype": "fp8_e4m3"} if index_dtype == E4M3 else {}
    layer = model_of(Config(kv_cache_dtype="fp8", kv_cache_torch_dtype=torch.uint8, **fp8_index)).layers[0]
    bind(layer, step)
    output = run(vllm, layer, step, step.block_table.clone() if has_own_tables else None)
    again = torch.empty_like(output)
    with OnlyViews():
        layer.run_attention(step.query, step.index_query, again)
    assert torch.equal(again, output)


@pytest.mark.parametrize("has_own_tables", [False, True])
def test_in_a_cuda_graph(vllm, device, has_own_tables):
    """Captured for one step, replayed for another one in its place; no memory is left behind but the graph's."""
    if device == "cpu":
        pytest.skip("of the GPU")
    first = Step(**STEPS["decode in a graph of eight"], device=device)
    other = Step(decodes=(1500, 1, 700), padding=5, device=device, seed=1)
    table = first.block_table.clone() if has_own_tables else None
    layer = model_of(device=device).layers[0]
    bind(layer, first)
    assert_close(run(vllm, layer, first, table), first)
    output, graph = torch.empty_like(first.query), torch.cuda.CUDAGraph()
    before = openmsa.workspace_bytes()
    with torch.cuda.graph(graph):
        layer.run_attention(first.query, first.index_query, output)
    assert openmsa.workspace_bytes() == before
    for name in TENSORS:
        getattr(first, name).copy_(getattr(other, name))
    if has_own_tables:
        table.copy_(other.block_table)
    graph.replay()
    assert_close(output, other)


def test_a_step_leaves_nothing_for_the_next(vllm):
    """A layer that has run with one block table runs with two, and again with one."""
    step = Step(**STEPS["mixed"])
    layer = model_of().layers[0]
    bind(layer, step)
    for table in (None, step.block_table.clone(), None):
        assert_close(run(vllm, layer, step, table), step)
        assert layer.indexer.impl.take_index_q() is None


def test_layers_share_a_plan(vllm):
    model = model_of()
    calls = [layer.impl.calls for layer in model.layers]
    assert calls[0] is calls[1] is model.layers[1].indexer.impl.calls
    assert calls[0].any_rows.attention is calls[0].any_rows.selection
    assert model_of().layers[0].impl.calls.any_rows == calls[0].any_rows


def test_capacities_of_the_plans(vllm):
    calls = model_of(num_speculative_tokens=3).layers[0].impl.calls
    for plans, rows in ((calls.any_rows, 1024), (calls.few_rows, 32)):
        plan = plans.attention
        assert (plan.max_total_q, plan.max_batch, plan.page_size, plan.block_size) == (rows, 8, 128, 128)
        assert plan.max_seqlen_k == 2176  # 2050 in whole pages
        assert (plan.topk, plan.num_init_blocks, plan.num_local_blocks, plan.num_heads_q) == (3, 0, 1, 4)


@pytest.mark.parametrize("has_own_tables", [False, True])
def test_decodes_take_a_plan_for_few_rows(vllm, monkeypatch, has_own_tables):
    """A CUDA graph keeps the workspace of the calls in it, which are those of decodes."""
    made = []

    def record(run, q, *, plan, **arguments):
        made.append((len(q), plan.max_total_q))
        return run(q, plan=plan, **arguments)

    for name in ("msa_attention", "select_blocks", "sparse_attention"):
        monkeypatch.setattr(openmsa, name, functools.partial(record, getattr(openmsa, name)))
    step = Step(**STEPS["mixed"])
    layer = model_of().layers[0]
    bind(layer, step)
    assert_close(run(vllm, layer, step, step.block_table.clone() if has_own_tables else None), step)
    assert made == [(3, 8), (328, 1024)] * (2 if has_own_tables else 1)


def test_more_decode_rows_than_vllm_announces(vllm):
    step = Step(**STEPS["verify 16, mixed"])
    layer = model_of().layers[0]
    assert step.num_tokens > layer.impl.calls.few_rows.attention.max_total_q
    bind(layer, step)
    assert_close(run(vllm, layer, step), step)


def test_what_the_cache_is_called_stays(vllm):
    """vLLM has registered the side cache under the layer's name; it may not change with the impl."""
    model = model_of()
    assert "layers.0.indexer.impl.index_cache" in dict(model.named_modules())
    assert model.layers[0].indexer.impl.index_cache.prefix == f"{model.layers[0].layer_name}.index_cache"


def test_mtp_gets_a_buffer(vllm):
    """vLLM gives its MTP layers none."""
    _model = importlib.import_module("openmsa.integrations.vllm._model")
    layer = _model.OpenmsaM3MTP(vllm_config=vllm_fakes.vllm_config(additional_config=ON)).layer
    assert layer.topk_indices_buffer is layer.indexer.impl.topk_indices_buffer
    assert layer.topk_indices_buffer.shape == (1024, 2, 3)
    step = Step(**STEPS["mixed"])
    bind(layer, step)
    for table in (None, step.block_table.clone()):
        assert_close(run(vllm, layer, step, table), step)


def test_before_there_are_caches(vllm):
    """vLLM measures memory without attention: nothing is written, and the workspace is there meanwhile."""
    model = model_of()
    layer = model.layers[0]
    vllm.context.attn_metadata = None
    output = torch.full((4, 512), 7.0, dtype=torch.bfloat16)
    layer.run_attention(torch.zeros(4, 512), torch.zeros(4, 256), output)
    assert (output == 7).all()
    held, positions = [], torch.arange(4)
    empty, wanted = torch.empty, layer.impl.calls.workspace_bytes()
    assert wanted == layer.impl.calls.any_rows.attention.workspace_bytes("msa_attention") > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *shape, **options: held.append(shape) or empty(*shape, **options))
        assert model(positions, positions) is positions
        vllm.context.attn_metadata = {}
        model(positions, positions)
    assert held == [(wanted,)]


def test_the_log_says_what_is_served(vllm):
    model_of()
    (level, text), *more = vllm.lines
    assert not more and level == "info"
    assert text == (
        f"openmsa {openmsa.__version__} serves 2 of 2 sparse layers of OpenmsaM3ForCausalLM: 4/2 heads, bfloat16, "
        "caches bfloat16 and bfloat16, backend cpu"
    )


LEFT = {
    "SM100": (Config(is_sm100=True), {}, "MiniMaxM3IndexerMSAImpl here, not Triton"),
    "index cache": (Config(indexer_kv_dtype="mxfp4"), {}, "index cache mxfp4, openmsa has bf16 and fp8 (e4m3)"),
    "e5m2": (Config(kv_cache_dtype="fp8_e5m2"), {}, "KV cache fp8_e5m2"),
    "bf16 cache of fp16": (
        Config(dtype=torch.float16, kv_cache_torch_dtype=torch.bfloat16),
        {},
        "KV cache torch.bfloat16 of a model in torch.float16",
    ),
    "scores": (Config(score_type="lse"), {}, "score type lse"),
    "index heads": (Config(index_heads=4), {}, "4 index heads for 2 KV heads"),
    "context parallelism": (Config(), {"context_parallel": 2}, "context parallelism"),
    "more than the library has": (Config(topk=65), {}, "topk: expected"),
    "a shape that cannot be": (Config(heads_q=3), {}, "num_heads_q: expected"),
}


@pytest.mark.parametrize(("config", "options", "reason"), LEFT.values(), ids=LEFT)
def test_what_is_left_to_the_engine(vllm, config, options, reason):
    model = model_of(config, **options)
    for layer in model.layers:
        assert type(layer.impl) is vllm_fakes.MiniMaxM3SparseTritonImpl
        assert type(layer.indexer.impl).__module__ == "vllm_fakes"
    ((level, text),) = vllm.lines
    assert level == "warning" and "leaves 2 of 2 sparse layers" in text and reason in text


def test_batch_invariance_is_left_to_the_engine(vllm):
    vllm.envs.VLLM_BATCH_INVARIANT = True
    assert type(model_of().layers[0].impl) is vllm_fakes.MiniMaxM3SparseTritonImpl
    assert "VLLM_BATCH_INVARIANT" in vllm.lines[0][1]


@pytest.mark.parametrize(
    ("additional", "variable", "is_on"),
    [
        ({}, None, False),
        ({}, "0", False),
        ({}, "1", True),
        (ON, None, True),
        (ON, "0", True),
        ({"openmsa": False}, "1", False),
    ],
)
def test_on_when_asked_for(vllm, monkeypatch, additional, variable, is_on):
    if variable is not None:
        monkeypatch.setenv("OPENMSA_VLLM", variable)
    model = model_of(additional_config=additional)
    assert (type(model.layers[0].impl) is not vllm_fakes.MiniMaxM3SparseTritonImpl) == is_on
    assert bool(vllm.lines) == is_on


def test_odd_flags_are_refused(vllm, monkeypatch):
    with pytest.raises(ValueError, match="expected true, false or .*, got 'yes'"):
        model_of(additional_config={"openmsa": "yes"})
    monkeypatch.setenv("OPENMSA_VLLM", "yes")
    with pytest.raises(ValueError, match="OPENMSA_VLLM: expected 0 or 1, got 'yes'"):
        model_of(additional_config={})


def test_the_entry_point():
    path = Path(__file__).parents[3] / "pyproject.toml"
    if not path.exists():
        pytest.skip("no source tree around the tests")
    project = tomllib.loads(path.read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"openmsa": "openmsa.integrations.vllm:register"}
    assert callable(importlib.import_module("openmsa.integrations.vllm").register)


def test_register(vllm):
    """Twice, as vLLM does in some processes; names that exist."""
    plugin = importlib.import_module("openmsa.integrations.vllm")
    plugin.register()
    plugin.register()
    assert set(vllm.ModelRegistry.models) == {"MiniMaxM3SparseForCausalLM", "MiniMaxM3MTP"}
    assert "openmsa.integrations.vllm._model" not in sys.modules
    for name in vllm.ModelRegistry.models.values():
        module, _, cls = name.partition(":")
        assert issubclass(getattr(importlib.import_module(module), cls), torch.nn.Module)
    assert not vllm.lines


def test_a_build_for_another_cuda_is_the_same_version(vllm):
    vllm.__version__ = "0.33.0+cu130"
    importlib.import_module("openmsa.integrations.vllm").register()
    assert len(vllm.ModelRegistry.models) == 2 and not vllm.lines


@pytest.mark.parametrize("version", ["0.34.1", "0.33.0rc1", "0.33.01"])
def test_another_version_keeps_its_kernels(vllm, version):
    vllm.__version__ = version
    importlib.import_module("openmsa.integrations.vllm").register()
    assert not vllm.ModelRegistry.models
    ((level, text),) = vllm.lines
    assert level == "warning" and "0.33.0, got" in text and version in text
