"""The little that the benchmark needs of an array library: NumPy on the CPU, PyTorch on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

# Numbers drawn at once.
_PART = 1 << 28


class NumPy:
    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)

    def normal(self, *shape: int, dtype: str = "float32") -> Array:
        return self._rng.standard_normal(shape, np.float32).astype(numpy_dtype(dtype))

    def full(self, shape: tuple[int, ...], value, dtype: str) -> Array:
        return np.full(shape, value, numpy_dtype(dtype))

    def on_device(self, array: np.ndarray) -> Array:
        return array


class Torch:
    def __init__(self, seed: int, device: str = "cuda"):
        import torch

        self._torch, self._device = torch, device
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def normal(self, *shape: int, dtype: str = "float32") -> Array:
        result = self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=self._device)
        for part in result.view(-1).split(_PART):
            part.normal_(generator=self._generator)
        return result

    def full(self, shape: tuple[int, ...], value, dtype: str) -> Array:
        return self._torch.full(shape, value, dtype=getattr(self._torch, dtype), device=self._device)

    def on_device(self, array: np.ndarray) -> Array:
        return self._torch.from_numpy(array).to(self._device)


def source_of(device: str, seed: int) -> NumPy | Torch:
    return Torch(seed) if device == "cuda" else NumPy(seed)


def numpy_dtype(name: str):
    if name in ("bfloat16", "float8_e4m3fn"):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def cast(x: Array, dtype: str) -> Array:
    if isinstance(x, np.ndarray):
        return x.astype(numpy_dtype(dtype))
    import torch

    return x.to(getattr(torch, dtype))


def take(x: Array, rows: np.ndarray) -> Array:
    """x[rows], rows being on the host."""
    if isinstance(x, np.ndarray):
        return x[rows]
    import torch

    return x[torch.from_numpy(rows).to(x.device)]


def float64(x: Array) -> Array:
    return cast(x, "float64")


def host(x: Array) -> np.ndarray:
    """x in float64 as an array of NumPy."""
    x = float64(x)
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


def library(x: Array):
    """numpy or torch: their exp, log, amax and abs have the same signatures."""
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch


def as_torch(x: Array):
    """x as a tensor of PyTorch on the same memory."""
    import torch

    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def to_fp8(x: Array) -> tuple[Array, Array]:
    """Rows of x in e4m3 and the scale of each, its largest magnitude over 448. Rounded as the library rounds index
    queries, x * (448 / largest): x / scale is another number where x lies between two of e4m3."""
    x = cast(x, "float32")
    xp = library(x)
    largest = xp.amax(xp.abs(x), -1)[..., None]
    factor = xp.full_like(largest, 448) / largest  # PyTorch takes 448 / largest for 448 * (1 / largest)
    return cast(x * factor, "float8_e4m3fn"), largest / 448
