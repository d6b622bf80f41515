"""MSAAttention: it learns, warms up, keeps documents apart, and sends gradients where they belong."""

import openmsa.torch
import pytest
import torch
from openmsa.torch import MSAAttention

SHAPE = {"hidden_size": 48, "num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return MSAAttention(**SHAPE, rotary_dim=32, block_size=32, topk=2)


def test_gradients_go_where_they_belong(module):
    x = torch.randn(150, 48, requires_grad=True)
    y, kl = module(x)
    kl.backward(retain_graph=True)
    assert x.grad is None
    moved = {name for name, p in module.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in module.named_parameters() if name.startswith("indexer.")}
    module.zero_grad(set_to_none=True)
    y.sum().backward()
    moved = {name for name, p in module.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in module.named_parameters() if not name.startswith("indexer.")}
    assert x.grad is not None


def test_the_kl_loss_falls(module):
    x = torch.randn(256, 48)
    optimizer = torch.optim.Adam(module.indexer.parameters(), lr=1e-2)
    module.warmup = True
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        kl = module(x)[1]
        kl.backward()
        optimizer.step()
        losses.append(kl.item())
    assert losses[-1] < 0.5 * losses[0]


def test_warmup_is_dense(module):
    x = torch.randn(200, 48)
    module.warmup = True
    dense = module(x)[0]
    module.warmup, module.options["topk"] = False, 7
    torch.testing.assert_close(module(x)[0], dense)
    module.options["topk"] = 2
    assert not torch.allclose(module(x)[0], dense)


def test_documents_do_not_see_each_other(module):
    module.eval()
    x = torch.randn(150, 48)
    bounds = torch.tensor([0, 39, 74, 150], dtype=torch.int32)
    with torch.no_grad():
        packed, kl = module(x, bounds)
        assert kl is None
        for begin, end in zip(bounds[:-1], bounds[1:]):
            torch.testing.assert_close(packed[begin:end], module(x[begin:end])[0])


def test_projections_for_a_cache(module):
    """The last token attends to keys that were projected before, as forward does over the whole sequence."""
    module.eval()
    x = torch.randn(100, 48)
    with torch.no_grad():
        past, new = module.project(x[:99], torch.arange(99)), module.project(x[99:], torch.tensor([99]))
        keys = {name: torch.cat([past[name], new[name]]) for name in ("k", "v", "index_k")}
        o = openmsa.torch.msa_attention(new["q"], index_q=new["index_q"], **keys, **module.options)
        torch.testing.assert_close(module.o_proj(o.flatten(1)), module(x)[0][99:])
        elsewhere = module.project(x[99:], torch.tensor([40]))
        assert not torch.allclose(elsewhere["q"], new["q"]), "positions count"


def test_compiled(module):
    x = torch.randn(100, 48)
    y, kl = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    expected, expected_kl = module(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(kl, expected_kl)


def test_compiled_under_a_default_device(module):
    torch._dynamo.reset()
    x = torch.randn(100, 48)
    with torch.device("cpu"):
        y, _ = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, module(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast(module, dtype, compiled):
    """Weights in fp32, the layer in half precision, and gradients in fp32 near those without autocast."""
    torch._dynamo.reset()
    x = torch.randn(150, 48, generator=torch.Generator().manual_seed(0))
    call = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module

    def gradients(scale):
        module.zero_grad()
        y, kl = call(x)
        (scale * (y.float().square().mean() + kl)).backward()
        return y, {name: p.grad / scale for name, p in module.named_parameters()}

    module.warmup = True  # no selection, which a rounding might turn
    _, exact = gradients(1)
    with torch.autocast("cpu", dtype):
        y, rounded = gradients(65536 if dtype == torch.float16 else 1)
        assert y.dtype == dtype
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        assert (gradient - exact[name]).norm() <= 5e-2 * exact[name].norm(), name
    module.eval()
    with torch.autocast("cpu", dtype), torch.no_grad():
        assert module(x)[0].dtype == dtype


def test_grad_scaler(module):
    """The training loop of PyTorch's manual in fp16: no step is skipped."""
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=65536.0), torch.optim.SGD(module.parameters(), 0.1)
    before = module.indexer.q_proj.weight.detach().clone()
    with torch.autocast("cpu", torch.float16):
        y, kl = module(torch.randn(150, 48))
        loss = y.float().square().mean() + kl
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65536.0 and not torch.equal(module.indexer.q_proj.weight, before)


def test_sums_of_unequal_batches(module):
    """Micro-batches of 30 and 120 tokens: the sums over all tokens are those of one batch, the mean of means is not."""
    module.warmup = True
    x = torch.randn(150, 48, generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 30, 150], dtype=torch.int32)

    def gradient(losses):
        module.zero_grad()
        sum(losses).backward()
        return module.indexer.k_proj.weight.grad.clone()

    expected = gradient([module(x, bounds)[1]])
    of_means = gradient([module(part)[1] / 2 for part in (x[:30], x[30:])])
    module.kl_reduction = "sum"
    of_sums = gradient([module(part)[1] for part in (x[:30], x[30:])]) / (150 * 2)
    packed = gradient([module(x, bounds)[1]]) / (150 * 2)
    for result in (of_sums, packed):
        assert (result - expected).norm() <= 1e-5 * expected.norm()
    assert (of_means - expected).norm() > 0.1 * expected.norm()


def test_weights_leave_padding_out(module):
    x = torch.randn(150, 48, generator=torch.Generator().manual_seed(0))
    expected = module(x[:100])[1]
    masked = module(x, kl_weights=torch.arange(150) < 100)[1]
    torch.testing.assert_close(masked, expected)
    module.kl_reduction = "sum"
    torch.testing.assert_close(module(x, kl_weights=torch.arange(150) < 100)[1], expected * 200)


def test_default_dtype_does_not_reach_the_rotary_embedding():
    """Angles of 5000 positions have no room in bf16."""
    options = {"rotary_dim": 64, "block_size": 32, "topk": 2}
    x = torch.zeros(2, 48)
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(0)
        module = MSAAttention(**SHAPE, **options)
        rotary = module._rotary(x, torch.tensor([4999, 5000]))
    finally:
        torch.set_default_dtype(torch.float32)
    expected = module.float()._rotary(x, torch.tensor([4999, 5000]))
    for ours, exact in zip(rotary, expected):
        assert torch.equal(ours, exact)


def test_without_rotary_embedding():
    module = MSAAttention(**SHAPE, rotary_dim=0, block_size=32, topk=2).eval()
    x = torch.randn(30, 48)
    assert torch.equal(module.project(x, torch.arange(30))["q"], module.project(x, torch.arange(30) + 7)["q"])


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"rotary_dim": 33}, ValueError, "rotary_dim: expected an even number from 0 to 64 channels, got 33"),
        ({"rotary_dim": 128}, ValueError, "rotary_dim: expected an even number from 0 to 64 channels, got 128"),
        ({"blocksize": 32}, TypeError, "MSAAttention: unexpected argument blocksize"),
        ({"k_cache": torch.zeros(1)}, TypeError, "MSAAttention: unexpected argument k_cache"),
        ({"kl_reduction": "none"}, ValueError, "kl_reduction: expected mean or sum, got none"),
    ],
)
def test_options_that_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        MSAAttention(**SHAPE, **options)


