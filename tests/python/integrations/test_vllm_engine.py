"""The plug-in in vLLM itself: its registry, its model of M3, the metadata of its builders. On the CPU, so without its
kernels."""

import dataclasses
import importlib
import inspect

import pytest
import torch
import vllm_fakes
import vllm_on_cpu
from support import TOLERANCE, error
from vllm_steps import LAYOUTS, Step

E4M3 = torch.float8_e4m3fn

STEPS = {
    "decode": {"decodes": (1, 127, 128, 129, 700, 1500)},
    "decode in a graph of eight": {"decodes": (1, 700, 1500), "padding": 5},
    "prefill": {"prefills": ((129, 129), (1, 1), (300, 300))},
    "chunks behind a prefix": {"prefills": ((100, 900), (200, 1000))},
    "mixed": {"decodes": (257, 1300, 64), "prefills": ((128, 128), (200, 777))},
}
VERIFICATION = {
    "alone": {"decodes": (16, 130, 900), "step": 16},
    "in a graph": {"decodes": (16, 130, 900), "step": 16, "padding": 2},
    "mixed": {"decodes": (17, 140, 1400), "step": 16, "prefills": ((60, 600),)},
    "of four": {"decodes": (4, 130, 900), "step": 4, "prefills": ((16, 300), (17, 17))},
}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENMSA_VLLM", raising=False)
        module = vllm_on_cpu.import_vllm(patch, folder)
        plugin = importlib.import_module("openmsa.integrations.vllm")
        if module.__version__ not in plugin.TESTED:
            pytest.skip(f"vLLM {module.__version__} is not one that the plug-in serves")
        plugin.register()
        vllm_on_cpu.start_single_rank(vllm_on_cpu.engine_config(vllm_on_cpu.checkpoint(folder / "m3")), folder)
        yield module
        module.distributed.cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def make(vllm, tmp_path_factory):
    """Configuration and model of the engine, by the options of its command line."""

    def make(shape=None, **options):
        folder = vllm_on_cpu.checkpoint(tmp_path_factory.mktemp("m3"), **shape or {})
        config = vllm_on_cpu.engine_config(folder, **{"additional_config": {"openmsa": True}} | options)
        return config, vllm_on_cpu.make_model(config)

    return make


@pytest.fixture(scope="module")
def served(make):
    return make()


def sparse_layers(model):
    return [layer.self_attn for layer in model.model.layers if hasattr(layer.self_attn, "indexer")]


def common_metadata(step):
    """As the engine's runner makes it: requests that only fill up a graph have no rows in query_start_loc."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    queries = torch.tensor([queries if keys else 0 for queries, keys in step.requests], dtype=torch.int32)
    bounds = torch.cat((torch.zeros(1, dtype=torch.int32), queries.cumsum(0).int()))
    return CommonAttentionMetadata(
        query_start_loc=bounds,
        query_start_loc_cpu=bounds,
        seq_lens=step.seq_lens,
        num_reqs=len(step.requests),
        num_actual_tokens=step.num_tokens,
        max_query_len=int(queries.max()),
        max_seq_len=2048,
        block_table_tensor=step.block_table,
        slot_mapping=torch.zeros(step.num_tokens, dtype=torch.int64),
        seq_lens_cpu_upper_bound=step.seq_lens,
    )


def build(layer, config, step):
    """Metadata of a step by the builders of the layer's caches, in the words of the forward context."""
    from vllm.config import set_current_vllm_config

    caches = {layer.layer_name: layer, layer.indexer.index_cache.prefix: layer.indexer.index_cache}
    metadata = {}
    with set_current_vllm_config(config):
        for name, cache in caches.items():
            builder = cache.get_attn_backend().get_builder_cls()
            spec = cache.get_kv_cache_spec(config)
            metadata[name] = builder(spec, [name], config, torch.device("cpu")).build(0, common_metadata(step))
    return metadata


