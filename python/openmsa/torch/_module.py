"""An attention layer of MiniMax-M3 as a module, with the names of its checkpoints."""

from __future__ import annotations

import torch
from torch import nn


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) over the last dimension, in fp32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + self.weight.float())).type_as(x)


class Indexer(nn.Module):
    """Projections of the index branch: a query per KV head, one key."""

    def __init__(self, hidden_size: int, num_heads_kv: int, index_dim: int, eps: float):
        super().__init__()
        self.q_proj, self.q_norm = _projection(hidden_size, num_heads_kv, index_dim), RMSNorm(index_dim, eps)
        self.k_proj, self.k_norm = _projection(hidden_size, 1, index_dim), RMSNorm(index_dim, eps)


class MSAAttention(nn.Module):
    """Projections, norms, rotary embedding, both branches and the output projection.

    forward(x, cu_seqlens=None) -> (y, kl_loss)
      x           [total, hidden_size]: sequences packed one after the other
      cu_seqlens  [batch + 1] int32 prefix sums of their lengths; None: one sequence
      kl_loss     scalar that trains the index branch, to be added to the loss; None in eval mode

    The index branch sees x detached: kl_loss trains the index projections and their norms and nothing else.
    `layer.warmup = True` makes attention dense and kl_loss run over the whole history; switch it off after the first
    steps. `options` go to `openmsa.torch.msa_attention`: block_size, topk, num_init_blocks, backend and so on.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads_q: int,
        num_heads_kv: int,
        head_dim: int = 128,
        index_dim: int = 128,
        *,
        rotary_dim: int | None = None,
        rope_theta: float = 5e6,
        eps: float = 1e-6,
        warmup: bool = False,
        **options,
    ):
        super().__init__()
        self.warmup, self.options = warmup, options
        self.rotary_dim, self.rope_theta = rotary_dim or min(head_dim, index_dim), rope_theta
        self.q_proj, self.q_norm = _projection(hidden_size, num_heads_q, head_dim), RMSNorm(head_dim, eps)
        self.k_proj, self.k_norm = _projection(hidden_size, num_heads_kv, head_dim), RMSNorm(head_dim, eps)
        self.v_proj = _projection(hidden_size, num_heads_kv, head_dim)
        self.o_proj = nn.Linear(num_heads_q * head_dim, hidden_size, bias=False)
        self.indexer = Indexer(hidden_size, num_heads_kv, index_dim, eps)

    def forward(self, x, cu_seqlens=None):
        from . import msa_attention

        layer = self.project(x, _positions(x, cu_seqlens))
        options = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens} | self.options | {"warmup": self.warmup}
        if self.training:
            o, kl_loss = msa_attention(**layer, **options, return_kl=True)
        else:
            o, kl_loss = msa_attention(**layer, **options), None
        return self.o_proj(o.flatten(1)), kl_loss

    def project(self, x, positions) -> dict[str, torch.Tensor]:
        """q, k, v, index_q and index_k of the tokens x [total, hidden_size] at `positions` [total] of their sequences, for
        attention on a cache: `openmsa.torch.KVCache` takes the keys, `o_proj` the result."""
        rotary = self._rotary(x, positions)
        hidden = x.detach()
        q, k = _heads(self, "q", x, rotary), _heads(self, "k", x, rotary)
        index_q, index_k = _heads(self.indexer, "q", hidden, rotary), _heads(self.indexer, "k", hidden, rotary)
        return {"q": q, "k": k, "v": self.v_proj(x).view_as(k), "index_q": index_q, "index_k": index_k.squeeze(1)}

    def _rotary(self, x, positions):
        """cos and sin [total, 1, rotary_dim]."""
        frequencies = self.rope_theta ** (-torch.arange(0, self.rotary_dim, 2, device=x.device) / self.rotary_dim)
        angles = (positions[:, None].float() * frequencies).repeat(1, 2)[:, None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _positions(x, cu_seqlens):
    """Each token's position in its own sequence."""
    positions = torch.arange(x.shape[0], device=x.device)
    if cu_seqlens is None:
        return positions
    return positions - cu_seqlens[torch.searchsorted(cu_seqlens, positions, right=True) - 1]


def _projection(hidden_size: int, heads: int, dim: int) -> nn.Linear:
    return nn.Linear(hidden_size, heads * dim, bias=False)


def _heads(projections, name: str, x, rotary):
    """The projection `name` of x, normalised per head and rotated: [total, heads, dim]."""
    norm = getattr(projections, f"{name}_norm")
    heads = norm(getattr(projections, f"{name}_proj")(x).unflatten(-1, (-1, norm.weight.numel())))
    cos, sin = rotary
    turned, rest = heads.split((cos.shape[-1], heads.shape[-1] - cos.shape[-1]), -1)
    first, second = turned.chunk(2, -1)
    return torch.cat((turned * cos + torch.cat((-second, first), -1) * sin, rest), -1)
