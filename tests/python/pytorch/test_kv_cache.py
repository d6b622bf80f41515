"""KVCache: what is appended step by step, with requests coming and going, is attended to as if it were contiguous."""

import itertools
import random

import openmsa.torch
import pytest
import torch
from openmsa.torch import KVCache

SHAPE = {"num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "block_size": 64}
OPTIONS = {"block_size": 64, "topk": 2}


def tokens(count, device, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(count, *shape, generator=generator).to(device, dtype)  # noqa: E731
    return {"q": draw(4, 64), "k": draw(2, 64), "v": draw(2, 64), "index_q": draw(2, 64), "index_k": draw(64)}


def test_steps_of_requests_that_come_and_go(device):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    cache = KVCache(num_pages=20, page_size=64, max_batch=3, max_seqlen_k=512, dtype=dtype, device=device, **SHAPE)
    history: dict[int, dict] = {}

    def step(counts, seed):
        new = tokens(sum(counts.values()), device, dtype, seed)
        bounds = [0]
        for slot in range(3):
            count = counts.get(slot, 0)
            cache.extend(slot, count) if count else None
            begin = bounds[-1]
            bounds.append(begin + count)
            if count:
                part = {name: tensor[begin : begin + count] for name, tensor in new.items()}
                old = history.get(slot)
                history[slot] = part if old is None else {n: torch.cat([old[n], part[n]]) for n in part}
        cache.upload()
        cu_seqlens_q = torch.tensor(bounds, dtype=torch.int32, device=device)
        cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=cu_seqlens_q)
        with torch.no_grad():
            o = openmsa.torch.msa_attention(
                new["q"], index_q=new["index_q"], **cache.tensors(0), cu_seqlens_q=cu_seqlens_q, **OPTIONS
            )
            for slot, count in counts.items():
                past = history[slot]
                expected = openmsa.torch.msa_attention(
                    past["q"][-count:], past["k"], past["v"], past["index_q"][-count:], past["index_k"], **OPTIONS
                )
                mine = o[bounds[slot] : bounds[slot + 1]]
                torch.testing.assert_close(mine, expected, rtol=1e-2, atol=1e-2 if device == "cuda" else 1e-6)

    assert [cache.add() for _ in range(2)] == [0, 1]
    step({0: 100, 1: 200}, 1)
    step({0: 1, 1: 1}, 2)
    cache.remove(0)
    history.pop(0)
    assert cache.add() == 0
    step({0: 300, 1: 2}, 3)
    assert cache.add() == 2
    step({0: 1, 1: 1, 2: 65}, 4)


def test_pages_come_back():
    cache = KVCache(num_pages=4, page_size=64, max_batch=2, max_seqlen_k=256, **SHAPE)
    slot = cache.add()
    cache.extend(slot, 129)
    assert cache.free_pages == 1
    cache.remove(slot)
    assert cache.free_pages == 4


def test_what_is_refused():
    cache = KVCache(num_pages=2, page_size=64, max_batch=1, max_seqlen_k=256, **SHAPE)
    slot = cache.add()
    with pytest.raises(ValueError, match="slot: expected a free one of 1, got none"):
        cache.add()
    with pytest.raises(ValueError, match="expected room in 2 free pages, got a need of 3"):
        cache.extend(slot, 129)
    with pytest.raises(ValueError, match="up to max_seqlen_k = 256, got 257"):
        cache.extend(slot, 257)
    with pytest.raises(ValueError, match="slot: expected one that add"):
        cache.extend(5, 1)


def test_sizes_are_checked_at_construction():
    make = {"num_pages": 4, "page_size": 64, "max_batch": 1, "max_seqlen_k": 256, **SHAPE}
    for changes, message in (
        ({"page_size": 48}, "page_size: expected a divisor of block_size = 64, got 48"),
        ({"page_size": 128}, "page_size: expected a divisor of block_size = 64, got 128"),
        ({"num_pages": 0}, "num_pages: expected at least 1, got 0"),
        ({"head_dim": -8}, "head_dim: expected at least 1, got -8"),
        ({"index_dtype": torch.float16}, r"index_dtype: expected None, torch.float32 or torch.float8_e4m3fn, got"),
        ({"token_scales": True}, "token_scales: expected False without an fp8 cache"),
        (
            {"index_block_scales": True},
            "index_block_scales: expected an fp8 index_k_cache of several pages and tokens, got",
        ),
        (
            {"index_block_scales": True, "index_dtype": torch.float8_e4m3fn, "num_pages": 1},
            "index_block_scales: expected .* got one of torch.float8_e4m3fn with 1 pages of 64",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            KVCache(**make | changes)


def test_a_forgotten_upload_is_refused():
    cache = KVCache(num_pages=4, page_size=64, max_batch=2, max_seqlen_k=256, **SHAPE)
    bounds = torch.tensor([0, 3, 3], dtype=torch.int32)
    new = tokens(3, "cpu", torch.float32, 0)
    append = lambda: cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=bounds)  # noqa: E731
    slot = cache.add()
    for change in (lambda: cache.extend(slot, 3), lambda: cache.truncate(slot, 0), lambda: cache.remove(slot)):
        change()
        with pytest.raises(RuntimeError, match=r"expected upload\(\) after extend, truncate or remove"):
            append()
        with pytest.raises(RuntimeError, match=r"expected upload\(\)"):
            cache.tensors(0)
        cache.upload()
        cache.tensors(0)


def test_who_is_wrong():
    cache = KVCache(num_pages=4, page_size=64, max_batch=1, max_seqlen_k=256, dtype=torch.bfloat16, **SHAPE)
    slot = cache.add()
    with pytest.raises(ValueError, match="num_tokens: expected at least 0, got -2"):
        cache.extend(slot, -2)
    cache.extend(slot, 3)
    cache.upload()
    new = tokens(3, "cpu", torch.float32, 0)
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match="k: expected the cache's dtype torch.bfloat16, got torch.float32"):
        cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=bounds)
    with torch.autocast("cpu", torch.bfloat16):
        cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=bounds)
    assert torch.equal(cache.k_cache[0, cache.block_table[0, 0], :3], new["k"].bfloat16())
    with pytest.raises(ValueError, match="length: expected 0 to the request's 3 tokens, got 4"):
        cache.truncate(slot, 4)


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("which", ["kv_dtype", "index_dtype", "both"])
def test_fp8_caches(scales, which):
    names = ("kv_dtype", "index_dtype") if which == "both" else (which,)
    fp8 = dict.fromkeys(names, torch.float8_e4m3fn)
    cache = KVCache(
        num_pages=4, page_size=64, max_batch=1, max_seqlen_k=256, num_layers=2, token_scales=scales, **SHAPE, **fp8
    )
    cache.extend(cache.add(), 150)
    cache.upload()
    new = tokens(150, "cpu", torch.float32, 0)
    magnitude = 1000 if scales else 1  # beyond e4m3's 448 where scales are there
    bounds = torch.tensor([0, 150], dtype=torch.int32)
    cache.append(1, new["k"], new["v"] * magnitude, new["index_k"], cu_seqlens_q=bounds)
    with torch.no_grad():
        everything = {"block_size": 64, "topk": 3}
        o = openmsa.torch.msa_attention(
            new["q"], index_q=new["index_q"], **cache.tensors(1), cu_seqlens_q=bounds, **everything
        )
        expected = openmsa.torch.msa_attention(**new, **everything) * magnitude
    error = float((o - expected).norm() / expected.norm())
    assert error <= (0.06 if "kv_dtype" in fp8 else 1e-6)
    assert not cache.tensors(0)["k_cache"].float().any(), "the other layer"


