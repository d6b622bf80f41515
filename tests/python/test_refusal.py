"""Arguments that contradict each other: the kind of error, and that it names argument, expected and got."""

import ml_dtypes
import numpy as np
import openmsa
import pytest
from support import paged, pick, random_layer


def change(**changes):
    return lambda layer: layer | changes


def apply(name, function):
    return lambda layer: layer | {name: function(layer[name])}


def put(name, index, value):
    def edit(array):
        array = array.copy()
        array[index] = value
        return array

    return apply(name, edit)


REFUSED = {
    "no_array": (change(q=[1.0]), TypeError, r"q: expected an array.*got list"),
    "no_dtype_of_ours": (apply("q", lambda a: a.astype(np.int64)), TypeError, r"dtype.*got int64"),
    "other_dtype": (apply("v", lambda a: a.astype(np.float16)), ValueError, "v: expected dtype fp32, got fp16"),
    "rank": (
        apply("q", lambda a: a[0]),
        ValueError,
        r"q: expected shape \[total_q, num_heads_q, head_dim\], got \[4, 64\]",
    ),
    "rank_of_five": (apply("o", lambda a: a[None, None]), ValueError, r"o: expected shape .* got \[1, 1, 42"),
    "heads": (
        apply("q", lambda a: a[:, :3]),
        ValueError,
        "num_heads_q: expected a multiple of num_heads_kv = 2, got 3",
    ),
    "total_k": (apply("v", lambda a: a[1:]), ValueError, "v: expected total_k = 110 as in k, got 109"),
    "total_q": (apply("index_q", lambda a: a[1:]), ValueError, "index_q: expected total_q = 42 as in q, got 41"),
    "channels": (apply("q", lambda a: np.asfortranarray(a)), ValueError, "q: expected stride 1 in the last dimension"),
    "backwards": (apply("k", lambda a: a[::-1]), ValueError, "k: expected strides"),
    "sums": (put("cu_seqlens_q", 1, 43), ValueError, "cu_seqlens_q: expected increasing sums, got 43 then 42"),
    "int64_sums": (
        apply("cu_seqlens_q", lambda a: a.astype(np.int64)),
        TypeError,
        "cu_seqlens_q: expected dtype .* got",
    ),
    "int64_by_its_name": (
        apply("cu_seqlens_k", lambda a: a.astype(np.int64)),
        TypeError,
        "cu_seqlens_k: expected dtype int32, got int64",
    ),
    "complex": (apply("q", lambda a: a.astype(np.complex64)), TypeError, "q: expected dtype .*, got complex64"),
    "byte_order": (
        apply("q", lambda a: a.astype(">f4")),
        TypeError,
        "q: expected the byte order of this machine, got >f4",
    ),
    "masked": (apply("k", np.ma.masked_array), TypeError, "k: expected an array without a mask"),
    "scale_zero": (change(softmax_scale=0.0), ValueError, "softmax_scale: expected a number other than 0, or None"),
    "missing": (change(index_k=None), ValueError, "index_k: required by openmsa_msa_attention"),
    "missing_sums": (change(cu_seqlens_k=None), ValueError, "cu_seqlens_k: "),
    "not_of_this_call": (apply("d_q", lambda a: a), ValueError, "d_q: not used by openmsa_msa_attention"),
    "unknown": (change(qq=1), TypeError, "msa_attention: unexpected argument qq"),
    "read_only": (apply("o", lambda a: a), TypeError, "o: expected an array that can be written, got ndarray"),
    "no_number": (change(topk="many"), TypeError, "topk: expected a whole number, got 'many'"),
    "half": (change(block_size=31.5), TypeError, "block_size: expected a whole number, got 31.5"),
    "topk_zero": (change(topk=0), ValueError, "topk: expected at least 1, got 0"),
    "topk_huge": (change(topk=2**40), TypeError, "topk: expected a whole number of 32 bits"),
    "topk_65": (change(topk=65), openmsa.Error, "topk: expected at most 64, got 65"),
    "block_size": (change(block_size=48), openmsa.Error, "block_size: expected a power of two from 8 to 256, got 48"),
    "backend": (change(backend="gpu"), ValueError, "backend: expected cpu, cuda, .* got gpu"),
    "scale": (change(softmax_scale=float("nan")), ValueError, "softmax_scale: expected a finite number"),
    "capacity": (change(max_seqlen_k=69), ValueError, "max_seqlen_k = 69 keys, got 70"),
    "no_plan": (change(plan={}), TypeError, "plan: expected an openmsa.Plan, got dict"),
}


@pytest.fixture
def layer():
    frozen = np.zeros((42, 4, 64), np.float32)
    frozen.flags.writeable = False
    return random_layer([40, 2], [40, 70]) | {"block_size": 32, "topk": 4, "o": frozen, "d_q": np.zeros((42, 4, 64))}


@pytest.mark.parametrize("name", REFUSED)
def test_layer(layer, name):
    edit, error, message = REFUSED[name]
    spare = {key: layer.pop(key) for key in ("o", "d_q")}
    used = {"read_only": "o", "rank_of_five": "o", "not_of_this_call": "d_q"}.get(name)
    if used:
        layer[used] = spare[used]
    with pytest.raises(error, match=message):
        openmsa.msa_attention(**edit(layer))


def test_nothing_is_written_where_something_is_refused(layer):
    o = np.full((42, 4, 64), 7, np.float32)
    with pytest.raises(ValueError):
        openmsa.msa_attention(**layer | {"o": o, "d_q": None, "index_k": layer["index_k"][1:]})
    assert (o == 7).all()


