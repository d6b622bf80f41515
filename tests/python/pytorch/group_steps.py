"""What the processes of test_process_groups run: each knows the whole layer, and compares its part of a group's result."""

import re
import time
from pathlib import Path

import openmsa
import pytest
import torch
import torch.distributed as dist
from openmsa.torch import KVCache
from openmsa.torch.distributed import (
    ChunkAttention,
    ContextParallelAttention,
    PromptAttention,
    TensorParallelAttention,
)
from process_groups import group_of

HEADS_Q, HEADS_KV, DIM = 8, 4, 64
LAYER = {
    "num_heads_q": HEADS_Q,
    "num_heads_kv": HEADS_KV,
    "head_dim": DIM,
    "index_dim": DIM,
    "block_size": 32,
    "topk": 5,
}
SELECTION = {"block_size": 32, "topk": 5}
DOCUMENT = Path(__file__).parents[3] / "docs" / "several-gpus.md"
SLOTS = 3
FP8 = {"kv_dtype": torch.float8_e4m3fn, "index_dtype": torch.float8_e4m3fn, "token_scales": True}
FORMATS = [{"dtype": torch.float32}, {"dtype": torch.bfloat16}, {"dtype": torch.bfloat16, **FP8}]
CACHE = {"num_pages": 120, "page_size": 16, "max_batch": SLOTS, "max_seqlen_k": 1000, "head_dim": DIM, "block_size": 32}


def new_tokens(count: int, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    heads = {"q": (HEADS_Q,), "k": (HEADS_KV,), "v": (HEADS_KV,), "index_q": (HEADS_KV,), "index_k": ()}
    return {name: torch.randn(count, *of, DIM, generator=generator).to(dtype) for name, of in heads.items()}


def steps(dtype: torch.dtype, caches: list[KVCache]):
    """Prompts of unequal length, one of them empty, then decode and speculation: new tokens and their sums, with room made
    for them in all caches."""
    for cache in caches:
        assert [cache.add() for _ in range(SLOTS)] == list(range(SLOTS))
    for step, counts in enumerate([(300, 5, 0), (1, 1, 0), (3, 60, 129), (1, 1, 1), (200, 1, 1)]):
        for cache in caches:
            for slot, count in enumerate(counts):
                cache.extend(slot, count)
            cache.upload()
        sums = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
        yield new_tokens(sum(counts), dtype, step), sums


def whole_layer(cache: KVCache, new: dict, sums: torch.Tensor, **options):
    """o, lse and selection of one process."""
    cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=sums)
    return openmsa.msa_attention(
        new["q"],
        index_q=new["index_q"],
        **cache.tensors(0),
        cu_seqlens_q=sums,
        return_lse=True,
        return_indices=True,
        **options,
        **SELECTION,
    )


