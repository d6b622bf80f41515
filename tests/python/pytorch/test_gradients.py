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


def test_compiled_training_step():
    layer = torch_layer([150], [150])

    def loss(*inputs):
        o, kl = openmsa.torch.msa_attention(*inputs, **OPTIONS, return_kl=True)
        return o.square().mean() + kl

    eager, compiled = with_gradients(layer, *NAMES), with_gradients(layer, *NAMES)
    loss(*eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*compiled).backward()
    for a, b in zip(eager, compiled):
        assert torch.equal(a.grad, b.grad)


def test_lse_and_caches_have_no_gradient():
    layer = torch_layer([100], [100])
    q, k, v = with_gradients(layer, "q", "k", "v")
    _, lse = openmsa.torch.dense_attention(q, k, v, return_lse=True)
    assert not lse.requires_grad
    cache = torch_layer([100], [100], pages=64)
    cache["q"].requires_grad_()
    o = openmsa.torch.msa_attention(**cache, **OPTIONS)
    with pytest.raises(ValueError, match="k: expected contiguous keys for a gradient, got a cache"):
        o.sum().backward()


def test_on_the_gpu(device):
    """Forward works; backward is refused by name as long as the CUDA backend has none."""
    if device == "cpu":
        pytest.skip("of the GPU")
    layer = torch_layer([100], [100], device=device, dtype=torch.bfloat16)
    o = openmsa.torch.msa_attention(*with_gradients(layer, *NAMES), **OPTIONS)
    assert o.isfinite().all()
    try:
        o.sum().backward()
    except openmsa.Error as error:
        assert "CUDA backend" in str(error)
