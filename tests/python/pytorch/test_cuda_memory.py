"""Memory and graphs on a GPU: what is kept between calls, what belongs to a graph, and models of transformers compiled by
their own generate."""

import openmsa
import openmsa.torch
import pytest
import torch
from layers import torch_layer
from openmsa.torch import KVCache, MSAAttention
from support import pick

OPTIONS = {"block_size": 128, "topk": 4}
M3 = {"heads_q": 32, "heads_kv": 2, "dim": 128, "index_dim": 128}


@pytest.fixture(autouse=True)
def gpu(device):
    if device == "cpu":
        pytest.skip("of the GPU")
    openmsa.free_workspace()
    torch._dynamo.reset()
    yield
    openmsa.free_workspace()


def gpu_layer(length, **more):
    layer = torch_layer([length], [length], device="cuda", dtype=torch.bfloat16, **M3, **more)
    return pick(layer, "q", "k", "v", "index_q", "index_k")


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 300])
def test_reduce_overhead(length):
    """Graph trees of the compiler: nothing that the library keeps lies in their pool, and results stay right."""
    step = torch.compile(
        lambda layer: openmsa.torch.msa_attention(**layer, **OPTIONS) * 2, mode="reduce-overhead", fullgraph=True
    )
    for _ in range(5):
        layer = gpu_layer(length)
        layer["q"].normal_()
        assert torch.equal(step(layer), openmsa.torch.msa_attention(**layer, **OPTIONS) * 2)
        openmsa.msa_attention(**layer, **OPTIONS)  # keeps a workspace, outside of the graph


@torch.no_grad()
def test_reduce_overhead_with_a_cache():
    cache = KVCache(
        num_pages=16, page_size=64, num_heads_kv=2, head_dim=128, index_dim=128, max_batch=4, max_seqlen_k=512,
        dtype=torch.bfloat16, device="cuda",
    )  # fmt: skip
    for length in (300, 70, 1, 128):
        cache.extend(cache.add(), length)
    cache.upload()
    bounds = torch.arange(5, dtype=torch.int32, device="cuda")

    def step(q, index_q, k, v, index_k):
        cache.append(0, k, v, index_k, cu_seqlens_q=bounds)
        return openmsa.torch.msa_attention(q, index_q=index_q, **cache.tensors(0), cu_seqlens_q=bounds, **OPTIONS)

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True)
    for _ in range(5):
        new = gpu_layer(4)
        for tensor in new.values():
            tensor.normal_()
        arguments = [new[name] for name in ("q", "index_q", "k", "v", "index_k")]
        result = compiled(*arguments).clone()
        assert torch.equal(result, step(*arguments))
        for slot in range(4):
            cache.extend(slot, 1)
        cache.upload()


@torch.no_grad()
def test_prompts_of_any_length_keep_the_memory_of_one():
    openmsa.msa_attention(**gpu_layer(8192), **OPTIONS)
    one = openmsa.workspace_bytes()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for length in range(6000, 8192, 110):
        openmsa.msa_attention(**gpu_layer(length), **OPTIONS)
        openmsa.torch.msa_attention(**gpu_layer(length), **OPTIONS)
    torch.cuda.synchronize()
    assert openmsa.workspace_bytes() <= 1.125 * one
    assert torch.cuda.memory_allocated() <= before + one / 8 + (1 << 20)
    openmsa.free_workspace()
    assert openmsa.workspace_bytes() == 0 and torch.cuda.memory_allocated() <= before - one + (1 << 20)


