"""openmsa.torch.distributed on two and four processes with gloo: the selections of one process, bit by bit."""

import group_steps
import pytest
from process_groups import on_ranks

pytest.importorskip("torch.distributed.fsdp", reason="PyTorch without distributed")


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "function",
    [
        group_steps.tensor_parallel,
        group_steps.context_parallel,
        group_steps.chunks,
        group_steps.prompts,
        group_steps.training,
    ],
)
def test_ranks_have_the_results_of_one(world, function, tmp_path):
    on_ranks(world, function, tmp_path)


def test_ranks_that_differ_are_told_so(tmp_path):
    on_ranks(4, group_steps.disagreement, tmp_path)


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "late"])
def test_a_rank_that_does_not_come(ends, tmp_path):
    on_ranks(2, group_steps.missing_rank, tmp_path, ends)


def test_refusals(tmp_path):
    on_ranks(2, group_steps.refusals, tmp_path)


def test_the_listings_of_the_document(tmp_path):
    if not group_steps.DOCUMENT.exists():
        pytest.skip("no documents beside the tests")
    on_ranks(2, group_steps.document, tmp_path)
