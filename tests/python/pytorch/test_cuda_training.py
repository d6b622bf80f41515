"""Training on a GPU: gradients beside the CPU backend's, and the surroundings in which people train: compiled, under
autocast, with checkpoints, on other streams, in graphs, by transformers' Trainer."""

import openmsa.torch
import pytest
import torch
from layers import torch_layer
from openmsa.torch import MSAAttention
from support import pick
from torch.utils.checkpoint import checkpoint

NAMES = ("q", "k", "v", "index_q", "index_k")
BOUNDS = ("cu_seqlens_q", "cu_seqlens_k")
OPTIONS = {"block_size": 128, "topk": 4}
M3 = {"heads_q": 32, "heads_kv": 2, "dim": 128, "index_dim": 128}
GRADIENT = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
HALVES = list(GRADIENT)


@pytest.fixture(autouse=True)
def gpu(device):
    if device == "cpu":
        pytest.skip("of the GPU")
    torch._dynamo.reset()


def leaves(layer):
    return {name: layer[name].detach().requires_grad_() for name in NAMES}


def attention_of(layer, indices, options):
    """o and lse, and the gradients of q, k and v from a loss of both; indices None: dense attention."""
    inputs, bounds = leaves(layer), pick(layer, *BOUNDS)
    keys = list(inputs.values())[:3]
    if indices is None:
        o, lse = openmsa.torch.dense_attention(*keys, **bounds, return_lse=True)
    else:
        o, lse = openmsa.torch.sparse_attention(*keys, indices, **bounds, **options, return_lse=True)
    directions = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device) for x in (o, lse)]
    ((o.float() * directions[0]).sum() + (lse * directions[1]).sum()).backward()
    return o, lse, {name: inputs[name].grad for name in "qkv"}


def kl_of(layer, lse, indices, options):
    """kl_loss, and the gradients of index_q and index_k."""
    inputs = leaves(layer)
    q, k, _, index_q, index_k = inputs.values()
    kl = openmsa.torch.kl_loss(q, k, lse, index_q, index_k, indices, **pick(layer, *BOUNDS), **options)
    (1000 * kl).backward()
    return kl, {name: inputs[name].grad for name in ("index_q", "index_k")}


CASES = [
    ([600], M3, OPTIONS),
    ([39, 35, 1, 300], M3, OPTIONS),
    ([600], M3 | {"dim": 64, "index_dim": 64}, {"block_size": 64, "topk": 3}),
    ([130, 257], {"heads_q": 4, "heads_kv": 4, "dim": 128, "index_dim": 64}, {"block_size": 64, "topk": 2}),
]


def on_both(seqlens, shape, options, dtype, is_warmup):
    """The layer and its selection on the GPU, and the same numbers in fp32 on the CPU."""
    layer = torch_layer(seqlens, seqlens, device="cuda", dtype=dtype, **shape)
    index = pick(layer, "index_q", "index_k", *BOUNDS)
    indices = None if is_warmup else openmsa.torch.select_blocks(**index, **options)
    on_cpu = {name: x.cpu().float() if x.is_floating_point() else x.cpu() for name, x in layer.items()}
    return (layer, indices), (on_cpu, None if is_warmup else indices.cpu())


def assert_near(gradients, exact, dtype):
    for name, gradient in gradients.items():
        assert gradient.dtype == dtype
        error = (gradient.cpu().float() - exact[name]).norm() / exact[name].norm()
        assert error <= GRADIENT[dtype], (name, error)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("is_warmup", [False, True])
@pytest.mark.parametrize("seqlens, shape, options", CASES)
def test_attention_beside_the_cpu(dtype, is_warmup, seqlens, shape, options):
    mine, on_cpu = on_both(seqlens, shape, options, dtype, is_warmup)
    o, lse, gradients = attention_of(*mine, options)
    expected_o, expected_lse, exact = attention_of(*on_cpu, options)
    assert (o.cpu().float() - expected_o).norm() <= GRADIENT[dtype] * expected_o.norm()
    torch.testing.assert_close(lse.cpu(), expected_lse, atol=2e-3, rtol=1e-3)
    assert_near(gradients, exact, dtype)
    again = attention_of(*mine, options)[2]
    assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items()), "again"


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("is_warmup", [False, True])
@pytest.mark.parametrize("seqlens, shape, options", CASES)
def test_kl_beside_the_cpu(dtype, is_warmup, seqlens, shape, options):
    (layer, indices), on_cpu = on_both(seqlens, shape, options, dtype, is_warmup)
    lse = attention_of(*on_cpu, options)[1].detach()
    kl, gradients = kl_of(layer, lse.cuda(), indices, options)
    expected, exact = kl_of(on_cpu[0], lse, on_cpu[1], options)
    torch.testing.assert_close(kl.cpu(), expected, atol=1e-5, rtol=5e-3)
    assert_near(gradients, exact, dtype)
    again = kl_of(layer, lse.cuda(), indices, options)[1]
    assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items()), "again"