@torch.no_grad()
def test_layers_and_graphs_in_memory_that_is_given():
    """Of two plans, in a graph and outside of it: nothing else is allocated but results."""
    layer, short = gpu_layer(500), gpu_layer(20)
    shape = {"num_heads_q": 32, "num_heads_kv": 2, "head_dim": 128, "index_dim": 128, "max_seqlen_k": 512}
    plans = [openmsa.Plan(**shape, **OPTIONS, dtype="bfloat16", backend="cuda", max_total_q=n) for n in (512, 20)]
    expected = [openmsa.msa_attention(**arrays, plan=plan) for arrays, plan in zip((layer, short), plans)]
    openmsa.free_workspace()
    results = [torch.empty_like(o) for o in expected]
    num_bytes = max(plan.workspace_bytes("msa_attention") for plan in plans)
    memory = torch.full((num_bytes + 256,), 255, dtype=torch.uint8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with openmsa.Workspace(memory):
        with torch.cuda.graph(graph):
            for arrays, plan, o in zip((layer, short), plans, results):
                openmsa.msa_attention(**arrays, plan=plan, o=o)
        for arrays, plan, o in zip((layer, short), plans, results):
            openmsa.msa_attention(**arrays, plan=plan, o=o)
            assert torch.equal(openmsa.torch.msa_attention(**arrays, **OPTIONS), o)
    assert openmsa.workspace_bytes() == 0 and torch.cuda.memory_allocated() == before
    for _ in range(2):
        assert all(torch.equal(o, wanted) for o, wanted in zip(results, expected))
        for o in results:
            o.zero_()
        graph.replay()
    with openmsa.Workspace(memory[:-512]), pytest.raises(ValueError, match="workspace: expected at least"):
        openmsa.msa_attention(**layer, plan=plans[0])


@torch.no_grad()
def test_a_graph_outlives_the_workspace_of_others():
    layer = gpu_layer(500)
    expected = openmsa.msa_attention(**layer, **OPTIONS)
    o = torch.empty_like(expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        openmsa.msa_attention(**layer, **OPTIONS, o=o)
    kept = openmsa.workspace_bytes()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        openmsa.msa_attention(**layer, **OPTIONS, o=o)
    assert openmsa.workspace_bytes() == kept, "memory of a graph is not kept"
    openmsa.free_workspace()
    overwriting = [torch.full((1 << 22,), -1, device="cuda") for _ in range(64)]
    o.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(o, expected) and len(overwriting) == 64


@torch.no_grad()
def test_streams_do_not_share():
    """Calls that run at once on two streams."""
    layers = [gpu_layer(2000, seed=seed) for seed in (1, 2)]
    expected = [openmsa.msa_attention(**layer, **OPTIONS) for layer in layers]
    streams = [torch.cuda.Stream() for _ in layers]
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for stream, layer in zip(streams, layers):
            with torch.cuda.stream(stream):
                results.append(openmsa.msa_attention(**layer, **OPTIONS))
        torch.cuda.synchronize()
        for result, exact in zip(results, expected):
            assert torch.equal(result, exact)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    module = MSAAttention(96, 32, 2, 128, 128, **OPTIONS).cuda().eval()
    x = torch.randn(300, 96, device="cuda")
    with torch.autocast("cuda", dtype):
        y, _ = module(x)
    assert y.dtype == dtype and y.isfinite().all()
    with torch.autocast("cuda", dtype):
        layer = {name: tensor.float() for name, tensor in gpu_layer(300).items()}
        assert openmsa.torch.msa_attention(**layer, **OPTIONS).dtype == dtype


def test_default_device():
    torch.set_default_device("cuda")
    try:
        cache = KVCache(
            num_pages=4, page_size=64, num_heads_kv=2, head_dim=128, index_dim=128, max_batch=1, max_seqlen_k=256,
            dtype=torch.bfloat16, device="cuda",
        )  # fmt: skip
        cache.extend(cache.add(), 70)
        cache.upload()
        assert cache._lengths.device.type == "cpu" and cache.seqlens_k.tolist() == [70]
        assert openmsa.msa_attention(**gpu_layer(70), **OPTIONS).is_cuda
    finally:
        torch.set_default_device(None)


def test_lengths_on_another_device():
    layer = gpu_layer(64)
    bounds = torch.tensor([0, 64], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens_q: expected device cuda:0 as of index_q, got cpu:0"):
        openmsa.torch.msa_attention(**layer, cu_seqlens_q=bounds, **OPTIONS)
    cpu = {name: tensor.cpu().float() for name, tensor in layer.items()}
    with pytest.raises(ValueError, match="backend: expected one for arrays on cpu, where q is, got cuda"):
        openmsa.msa_attention(**{name: tensor.bfloat16() for name, tensor in cpu.items()}, backend="cuda", **OPTIONS)
    with pytest.raises(ValueError, match="backend: expected one for arrays on cuda, where q is, got cpu"):
        openmsa.msa_attention(**layer, backend="cpu", **OPTIONS)


@pytest.fixture
def model():
    """The heads of M3, in bf16."""
    pytest.importorskip("transformers", minversion="5.17")
    from small_m3 import decoder

    geometry = {"num_attention_heads": 32, "head_dim": 128, "index_head_dim": 128, "index_block_size": 128}
    return decoder(experts=True, **geometry).to("cuda", torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_generate_compiles_a_static_cache_by_default(model, padded):
    """Default compilation of transformers: mode="reduce-overhead" for the steps."""
    from small_m3 import tokens

    ids = tokens(2, 300).cuda()
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :130] = 0
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 8}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    compiled = model.generate(ids, cache_implementation="static", **options)
    eager = model.generate(ids, **options)
    for ours, theirs, token, other in zip(
        compiled.scores, eager.scores, compiled.sequences[:, 300:].T, eager.sequences[:, 300:].T
    ):
        assert (ours - theirs).norm() <= 3e-2 * theirs.norm()
        if not torch.equal(token, other):
            break  # bf16: two tokens within rounding


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5])
def test_a_step_of_the_model_in_a_graph(model, length):
    """Capture reads no number: positions and prefix sums are computed with."""
    from small_m3 import tokens
    from transformers import StaticCache

    ids = tokens(1, 310).cuda()
    cache = StaticCache(config=model.config, max_cache_len=512)
    model(ids[:, :300], past_key_values=cache)
    new, positions = ids[:, 300 : 300 + length], torch.arange(300, 300 + length, device="cuda")[None]
    expected = model(ids[:, : 300 + length]).logits[:, -length:]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    states = [
        {name: t.clone() for name, t in vars(layer).items() if isinstance(t, torch.Tensor)} for layer in cache.layers
    ]

    def rewind():
        for layer, state in zip(cache.layers, states):
            for name, tensor in state.items():
                getattr(layer, name).copy_(tensor)

    with torch.cuda.stream(stream):
        model(new, position_ids=positions, past_key_values=cache)
        rewind()
    with torch.cuda.graph(graph, stream=stream):
        logits = model(new, position_ids=positions, past_key_values=cache).logits
    rewind()
    graph.replay()
    assert (logits - expected).norm() <= 3e-2 * expected.norm()