def test_results_of_another_dtype(layer):
    """Each dtype that would do is named once."""
    o = np.empty((42, 4, 64), np.float16)
    with pytest.raises(ValueError, match="o: expected dtype fp32, got fp16"):
        openmsa.msa_attention(**layer | {"o": o, "d_q": None})
    halves = {
        name: a.astype(ml_dtypes.bfloat16) if a.dtype == np.float32 else a for name, a in random_layer([9], [9]).items()
    }
    with pytest.raises(ValueError, match="o: expected dtype bf16 or fp32, got fp16"):
        openmsa.msa_attention(**halves, o=np.empty((9, 4, 64), np.float16))


def test_float64_is_for_the_reference():
    layer = random_layer([10], [10], dtype="float64")
    with pytest.raises(openmsa.Error, match="dtype: expected fp32, bf16 or fp16"):
        openmsa.msa_attention(**layer)


def test_indices_outside_of_the_sequence(layer):
    arrays = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
    indices = np.full((2, 42, 4), -1, np.int32)
    indices[1, 3, 0] = 2
    with pytest.raises(ValueError, match=r"topk_indices: expected -1 or a kv_block below 2, got 2 at \[1, 3, 0\]"):
        openmsa.sparse_attention(**arrays, topk_indices=indices, block_size=32)


def test_pages(layer):
    cache = paged(layer, 32)
    options = {"block_size": 32, "topk": 4}
    with pytest.raises(ValueError, match=r"block_table: expected page numbers 0 to \d+, got 99 at \[0, 0\]"):
        openmsa.msa_attention(**put("block_table", (0, 0), 99)(cache), **options)
    with pytest.raises(ValueError, match="page_size: expected .* divisor of block_size = 32, got 24"):
        shrunk = {name: cache[name][:, :24] for name in ("k_cache", "v_cache", "index_k_cache")}
        openmsa.msa_attention(**cache | shrunk, **options)
    with pytest.raises(ValueError, match="block_table: required"):
        openmsa.msa_attention(**cache | {"block_table": None}, **options)


def test_options_beside_a_plan(layer):
    plan = openmsa.Plan(num_heads_q=4, num_heads_kv=2, head_dim=64, index_dim=64, max_total_q=42, max_seqlen_k=70)
    with pytest.raises(ValueError, match="topk: expected none beside a plan, got 4"):
        openmsa.select_blocks(layer["index_q"], layer["index_k"], topk=4, plan=plan)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"num_heads_q": "four"}, TypeError, "num_heads_q: expected a whole number of 32 bits, got 'four'"),
        ({"dtype": "int32"}, ValueError, "dtype: expected fp32, bf16, fp16 or fp64, got int32"),
        ({"dtype": "float"}, TypeError, "dtype: expected dtype float32, .* got float"),
        ({"index_q_rounding": "none"}, ValueError, "index_q_rounding: expected scaled, cast or exact, got none"),
        ({"index_q_rounding": 1}, TypeError, "index_q_rounding: expected a name, got 1"),
        (
            {"index_q_rounding": "cast"},
            ValueError,
            "index_q_rounding: expected OPENMSA_INDEX_Q_SCALED without index keys",
        ),
        ({"index_scale_per_block": "yes"}, TypeError, "index_scale_per_block: expected True or False, got 'yes'"),
        ({"index_scale_per_block": True}, ValueError, "index_scale_per_block: expected 0 without index keys in e4m3"),
        ({"dtype": 4}, TypeError, "dtype: expected a name, got 4"),
        ({"max_seqlen_k": 2**31}, ValueError, "max_seqlen_k: expected 1 to 2147483647, got 2147483648"),
        ({"kv_dtype": "float8_e4m3fn"}, openmsa.Error, "kv_dtype: expected fp32 for contiguous keys, got e4m3"),
        ({"backend": "cuda"}, openmsa.Error, "unsupported"),
        ({"softmax_scale": 0}, ValueError, "softmax_scale: expected a number other than 0, or None"),
        ({"dtype": np.int64}, ValueError, "dtype: expected fp32, bf16, fp16 or fp64, got int64"),
        ({"dtype": np.int16}, TypeError, "dtype: expected dtype float32, .* got int16"),
        ({"shard_rank": 1}, ValueError, "shard_rank: expected 0 to 0, got 1"),
        ({"shard_count": 2, "shard_rank": 2}, ValueError, "shard_rank: expected 0 to 1, got 2"),
        (
            {"dtype": np.float32, "kv_dtype": ml_dtypes.float8_e4m3fn},
            openmsa.Error,
            "kv_dtype: expected fp32 for contig",
        ),
    ],
)
def test_plan(options, error, message):
    shapes = {
        "num_heads_q": 4,
        "num_heads_kv": 2,
        "head_dim": 40,
        "index_dim": 64,
        "max_total_q": 1,
        "max_seqlen_k": 99,
    }
    with pytest.raises(error, match=message):
        openmsa.Plan(**shapes | options)


def test_a_dtype_that_numpy_shows_as_bytes():
    layer = random_layer([10], [10])
    layer["k"] = layer["k"].astype(ml_dtypes.float8_e5m2)
    with pytest.raises(TypeError, match="k: expected"):
        openmsa.msa_attention(**layer)


def test_arrays_where_the_plan_has_no_backend():
    """A GPU's addresses never reach the CPU backend."""

    class OnGpu:
        def __init__(self, array):
            self.dtype, self.shape = array.dtype, array.shape

        def __dlpack_device__(self):
            return 2, 0

    layer = {name: OnGpu(array) for name, array in random_layer([10], [10]).items()}
    for backend in ("cpu", "reference"):
        with pytest.raises(ValueError, match=f"backend: expected one for arrays on cuda, where q is, got {backend}"):
            openmsa.msa_attention(**layer, backend=backend)