def test_recall_beside_the_cpu():
    layer = torch_layer([700, 130], [700, 130], device="cuda", dtype=torch.bfloat16, **M3)
    indices = openmsa.torch.select_blocks(**pick(layer, "index_q", "index_k", *BOUNDS), **OPTIONS)
    found = openmsa.torch.block_recall(**pick(layer, "q", "k", *BOUNDS), topk_indices=indices, **OPTIONS)
    on_cpu = {name: layer[name].cpu().float() for name in ("q", "k")} | {name: layer[name].cpu() for name in BOUNDS}
    expected = openmsa.torch.block_recall(**on_cpu, topk_indices=indices.cpu(), **OPTIONS)
    for ours, exact in zip(found, expected):
        assert (ours.cpu() - exact).abs().mean() <= 2e-3


def loss_of(*inputs, **options):
    o, kl = openmsa.torch.msa_attention(*inputs, **OPTIONS, return_kl=True, **options)
    return o.float().square().mean() + kl


def step_gradients(loss, layer):
    inputs = leaves(layer)
    loss(*inputs.values()).backward()
    return [x.grad for x in inputs.values()]


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(warmup, backend):
    layer = torch_layer([500], [500], device="cuda", dtype=torch.bfloat16, **M3)
    loss = lambda *inputs: loss_of(*inputs, warmup=warmup)  # noqa: E731
    expected = step_gradients(loss, layer)
    compiled = step_gradients(torch.compile(loss, fullgraph=True, backend=backend), layer)
    for ours, exact in zip(compiled, expected):
        if backend == "aot_eager":
            assert torch.equal(ours, exact)
        assert (ours - exact).float().norm() <= 1e-2 * exact.float().norm()


def test_compiled_into_graphs():
    """Graph trees of the compiler capture forward and backward; later inputs replay them."""
    compiled = torch.compile(loss_of, mode="reduce-overhead", fullgraph=True)
    for seed in range(5):
        layer = torch_layer([500], [500], device="cuda", dtype=torch.bfloat16, seed=seed, **M3)
        result = [gradient.clone() for gradient in step_gradients(compiled, layer)]
        for ours, exact in zip(result, step_gradients(loss_of, layer)):
            assert (ours - exact).float().norm() <= 1e-2 * exact.float().norm()


def module_of(**options):
    torch.manual_seed(0)
    return MSAAttention(96, 32, 2, 128, 128, **OPTIONS | options).cuda()