@torch.no_grad()
def test_images():
    """The whole multimodal model beside eager, in bf16."""
    pytest.importorskip("transformers", minversion="5.17")
    from small_m3 import IMAGE_TOKEN, tokens, whole_models

    geometry = {"num_attention_heads": 32, "head_dim": 128, "index_head_dim": 128, "index_block_size": 128}
    eager, mine = (model.to("cuda", torch.bfloat16) for model in whole_models(**geometry))
    grid = torch.tensor([[1, 8, 8]], device="cuda")
    pixels = torch.randn(64, 3 * 2 * 4 * 4, device="cuda", dtype=torch.bfloat16)
    ids = tokens(1, 400).cuda()
    ids[0, 20:36] = IMAGE_TOKEN
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid}
    errors = (mine(**inputs).logits - eager(**inputs).logits).norm(dim=-1) / eager(**inputs).logits.norm(dim=-1)
    assert (errors <= 3e-2).float().mean() >= 0.9


def test_cupy_graph():
    """CuPy's graphs have no memory of their own: the workspace that they read outlives growth."""
    cupy = pytest.importorskip("cupy")
    arrays = {name: cupy.from_dlpack(tensor) for name, tensor in gpu_layer(300).items() if name != "none"}
    o = cupy.empty_like(arrays["q"])
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        openmsa.msa_attention(**arrays, **OPTIONS, o=o)
        expected = o.copy()
        stream.begin_capture()
        openmsa.msa_attention(**arrays, **OPTIONS, o=o)
        graph = stream.end_capture()
        openmsa.free_workspace()
        o.fill(0)
        graph.launch(stream)
        stream.synchronize()
    assert (o == expected).all()
