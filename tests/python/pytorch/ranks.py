"""A small model that trains on one or several processes: what test_distributed starts."""

import contextlib
from pathlib import Path

import torch
import torch.distributed as dist
from openmsa.torch import MSAAttention
from torch import nn

HIDDEN, LENGTH, SEQUENCES, STEPS = 64, 150, 4, 3
SHAPE = {
    "cpu": {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 16, "index_dim": 16, "block_size": 16, "topk": 3},
    "cuda": {"num_heads_q": 32, "num_heads_kv": 2, "head_dim": 128, "index_dim": 128, "block_size": 64, "topk": 2},
}
LEARNING_RATE = {"cpu": 0.5, "cuda": 0.05}


class Model(nn.Module):
    def __init__(self, device: str):
        super().__init__()
        self.layers = nn.ModuleList(MSAAttention(HIDDEN, **SHAPE[device]) for _ in range(2))

    def forward(self, x):
        kl_losses = []
        for layer in self.layers:
            y, kl_loss = layer(x)
            x = x + y
            kl_losses.append(kl_loss)
        return x, sum(kl_losses)


def train(rank: int, world: int, kind: str, device: str, folder: str) -> None:
    """Each rank has its share of the sequences; rank 0 writes the losses of all of them, by step."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    if world > 1:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, f"file://{folder}/store-{kind}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = _wrapped(Model(device).to(device), kind, device, world)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE[device])
    x = torch.randn(SEQUENCES, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(1)).to(device)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        for sequence in x.chunk(world)[rank]:
            with torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext():
                y, kl_loss = model(sequence)
            loss = loss + ((y.float() - 1).square().mean() + kl_loss) / (SEQUENCES // world)
        loss.backward()
        optimizer.step()
        losses.append(_mean(loss.detach(), world).item())
    if rank == 0:
        torch.save(losses, Path(folder) / f"{kind}.pt")
    if world > 1:
        dist.destroy_process_group()


def _wrapped(model: Model, kind: str, device: str, world: int) -> nn.Module:
    if kind == "DDP":
        return nn.parallel.DistributedDataParallel(model)
    if kind == "FSDP2":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh(device, (world,))  # else that of a GPU, where there is one
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def _mean(loss, world: int):
    if world > 1:
        dist.all_reduce(loss)
    return loss / world
