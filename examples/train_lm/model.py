"""The decoder: layers of dense and of sparse attention in the shape of MiniMax-M3, over tokens and patches."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import openmsa.torch
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, silu
from torch.utils.checkpoint import checkpoint

from .pages import PATCH_PIXELS
from .sequences import IGNORED, Sequence
from .settings import Arm, Shape

# Tokens whose logits exist at once.
LOGITS_PART = 16384
#: Is shown the tensors of a layer: watch(number of the layer, its tensors by name).
Watch = Callable[[int, dict[str, torch.Tensor]], None]


class Indexer(nn.Module):
    """The index branch: a query per KV head, one key."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.q_proj, self.q_norm = _projection(shape, shape.num_heads_kv, shape.index_dim), nn.RMSNorm(shape.index_dim)
        self.k_proj, self.k_norm = _projection(shape, 1, shape.index_dim), nn.RMSNorm(shape.index_dim)

    def forward(self, x, rotary):
        index_q = _rotated(self.q_norm(_heads(self.q_proj(x), self.q_norm)), rotary)
        index_k = _rotated(self.k_norm(_heads(self.k_proj(x), self.k_norm)), rotary)
        return index_q, index_k.squeeze(1)


class Attention(nn.Module):
    """forward(x, rotary) -> (y, kl_loss), None where there is no index branch.

    detaches   the index branch sees x detached, so that kl_loss trains it alone
    is_warmup  attention is dense, and kl_loss runs over the whole history
    kl_value   where gradients are wanted kl_loss is 0, and backward computes its gradient and puts its value here
    """

    def __init__(self, shape: Shape, is_sparse: bool, detaches: bool):
        super().__init__()
        self.q_proj, self.q_norm = _projection(shape, shape.num_heads_q, shape.head_dim), nn.RMSNorm(shape.head_dim)
        self.k_proj, self.k_norm = _projection(shape, shape.num_heads_kv, shape.head_dim), nn.RMSNorm(shape.head_dim)
        self.v_proj = _projection(shape, shape.num_heads_kv, shape.head_dim)
        self.o_proj = nn.Linear(shape.num_heads_q * shape.head_dim, shape.hidden_size, bias=False)
        self.indexer = Indexer(shape) if is_sparse else None
        self.register_buffer("kl_value", torch.zeros(()) if is_sparse else None, persistent=False)
        self.detaches, self.is_warmup = detaches, False
        self.options = {"block_size": shape.block_size, "topk": shape.topk}

    def forward(self, x, rotary, watch: Callable[[dict], None] | None = None):
        q = _rotated(self.q_norm(_heads(self.q_proj(x), self.q_norm)), rotary)
        k = _rotated(self.k_norm(_heads(self.k_proj(x), self.k_norm)), rotary)
        v = self.v_proj(x).view_as(k)
        layer = {"q": q.type_as(v), "k": k.type_as(v), "v": v}  # once, not in every operator under autocast
        if self.indexer is None:
            o, kl_loss = openmsa.torch.dense_attention(**layer), None
        else:
            index_q, index_k = self.indexer(x.detach() if self.detaches else x, rotary)
            layer |= {"index_q": index_q.type_as(v), "index_k": index_k.type_as(v)}
            options = self.options | {"warmup": self.is_warmup, "return_kl": True, "return_indices": True}
            if torch.is_grad_enabled():
                options["kl_out"] = self.kl_value
            o, kl_loss, indices = openmsa.torch.msa_attention(**layer, **options)
            if watch is not None:
                watch(layer | {"topk_indices": indices})
        return self.o_proj(o.flatten(1)), kl_loss