def test_index_keys_with_a_scale_per_block():
    """Keys far beyond e4m3's 448; beside them k and v with a scale per token."""
    fp8 = dict.fromkeys(("kv_dtype", "index_dtype"), torch.float8_e4m3fn)
    cache = KVCache(
        num_pages=9,
        page_size=32,
        max_batch=1,
        max_seqlen_k=256,
        token_scales=True,
        index_block_scales=True,
        **SHAPE,
        **fp8,
    )
    cache.extend(cache.add(), 150)
    cache.upload()
    new = tokens(150, "cpu", torch.float32, 0)
    bounds = torch.tensor([0, 150], dtype=torch.int32)
    cache.append(0, new["k"], new["v"], new["index_k"] * 1000, cu_seqlens_q=bounds)
    assert cache.tensors(0)["index_k_scale"].shape == (9,)
    assert int(cache.tensors(0)["index_k_scale"].count_nonzero()) == 3, "of three kv_blocks of 64"
    where = {"cu_seqlens_q": bounds, "block_size": 64}
    names = ("index_k_cache", "index_k_scale", "seqlens_k", "block_table")
    index = {name: tensor for name, tensor in cache.tensors(0).items() if name in names}
    with torch.no_grad():
        for rounding in ("scaled", "cast", "exact"):
            scores = openmsa.torch.block_scores(new["index_q"], **index, **where, index_q_rounding=rounding)
            expected = openmsa.torch.block_scores(new["index_q"], new["index_k"], block_size=64) * 1000
            visible = expected.isfinite()
            assert torch.equal(scores[..., :3].isfinite(), visible)
            assert float((scores[..., :3] - expected)[visible].norm() / expected[visible].norm()) < 0.06
        o = openmsa.torch.msa_attention(
            new["q"], index_q=new["index_q"], **cache.tensors(0), **where, topk=3, index_q_rounding="exact"
        )
    assert o.isfinite().all()


