"""The operators of shards on every device, ranks one after the other; captured in a graph; NCCL with one rank."""

import openmsa
import pytest
import torch
from shard_ranks import FP8, SELECTION, Caches, attended, group_of_one, selected

STEPS = [[300, 5, 0], [1, 1, 0], [3, 60, 129], [1, 1, 1], [2000, 1, 1]]


def whole(caches, new, sums):
    """o, lse and selection of one process."""
    return openmsa.msa_attention(
        new["q"],
        index_q=new["index_q"],
        **caches.whole.tensors(0),
        cu_seqlens_q=sums,
        return_lse=True,
        return_indices=True,
        **SELECTION,
    )


@pytest.mark.parametrize("formats", [{}, FP8, FP8 | {"token_scales": True}], ids=["as_is", "fp8", "fp8_with_scales"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_ranks_select_and_attend_as_one(device, count, formats):
    dtype = torch.float32 if device == "cpu" and not formats else torch.bfloat16
    caches = Caches(count, device, dtype, **formats)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    for step, counts in enumerate(STEPS):
        new, sums = caches.step(counts, step)
        o, lse, indices = whole(caches, new, sums)
        assert torch.equal(selected(caches, new, sums), indices)
        mine, my_lse = attended(caches, new, sums, indices)
        torch.testing.assert_close(mine, o, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(my_lse, lse, rtol=1e-3 if device == "cuda" else 1e-5, atol=1e-3)


def test_a_step_in_a_graph(device):
    """Selection, attention and merges of three ranks, captured once and replayed on longer requests."""
    if device == "cpu":
        pytest.skip("graphs are of the GPU")
    caches = Caches(3, device, torch.bfloat16)
    caches.step([1000, 300, 700], 1)
    inputs, sums = caches.step([1, 1, 1], 2)

    def step():
        indices = selected(caches, inputs, sums)
        return indices, *attended(caches, inputs, sums, indices)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # allocates
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3, 6):
        new, _ = caches.step([1, 1, 1], seed)
        for name, tensor in new.items():
            inputs[name].copy_(tensor)
        graph.replay()
        for mine, expected in zip(captured, step(), strict=True):
            assert torch.equal(mine, expected)
        assert torch.equal(captured[0], whole(caches, inputs, sums)[2])


def test_a_group_of_one_rank_with_nccl(device, tmp_path):
    if device == "cpu" or not torch.distributed.is_nccl_available():
        pytest.skip("NCCL is for GPUs")
    torch.multiprocessing.spawn(group_of_one, (str(tmp_path),), nprocs=1)
