"""The functions on NumPy arrays, against the reference backend in float64."""

import sys
import threading
import time

import ml_dtypes
import numpy as np
import openmsa
import pytest
from support import TOLERANCE, error, paged, pick, random_layer, reference

OPTIONS = {"block_size": 32, "topk": 3}


@pytest.fixture
def layer():
    """A prompt, a chunk behind a prefix, a decode step and a sequence without keys."""
    return random_layer([70, 20, 1, 0], [70, 150, 300, 0])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_layer_is_near_the_reference(dtype):
    layer = random_layer([70, 20, 1], [70, 150, 300], dtype=dtype)
    o, lse, indices = openmsa.msa_attention(**layer, **OPTIONS, return_lse=True, return_indices=True)
    assert o.dtype == layer["q"].dtype
    keys = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
    expected, expected_lse = reference("sparse_attention", keys | {"topk_indices": indices}, **OPTIONS, return_lse=True)
    assert error(o, expected) <= TOLERANCE[dtype]
    assert np.abs(lse - expected_lse).max() <= 1e-5 if dtype == "float32" else 1e-3


def test_selection_is_that_of_the_reference(layer):
    arrays = pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k")
    expected = reference("select_blocks", arrays, **OPTIONS)
    np.testing.assert_array_equal(openmsa.select_blocks(**arrays, **OPTIONS), expected)
    np.testing.assert_array_equal(
        openmsa.msa_attention(**layer, **OPTIONS, return_indices=True)[1], expected, "the whole layer"
    )
    scores = openmsa.block_scores(**arrays, block_size=32)
    assert error(scores, reference("block_scores", arrays, block_size=32)) <= 1e-6
    lengths = np.diff(layer["cu_seqlens_k"])
    chosen = openmsa.topk(scores, lengths, cu_seqlens_q=layer["cu_seqlens_q"], **OPTIONS)
    np.testing.assert_array_equal(chosen, expected, "in two steps")


