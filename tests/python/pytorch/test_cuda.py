"""The functions on a GPU: near the float64 reference, on the caller's stream, in CUDA graphs, for every library."""

import numpy as np
import openmsa
import pytest
import torch
from layers import torch_layer
from support import TOLERANCE, error, pick

OPTIONS = {"block_size": 128, "topk": 4}
M3 = {"heads_q": 32, "heads_kv": 2, "dim": 128, "index_dim": 128}


@pytest.fixture(autouse=True)
def gpu(device):
    if device == "cpu":
        pytest.skip("of the GPU")


def reference_of(layer, indices, **options):
    """o and lse in float64 of the selection that the GPU made."""
    arrays = {name: t.cpu().double().numpy() if t.is_floating_point() else t.cpu().numpy() for name, t in layer.items()}
    arrays = {name: a for name, a in arrays.items() if not name.startswith("index_")}
    return openmsa.sparse_attention(
        **arrays, topk_indices=indices.cpu().numpy(), backend="reference", return_lse=True, **options
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pages", [None, 64])
@pytest.mark.parametrize("seqlens", [([700, 40], [700, 900]), ([1, 1, 4], [1000, 130, 77])])
def test_near_the_reference(dtype, pages, seqlens):
    layer = torch_layer(*seqlens, device="cuda", dtype=dtype, pages=pages, **M3)
    o, lse, indices = openmsa.msa_attention(**layer, **OPTIONS, return_lse=True, return_indices=True)
    assert o.dtype == dtype and o.is_cuda
    expected, expected_lse = reference_of(layer, indices, **OPTIONS)
    assert error(o.double().cpu(), expected) <= TOLERANCE[str(dtype).removeprefix("torch.")]
    assert np.abs(lse.cpu().numpy() - expected_lse).max() <= 1e-3
    assert torch.equal(openmsa.msa_attention(**layer, **OPTIONS), o), "again"


def test_stages_are_the_layer():
    layer = torch_layer([500], [500], device="cuda", dtype=torch.bfloat16, **M3)
    index = pick(layer, "index_q", "index_k")
    o, indices = openmsa.msa_attention(**layer, **OPTIONS, return_indices=True)
    assert torch.equal(openmsa.select_blocks(**index, **OPTIONS), indices)
    length = torch.tensor([500], dtype=torch.int32, device="cuda")
    assert torch.equal(openmsa.topk(openmsa.block_scores(**index, block_size=128), length, **OPTIONS), indices)
    keys = pick(layer, "q", "k", "v")
    assert torch.equal(openmsa.sparse_attention(**keys, topk_indices=indices, **OPTIONS), o)


def decode_plan(**more):
    return openmsa.Plan(
        num_heads_q=32,
        num_heads_kv=2,
        head_dim=128,
        index_dim=128,
        dtype="bfloat16",
        backend="cuda",
        page_size=64,
        max_batch=4,
        max_total_q=4,
        max_seqlen_k=1024,
        **OPTIONS,
        **more,
    )


def test_graph_replayed_with_other_lengths():
    """Lengths, tables and inputs change in place; each replay equals a fresh call."""
    plan = decode_plan()
    first = torch_layer([1, 1, 1, 1], [900, 70, 400, 1], device="cuda", dtype=torch.bfloat16, pages=64, **M3)
    padding = torch.full((4, 16 - first["block_table"].shape[1]), -1, dtype=torch.int32, device="cuda")
    first["block_table"] = torch.cat([first["block_table"], padding], 1)
    caches = {name: first[name].nan_to_num() for name in ("k_cache", "v_cache", "index_k_cache")}
    first |= caches  # some lengths below reach into what was no token
    o = torch.empty_like(first["q"])
    openmsa.msa_attention(**first, plan=plan, o=o)
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        openmsa.msa_attention(**first, plan=plan, o=o)
    for lengths in ([900, 70, 400, 1], [513, 1, 0, 1], [640, 70, 448, 33]):
        first["seqlens_k"].copy_(torch.tensor(lengths, dtype=torch.int32))
        first["q"].normal_()
        first["index_q"].normal_()
        o.fill_(float("nan"))
        graph.replay()
        fresh = openmsa.msa_attention(**first, plan=plan)
        assert torch.equal(o, fresh), lengths
        assert o.isfinite().all()


def test_fp8_caches_in_decode():
    layer = torch_layer([1, 1], [900, 70], device="cuda", dtype=torch.bfloat16, pages=64, **M3)
    fp8 = {n: layer[n].nan_to_num().to(torch.float8_e4m3fn) for n in ("k_cache", "v_cache", "index_k_cache")}
    o = openmsa.msa_attention(**layer | fp8, block_size=128, topk=16)
    rounded = {name: cache.to(torch.bfloat16) for name, cache in fp8.items()}
    expected = openmsa.msa_attention(**layer | rounded, block_size=128, topk=16)
    assert error(o.double().cpu(), expected.double().cpu()) <= 1e-2
    scale = torch.full((1,), 2.0, device="cuda")
    doubled = openmsa.msa_attention(**layer | fp8, v_scale=scale, block_size=128, topk=16)
    assert error(doubled.double().cpu(), 2 * o.double().cpu()) <= 5e-3


def test_cupy():
    cupy = pytest.importorskip("cupy")
    layer = torch_layer([300], [300], device="cuda", dtype=torch.float16, **M3)
    arrays = {name: cupy.from_dlpack(tensor) for name, tensor in layer.items()}
    torch.cuda.synchronize()  # CuPy's stream does not wait for PyTorch's
    with cupy.cuda.Stream(non_blocking=True) as stream:
        o = openmsa.msa_attention(**arrays, **OPTIONS)
        stream.synchronize()
    assert isinstance(o, cupy.ndarray)
    assert torch.equal(torch.from_dlpack(o), openmsa.msa_attention(**layer, **OPTIONS))


def test_jax():
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU here")
    layer = torch_layer([300], [300], device="cuda", dtype=torch.bfloat16, **M3)
    torch.cuda.synchronize()
    arrays = {name: jax.dlpack.from_dlpack(tensor) for name, tensor in layer.items()}
    o = openmsa.msa_attention(**arrays, **OPTIONS)
    assert isinstance(o, jax.Array) and o.dtype == "bfloat16"
    expected = openmsa.msa_attention(**layer, **OPTIONS)
    np.testing.assert_array_equal(np.asarray(o, np.float32), expected.float().cpu().numpy())


def test_what_the_gpu_does_not_serve():
    layer = torch_layer([64], [64], device="cuda", dtype=torch.bfloat16, **M3)
    with pytest.raises(openmsa.Error, match="block_size"):
        openmsa.msa_attention(**layer, block_size=32)
    with pytest.raises(ValueError, match="k: expected device cuda:0 as of q, got cpu:0"):
        openmsa.msa_attention(**layer | {"k": layer["k"].cpu()}, **OPTIONS)
    with pytest.raises(openmsa.Error):
        openmsa.msa_attention(**{n: t.float() if t.is_floating_point() else t for n, t in layer.items()}, **OPTIONS)
