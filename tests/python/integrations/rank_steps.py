"""What the processes of test_index_ranks run: the plug-ins as ranks of tensor parallelism, on fakes of the engines. Each rank
compares what it gives with what the same rank gives with an undivided index branch, bit by bit."""

import copy
import logging
import os

import pytest
import sglang_fakes
import torch
import vllm_fakes
from process_groups import group_of
from sglang_fakes import ForwardMode
from test_sglang import Engine
from test_vllm import STEPS, bind, model_of, run
from vllm_steps import HEAD_DIM, Step

E4M3 = torch.float8_e4m3fn
ON, DIVIDED = {"openmsa": True}, {"openmsa": {"shard_index": True}}
HEADS_Q = 8


def of_rank(step: Step, rank: int, world: int) -> Step:
    """The step with the heads of a rank, as the engine's layers divide them: with more ranks than KV heads the ranks of a head
    follow each other."""
    share, heads_kv = step.heads_q // world, max(step.heads_kv // world, 1)
    first = rank * step.heads_kv // world
    mine = copy.copy(step)
    mine.heads_q, mine.heads_kv = share, heads_kv
    mine.query = step.query[:, rank * share * HEAD_DIM : (rank + 1) * share * HEAD_DIM].contiguous()
    mine.index_query = step.index_query[:, first * HEAD_DIM : (first + heads_kv) * HEAD_DIM].contiguous()
    mine.kv_cache = step.kv_cache[:, first : first + heads_kv]
    return mine