def test_everything_chosen_is_dense(layer):
    dense = openmsa.dense_attention(**pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"))
    sparse = openmsa.msa_attention(**layer, block_size=32, topk=16)
    assert error(sparse, dense) <= 1e-6


@pytest.mark.parametrize("page_size", [8, 32])
def test_pages_change_nothing(layer, page_size):
    expected = openmsa.msa_attention(**layer, **OPTIONS, return_lse=True, return_indices=True)
    results = openmsa.msa_attention(**paged(layer, page_size), **OPTIONS, return_lse=True, return_indices=True)
    for result, wanted in zip(results, expected):
        np.testing.assert_array_equal(result, wanted)


def test_gradients(layer):
    keys = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
    indices = openmsa.select_blocks(**pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k"), **OPTIONS)
    chosen = keys | {"topk_indices": indices}
    o, lse = openmsa.sparse_attention(**chosen, **OPTIONS, return_lse=True)
    d_o = np.random.default_rng(5).standard_normal(o.shape, np.float32)
    arrays = chosen | {"o": o, "lse": lse, "d_o": d_o}
    for result, expected in zip(
        openmsa.sparse_attention_backward(**arrays, **OPTIONS),
        reference("sparse_attention_backward", arrays, **OPTIONS),
    ):
        assert error(result, expected) <= 1e-5


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_gradient_into_lse(layer, kind):
    arrays = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
    if kind == "sparse":
        where = pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k")
        arrays["topk_indices"] = openmsa.select_blocks(**where, **OPTIONS)
    o, lse = getattr(openmsa, f"{kind}_attention")(**arrays, **OPTIONS, return_lse=True)
    rng = np.random.default_rng(5)
    arrays |= {"o": o, "lse": lse, "d_o": rng.standard_normal(o.shape, np.float32)}
    backward = f"{kind}_attention_backward"
    without = getattr(openmsa, backward)(**arrays, **OPTIONS)
    arrays["d_lse"] = rng.standard_normal(lse.shape, np.float32)
    results = getattr(openmsa, backward)(**arrays, **OPTIONS)
    for result, expected in zip(results, reference(backward, arrays, **OPTIONS)):
        assert error(result, expected) <= 1e-5
    assert error(results[0], without[0]) > 0.1 and error(results[2], without[2]) == 0


def test_kl_loss(layer):
    indices = openmsa.select_blocks(**pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k"), **OPTIONS)
    keys = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", topk_indices=indices)
    _, lse = openmsa.sparse_attention(**keys, **OPTIONS, return_lse=True)
    arrays = {name: array for name, array in (layer | {"topk_indices": indices, "lse": lse}).items() if name != "v"}
    results = openmsa.kl_loss(**arrays, **OPTIONS, return_gradients=True)
    for result, expected in zip(results, reference("kl_loss", arrays, **OPTIONS, return_gradients=True)):
        assert error(result, expected) <= 1e-4
    assert openmsa.kl_loss(**arrays, **OPTIONS) == results[0]
    weights = np.random.default_rng(5).uniform(size=len(layer["q"])).astype(np.float32)
    weights[::3] = 0
    weighted = openmsa.kl_loss(**arrays, kl_weights=weights, **OPTIONS, return_gradients=True)
    exact = reference("kl_loss", arrays | {"kl_weights": weights}, **OPTIONS, return_gradients=True)
    for result, expected in zip(weighted, exact):
        assert error(result, expected) <= 1e-4
    mean = np.full(len(weights), 1 / (layer["cu_seqlens_q"][-1] * layer["q"].shape[1] / 2), np.float32)
    assert openmsa.kl_loss(**arrays, kl_weights=mean, **OPTIONS) == pytest.approx(results[0], rel=1e-6)


def test_gradient_of_a_training_step(layer):
    """That of attention and that of the KL loss, in one call."""
    indices = openmsa.select_blocks(**pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k"), **OPTIONS)
    keys = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", topk_indices=indices)
    o, lse = openmsa.sparse_attention(**keys, **OPTIONS, return_lse=True)
    rng = np.random.default_rng(5)
    d_o, d_lse = rng.standard_normal(o.shape, np.float32), rng.standard_normal(lse.shape, np.float32)
    weights = rng.uniform(size=len(o)).astype(np.float32)
    arrays = layer | {"topk_indices": indices, "o": o, "lse": lse, "d_o": d_o, "d_lse": d_lse, "kl_weights": weights}
    of_attention = {name: array for name, array in arrays.items() if name not in ("index_q", "index_k", "kl_weights")}
    of_kl = {name: array for name, array in arrays.items() if name not in ("v", "o", "d_o", "d_lse")}
    expected = (
        *openmsa.sparse_attention_backward(**of_attention, **OPTIONS),
        *openmsa.kl_loss(**of_kl, **OPTIONS, return_gradients=True),
    )
    results = openmsa.msa_attention_backward(**arrays, **OPTIONS)
    assert len(results) == len(expected) == 6
    for result, wanted in zip(results, expected):
        np.testing.assert_array_equal(result, wanted)
    given = {"d_k": np.full_like(layer["k"], np.nan), "kl_loss": np.full(1, np.nan, np.float32)}
    written = openmsa.msa_attention_backward(**arrays, **given, **OPTIONS)
    assert written[1] is given["d_k"] and written[3] is given["kl_loss"]
    np.testing.assert_array_equal(given["d_k"], expected[1])


def test_keys_of_many_short_sequences():
    """More keys in all than queries, or than the longest sequence has."""
    layer = random_layer([2] * 30, [20] * 30)
    arrays = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
    o, lse = openmsa.dense_attention(**arrays, max_seqlen_k=20, return_lse=True)
    arrays |= {"o": o, "lse": lse, "d_o": o}
    for result, expected in zip(
        openmsa.dense_attention_backward(**arrays, max_seqlen_k=20), reference("dense_attention_backward", arrays)
    ):
        assert error(result, expected) <= 1e-5
    shape = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "max_batch": 30}
    plan = openmsa.Plan(**shape, max_total_q=60, max_seqlen_k=20, max_total_k=599)
    with pytest.raises(ValueError, match="total_k: expected at most the plan's max_total_k = 599, got 600"):
        openmsa.dense_attention_backward(**arrays, plan=plan)


def test_recall_of_everything_is_one(layer):
    indices = openmsa.select_blocks(
        **pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k"), block_size=32, topk=16
    )
    arrays = pick(layer, "q", "k", "cu_seqlens_q", "cu_seqlens_k", topk_indices=indices)
    block_recall, score_recall = openmsa.block_recall(**arrays, block_size=32)
    np.testing.assert_array_equal(block_recall, 1)
    np.testing.assert_allclose(score_recall, 1, rtol=1e-6)


def test_appending_builds_the_same_cache(layer):
    cache = paged(layer, 32)
    empty = {name: np.full_like(cache[name], np.nan) for name in ("k_cache", "v_cache", "index_k_cache")}
    openmsa.append_kv(
        **pick(layer, "k", "v", "index_k"),
        **pick(cache, "seqlens_k", "block_table"),
        **empty,
        cu_seqlens_q=layer["cu_seqlens_k"],
        block_size=32,
    )
    for name, array in empty.items():
        np.testing.assert_array_equal(array, cache[name])


def test_fp8_caches_and_their_scales(layer):
    cache = paged(layer, 32)
    tokens = cache["k_cache"].shape[0] * 32
    scales = {"k_scale": (2, tokens), "v_scale": (2, tokens), "index_k_scale": (tokens,)}
    fp8 = {
        name: np.zeros(cache[name].shape, ml_dtypes.float8_e4m3fn) for name in ("k_cache", "v_cache", "index_k_cache")
    }
    fp8 |= {name: np.ones(shape, np.float32) for name, shape in scales.items()}
    where = pick(cache, "seqlens_k", "block_table")
    openmsa.append_kv(
        **pick(layer, "k", "v", "index_k"), **where, **fp8, cu_seqlens_q=layer["cu_seqlens_k"], block_size=32
    )
    arrays = pick(cache, "q", "index_q", "cu_seqlens_q") | where | fp8
    o = openmsa.msa_attention(**arrays, block_size=32, topk=16)
    exact = openmsa.msa_attention(**layer, block_size=32, topk=16)
    assert 1e-4 < error(o, exact) < 0.06, "fp8 is near the exact result, and not equal to it"
    arrays["v_scale"] = arrays["v_scale"] * 2
    np.testing.assert_allclose(openmsa.msa_attention(**arrays, block_size=32, topk=16), 2 * o, rtol=1e-6)


@pytest.mark.parametrize("rounding", ["scaled", "cast", "exact"])
def test_index_queries_beside_fp8_index_keys(layer, rounding):
    """As the same numbers in float32 would score, where a query of a row is rounded so."""
    index_k = layer["index_k"].astype(ml_dtypes.float8_e4m3fn)
    index_q = layer["index_q"]
    if rounding == "cast":
        index_q = index_q.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    if rounding == "scaled":
        amax = np.abs(index_q).max(-1, keepdims=True)
        index_q = (index_q * (448 / amax)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * (amax / 448)
    where = pick(layer, "cu_seqlens_q", "cu_seqlens_k")
    expected = openmsa.block_scores(index_q, index_k.astype(np.float32), **where, block_size=32)
    scores = openmsa.block_scores(layer["index_q"], index_k, **where, block_size=32, index_q_rounding=rounding)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    if rounding == "scaled":
        assert np.array_equal(openmsa.block_scores(layer["index_q"], index_k, **where, block_size=32), scores)
    if rounding == "cast":
        given = index_q.astype(ml_dtypes.float8_e4m3fn)
        assert np.array_equal(
            openmsa.block_scores(given, index_k, **where, block_size=32, index_q_rounding="cast"), scores
        )
        o = openmsa.msa_attention(**layer | {"index_k": index_k}, **OPTIONS, index_q_rounding="cast")
        again = openmsa.msa_attention(
            **layer | {"index_k": index_k, "index_q": given}, **OPTIONS, index_q_rounding="cast"
        )
        np.testing.assert_array_equal(again, o)


def test_index_keys_with_a_scale_per_block(layer):
    """Pages of half a kv_block: append_kv writes the scale of each kv_block's first page, and a call reads it, whether its
    plan is made from the arrays or given."""
    cache = paged(layer, 16)
    num_pages = cache["index_k_cache"].shape[0]
    where = pick(cache, "seqlens_k", "block_table")
    fp8 = pick(cache, "k_cache", "v_cache")
    fp8["index_k_cache"] = np.zeros(cache["index_k_cache"].shape, ml_dtypes.float8_e4m3fn)
    fp8["index_k_scale"] = np.full(num_pages, np.nan, np.float32)
    openmsa.append_kv(
        **pick(layer, "k", "v", "index_k"), **where, **fp8, cu_seqlens_q=layer["cu_seqlens_k"], block_size=32
    )
    first_pages = {int(row[p]) for row in where["block_table"] for p in range(0, len(row), 2) if row[p] >= 0}
    assert first_pages == set(np.flatnonzero(~np.isnan(fp8["index_k_scale"])))
    arrays = pick(cache, "q", "index_q", "cu_seqlens_q") | where | fp8
    indices = openmsa.msa_attention(**arrays, **OPTIONS, return_indices=True)[1]
    exact = openmsa.msa_attention(**layer, **OPTIONS, return_indices=True)[1]
    assert np.mean(indices == exact) > 0.8
    plan = openmsa.Plan(
        num_heads_q=4,
        num_heads_kv=2,
        head_dim=64,
        index_dim=64,
        **OPTIONS,
        page_size=16,
        index_dtype="float8_e4m3fn",
        index_scale_per_block=True,
        max_batch=8,
        max_total_q=1000,
        max_seqlen_k=1000,
    )
    np.testing.assert_array_equal(openmsa.msa_attention(**arrays, plan=plan, return_indices=True)[1], indices)
    arrays["index_k_scale"] = np.where(np.isnan(fp8["index_k_scale"]), 1, 2 * fp8["index_k_scale"]).astype(np.float32)
    scores, doubled = (
        openmsa.block_scores(
            **pick(arrays | {"index_k_scale": scale}, "index_q", "cu_seqlens_q", "seqlens_k", "block_table"),
            index_k_cache=fp8["index_k_cache"],
            index_k_scale=scale,
            block_size=32,
        )
        for scale in (fp8["index_k_scale"], arrays["index_k_scale"])
    )
    np.testing.assert_array_equal(doubled, 2 * scores)


def test_results_go_where_the_caller_says(layer):
    expected, lse = openmsa.msa_attention(**layer, **OPTIONS, return_lse=True)
    memory = np.zeros((*expected.shape[:2], 2 * expected.shape[2]), np.float32)
    o, given_lse = memory[..., 64:], np.zeros_like(lse)
    assert openmsa.msa_attention(**layer, **OPTIONS, o=o, lse=given_lse) is o
    np.testing.assert_array_equal(o, expected)
    np.testing.assert_array_equal(given_lse, lse)
    assert not memory[..., :64].any()


def test_views_are_read_where_they_lie(layer):
    fused = np.concatenate([layer["k"], layer["v"]], axis=-1)
    views = layer | {"k": fused[..., :64], "v": fused[..., 64:]}
    np.testing.assert_array_equal(openmsa.msa_attention(**views, **OPTIONS), openmsa.msa_attention(**layer, **OPTIONS))


def test_a_plan_serves_calls_within_its_capacities():
    plan = openmsa.Plan(
        num_heads_q=4,
        num_heads_kv=2,
        head_dim=64,
        index_dim=64,
        max_total_q=90,
        max_seqlen_k=300,
        max_batch=3,
        **OPTIONS,
    )
    for seqlens_q, seqlens_k in (([70, 20], [70, 150]), ([1, 1, 1], [300, 2, 33])):
        layer = random_layer(seqlens_q, seqlens_k)
        np.testing.assert_array_equal(
            openmsa.msa_attention(**layer, plan=plan), openmsa.msa_attention(**layer, **OPTIONS)
        )
    with pytest.raises(ValueError, match="max_seqlen_k = 300 keys, got 301"):
        openmsa.msa_attention(**random_layer([1], [301]), plan=plan)


def test_the_gil_is_released():
    """Nobody is made to give up the GIL here, so another thread counts during a call only where the call has released it.
    On a loaded machine that thread may not get its turn during one call: then it does during some other."""
    layer = pick(random_layer([1000], [1000]), "q", "k", "v")
    count, done = 0, threading.Event()

    def counting():
        nonlocal count
        while not done.is_set():
            count += 1
            time.sleep(0)  # gives up the GIL

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    thread = threading.Thread(target=counting)
    during, deadline = 0, time.monotonic() + 60
    try:
        thread.start()
        while during < 100 and time.monotonic() < deadline:
            before = count
            openmsa.dense_attention(**layer, num_threads=1)
            during += count - before
    finally:
        done.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert during >= 100


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_by_kv_head(ranks):
    """Each rank gets its KV heads with their query and index heads; index_k is the same on all. What the ranks compute is
    the layer, bit by bit, since every KV head selects for itself."""
    layer = random_layer([40, 1], [100, 300], heads_q=16, heads_kv=4)
    whole, indices = openmsa.msa_attention(**layer, **OPTIONS, return_indices=True)
    for rank in range(ranks):
        heads_q, heads_kv = (slice(rank * n // ranks, (rank + 1) * n // ranks) for n in (16, 4))
        mine = (
            layer | {name: layer[name][:, heads_kv] for name in ("k", "v", "index_q")} | {"q": layer["q"][:, heads_q]}
        )
        for arrays in (mine, paged(mine, 32)):
            o, chosen = openmsa.msa_attention(**arrays, **OPTIONS, return_indices=True)
            np.testing.assert_array_equal(o, whole[:, heads_q])
            np.testing.assert_array_equal(chosen, indices[heads_kv])
