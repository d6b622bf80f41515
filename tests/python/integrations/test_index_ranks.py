"""The index branch of the plug-ins divided among ranks of tensor parallelism: processes with gloo, on fakes of the engines and
the CPU backend. Two ranks with two KV heads each, four with one, four of which two share a head."""

import logging

import pytest
import rank_steps
import vllm_fakes
from process_groups import on_ranks
from sglang_fakes import Engine
from test_vllm import model_of, vllm  # noqa: F401

pytest.importorskip("torch.distributed.fsdp", reason="PyTorch without distributed")

RANKS_AND_HEADS = [(2, 4), (4, 4), (4, 2)]


@pytest.mark.parametrize("function", [rank_steps.vllm, rank_steps.sglang])
@pytest.mark.parametrize(("world", "heads_kv"), RANKS_AND_HEADS)
def test_ranks_give_what_they_give_undivided(function, world, heads_kv, tmp_path):
    on_ranks(world, function, tmp_path, heads_kv)


@pytest.mark.parametrize(
    "function", [rank_steps.vllm_reserves, rank_steps.vllm_disagrees, rank_steps.vllm_leaves_it_whole]
)
def test_ranks_of_vllm(function, tmp_path):
    on_ranks(2, function, tmp_path)


def test_one_rank_has_nothing_to_divide(vllm, monkeypatch, caplog):  # noqa: F811
    layer = model_of(additional_config=rank_steps.DIVIDED).layers[0]
    assert layer.impl.calls.ranks is None and layer.impl.calls.can_fuse
    said = "openmsa: expected several ranks of tensor parallelism to divide the index branch, got one"
    assert vllm.lines[0] == ("warning", said)
    monkeypatch.setenv("OPENMSA_SGLANG_SHARD_INDEX", "1")
    with caplog.at_level(logging.WARNING):
        assert Engine().backend._openmsa._ranks is None
    assert caplog.messages == ["OPENMSA_SGLANG_SHARD_INDEX: expected several ranks of tensor parallelism, got one"]


@pytest.mark.parametrize("value", [{"shards": True}, {"shard_index": 1}, "yes", {"shard_index": "true"}])
def test_odd_options_are_refused(vllm, value):  # noqa: F811
    with pytest.raises(ValueError, match=r"additional_config\['openmsa'\].*: expected true"):
        model_of(additional_config={"openmsa": value})


@pytest.mark.parametrize(("value", "is_on"), [({}, True), ({"shard_index": False}, True)])
def test_options_without_shards(vllm, value, is_on):  # noqa: F811
    model = model_of(additional_config={"openmsa": value})
    assert (type(model.layers[0].impl) is not vllm_fakes.MiniMaxM3SparseTritonImpl) == is_on
    assert vllm.lines[0][1].endswith("backend cpu")