def run(layer, config, step, metadata=None):
    from vllm.forward_context import set_forward_context

    layer.kv_cache = step.kv_cache.view(torch.uint8) if step.kv_dtype else step.kv_cache
    layer.indexer.index_cache.bind_kv_cache(step.index_cache[:, None])
    output = torch.full_like(step.query, 7.0)
    with set_forward_context(metadata or build(layer, config, step), config):
        assert layer._run_attention(step.query, None, step.index_query, output) is output
    return output


def assert_close(output, step):
    assert error(output.double(), step.expected()) <= TOLERANCE[str(step.dtype).removeprefix("torch.")]


def test_the_fakes_have_the_fields_of_the_engine(vllm):
    from vllm.models.minimax_m3.common import indexer, sparse_attention

    for classes, module in ((vllm_fakes.SPARSE_METADATA, sparse_attention), (vllm_fakes.INDEX_METADATA, indexer)):
        for fake in classes:
            names = [field.name for field in dataclasses.fields(getattr(module, fake.__name__))]
            assert names == [field.name for field in dataclasses.fields(fake)]
    parameters = [
        list(inspect.signature(cls.__init__).parameters)
        for cls in (vllm_fakes.MiniMaxM3SparseImpl, sparse_attention.MiniMaxM3SparseImpl)
    ]
    assert parameters[0] == parameters[1]


def test_the_fakes_have_the_attributes_of_the_engine(make):
    _, model = make(additional_config={})
    layer = sparse_layers(model)[0]
    fake = vllm_fakes.MiniMaxM3SparseForCausalLM(vllm_config=vllm_fakes.vllm_config()).layers[0]
    for real, ours in ((layer, fake), (layer.impl, fake.impl), (layer.indexer.impl, fake.indexer.impl)):
        missing = [name for name in vars(ours) if name not in vars(real) and not name.startswith("_")]
        assert not missing, type(real)
    assert type(layer.impl).__name__ == type(fake.impl).__name__
    assert type(layer.indexer.impl).__name__ == type(fake.indexer.impl).__name__


def test_the_engine_makes_our_class(served):
    from openmsa.integrations.vllm import _backend, _model

    config, model = served
    assert type(model) is _model.OpenmsaM3ForCausalLM
    layers = sparse_layers(model)
    assert len(layers) == 2
    for layer in layers:
        assert type(layer.impl) is _backend.OpenmsaImpl
        assert type(layer.indexer.impl) is _backend.OpenmsaIndexerImpl


def test_the_engine_sees_a_model_that_can_what_its_own_can(vllm):
    from openmsa.integrations.vllm import _model
    from vllm.model_executor.models.registry import _ModelInfo
    from vllm.models.minimax_m3 import MiniMaxM3MTP, MiniMaxM3SparseForCausalLM

    pairs = ((_model.OpenmsaM3ForCausalLM, MiniMaxM3SparseForCausalLM), (_model.OpenmsaM3MTP, MiniMaxM3MTP))
    for ours, stock in pairs:
        infos = [dataclasses.asdict(_ModelInfo.from_model_cls(cls)) for cls in (ours, stock)]
        assert {info.pop("architecture") for info in infos} == {ours.__name__, stock.__name__}
        assert infos[0] == infos[1]


def test_not_asked_for(make):
    from vllm.models.minimax_m3.common.sparse_attention import MiniMaxM3SparseTritonImpl

    _, model = make(additional_config={})
    assert all(type(layer.impl) is MiniMaxM3SparseTritonImpl for layer in sparse_layers(model))


def test_the_engine_keeps_what_it_knows_of_the_caches(served, make):
    """The layers that it gives caches to, and what these look like, as without the plug-in."""
    config, model = served
    stock_config, stock_model = make(additional_config={})
    context = config.compilation_config.static_forward_context
    stock_context = stock_config.compilation_config.static_forward_context
    assert set(context) == set(stock_context)
    for layer, stock in zip(sparse_layers(model), sparse_layers(stock_model)):
        assert context[layer.layer_name] is layer
        assert context[layer.indexer.index_cache.prefix] is layer.indexer.index_cache
        assert layer.get_attn_backend() is stock.get_attn_backend()
        assert layer.indexer.index_cache.get_attn_backend() is stock.indexer.index_cache.get_attn_backend()
        assert layer.get_kv_cache_spec(config) == stock.get_kv_cache_spec(stock_config)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in stock_model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", STEPS.values(), ids=STEPS)