@pytest.mark.parametrize(
    "x, cu_seqlens, kind, message",
    [
        (torch.zeros(2, 30, 48), None, ValueError, r"x: expected \[total, hidden_size = 48\], got \[2, 30, 48\]"),
        (torch.zeros(30, 40), None, ValueError, r"x: expected \[total, hidden_size = 48\], got \[30, 40\]"),
        (torch.zeros(30, 48), [0, 30], TypeError, "cu_seqlens: expected a tensor of int32, got list"),
        (
            torch.zeros(30, 48),
            torch.tensor([0, 30]),
            TypeError,
            "cu_seqlens: expected a tensor of int32, got torch.int64",
        ),
        (torch.zeros(30, 48), torch.tensor([0, 20]).int(), ValueError, "up to the 30 tokens of x, got 20"),
    ],
)
def test_inputs_that_are_refused(module, x, cu_seqlens, kind, message):
    with pytest.raises(kind, match=message):
        module(x, cu_seqlens)


def test_on_the_gpu(device, module):
    if device == "cpu":
        pytest.skip("of the GPU")
    module = MSAAttention(**SHAPE, block_size=64, topk=2).to(device, torch.bfloat16).eval()
    with torch.no_grad():
        assert module(torch.randn(300, 48, device=device, dtype=torch.bfloat16))[0].isfinite().all()
