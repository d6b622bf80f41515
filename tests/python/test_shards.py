"""kv_blocks in shards, one rank after the other: the selection of whole sequences, and attention from its parts."""

import ml_dtypes
import numpy as np
import openmsa
import pytest
from support import TOLERANCE, error, paged, pick, random_layer, reference

OPTIONS = {"block_size": 32, "topk": 4}
NONE = np.iinfo(np.int64).min


def shard_of(cache, page_size, count, rank, *, block_size=32):
    """The paged layer's table as rank `rank` has it: the pages of its kv_blocks alone."""
    pages = block_size // page_size
    table = cache["block_table"]
    table = np.pad(table, ((0, 0), (0, -table.shape[1] % (pages * count))), constant_values=-1)
    held = table.reshape(len(table), -1, count, pages)[:, :, rank].reshape(len(table), -1)
    return cache | {"block_table": held, "shard_count": count, "shard_rank": rank}


def keys_of(cache, *names):
    return pick(cache, *names, "seqlens_k", "block_table", "cu_seqlens_q", "shard_count", "shard_rank")


@pytest.fixture
def layer():
    """A prompt, a chunk behind a prefix, a decode step and a sequence without keys."""
    return random_layer([70, 20, 1, 0], [70, 150, 700, 0])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("page_size", [8, 32])
def test_ranks_select_and_attend_as_one(layer, count, page_size):
    index = pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k")
    expected = openmsa.select_blocks(**index, **OPTIONS)
    cache = paged(layer, page_size)
    shards = [shard_of(cache, page_size, count, rank) for rank in range(count)]
    candidates = [
        openmsa.select_candidates(**keys_of(shard, "index_q", "index_k_cache"), **OPTIONS) for shard in shards
    ]
    lengths = pick(cache, "seqlens_k", "cu_seqlens_q")
    indices = openmsa.merge_candidates(np.stack(candidates), **lengths, block_size=32)
    np.testing.assert_array_equal(indices, expected)

    parts = [
        openmsa.sparse_attention(
            **keys_of(shard, "q", "k_cache", "v_cache"), topk_indices=indices, **OPTIONS, return_lse=True
        )
        for shard in shards
    ]
    partial_o, partial_lse = (np.stack(part) for part in zip(*parts))
    o, lse = openmsa.merge_partials(partial_o, partial_lse, return_lse=True)
    keys = pick(layer, "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", topk_indices=indices)
    whole, whole_lse = reference("sparse_attention", keys, **OPTIONS, return_lse=True)
    assert error(o, whole) <= TOLERANCE["float32"]
    assert error(lse, whole_lse) <= TOLERANCE["float32"]


def test_a_plan_of_a_shard(layer):
    shard = shard_of(paged(layer, 32), 32, 2, 1)
    plan = openmsa.Plan(
        num_heads_q=4,
        num_heads_kv=2,
        head_dim=64,
        index_dim=64,
        max_total_q=200,
        max_seqlen_k=1000,
        max_batch=4,
        page_size=32,
        shard_count=2,
        shard_rank=1,
        **OPTIONS,
    )
    arrays = keys_of(shard, "index_q", "index_k_cache")
    expected = openmsa.select_candidates(**arrays, **OPTIONS)
    with_plan = {name: array for name, array in arrays.items() if not name.startswith("shard_")}
    np.testing.assert_array_equal(openmsa.select_candidates(**with_plan, plan=plan), expected)
    assert expected.dtype == np.int64
    assert (expected[:, 69] > NONE).sum() == 2, "of the kv_blocks 0, 1 and 2, which is local, shard 1 has one, per head"
    assert (expected[:, -1, :3] > NONE).all(), "three places beside the local one"
    assert (expected[:, -1, 3] == NONE).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parts_merge_into_the_layers_dtype(dtype):
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    rng = np.random.default_rng(1)
    partial_o, partial_lse = rng.standard_normal((3, 5, 8, 64), np.float32), rng.standard_normal((3, 5, 8), np.float32)
    exact = openmsa.merge_partials(partial_o, partial_lse)
    assert exact.dtype == np.float32
    o = np.empty((5, 8, 64), kind)
    assert openmsa.merge_partials(partial_o, partial_lse, o=o) is o
    np.testing.assert_array_equal(o, exact.astype(kind))
    assert openmsa.merge_partials(partial_o.astype(kind), partial_lse).dtype == kind


def test_index_keys_are_appended_apart():
    layer = random_layer([3, 1], [3, 1])
    cache = np.zeros((4, 8, 64), np.float32)
    where = {"seqlens_k": np.array([35, 33], np.int32), "block_table": np.array([[0, 2], [1, 3]], np.int32)}
    new = pick(layer, "index_k", "cu_seqlens_q")
    for rank in (1, 0):  # shard 0 has kv_block 4, where these tokens are, behind kv_block 0
        np.testing.assert_array_equal(cache, 0)
        openmsa.append_kv(**new, index_k_cache=cache, **where, block_size=8, shard_count=4, shard_rank=rank)
    np.testing.assert_array_equal(cache[2, :3], layer["index_k"][:3])
    np.testing.assert_array_equal(cache[3, 0], layer["index_k"][3])
    assert not cache[:2].any()
    assert not cache[2, 3:].any()


def test_refusals(layer):
    cache = paged(layer, 32)
    shard = shard_of(cache, 32, 2, 0)
    with pytest.raises(
        openmsa.Error, match="shard_count: openmsa_select_blocks works on whole sequences, got one of 2"
    ):
        openmsa.select_blocks(**keys_of(shard, "index_q", "index_k_cache"), **OPTIONS)
    index = pick(layer, "index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k")
    with pytest.raises(
        openmsa.Error, match="page_size: openmsa_select_candidates works on pages where there are shards"
    ):
        openmsa.select_candidates(**index, **OPTIONS, shard_count=2)
    candidates = np.stack([openmsa.select_candidates(**index, **OPTIONS)])
    lengths = pick(cache, "seqlens_k", "cu_seqlens_q", block_size=32)
    with pytest.raises(TypeError, match="all_candidates: expected dtype int64, got float64"):
        openmsa.merge_candidates(candidates.astype(np.float64), **lengths)
    with pytest.raises(ValueError, match="all_candidates: expected kv_blocks of shard 1, got kv_block"):
        openmsa.merge_candidates(np.concatenate([candidates, candidates]), **lengths)
    with pytest.raises(ValueError, match=r"all_candidates: expected shape\[0\] = shard_count = 3, got 1"):
        openmsa.merge_candidates(candidates, **lengths, shard_count=3)
    new = pick(layer, "k", "index_k")
    with pytest.raises(
        ValueError, match="v: required by openmsa_append_kv with any of k, v and their caches, got none"
    ):
        openmsa.append_kv(**new, **pick(cache, "index_k_cache", "seqlens_k", "block_table"), block_size=32)
