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


def test_on_the_gpu(device, module):
    if device == "cpu":
        pytest.skip("of the GPU")
    module = MSAAttention(**SHAPE, block_size=64, topk=2).to(device, torch.bfloat16).eval()
    with torch.no_grad():
        assert module(torch.randn(300, 48, device=device, dtype=torch.bfloat16))[0].isfinite().all()
