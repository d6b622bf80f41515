"""Calls with a plan on plain tensors take the short way (openmsa._exchange), and nobody sees it but by the time."""

import openmsa
import pytest
import torch
from layers import torch_layer
from openmsa import _call, _exchange

SHAPE = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "block_size": 32, "topk": 3}

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="PyTorch before 2.10 has no exchange API"
)


def plan_of(device, **more):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    capacity = {"max_total_q": 200, "max_seqlen_k": 512, "max_batch": 4, "max_total_k": 600}
    return openmsa.Plan(**SHAPE, **capacity, dtype=dtype, backend=device, **more)


def layer_of(device, **more):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    shape = {"heads_q": 4, "heads_kv": 2, "dim": 64, "index_dim": 64}
    return torch_layer([70, 1, 40], [300, 90, 40], device=device, dtype=dtype, **shape, **more)


@pytest.fixture
def short_way_alone(monkeypatch):
    def refuse(*_):
        raise AssertionError("the long way")

    monkeypatch.setattr(_call, "_split", refuse)


@pytest.fixture
def long_way_alone(monkeypatch):
    return lambda: monkeypatch.setattr(_call, "call_with_plan", lambda *_: None)


def calls(layer, plan):
    """Every way in which results come: made, given, several, with a Parameter among the tensors."""
    o = torch.empty_like(layer["q"])
    first = openmsa.msa_attention(**layer, plan=plan, o=o, return_lse=True, return_indices=True)
    assert first[0] is o
    layer |= {"q": torch.nn.Parameter(layer["q"])}
    second = openmsa.msa_attention(**layer, plan=plan)
    main = {name: tensor for name, tensor in layer.items() if not name.startswith("index")}
    third = openmsa.sparse_attention(**main, topk_indices=first[2], plan=plan)
    index = {name: tensor for name, tensor in layer.items() if name.split("_cache")[0] not in ("q", "k", "v")}
    return [
        *first,
        second,
        third,
        openmsa.select_blocks(**index, plan=plan),
        openmsa.dense_attention(**main, plan=plan),
    ]


@pytest.mark.parametrize("pages", [0, 32])
def test_results_are_those_of_the_long_way(device, pages, short_way_alone, monkeypatch):
    layer, plan = layer_of(device, pages=pages), plan_of(device, page_size=pages)
    short = calls(layer, plan)
    monkeypatch.undo()
    monkeypatch.setattr(_call, "call_with_plan", lambda *_: None)
    for mine, expected in zip(short, calls(layer, plan), strict=True):
        assert mine.dtype == expected.dtype and torch.equal(mine, expected)


def test_versions_of_what_is_written_are_raised(short_way_alone):
    layer, o = layer_of("cpu"), torch.empty(111, 4, 64)
    before = o._version
    openmsa.msa_attention(**layer, plan=plan_of("cpu"), o=o)
    assert o._version > before


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"q": t["q"][:, :3]},
        lambda t: {"q": t["q"].double()},
        lambda t: {"cu_seqlens_q": t["cu_seqlens_q"].long()},
        lambda t: {"v": t["v"][:200]},
        lambda t: {"k": t["k"].to_sparse()},
        lambda t: {"k": t["k"].to("meta")},
        lambda t: {"k": 3},
        lambda t: {"key": t["k"]},
        lambda t: {"topk": 5},
    ],
)
def test_what_is_wrong_is_said_as_on_the_long_way(change, monkeypatch):
    layer, plan = layer_of("cpu"), plan_of("cpu")
    layer |= change(layer)
    with pytest.raises((ValueError, TypeError)) as short:
        openmsa.msa_attention(**layer, plan=plan)
    monkeypatch.setattr(_call, "call_with_plan", lambda *_: None)
    with pytest.raises(type(short.value)) as long:
        openmsa.msa_attention(**layer, plan=plan)
    assert str(short.value) == str(long.value)


@pytest.mark.parametrize(
    "kind",
    [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape), lambda t: t.as_subclass(Subclass)],
    ids=["negative", "zeros", "subclass"],
)
def test_tensors_that_are_not_what_memory_holds_go_the_long_way(kind):
    layer, plan = layer_of("cpu"), plan_of("cpu")
    changed = {"q": kind(layer["q"])}
    plain = torch.zeros_like(layer["q"]).copy_(changed["q"])
    expected = openmsa.msa_attention(**layer | {"q": plain}, plan=plan)
    assert torch.equal(openmsa.msa_attention(**layer | changed, plan=plan), expected)


def test_a_call_that_fails_leaves_the_workspace_free(monkeypatch):
    layer, plan = layer_of("cpu"), plan_of("cpu")
    openmsa.free_workspace()

    def fail(*_):
        raise MemoryError("none left")

    with monkeypatch.context() as broken:
        broken.setattr(_exchange._pytorch(torch).library.__class__, "memory", fail)
        with pytest.raises(MemoryError, match="none left"):
            openmsa.msa_attention(**layer, plan=plan)
    assert torch.isfinite(openmsa.msa_attention(**layer, plan=plan)).all()
