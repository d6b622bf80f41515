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

    forward(x, cu_seqlens=None, kl_weights=None) -> (y, kl_loss)
      x           [total, hidden_size]: sequences packed one after the other
      cu_seqlens  [batch + 1] int32 prefix sums of their lengths, all of x; None: one sequence
      kl_weights  [total] how much each token counts in kl_loss, such as a mask of those that are no padding; None: all alike
      kl_loss     scalar that trains the index branch, to be added to the loss; None in eval mode

    The index branch sees x detached: kl_loss trains the index projections and their norms and nothing else.
    `layer.warmup = True` makes attention dense and kl_loss run over the whole history; switch it off after the first
    steps. It is no part of state_dict: a run that is resumed sets it again.

    rotary_dim    channels of every head that are rotated, from the first; None: min(head_dim, index_dim); 0: none
    kl_reduction  "mean" over tokens (weighted) and KV heads; or "sum", for micro-batches or ranks of unequal size: add
                  their sums up and divide by all their tokens, or weights, times num_heads_kv
    kl_in_backward  compute the KL loss in backward, with attention's gradient, where it costs a GPU little: the kl_loss that
                  forward returns is 0 and has its gradient, and the buffer `kl_value`, no part of state_dict, has its value
                  after backward; each backward writes it anew
    options       block_size, topk, num_init_blocks, num_local_blocks, softmax_scale, max_seqlen_k, num_threads and backend,
                  as `openmsa.torch.msa_attention` takes them
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
        kl_reduction: str = "mean",
        kl_in_backward: bool = False,
        **options,
    ):
        super().__init__()
        _check_options(options, kl_reduction)
        self.hidden_size, self.warmup, self.options, self.kl_reduction = hidden_size, warmup, options, kl_reduction
        self.rotary_dim, self.rope_theta = _rotary_dim(rotary_dim, min(head_dim, index_dim)), rope_theta
        self.q_proj, self.q_norm = _projection(hidden_size, num_heads_q, head_dim), RMSNorm(head_dim, eps)
        self.k_proj, self.k_norm = _projection(hidden_size, num_heads_kv, head_dim), RMSNorm(head_dim, eps)
        self.v_proj = _projection(hidden_size, num_heads_kv, head_dim)
        self.o_proj = nn.Linear(num_heads_q * head_dim, hidden_size, bias=False)
        self.indexer = Indexer(hidden_size, num_heads_kv, index_dim, eps)
        self.kl_value: torch.Tensor | None
        kl_value = torch.zeros((), dtype=torch.float32) if kl_in_backward else None
        self.register_buffer("kl_value", kl_value, persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.kl_value is not None:  # whatever the dtype of the weights
            self.kl_value = self.kl_value.float()
        return self

    def forward(self, x, cu_seqlens=None, kl_weights=None):
        from . import msa_attention

        _check_input(x, cu_seqlens, self.hidden_size)
        layer = self.project(x, _positions(x, cu_seqlens))
        options = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens} | self.options | {"warmup": self.warmup}
        if self.training:
            options |= {"return_kl": True, "kl_reduction": self.kl_reduction, "kl_weights": kl_weights}
            options["kl_out"] = self.kl_value
            o, kl_loss = msa_attention(**layer, **options)
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
        steps = torch.arange(0, self.rotary_dim, 2, device=x.device, dtype=torch.float32)
        frequencies = self.rope_theta ** (-steps / max(self.rotary_dim, 1))
        angles = (positions[:, None].float() * frequencies).repeat(1, 2)[:, None]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _check_options(options: dict, kl_reduction: str) -> None:
    from ._operators import ARGUMENTS, TENSORS

    for name in options:
        if name not in ARGUMENTS["msa_attention"] or name in TENSORS["msa_attention"]:
            raise TypeError(f"MSAAttention: unexpected argument {name}")
    if kl_reduction not in ("mean", "sum"):
        raise ValueError(f"kl_reduction: expected mean or sum, got {kl_reduction}")


def _rotary_dim(rotary_dim: int | None, most: int) -> int:
    if rotary_dim is None:
        return most
    if not 0 <= rotary_dim <= most or rotary_dim % 2:
        raise ValueError(f"rotary_dim: expected an even number from 0 to {most} channels, got {rotary_dim}")
    return rotary_dim


def _check_input(x, cu_seqlens, hidden_size: int) -> None:
    if x.ndim != 2 or x.shape[1] != hidden_size:
        raise ValueError(f"x: expected [total, hidden_size = {hidden_size}], got {list(x.shape)}")
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dtype != torch.int32:
        got = cu_seqlens.dtype if isinstance(cu_seqlens, torch.Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens: expected a tensor of int32, got {got}")
    if not torch.compiler.is_compiling() and not cu_seqlens.is_cuda and cu_seqlens[-1] != len(x):
        raise ValueError(f"cu_seqlens: expected prefix sums up to the {len(x)} tokens of x, got {int(cu_seqlens[-1])}")


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
    # Not unflatten, through which torch.compile does not trace where a default device is set.
    heads = norm(getattr(projections, f"{name}_proj")(x).view(len(x), -1, norm.weight.numel()))
    cos, sin = rotary
    if cos.shape[-1] == 0:
        return heads
    turned, rest = heads.split((cos.shape[-1], heads.shape[-1] - cos.shape[-1]), -1)
    first, second = turned.chunk(2, -1)
    return torch.cat((turned * cos + torch.cat((-second, first), -1) * sin, rest), -1)