def module_gradients(module, call, x, autocast=True, scale=1.0):
    module.zero_grad()
    x = x.detach().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        y, kl = call(x)
        loss = y.float().square().mean() + kl
    (scale * loss).backward()
    return {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpoints_are_bitwise_equal(use_reentrant, autocast):
    module = module_of() if autocast else module_of().bfloat16()
    x = torch.randn(500, 96, device="cuda", dtype=torch.float32 if autocast else torch.bfloat16)
    expected = module_gradients(module, module, x, autocast)
    call = lambda x: checkpoint(module, x, use_reentrant=use_reentrant)  # noqa: E731
    result = module_gradients(module, call, x, autocast)
    assert all(torch.equal(result[name], expected[name]) for name in expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_beside_the_cpu(compiled):
    """Weights in fp32; the warmup, since a rounding might turn the selection."""
    module = module_of()
    module.warmup = True
    x = torch.randn(500, 96, generator=torch.Generator().manual_seed(0))
    call = torch.compile(module, fullgraph=True) if compiled else module
    result = module_gradients(module, call, x.cuda())
    module.cpu()
    y, kl = module(x.requires_grad_())
    module.zero_grad()
    (y.square().mean() + kl).backward()
    expected = {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad}
    for name, exact in expected.items():
        assert result[name].dtype == torch.float32
        assert (result[name].cpu() - exact).norm() <= 5e-2 * exact.norm(), name


def test_grad_scaler():
    """The training loop of PyTorch's manual in fp16: no step is skipped, and the index branch moves."""
    module = module_of()
    scaler, optimizer = torch.amp.GradScaler("cuda", init_scale=65536.0), torch.optim.SGD(module.parameters(), 0.1)
    before = module.indexer.q_proj.weight.detach().clone()
    with torch.autocast("cuda", torch.float16):
        y, kl = module(torch.randn(500, 96, device="cuda"))
        loss = y.float().square().mean() + kl
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65536.0 and not torch.equal(module.indexer.q_proj.weight, before)


def test_kl_of_many_queries_in_fp16():
    """The gradient of a mean over 8192 queries is below the range of fp16, under a loss scale it is not."""
    layer = torch_layer([8192], [8192], device="cuda", dtype=torch.float16, **M3)
    indices = openmsa.torch.select_blocks(**pick(layer, "index_q", "index_k"), **OPTIONS)
    gradients = []
    for dtype, scale in ((torch.float16, 65536.0), (torch.bfloat16, 1.0)):
        q, k, v, index_q, index_k = (layer[name].detach().to(dtype).requires_grad_() for name in NAMES)
        lse = openmsa.torch.sparse_attention(q, k, v, indices, **OPTIONS, return_lse=True)[1]
        (scale * openmsa.torch.kl_loss(q, k, lse, index_q, index_k, indices, **OPTIONS)).backward()
        gradients.append([x.grad.double() / scale for x in (index_q, index_k)])
    for scaled, exact in zip(*gradients):
        assert (scaled - exact).norm() <= 2e-2 * exact.norm()


def test_nothing_waits_for_the_gpu():
    module = module_of()
    bounds = torch.tensor([0, 200, 500], dtype=torch.int32, device="cuda")
    x = torch.randn(500, 96, device="cuda")
    module_gradients(module, lambda x: module(x, bounds), x)  # loads kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module_gradients(module, lambda x: module(x, bounds), x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_on_another_stream():
    """Forward and backward behind work of that stream, while the other stream trains too."""
    layer = torch_layer([900], [900], device="cuda", dtype=torch.bfloat16, **M3)
    expected = step_gradients(loss_of, layer)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late = {name: layer[name] * 1 for name in NAMES}
        result = step_gradients(loss_of, late)
        assert not stream.query(), "the calls did not wait"
    beside = step_gradients(loss_of, layer)
    torch.cuda.synchronize()
    for ours, other, exact in zip(result, beside, expected):
        assert torch.equal(ours, exact) and torch.equal(other, exact)


def test_a_step_in_a_graph():
    layer = torch_layer([700], [700], device="cuda", dtype=torch.bfloat16, **M3)
    inputs = leaves(layer)

    def step():
        return torch.autograd.grad(loss_of(*inputs.values()), list(inputs.values()))

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    with torch.cuda.graph(graph, stream=stream):
        results = step()
    for seed in (1, 2):
        other = torch_layer([700], [700], device="cuda", dtype=torch.bfloat16, seed=seed, **M3)
        with torch.no_grad():
            for name, tensor in inputs.items():
                tensor.copy_(other[name])
        graph.replay()
        for ours, exact in zip(results, step()):
            assert torch.equal(ours, exact)


def test_workspace_is_given_back():
    """What a step takes beyond its results goes back to PyTorch's allocator."""
    layer = torch_layer([4096], [4096], device="cuda", dtype=torch.bfloat16, **M3)
    step_gradients(loss_of, layer)
    torch.cuda.synchronize()
    before, kept = torch.cuda.memory_allocated(), openmsa.workspace_bytes()
    step_gradients(loss_of, layer)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before and openmsa.workspace_bytes() == kept


@pytest.mark.parametrize("compiled", [False, True])
def test_trainer_in_bf16(tmp_path, compiled):
    transformers = pytest.importorskip("transformers", minversion="5.17")
    pytest.importorskip("accelerate")
    from small_m3 import decoder, tokens

    geometry = {"num_attention_heads": 32, "head_dim": 128, "index_head_dim": 128, "index_block_size": 128}
    model = decoder(**geometry)
    data = [{"input_ids": row, "labels": row} for row in tokens(8, 600)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=2, bf16=True, report_to=[], save_strategy="no",
        learning_rate=1e-2, logging_steps=1, gradient_checkpointing=True, torch_compile=compiled, disable_tqdm=True,
    )  # fmt: skip
    arguments._n_gpu = 1  # with several and no launcher it takes DataParallel, which drops autocast
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] and next(model.parameters()).is_cuda