def test_default_dtype_and_device_change_nothing():
    """What the host keeps stays on the host, whatever new tensors are elsewhere."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            cache = KVCache(num_pages=4, page_size=64, max_batch=2, max_seqlen_k=256, **SHAPE)
            cache.extend(cache.add(), 70)
            cache.upload()
    finally:
        torch.set_default_dtype(torch.float32)
    assert cache.k_cache.dtype == torch.float32 and cache.seqlens_k.tolist() == [70, 0]


class Model:
    """What a cache should hold: the tokens of each request, one behind the other."""

    def __init__(self):
        self.requests: dict[int, dict[str, torch.Tensor]] = {}

    def append(self, slot, new):
        old = self.requests.get(slot)
        self.requests[slot] = new if old is None else {name: torch.cat([old[name], new[name]]) for name in new}

    def truncate(self, slot, length):
        self.requests[slot] = {name: tensor[:length] for name, tensor in self.requests[slot].items()}


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_operations(seed):
    """Random requests that come, grow, are cut back and go; after each step every request attends as over its own text."""
    draw = random.Random(seed)
    cache = KVCache(num_pages=14, page_size=32, max_batch=4, max_seqlen_k=256, **SHAPE)
    model = Model()
    for step in range(40):
        counts = dict.fromkeys(range(4), 0)
        for _ in range(draw.randint(1, 4)):
            slot = draw.choice(list(model.requests) or [None])
            operation = draw.choice(["add", "extend", "truncate", "remove"])
            if operation == "add" and len(model.requests) < 4:
                model.requests[cache.add()] = {n: t[:0] for n, t in tokens(1, "cpu", torch.float32, 0).items()}
            elif operation == "extend" and slot is not None and counts[slot] == 0:
                wanted = draw.choice([1, 1, 5, 40, 100])
                before = cache.free_pages, cache.length(slot)
                try:
                    cache.extend(slot, wanted)
                    counts[slot] = wanted
                except ValueError:
                    assert (cache.free_pages, cache.length(slot)) == before, "a refusal changes nothing"
            elif operation == "truncate" and slot is not None and counts[slot] == 0:
                length = draw.randint(0, cache.length(slot))
                cache.truncate(slot, length)
                model.truncate(slot, length)
            elif operation == "remove" and slot is not None and counts[slot] == 0:
                cache.remove(slot)
                del model.requests[slot]
        cache.upload()
        bounds = torch.tensor([0, *itertools.accumulate(counts.values())], dtype=torch.int32)
        new = tokens(int(bounds[-1]), "cpu", torch.float32, 1000 * seed + step)
        for slot, count in counts.items():
            if count:
                model.append(slot, {name: tensor[bounds[slot] : bounds[slot + 1]] for name, tensor in new.items()})
        if bounds[-1]:
            cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=bounds)
        check_against(cache, model)


def check_against(cache, model):
    held = [
        page for row, length in zip(cache.block_table.tolist(), cache.seqlens_k.tolist()) for page in row if page >= 0
    ]
    assert len(set(held)) == len(held) and len(held) + cache.free_pages == 14
    lengths = [len(model.requests[slot]["q"]) if slot in model.requests else 0 for slot in range(4)]
    assert cache.seqlens_k.tolist() == lengths
    last = torch.arange(5, dtype=torch.int32)
    query = tokens(4, "cpu", torch.float32, 7)
    with torch.no_grad():
        o = openmsa.torch.msa_attention(
            query["q"], index_q=query["index_q"], **cache.tensors(0), cu_seqlens_q=last, **OPTIONS
        )
        for slot, length in enumerate(lengths):
            expected = torch.zeros(1, 4, 64)
            if length:
                keys = {name: model.requests[slot][name] for name in ("k", "v", "index_k")}
                one = {name: query[name][slot : slot + 1] for name in ("q", "index_q")}
                expected = openmsa.torch.msa_attention(**one, **keys, **OPTIONS)
            torch.testing.assert_close(o[slot : slot + 1], expected)


@pytest.mark.parametrize("page_size", [16, 64])
def test_shards_need_the_pages_of_their_blocks(page_size):
    count, most = 3, 700
    whole = KVCache(num_pages=most, page_size=page_size, max_batch=1, max_seqlen_k=most, **SHAPE)
    shards = [
        KVCache(
            num_pages=most,
            page_size=page_size,
            max_batch=1,
            max_seqlen_k=most,
            shard_count=count,
            shard_rank=rank,
            **SHAPE,
        )
        for rank in range(count)
    ]
    caches = [whole, *shards]
    for cache in caches:
        cache.add()
    for length in [1, 16, 17, 63, 64, 65, 128, 129, 192, 193, 500, 700, 260, 128, 5]:
        for cache in caches:
            now = cache.length(0)
            cache.extend(0, length - now) if length > now else cache.truncate(0, length)
        used = [most - cache.free_pages for cache in caches]
        assert used[0] == sum(used[1:]) == -(-length // page_size)
        for rank, pages in enumerate(used[1:]):
            held = [block for block in range(-(-length // 64)) if block % count == rank]
            keys = sum(min(64, length - block * 64) for block in held)
            assert pages == -(-keys // page_size)


def test_a_cache_of_index_keys_alone_and_one_without():
    where = {"num_pages": 4, "page_size": 64, "max_batch": 1, "max_seqlen_k": 128, "block_size": 64}
    index = KVCache(num_heads_kv=0, head_dim=64, index_dim=64, shard_count=2, shard_rank=1, **where)
    kv = KVCache(num_heads_kv=2, head_dim=64, index_dim=0, **where)
    assert set(index.tensors(0)) == {"index_k_cache", "seqlens_k", "block_table"}
    assert set(kv.tensors(0)) == {"k_cache", "v_cache", "seqlens_k", "block_table"}
    new = tokens(100, "cpu", torch.float32, 1)
    for cache in (index, kv):
        cache.add()
        cache.extend(0, 100)
        cache.upload()
    sums = torch.tensor([0, 100], dtype=torch.int32)
    kv.append(0, new["k"], new["v"], cu_seqlens_q=sums)
    index.append(0, index_k=new["index_k"], cu_seqlens_q=sums)
    first, second = kv.block_table[0].tolist()
    assert torch.equal(torch.cat([kv.k_cache[0, first], kv.k_cache[0, second, :36]]), new["k"])
    page = index.block_table[0, 0]
    assert torch.equal(index.index_k_cache[0, page, :36], new["index_k"][64:]), "kv_block 1 is that of shard 1"
    assert index.free_pages == 3
    for wrong in ({"num_heads_kv": 0, "index_dim": 0}, {"index_dim": -1}, {"shard_count": 2, "shard_rank": 2}):
        with pytest.raises(ValueError, match="num_heads_kv|index_dim|shard_rank"):
            KVCache(**{"num_heads_kv": 2, "head_dim": 64, "index_dim": 64, **where, **wrong})
