"""Gradients: by finite differences on the reference backend, and beside PyTorch's own on the CPU backend."""

import openmsa
import openmsa.torch
import pytest
import torch
from layers import OPTIONS, mask_of, masked_attention, torch_layer
from support import pick
from torch.autograd import gradcheck

NAMES = ("q", "k", "v", "index_q", "index_k")
SMALL = {"heads_q": 2, "heads_kv": 1, "dim": 8, "index_dim": 8}
EXACT = {"block_size": 8, "topk": 2, "backend": "reference"}


@pytest.fixture
def small():
    return torch_layer([20, 3], [20, 13], dtype=torch.float64, **SMALL)


def with_gradients(layer, *names):
    return [layer[name].detach().requires_grad_() for name in names]


@pytest.mark.parametrize("warmup", [False, True])
def test_output_by_finite_differences(small, warmup):
    rest = pick(small, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k")
    attend = lambda q, k, v: openmsa.torch.msa_attention(q, k, v, **rest, warmup=warmup, **EXACT)  # noqa: E731
    assert gradcheck(attend, with_gradients(small, "q", "k", "v"))


@pytest.mark.parametrize("warmup", [False, True])
def test_kl_by_finite_differences(small, warmup):
    where = pick(small, "cu_seqlens_q", "cu_seqlens_k")
    keys = pick(small, "q", "k", "v")
    indices = None if warmup else openmsa.torch.select_blocks(**pick(small, "index_q", "index_k"), **where, **EXACT)
    attention = openmsa.dense_attention if warmup else openmsa.sparse_attention
    options = {"backend": "reference"} if warmup else EXACT | {"topk_indices": indices}
    _, lse = attention(**keys, **where, **options, return_lse=True)

    def loss(index_q, index_k):
        return openmsa.torch.kl_loss(small["q"], small["k"], lse, index_q, index_k, indices, **where, **EXACT)

    assert gradcheck(loss, with_gradients(small, "index_q", "index_k"))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weighted_kl_by_finite_differences(small, reduction):
    where = pick(small, "cu_seqlens_q", "cu_seqlens_k")
    _, lse = openmsa.dense_attention(**pick(small, "q", "k", "v"), **where, backend="reference", return_lse=True)
    options = {"kl_weights": torch.rand(23, dtype=torch.float64), "reduction": reduction, "backend": "reference"}

    def loss(index_q, index_k):
        return openmsa.torch.kl_loss(small["q"], small["k"], lse, index_q, index_k, **where, **options)

    assert gradcheck(loss, with_gradients(small, "index_q", "index_k"))


def kl_and_gradients(layer, **options):
    inputs = with_gradients(layer, *NAMES)
    where = pick(layer, "cu_seqlens_q", "cu_seqlens_k") if "cu_seqlens_q" in layer else {}
    kl = openmsa.torch.msa_attention(*inputs, **where, **OPTIONS, **options, return_kl=True)[1]
    kl.backward()
    return kl.detach(), inputs[3].grad, inputs[4].grad


def test_weights_mask_padding():
    """Padding behind the tokens of a sequence, with queries of NaN: as if it were not there."""
    padded = torch_layer([150], [150])
    tokens = {name: padded[name][:100] for name in NAMES}
    mask = torch.arange(150) < 100
    for name in ("q", "index_q"):
        padded[name][100:] = float("nan")
    for reduction in ("mean", "sum"):
        kl, d_index_q, d_index_k = kl_and_gradients(padded, kl_weights=mask, kl_reduction=reduction)
        expected = kl_and_gradients(tokens, kl_reduction=reduction)
        for result, exact in zip((kl, d_index_q[:100], d_index_k[:100]), expected):
            torch.testing.assert_close(result, exact)
        assert not d_index_q[100:].any() and not d_index_k[100:].any()
    kl, *gradients = kl_and_gradients(padded, kl_weights=torch.zeros(150))
    assert kl == 0 and not any(gradient.any() for gradient in gradients), "nothing counts"


def test_weights_of_a_mean_do_not_count_rows_of_no_sequence():
    layer = torch_layer([60], [60])
    expected = kl_and_gradients(layer, kl_weights=torch.arange(60))
    layer |= {name: torch.cat((layer[name], layer[name][:7])) for name in ("q", "index_q")}
    weights = torch.cat((torch.arange(60.0), torch.full((7,), float("nan"))))
    for result, exact in zip(kl_and_gradients(layer, kl_weights=weights), expected):
        torch.testing.assert_close(result[:60] if result.ndim == 3 else result, exact)


def test_weights_that_are_refused():
    layer = torch_layer([60], [60])
    with pytest.raises(ValueError, match=r"kl_weights: expected shape \[total_q = 60\], got \[1\]"):
        kl_and_gradients(layer, kl_weights=torch.ones(1))
    with pytest.raises(TypeError, match="kl_weights: expected a torch.Tensor, got list"):
        kl_and_gradients(layer, kl_weights=[1.0] * 60)


@pytest.mark.parametrize("warmup", [False, True])
def test_beside_autograd(warmup):
    layer = torch_layer([200], [200])
    inputs = with_gradients(layer, *NAMES)
    copies = with_gradients(layer, *NAMES)
    o, kl, indices = openmsa.torch.msa_attention(*inputs, warmup=warmup, **OPTIONS, return_kl=True, return_indices=True)
    mask = mask_of(indices, 200, 64) if indices is not None else torch.ones(2, 200, 200).tril().bool()
    q, k, v, index_q, index_k = copies
    expected, p = masked_attention(q, k, v, mask)
    teacher = p.detach().unflatten(0, (2, -1)).mean(1)
    scores = torch.einsum("qhd,kd->hqk", index_q, index_k) / 8
    log_student = scores.masked_fill(~mask, float("-inf")).log_softmax(-1)
    terms = torch.where(mask, torch.xlogy(teacher, teacher) - teacher * log_student.masked_fill(~mask, 0), 0)
    expected_kl = terms.sum() / (200 * 2)
    torch.testing.assert_close(o, expected)
    torch.testing.assert_close(kl, expected_kl)
    direction = torch.randn(o.shape, generator=torch.Generator().manual_seed(0))
    (torch.sum(o * direction) + 3 * kl).backward()
    (torch.sum(expected * direction) + 3 * expected_kl).backward()
    for name, mine, theirs in zip(NAMES, inputs, copies):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_each_loss_moves_its_own_branch():
    layer = torch_layer([100], [100])
    inputs = with_gradients(layer, *NAMES)
    o, kl = openmsa.torch.msa_attention(*inputs, **OPTIONS, return_kl=True)
    kl.backward(retain_graph=True)
    assert [x.grad is not None for x in inputs] == [False, False, False, True, True]
    o.sum().backward()
    assert all(x.grad is not None for x in inputs)
    before = inputs[3].grad.clone()
    assert torch.equal(inputs[3].grad, before)


@pytest.mark.parametrize("weights", [None, torch.arange(150) % 3])
def test_compiled_training_step(weights):
    layer = torch_layer([150], [150])

    def loss(*inputs):
        o, kl, lse = openmsa.torch.msa_attention(
            *inputs, **OPTIONS, kl_weights=weights, return_kl=True, return_lse=True
        )
        return o.square().mean() + kl + lse.square().mean()

    eager, compiled = with_gradients(layer, *NAMES), with_gradients(layer, *NAMES)
    loss(*eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*compiled).backward()
    for a, b in zip(eager, compiled):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("warmup", [False, True])
def test_lse_by_finite_differences(small, warmup):
    """Alone and beside o, as a z-loss and merged shards use it."""
    rest = pick(small, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k")
    attend = lambda q, k, v: openmsa.torch.msa_attention(  # noqa: E731
        q, k, v, **rest, warmup=warmup, return_lse=True, **EXACT
    )
    inputs = with_gradients(small, "q", "k", "v")
    assert gradcheck(attend, inputs)
    assert gradcheck(lambda *x: attend(*x)[1], inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softmax_scale", [None, 0.3])
def test_z_loss_beside_autograd(dtype, softmax_scale):
    layer = torch_layer([200], [200], dtype=dtype)
    mine, theirs = with_gradients(layer, "q", "k", "v"), [x.detach().double().requires_grad_() for x in layer.values()]
    o, lse = openmsa.torch.dense_attention(*mine, return_lse=True, softmax_scale=softmax_scale)
    scale = 65536 if dtype == torch.float16 else 1  # what GradScaler begins with
    (scale * (o.float().sum() + lse.square().sum()) / 1000).backward()
    q, k, v = theirs[:3]
    keys = [x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v)]
    scores = torch.einsum("qhd,khd->qhk", q, keys[0]) * (softmax_scale or 64**-0.5)
    scores = scores.masked_fill(~torch.ones(200, 200).tril().bool()[:, None], float("-inf"))
    expected = torch.einsum("qhk,khd->qhd", scores.softmax(-1), keys[1])
    ((expected.sum() + scores.logsumexp(-1).square().sum()) / 1000).backward()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for ours, exact in zip(mine, (q, k, v)):
        assert (ours.grad.double() / scale - exact.grad).norm() <= tolerance * exact.grad.norm()


def test_lse_of_queries_that_see_nothing():
    """lse is -inf there; its square has an infinite slope, and no key moves it."""
    layer = torch_layer([5], [3])
    q, k, v = with_gradients(layer, "q", "k", "v")
    _, lse = openmsa.torch.dense_attention(q, k, v, return_lse=True)
    assert lse[:2].isneginf().all()
    lse.square().sum().backward()
    assert q.grad.isfinite().all() and k.grad.isfinite().all() and not q.grad[:2].any() and q.grad[2:].any()


def test_lse_of_the_widest_heads():
    q = torch.randn(5, 1, 256, requires_grad=True)
    k = torch.randn(1, 1, 256)  # all keys are alike: d lse / d q = k / 16
    lse = openmsa.torch.dense_attention(q, k.expand(5, 1, 256), k.expand(5, 1, 256), return_lse=True)[1]
    lse.sum().backward()
    torch.testing.assert_close(q.grad, k.expand(5, 1, 256) / 16)


def test_caches_have_no_gradient():
    cache = torch_layer([100], [100], pages=64)
    cache["q"].requires_grad_()
    o = openmsa.torch.msa_attention(**cache, **OPTIONS)
    with pytest.raises(ValueError, match="k: expected contiguous keys for a gradient, got a cache"):
        o.sum().backward()


def test_kl_loss_has_no_second_derivative():
    """A penalty on its gradient, beside another loss, must not vanish without a word."""
    inputs = with_gradients(torch_layer([100], [100]), *NAMES)
    kl = openmsa.torch.msa_attention(*inputs, **OPTIONS, return_kl=True)[1]
    (d_index_q,) = torch.autograd.grad(kl, inputs[3], create_graph=True)
    with pytest.raises(RuntimeError, match="kl_loss has no second derivative"):
        (d_index_q.square().sum() + inputs[3].sum()).backward()


def test_kl_loss_under_a_loss_scale():
    """fp16 has no 65536, and the gradient of a mean over many queries is below its range."""
    layer = torch_layer([300], [300], dtype=torch.float16)
    gradients = []
    for dtype, scale in ((torch.float16, 65536.0), (torch.float32, 1.0)):
        inputs = [layer[name].detach().to(dtype).requires_grad_() for name in NAMES]
        kl = openmsa.torch.msa_attention(*inputs, **OPTIONS, return_kl=True)[1]
        (kl * scale).backward()
        gradients.append([x.grad.float() / scale for x in inputs[3:]])
    for scaled, exact in zip(*gradients):
        assert (scaled - exact).norm() <= 2e-3 * exact.norm()