def tensor_parallel(rank: int, world: int, folder: str) -> None:
    with group_of(rank, world, folder) as group:
        attention = TensorParallelAttention(group, **LAYER, num_init_blocks=1, softmax_scale=0.2)
        mine_kv = slice(rank * HEADS_KV // world, (rank + 1) * HEADS_KV // world)
        mine_q = slice(rank * HEADS_Q // world, (rank + 1) * HEADS_Q // world)
        for formats in FORMATS:
            whole = KVCache(num_heads_kv=HEADS_KV, index_dim=DIM, **formats, **CACHE)
            kv = KVCache(num_heads_kv=HEADS_KV // world, index_dim=0, **formats, **CACHE)
            shard = {"shard_count": world, "shard_rank": rank}
            index = KVCache(num_heads_kv=0, index_dim=DIM, **shard, **formats, **CACHE)
            for new, sums in steps(formats["dtype"], [whole, kv, index]):
                expected = whole_layer(whole, new, sums, num_init_blocks=1, softmax_scale=0.2)
                kv.append(0, new["k"][:, mine_kv], new["v"][:, mine_kv], cu_seqlens_q=sums)
                index.append(0, index_k=new["index_k"], cu_seqlens_q=sums)
                o, lse, indices = attention(
                    new["q"][:, mine_q],
                    new["index_q"],
                    kv=kv.tensors(0),
                    index=index.tensors(0),
                    cu_seqlens_q=sums,
                    return_lse=True,
                    return_indices=True,
                )
                assert torch.equal(indices, expected[2][mine_kv])
                assert torch.equal(o, expected[0][:, mine_q])
                assert torch.equal(lse, expected[1][:, mine_q])


def context_parallel(rank: int, world: int, folder: str) -> None:
    with group_of(rank, world, folder) as group:
        attention = ContextParallelAttention(group, **LAYER)
        mine = slice(rank * HEADS_Q // world, (rank + 1) * HEADS_Q // world)
        for formats in FORMATS:
            whole = KVCache(num_heads_kv=HEADS_KV, index_dim=DIM, **formats, **CACHE)
            shard = {"shard_count": world, "shard_rank": rank}
            cache = KVCache(num_heads_kv=HEADS_KV, index_dim=DIM, **shard, **formats, **CACHE)
            for new, sums in steps(formats["dtype"], [whole, cache]):
                expected = whole_layer(whole, new, sums)
                cache.append(0, new["k"], new["v"], new["index_k"], cu_seqlens_q=sums)
                o, lse, indices = attention(
                    new["q"],
                    new["index_q"],
                    cache=cache.tensors(0),
                    cu_seqlens_q=sums,
                    return_lse=True,
                    return_indices=True,
                )
                assert torch.equal(indices, expected[2])
                assert o.dtype == formats["dtype"]
                tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2}[o.dtype]
                torch.testing.assert_close(o, expected[0][:, mine], rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(lse, expected[1][:, mine], rtol=1e-5, atol=1e-5)
                again = attention(new["q"], new["index_q"], cache=cache.tensors(0), cu_seqlens_q=sums)
                assert torch.equal(again, o)


def divisions(total: int, world: int) -> list[list[int]]:
    """Tokens of each rank: evenly, all on the last one, more on each than on the one before with none on the first."""
    share = -(-total // world)
    evenly = [min(share, total - min(rank * share, total)) for rank in range(world)]
    rising = [rank * total // sum(range(world)) for rank in range(world)]
    rising[-1] += total - sum(rising)
    return [evenly, [0] * (world - 1) + [total], rising]


def chunks(rank: int, world: int, folder: str) -> None:
    with group_of(rank, world, folder) as group:
        together = ContextParallelAttention(group, **LAYER)
        mine = slice(rank * HEADS_Q // world, (rank + 1) * HEADS_Q // world)
        shard = {"shard_count": world, "shard_rank": rank}
        alone = 0  # results whose kv_blocks are in one shard, of several ranks' tokens
        for formats in FORMATS:
            whole = KVCache(num_heads_kv=HEADS_KV, index_dim=DIM, **formats, **CACHE)
            cache = KVCache(num_heads_kv=HEADS_KV, index_dim=DIM, **shard, **formats, **CACHE)
            for new, sums in steps(formats["dtype"], [whole, cache]):
                expected = whole_layer(whole, new, sums)
                for step, lengths in enumerate(divisions(int(sums[-1]), world)):
                    attention = ChunkAttention(group, lengths=lengths, **LAYER)
                    if step == 0:
                        keys = (attention.gather(attention.split(new[name])) for name in ("k", "v", "index_k"))
                        cache.append(0, *keys, cu_seqlens_q=sums)
                        context = {"cache": cache.tensors(0), "cu_seqlens_q": sums}
                        of_heads = together(new["q"], new["index_q"], return_lse=True, **context)
                    rows = {name: attention.split(new[name]) for name in ("q", "index_q")}
                    o, lse, indices = attention(**rows, **context, return_lse=True, return_indices=True)
                    all_o, all_lse = (attention.split(of_all) for of_all in expected[:2])
                    assert torch.equal(indices, expected[2][:, attention.tokens])
                    assert torch.equal(attention(**rows, **context), o)
                    assert torch.equal(o[:, mine], attention.split(of_heads[0])), "as without a division of queries"
                    assert torch.equal(lse[:, mine], attention.split(of_heads[1]))
                    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2}[o.dtype]
                    torch.testing.assert_close(o, all_o, rtol=tolerance, atol=tolerance)
                    torch.testing.assert_close(lse, all_lse, rtol=1e-5, atol=1e-5)
                    is_alone = in_one_shard(indices, world).repeat_interleave(HEADS_Q // HEADS_KV, 1)
                    assert torch.equal(o[is_alone], all_o[is_alone]) and torch.equal(lse[is_alone], all_lse[is_alone])
                    alone += int(is_alone.sum()) * (0 in lengths)
                    half = ChunkAttention(group, lengths=lengths, partial_dtype=new["q"].dtype, **LAYER)
                    torch.testing.assert_close(half(**rows, **context), o, rtol=tolerance, atol=tolerance)
        everywhere = torch.tensor(alone)
        dist.all_reduce(everywhere, group=group)
        assert everywhere > 0


def in_one_shard(topk_indices: torch.Tensor, count: int) -> torch.Tensor:
    """[total_q, num_heads_kv]: whether a selection [num_heads_kv, total_q, topk] is not empty and of one shard."""
    shards = torch.where(topk_indices < 0, topk_indices[..., :1], topk_indices) % count
    return ((shards == shards[..., :1]).all(-1) & (topk_indices[..., 0] >= 0)).T


def prompts(rank: int, world: int, folder: str) -> None:
    with group_of(rank, world, folder) as group:
        for seqlen in (1000, 1024, 130, 33, 1):  # pieces of one length; some short; some empty
            layer = new_tokens(seqlen, torch.float32, seqlen)
            expected = openmsa.msa_attention(**layer, **SELECTION, return_lse=True, return_indices=True)
            attention = PromptAttention(group, seqlen=seqlen, **SELECTION)
            mine = {name: attention.split(rows) for name, rows in layer.items()}
            o, lse, indices = attention(**mine, return_lse=True, return_indices=True)
            rows = attention.split(torch.arange(seqlen))
            assert torch.equal(indices, expected[2][:, rows])
            assert torch.equal(o, expected[0][rows])
            assert torch.equal(lse, expected[1][rows])
            everywhere = [None] * world
            dist.all_gather_object(everywhere, rows.tolist(), group=group)
            assert sorted(sum(everywhere, [])) == list(range(seqlen)), "every token on one rank"


def training(rank: int, world: int, folder: str) -> None:
    """Gradients of the sum of all ranks' losses are those of one process; some pieces are short or empty."""
    with group_of(rank, world, folder) as group:
        for seqlen, dtype in ((1000, torch.float32), (130, torch.float32), (33, torch.float32), (520, torch.bfloat16)):
            layer = {name: rows.requires_grad_() for name, rows in new_tokens(seqlen, dtype, seqlen).items()}
            of_o, of_lse = torch.randn(seqlen, HEADS_Q, DIM).to(dtype), torch.randn(seqlen, HEADS_Q)
            for tensor in (of_o, of_lse):
                dist.broadcast(tensor, 0, group=group)
            o, kl, lse = openmsa.torch.msa_attention(**layer, **SELECTION, return_kl=True, return_lse=True)
            ((o * of_o).sum() + (lse * of_lse).sum() + kl).backward()

            attention = PromptAttention(group, seqlen=seqlen, **SELECTION)
            mine = {name: attention.split(rows.detach()).requires_grad_() for name, rows in layer.items()}
            my_o, my_kl, my_lse = attention(**mine, return_kl=True, return_lse=True)
            weights = attention.split(of_o), attention.split(of_lse)
            ((my_o * weights[0]).sum() + (my_lse * weights[1]).sum() + my_kl).backward()

            assert torch.equal(my_o, attention.split(o)) and torch.equal(my_lse, attention.split(lse))
            total = my_kl.detach().clone()
            dist.all_reduce(total, group=group)
            torch.testing.assert_close(total, kl.detach(), rtol=1e-5, atol=1e-7)
            for name, rows in mine.items():
                expected = attention.split(layer[name].grad)
                scale = layer[name].grad.abs().max().item()
                tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
                torch.testing.assert_close(rows.grad, expected, rtol=tolerance, atol=tolerance * scale)

            with torch.no_grad():
                assert torch.equal(attention(**mine), my_o)
            alone = {name: rows.detach() for name, rows in mine.items()} | {"q": mine["q"]}
            (d_q,) = torch.autograd.grad((attention(**alone) * weights[0]).sum(), mine["q"])
            assert d_q.shape == mine["q"].shape


def disagreement(rank: int, world: int, folder: str) -> None:
    """The same error on all ranks, those that agree with rank 0 too."""
    with group_of(rank, world, folder) as group:
        topk = 7 if rank == world - 1 else 5
        message = f"topk: expected the same on all ranks, got 5 on rank 0 and 7 on rank {world - 1}"
        with pytest.raises(ValueError, match=message):
            TensorParallelAttention(group, **LAYER | {"topk": topk})
        kinds = [ContextParallelAttention, TensorParallelAttention]
        with pytest.raises(ValueError, match="kind of attention: expected the same on all ranks, got 'Context"):
            kinds[rank == world - 1](group, **LAYER)
        lengths = [3, 0, 1, 1] if rank == world - 1 else [1, 0, 1, 3]
        message = r"lengths: expected the same on all ranks, got \[1, 0, 1, 3\] on rank 0 and \[3, 0, 1, 1\] on rank 3"
        with pytest.raises(ValueError, match=message):
            ChunkAttention(group, lengths=lengths, **LAYER)
        openmsa.torch.distributed._ranks.__version__ = f"0.{rank}"
        with pytest.raises(
            ValueError, match=r"version of openmsa: expected the same on all ranks, got '0\.0' on rank 0"
        ):
            PromptAttention(group, seqlen=100)


def missing_rank(rank: int, world: int, folder: str, ends: bool) -> None:
    """The last rank makes no call: it ends, or does something else for longer than the others wait."""
    with group_of(rank, world, folder, seconds=3) as group:
        attention = TensorParallelAttention(group, **LAYER)
        if rank == world - 1:
            if not ends:
                time.sleep(7)
            return
        kv = KVCache(num_heads_kv=HEADS_KV // world, index_dim=0, **CACHE)
        index = KVCache(num_heads_kv=0, index_dim=DIM, shard_count=world, shard_rank=rank, **CACHE)
        caches = {"kv": kv.tensors(0), "index": index.tensors(0)}
        new = new_tokens(SLOTS, torch.float32, 1)
        sums = torch.arange(SLOTS + 1, dtype=torch.int32)
        message = f"rank {rank} of {world} did not get the candidates of the other ranks; one of them has failed"
        with pytest.raises(RuntimeError, match=message):
            attention(new["q"][:, : HEADS_Q // world], new["index_q"], **caches, cu_seqlens_q=sums)


def document(rank: int, world: int, folder: str) -> None:
    """The listings of docs/several-gpus.md, one after the other."""
    with group_of(rank, world, folder):
        names: dict = {}
        for listing in re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S):
            exec(listing, names)
        expected = openmsa.msa_attention(
            names["x"], names["keys"], names["values"], names["index_q"], names["index_k"], block_size=64, topk=4
        )
        assert torch.equal(names["o"], names["prompt"].split(expected))


def refusals(rank: int, world: int, folder: str) -> None:
    with group_of(rank, world, folder) as group:
        with pytest.raises(TypeError, match="group: expected a torch.distributed.ProcessGroup, got NoneType"):
            TensorParallelAttention(None, **LAYER)
        with pytest.raises(ValueError, match=f"num_heads_kv: expected a multiple of the {world} ranks, got 3"):
            TensorParallelAttention(group, **LAYER | {"num_heads_kv": 3, "num_heads_q": 12})
        with pytest.raises(ValueError, match=f"num_heads_q: expected a multiple of the {world} ranks, got 3"):
            ContextParallelAttention(group, **LAYER | {"num_heads_kv": 3, "num_heads_q": 3})
        with pytest.raises(ValueError, match="seqlen: expected at least 1, got 0"):
            PromptAttention(group, seqlen=0)
        with pytest.raises(TypeError, match="PromptAttention: unexpected argument page_size"):
            PromptAttention(group, seqlen=100, page_size=16)
        attention = ContextParallelAttention(group, **LAYER)
        new = new_tokens(SLOTS, torch.float32, 1)
        with pytest.raises(ValueError, match=r"q: expected \[total_q, 8, 64\], got \[3, 2, 64\]"):
            attention(new["q"][:, :2], new["index_q"], cache={})
        for lengths in ([3], [-1, 4], [0, 0]):
            with pytest.raises(ValueError, match=rf"lengths: expected .*, got \{lengths}"):
                ChunkAttention(group, lengths=lengths, **LAYER)
        with pytest.raises(TypeError, match="unexpected keyword argument 'page_size'"):
            ChunkAttention(group, lengths=[1, 2], page_size=16, **LAYER)
        chunk = ChunkAttention(group, lengths=[1, 2], **LAYER)
        for refused in (lambda: chunk.gather(new["k"]), lambda: chunk(new["q"], new["index_q"], cache={})):
            with pytest.raises(ValueError, match=f"(rows|q): expected the rank's {1 + rank} tokens, got 3"):
                refused()
        with pytest.raises(ValueError, match="rows: expected the chunk's 3 tokens, got 2"):
            chunk.split(new["q"][:2])
        of_prompt = PromptAttention(group, seqlen=100, block_size=32)
        with pytest.raises(ValueError, match="rows: expected the prompt's 100 tokens, got 99"):
            of_prompt.split(torch.zeros(99, 2))
        with pytest.raises(ValueError, match=f"q: expected the rank's {sum(of_prompt.lengths)} tokens, got 3"):
            of_prompt(**new)
