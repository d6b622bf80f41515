"""DistributedDataParallel and FSDP2 on two processes: the losses of one."""

import process_groups
import pytest
import ranks
import torch

pytest.importorskip("torch.distributed.fsdp", reason="PyTorch without distributed")


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_two_ranks_have_the_losses_of_one(device, kind, tmp_path):
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs")
    ranks.train(0, 1, "one", device, str(tmp_path))
    torch.multiprocessing.spawn(process_groups.run, (ranks.train, 2, kind, device, str(tmp_path)), nprocs=2)
    expected, losses = (torch.tensor(torch.load(tmp_path / f"{name}.pt")) for name in ("one", kind))
    assert (expected[1:] < expected[:-1]).all(), "it learns"
    torch.testing.assert_close(losses, expected, rtol=1e-5 if device == "cpu" else 2e-3, atol=0)