class Layer(nn.Module):
    def __init__(self, shape: Shape, is_sparse: bool, detaches: bool):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(shape.hidden_size), nn.RMSNorm(shape.hidden_size)
        self.attention = Attention(shape, is_sparse, detaches)
        self.gate_up_proj = nn.Linear(shape.hidden_size, 2 * shape.mlp_size, bias=False)
        self.down_proj = nn.Linear(shape.mlp_size, shape.hidden_size, bias=False)

    def forward(self, x, rotary, watch=None):
        y, kl_loss = self.attention(self.attention_norm(x), rotary, watch)
        x = x + y
        gate, up = self.gate_up_proj(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down_proj(silu(gate) * up), kl_loss


class Decoder(nn.Module):
    """forward(sequence) -> hidden [length, hidden_size] in front of the output projection, kl_loss [sparse layers], 0 where
    gradients are wanted: then kl_values() has it after backward."""

    def __init__(self, shape: Shape, arm: Arm):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.patch_proj = nn.Linear(PATCH_PIXELS, shape.hidden_size, bias=False)
        is_sparse = [arm.is_sparse and number >= shape.num_dense_layers for number in range(shape.num_layers)]
        self.layers = nn.ModuleList(Layer(shape, sparse, arm.detaches) for sparse in is_sparse)
        self.norm = nn.RMSNorm(shape.hidden_size)

    def initialize(self, seed: int) -> None:
        """Each matrix by its name, so that what arms have in common begins with the same numbers."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.shape.num_layers) ** 0.5 if is_residual else 0.02
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, sequence: Sequence, *, recomputes: bool = False, watch: Watch | None = None):
        """recomputes: layers keep their inputs alone for backward, and run again in it."""
        x = self.embed(sequence.ids)
        x = x.index_copy(0, sequence.places, self.patch_proj(sequence.patches.to(x.dtype) - 0.5).to(x.dtype))
        rotary = _rotary(self.shape, len(x), x.device)
        kl_losses = []
        for number, layer in enumerate(self.layers):
            if watch is not None:  # not what Module.compile made of it, which watches nothing
                x, kl_loss = layer.forward(x, rotary, lambda tensors, number=number: watch(number, tensors))
            elif recomputes:
                x, kl_loss = checkpoint(layer, x, rotary, use_reentrant=False)
            else:
                x, kl_loss = layer(x, rotary)
            kl_losses += [] if kl_loss is None else [kl_loss]
        return self.norm(x), torch.stack(kl_losses) if kl_losses else x.new_zeros(0)

    def token_losses(self, hidden, targets):
        """Cross entropy of every token in nats, 0 where a target is IGNORED; logits of a part at a time."""
        parts = zip(hidden.split(LOGITS_PART), targets.split(LOGITS_PART))
        return torch.cat([checkpoint(self._losses, *part, use_reentrant=False) for part in parts])

    def _losses(self, hidden, targets):
        return cross_entropy(self.logits(hidden).float(), targets, ignore_index=IGNORED, reduction="none")

    def logits(self, hidden):
        return linear(hidden, self.embed.weight)

    def kl_values(self) -> torch.Tensor:
        """kl_loss of the sparse layers, after backward."""
        values = [layer.attention.kl_value for layer in self.layers if layer.attention.kl_value is not None]
        return torch.stack(values) if values else self.norm.weight.new_zeros(0)

    def set_warmup(self, is_warmup: bool) -> None:
        for layer in self.layers:
            layer.attention.is_warmup = is_warmup


def _projection(shape: Shape, heads: int, dim: int) -> nn.Linear:
    return nn.Linear(shape.hidden_size, heads * dim, bias=False)


def _heads(x, norm: nn.RMSNorm):
    """[tokens, heads, dim]"""
    return x.view(len(x), -1, norm.weight.numel())


def _rotary(shape: Shape, length: int, device):
    """cos and sin [length, 1, rotary_dim]."""
    steps = torch.arange(0, shape.rotary_dim, 2, device=device, dtype=torch.float32)
    frequencies = shape.rope_theta ** (-steps / shape.rotary_dim)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos(), angles.sin()


def _rotated(x, rotary):
    """The first rotary_dim channels of every head rotated."""
    cos, sin = rotary
    turned, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), -1)
    first, second = turned.chunk(2, -1)
    return torch.cat((turned * cos + torch.cat((-second, first), -1) * sin, rest), -1)
