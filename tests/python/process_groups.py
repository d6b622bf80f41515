"""Processes that are the ranks of a group, for tests: `on_ranks` starts them, and each makes its `group_of`."""

import contextlib
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist


def on_ranks(world: int, function, tmp_path, *arguments) -> None:
    """function(rank, world, folder, ...) in a process per rank; what one of them raises is raised here."""
    torch.multiprocessing.spawn(run, (function, world, str(tmp_path), *arguments), nprocs=world)


def run(rank: int, function, *arguments) -> None:
    """function(rank, ...), then the end of the process: once in some runs a thread of PyTorch's outlives the objects that
    wait for it, and the process ends with SIGABRT after all that is tested here."""
    function(rank, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextlib.contextmanager
def group_of(rank: int, world: int, folder: str, seconds: float = 60):
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=seconds)
    )
    torch.set_num_threads(1)
    yield dist.group.WORLD
    dist.destroy_process_group()