def test_steps(served, shape, layout):
    config, model = served
    step = Step(**shape, layout=layout)
    for layer in sparse_layers(model):
        assert_close(run(layer, config, step), step)


def test_steps_of_four_kv_heads(make):
    shape = {"heads_q": 8, "heads_kv": 4}
    config, model = make(shape)
    step = Step(**STEPS["mixed"], **shape)
    assert_close(run(sparse_layers(model)[0], config, step), step)


def test_two_block_tables(served):
    """The split path: the index branch has a table of its own, and its block numbers go through vLLM's buffer."""
    config, model = served
    layer = sparse_layers(model)[0]
    step = Step(**STEPS["mixed"])
    metadata = build(layer, config, step)
    own = step.block_table.clone()
    index = metadata[layer.indexer.index_cache.prefix]
    index.decode.block_table, index.prefill.block_table = own[: index.num_decodes], own[index.num_decodes :]
    layer.topk_indices_buffer.fill_(-2)
    assert_close(run(layer, config, step, metadata), step)
    assert (layer.topk_indices_buffer[: step.num_tokens] >= -1).all()


@pytest.fixture(scope="module")
def verifying(make):
    return make(speculative_config={"method": "ngram", "num_speculative_tokens": 15, "prompt_lookup_max": 4})


@pytest.mark.parametrize("shape", VERIFICATION.values(), ids=VERIFICATION)
def test_verification(verifying, shape):
    config, model = verifying
    step = Step(**shape)
    layer = sparse_layers(model)[0]
    metadata = build(layer, config, step)
    assert metadata[layer.layer_name].decode.decode_query_len == step.step
    assert_close(run(layer, config, step, metadata), step)


def test_mtp(vllm, tmp_path):
    """Its layer runs here, which vLLM's Triton impl refuses to, for want of a buffer."""
    from openmsa.integrations.vllm import _model
    from vllm.model_executor.model_loader.utils import get_model_architecture

    config = vllm_on_cpu.engine_config(
        vllm_on_cpu.checkpoint(tmp_path, num_mtp_modules=1),
        additional_config={"openmsa": True},
        speculative_config={"method": "mtp", "num_speculative_tokens": 3},
    )
    model_cls = get_model_architecture(config.speculative_config.draft_model_config)[0]
    assert model_cls is _model.OpenmsaM3MTP
    layer = vllm_on_cpu.make_model(config, model_cls).model.layers["0"].transformer_layer.self_attn
    step = Step(**VERIFICATION["of four"])
    metadata = build(layer, config, step)
    assert_close(run(layer, config, step, metadata), step)
    index = metadata[layer.indexer.index_cache.prefix]
    index.decode.block_table = index.decode.block_table.clone()
    assert_close(run(layer, config, step, metadata), step)
    assert layer.topk_indices_buffer.shape == (1024, 2, 3)


def test_fp8_caches(make):
    config, model = make(kv_cache_dtype="fp8")
    layer = sparse_layers(model)[0]
    step = Step(**STEPS["mixed"], kv_dtype=E4M3, k_scale=torch.tensor(0.5), v_scale=torch.tensor(3.0))
    layer._k_scale.fill_(0.5)
    layer._v_scale.fill_(3.0)
    assert_close(run(layer, config, step), step)


def test_fp8_index_caches(make):
    options = {"attention_config": {"indexer_kv_dtype": "fp8", "backend": "TRITON_ATTN"}, "attention_backend": None}
    config, model = make(**options)
    layer = sparse_layers(model)[0]
    assert layer.indexer.index_cache.get_kv_cache_spec(config).dtype == E4M3
    step = Step(**STEPS["mixed"], index_dtype=E4M3)
    assert_close(run(layer, config, step), step)