def vllm(rank: int, world: int, folder: str, heads_kv: int) -> None:
    with group_of(rank, world, folder) as group, pytest.MonkeyPatch.context() as patch:
        engine = vllm_fakes.install(patch)
        tp_group = engine.distributed.get_tp_group()
        tp_group.world_size, tp_group.device_group = world, group
        bf16 = {"dtype": torch.bfloat16, "index_dtype": torch.bfloat16}
        for formats in (bf16, bf16 | {"dtype": torch.float16}, bf16 | {"index_dtype": E4M3}):
            indexer = {"indexer_kv_dtype": "fp8"} if formats["index_dtype"] == E4M3 else {}
            heads = {"heads_q": HEADS_Q // world, "heads_kv": max(heads_kv // world, 1), "total_heads_kv": heads_kv}
            config = vllm_fakes.Config(**heads, **indexer, dtype=formats["dtype"])
            divided = model_of(config, additional_config=DIVIDED).layers[0]
            assert f", backend cpu, index branch divided among {world} ranks" in engine.lines[-1][1]
            whole = model_of(config, additional_config=ON).layers[0]
            assert engine.lines[-1][1].endswith("backend cpu")
            for name, shape in STEPS.items():
                step = of_rank(Step(**shape, heads_q=HEADS_Q, heads_kv=heads_kv, **formats), rank, world)
                outputs = []
                for layer, table in ((divided, None), (whole, step.block_table.clone())):
                    layer.topk_indices_buffer.fill_(-2)
                    bind(layer, step)
                    output = run(engine, layer, step, table)
                    outputs.append((output.clone(), layer.topk_indices_buffer[: step.num_tokens].clone()))
                (o, chosen), (expected, wanted) = outputs
                assert torch.equal(chosen, wanted), name
                assert torch.equal(o, expected), name


def vllm_reserves(rank: int, world: int, folder: str) -> None:
    """While vLLM measures memory, the workspace of the divided index branch is there; without caches nobody waits."""
    with group_of(rank, world, folder) as group, pytest.MonkeyPatch.context() as patch:
        engine = vllm_fakes.install(patch)
        tp_group = engine.distributed.get_tp_group()
        tp_group.world_size, tp_group.device_group = world, group
        layer = model_of(vllm_fakes.Config(total_heads_kv=4), additional_config=DIVIDED).layers[0]
        plans = layer.impl.calls.any_rows
        wanted = {
            plans.attention.workspace_bytes("sparse_attention"),
            plans.of_ranks.candidates.workspace_bytes("select_candidates"),
            plans.of_ranks.merge.workspace_bytes("merge_candidates"),
        }
        assert plans.workspace_bytes() == max(wanted) and not plans.can_fuse
        engine.context.attn_metadata = None
        if rank == 0:
            output = torch.full((4, 512), 7.0, dtype=torch.bfloat16)
            layer.run_attention(torch.zeros(4, 512), torch.zeros(4, 256), output)
            assert (output == 7).all()


def vllm_disagrees(rank: int, world: int, folder: str) -> None:
    with group_of(rank, world, folder) as group, pytest.MonkeyPatch.context() as patch:
        tp_group = vllm_fakes.install(patch).distributed.get_tp_group()
        tp_group.world_size, tp_group.device_group = world, group
        config = vllm_fakes.Config(topk=3 + rank, total_heads_kv=4)
        with pytest.raises(ValueError, match="topk: expected the same on all ranks, got 3 on rank 0 and 4 on rank 1"):
            model_of(config, additional_config=DIVIDED)
        with pytest.raises(ValueError, match="num_heads_kv: expected a multiple or a divisor of 2 ranks, got 3"):
            model_of(vllm_fakes.Config(total_heads_kv=3), additional_config=DIVIDED)


def vllm_leaves_it_whole(rank: int, world: int, folder: str) -> None:
    """What the library refuses of shards alone is served undivided, and said once."""
    with group_of(rank, world, folder) as group, pytest.MonkeyPatch.context() as patch:
        engine = vllm_fakes.install(patch)
        tp_group = engine.distributed.get_tp_group()
        tp_group.world_size, tp_group.device_group = world, group
        from openmsa.integrations import _index_ranks

        def refuse(**options):
            raise ValueError("shard_count: refused")

        patch.setattr(_index_ranks, "cached_plan", refuse)
        layer = model_of(vllm_fakes.Config(total_heads_kv=4), additional_config=DIVIDED).layers[0]
        assert layer.impl.calls.can_fuse and layer.impl.calls.ranks is None
        (info, text), (warning, reason) = engine.lines
        assert (info, warning) == ("info", "warning") and text.endswith("backend cpu")
        assert reason == "openmsa does not divide the index branch of 2 sparse layers among ranks: shard_count: refused"


def sglang(rank: int, world: int, folder: str, heads_kv: int) -> None:
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("openmsa.integrations.sglang")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    with group_of(rank, world, folder) as torch_group:
        sizes = sglang_fakes.Backend.sizes._replace(
            num_heads_q=HEADS_Q // world, num_index_heads=max(heads_kv // world, 1)
        )

        class Backend(sglang_fakes.Backend):
            group, total_index_heads = torch_group, heads_kv

        Backend.sizes = sizes
        for formats in ({}, {"index_dtype": E4M3}, {"page_size": 256}):
            os.environ["OPENMSA_SGLANG_SHARD_INDEX"] = "1"
            divided = Engine(backend_class=Backend, **formats)
            assert f"openmsa divides the index branch among {world} ranks" in messages
            os.environ["OPENMSA_SGLANG_SHARD_INDEX"] = "0"
            whole = Engine(backend_class=Backend, **formats)
            assert whole.backend._openmsa._ranks is None
            for engine in (divided, whole):
                for length in (610, 200):
                    engine.add(length)
            for seed, (mode, counts, padding) in enumerate(
                [
                    (ForwardMode.EXTEND, (400, 1), {"padded_tokens": 5}),
                    (ForwardMode.MIXED, (200, 129), {}),
                    (ForwardMode.DECODE, (1, 1), {"padded_rows": 3}),
                ]
            ):
                results = []
                for engine in (divided, whole):
                    torch.manual_seed(0)
                    (_, o), _ = step_of_rank(engine, mode, counts, padding, seed, rank, world, heads_kv)
                    results.append(o)
                assert torch.equal(*results) and results[0].isfinite().all()
        messages.clear()
        os.environ["OPENMSA_SGLANG_SHARD_INDEX"] = "1"
        assert Engine(backend_class=Backend, page_size=64).backend._openmsa._ranks is None
        reason = "page_size: expected block_size = 128 to divide the index branch over ranks, got 64"
        assert messages[0] == f"openmsa does not divide the index branch among ranks: {reason}"


def step_of_rank(engine, mode, counts, padding, seed, rank, world, heads_kv):
    """engine.step with queries, keys and values of the rank's heads; index keys are those of all ranks."""
    make = sglang_fakes.new_tokens

    def of_rank(count, sizes, dtype, seed):
        whole = sizes._replace(num_heads_q=HEADS_Q, num_index_heads=heads_kv)
        tensors = make(count, whole, dtype, seed)
        first = rank * heads_kv // world
        heads = slice(first, first + sizes.num_index_heads)
        mine = {name: tensors[name][:, heads] for name in ("k", "v", "index_q")}
        mine["q"] = tensors["q"][:, rank * sizes.num_heads_q : (rank + 1) * sizes.num_heads_q]
        return tensors | {name: tensor.contiguous() for name, tensor in mine.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sglang_fakes, "new_tokens", of_rank)
        return engine.step(mode, engine.requests, counts, seed=seed, **padding)
