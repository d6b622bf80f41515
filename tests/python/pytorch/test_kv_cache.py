"""KVCache: what is appended step by step, with requests coming and going, is attended to as if it were contiguous."""

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
