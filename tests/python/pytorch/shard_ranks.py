"""The ranks of a layer in this process, one after the other, and the process of a group of one rank on the GPU."""

import os
import sys

import openmsa
import torch
import torch.distributed as dist
from openmsa.torch import KVCache
from openmsa.torch.distributed import ContextParallelAttention, PromptAttention, TensorParallelAttention

HEADS_Q, HEADS_KV, DIM, BLOCK, SLOTS = 8, 2, 64, 64, 3
SELECTION = {"block_size": BLOCK, "topk": 5}
CACHE = {"num_pages": 160, "page_size": 32, "max_batch": SLOTS, "max_seqlen_k": 4000, "head_dim": DIM}
CACHE |= {"num_heads_kv": HEADS_KV, "index_dim": DIM, "block_size": BLOCK}
FP8 = {"kv_dtype": torch.float8_e4m3fn, "index_dtype": torch.float8_e4m3fn}


def new_tokens(count: int, device: str, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heads = {"q": (HEADS_Q,), "k": (HEADS_KV,), "v": (HEADS_KV,), "index_q": (HEADS_KV,), "index_k": ()}
    return {name: torch.randn(count, *of, DIM, generator=generator).to(device, dtype) for name, of in heads.items()}


class Caches:
    """Whole requests in one cache and in the shards of `count` ranks, with the same tokens in all of them."""

    def __init__(self, count: int, device: str, dtype: torch.dtype, **formats):
        make = lambda **more: KVCache(**CACHE, dtype=dtype, device=device, **formats, **more)  # noqa: E731
        self.device, self.dtype = device, dtype
        self.whole = make()
        self.shards = [make(shard_count=count, shard_rank=rank) for rank in range(count)]
        for cache in self.all:
            for _ in range(SLOTS):
                cache.add()

    @property
    def all(self) -> list[KVCache]:
        return [self.whole, *self.shards]

    def step(self, counts: list[int], seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """New tokens of the requests, stored, and their prefix sums."""
        sums = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32, device=self.device)
        new = new_tokens(sum(counts), self.device, self.dtype, seed)
        for cache in self.all:
            for slot, count in enumerate(counts):
                cache.extend(slot, count)
            cache.upload()
            cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=sums)
        return new, sums


def keys_of(cache: KVCache, names: tuple[str, ...]) -> dict:
    tensors = cache.tensors(0)
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith((*names, "seqlens", "block_table"))}
    return kept | {"shard_count": cache.shard_count, "shard_rank": cache.shard_rank}


def selected(caches: Caches, new: dict, sums: torch.Tensor) -> torch.Tensor:
    """topk_indices from the candidates of all ranks."""
    candidates = [
        openmsa.select_candidates(new["index_q"], cu_seqlens_q=sums, **keys_of(shard, ("index_",)), **SELECTION)
        for shard in caches.shards
    ]
    lengths = caches.whole.tensors(0)["seqlens_k"]
    return openmsa.merge_candidates(torch.stack(candidates), lengths, cu_seqlens_q=sums, **SELECTION)


def attended(caches: Caches, new: dict, sums: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """o and lse from the parts of all ranks, in fp32 until they are merged."""
    parts = [
        openmsa.sparse_attention(
            new["q"],
            topk_indices=indices,
            cu_seqlens_q=sums,
            o=torch.empty_like(new["q"], dtype=torch.float32),
            return_lse=True,
            **keys_of(shard, ("k_", "v_")),
            **SELECTION,
        )
        for shard in caches.shards
    ]
    partial_o, partial_lse = (torch.stack(part) for part in zip(*parts))
    o = torch.empty_like(new["q"])
    return openmsa.merge_partials(partial_o, partial_lse, o=o, return_lse=True)


def group_of_one(_: int, folder: str) -> None:
    """The classes of openmsa.torch.distributed in a group of NCCL with one rank: shards that hold everything."""
    dist.init_process_group("nccl", f"file://{folder}/store", rank=0, world_size=1)
    layer = {"num_heads_q": HEADS_Q, "num_heads_kv": HEADS_KV, "head_dim": DIM, "index_dim": DIM, **SELECTION}
    caches = Caches(1, "cuda", torch.bfloat16)
    by_heads = TensorParallelAttention(dist.group.WORLD, **layer)
    by_keys = ContextParallelAttention(dist.group.WORLD, **layer)
    for step, counts in enumerate([[900, 5, 0], [1, 1, 0], [3, 60, 129], [1, 1, 1]]):
        new, sums = caches.step(counts, step)
        everything = caches.whole.tensors(0)
        expected = openmsa.msa_attention(
            new["q"], index_q=new["index_q"], **everything, cu_seqlens_q=sums, return_indices=True, **SELECTION
        )
        index = {name: tensor for name, tensor in everything.items() if not name.startswith(("k_", "v_"))}
        kv = {name: tensor for name, tensor in everything.items() if not name.startswith("index_")}
        o, indices = by_heads(new["q"], new["index_q"], kv=kv, index=index, cu_seqlens_q=sums, return_indices=True)
        assert torch.equal(indices, expected[1]) and torch.equal(o, expected[0])
        o, indices = by_keys(new["q"], new["index_q"], cache=everything, cu_seqlens_q=sums, return_indices=True)
        assert torch.equal(indices, expected[1])
        torch.testing.assert_close(o, expected[0], rtol=1e-2, atol=1e-2)
    prompt = PromptAttention(dist.group.WORLD, seqlen=1000, **SELECTION)
    new = new_tokens(1000, "cuda", torch.bfloat16, 9)
    expected = openmsa.msa_attention(**new, **SELECTION)
    o = prompt(**{name: prompt.split(rows) for name, rows in new.items()})
    torch.testing.assert_close(o, prompt.split(expected), rtol=1e-2, atol=1e-2)
    sys.stdout.flush()
    os._exit(0)  # as group_steps.run does
