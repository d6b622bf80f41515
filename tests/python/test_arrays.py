"""Arrays of other libraries, on the CPU: no copy, results of the same kind, one device."""

import ml_dtypes
import numpy as np
import openmsa
import pytest
from support import pick, random_layer

OPTIONS = {"block_size": 32, "topk": 3}
NAMES = ("q", "k", "v", "index_q", "index_k")


@pytest.fixture
def layer():
    return pick(random_layer([100], [100]), *NAMES)


def test_numpy_bfloat16_is_torch_bfloat16(layer):
    torch = pytest.importorskip("torch")
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in layer.items()}
    tensors = {name: torch.from_numpy(a.astype(np.float32)).bfloat16() for name, a in halves.items()}
    result, expected = openmsa.msa_attention(**halves, **OPTIONS), openmsa.msa_attention(**tensors, **OPTIONS)
    assert result.dtype == ml_dtypes.bfloat16 and expected.dtype == torch.bfloat16
    np.testing.assert_array_equal(result.astype(np.float32), expected.float().numpy())


def test_torch(layer):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in layer.items()}
    o = torch.zeros(100, 4, 64)
    assert openmsa.msa_attention(**tensors, **OPTIONS, o=o) is o
    np.testing.assert_array_equal(o.numpy(), openmsa.msa_attention(**layer, **OPTIONS))


def test_torch_numbers_that_memory_does_not_hold(layer):
    """The imaginary part of a conjugate is a view that is negated when it is read."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in layer.items()}
    lazy = torch.complex(tensors["q"], -tensors["q"]).conj().imag
    assert lazy.is_neg() and torch.equal(lazy, tensors["q"])
    expected = openmsa.msa_attention(**tensors, **OPTIONS)
    assert torch.equal(openmsa.msa_attention(**tensors | {"q": lazy}, **OPTIONS), expected)
    zeros = torch._efficientzerotensor(100, 4, 64)
    assert torch.equal(
        openmsa.msa_attention(**tensors | {"q": zeros}, **OPTIONS),
        openmsa.msa_attention(**tensors | {"q": torch.zeros(100, 4, 64)}, **OPTIONS),
    )
    with pytest.raises(TypeError, match="o: expected memory that can be written"):
        openmsa.msa_attention(**tensors, **OPTIONS, o=torch._neg_view(torch.empty(100, 4, 64)))


def test_torch_kinds_that_are_refused(layer):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in layer.items()}
    with pytest.raises(TypeError, match="q: expected a dense tensor with strides, got layout torch.sparse_coo"):
        openmsa.msa_attention(**tensors | {"q": tensors["q"].to_sparse()}, **OPTIONS)
    with pytest.raises(TypeError, match="q: expected a plain tensor, got one inside torch.func"):
        torch.func.vmap(lambda q: openmsa.msa_attention(**tensors | {"q": q}, **OPTIONS))(tensors["q"][None])
    with pytest.raises(TypeError, match="q: expected an array on cpu or cuda, got one on meta"):
        openmsa.msa_attention(**{name: tensor.to("meta") for name, tensor in tensors.items()}, **OPTIONS)


def test_torch_knows_what_was_overwritten(layer):
    """A backward that needs the old numbers of a given result says so."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in layer.items()}
    o, weight = torch.ones(100, 4, 64), torch.ones((), requires_grad=True)
    loss = (o * weight).sum()
    openmsa.msa_attention(**tensors, **OPTIONS, o=o)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_torch_dtypes_of_plans():
    torch = pytest.importorskip("torch")
    shape = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "max_total_q": 1, "max_seqlen_k": 9}
    for dtype, name in ((torch.bfloat16, "bfloat16"), (np.float16, "float16"), (np.dtype("f4"), "float32")):
        assert openmsa.Plan(**shape, dtype=dtype).dtype == name


def test_torch_fp8_caches():
    torch = pytest.importorskip("torch")
    cache = torch.zeros(2, 32, 1, 64).to(torch.float8_e4m3fn)
    k = torch.linspace(-1, 1, 64).view(1, 1, 64)
    where = {"seqlens_k": torch.tensor([1], dtype=torch.int32), "block_table": torch.tensor([[1]], dtype=torch.int32)}
    openmsa.append_kv(k, k, k_cache=cache, v_cache=cache.clone(), **where, block_size=32)
    torch.testing.assert_close(cache[1, 0].float(), k[0].to(torch.float8_e4m3fn).float(), rtol=0, atol=0)
    assert not cache[0].float().any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax(layer, dtype):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    cpu = jax.devices("cpu")[0]
    arrays = {name: jax.device_put(array.astype(dtype), cpu) for name, array in layer.items()}
    o, indices = openmsa.msa_attention(**arrays, **OPTIONS, return_indices=True)
    assert isinstance(o, type(arrays["q"])) and o.dtype == dtype
    expected = openmsa.msa_attention(**{n: np.asarray(a) for n, a in arrays.items()}, **OPTIONS, return_indices=True)
    np.testing.assert_array_equal(np.asarray(o, np.float32), expected[0].astype(np.float32))
    np.testing.assert_array_equal(np.asarray(indices), expected[1])


def test_jax_traced(layer):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    with pytest.raises(TypeError, match="got one that JAX traces; wrap the call in jax.pure_callback"):
        jax.jit(lambda q: openmsa.msa_attention(**layer | {"q": q}, **OPTIONS))(layer["q"])


def test_an_array_that_only_has_dlpack(layer):
    """What no library here made is read by DLPack; results are NumPy's."""

    class Foreign:
        def __init__(self, array):
            self.array, self.dtype, self.shape = array, array.dtype, array.shape

        def __dlpack__(self, **keywords):
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    o = openmsa.msa_attention(**{name: Foreign(array) for name, array in layer.items()}, **OPTIONS)
    np.testing.assert_array_equal(o, openmsa.msa_attention(**layer, **OPTIONS))


def test_devices_are_not_mixed(layer):
    class Elsewhere:
        dtype, shape = layer["k"].dtype, layer["k"].shape

        def __dlpack_device__(self):
            return 2, 1

    with pytest.raises(ValueError, match="k: expected device cpu:0 as of q, got cuda:1"):
        openmsa.msa_attention(**layer | {"k": Elsewhere()}, **OPTIONS)
