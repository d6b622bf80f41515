"""The gradient that reaches lse, by the backward of attention as it is.

    d_s[j] = p[j] (d_o . v[j] - D + d_lse),   D = d_o . o

is what backward computes with D - d_lse in the place of D. One more channel has that effect: o' = (o, -d_lse),
d_o' = (d_o, 1), v' = (v, 0), q' = (q, 0) and k' = (k, 0) leave p and d_o . v as they are. A pair of channels holds the
number and what rounding to the layer's dtype took from it, and a power of two is moved between the factors, so that a loss
scale of fp16 fits. The copies that this takes are made only where a loss uses lse."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

_CHANNELS = 8  # head_dim stays a multiple of 8
_MOST_CHANNELS = 256


def with_lse_channels(d_o, d_lse, tensors: dict, keywords: dict) -> tuple:
    """d_o, tensors and keywords of the backward operator, widened."""
    head_dim = tensors["q"].shape[-1]
    if head_dim + _CHANNELS > _MOST_CHANNELS:
        raise ValueError(f"lse: expected head_dim up to {_MOST_CHANNELS - _CHANNELS} for its gradient, got {head_dim}")
    dtype = d_o.dtype
    d_lse = d_lse.masked_fill(tensors["lse"].isneginf(), 0)  # nothing was attended to, nothing depends on a key
    most = d_lse.abs().amax().clamp(min=2.0**-60, max=2.0**60) if d_lse.numel() else d_lse.new_ones(())
    factor = torch.exp2((most.log2() / 2).round())
    number = -d_lse / factor
    rounded = number.to(dtype)
    rest = (number - rounded).to(dtype)
    ones = factor.to(dtype).expand_as(rounded)
    zeros = torch.zeros_like(rounded)
    widened = {name: pad(tensors[name], (0, _CHANNELS)) for name in ("q", "k", "v")}
    widened["o"] = torch.cat((tensors["o"], torch.stack((rounded, rest) + (zeros,) * (_CHANNELS - 2), -1)), -1)
    d_o = torch.cat((d_o, torch.stack((ones, ones) + (zeros,) * (_CHANNELS - 2), -1)), -1)
    scale = keywords.get("softmax_scale") or head_dim**-0.5
    return d_o, tensors | widened, keywords | {"softmax_scale": scale}


def without_lse_channels(gradients: dict) -> dict:
    return {name: gradient[..., :-_CHANNELS] for name, gradient in gradients.items()}
