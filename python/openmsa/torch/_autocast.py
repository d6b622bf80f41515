"""Mixed precision: under torch.autocast the operators take one dtype for all tensors of a layer, as PyTorch's own attention
does, whatever mixture the projections, norms and rotary embeddings in front of them leave."""

from __future__ import annotations

import torch

from .._namespace import NAMESPACE

# What is cast. Lengths, lse, scales and caches stay as they are; so do backward operators, which get what forward had.
_LAYER = ("q", "k", "v", "index_q", "index_k")
_CACHE_OF = {"q": "k_cache", "k": "k_cache", "v": "v_cache", "index_q": "index_k_cache", "index_k": "index_k_cache"}
_LAYER_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register_autocast(operation: str, names: tuple[str, ...]) -> None:
    """Adds the rule for the operator `operation`, whose arguments have these names."""
    if operation.endswith("_backward"):
        return
    for device in ("cpu", "cuda"):
        _library.impl(operation, _kernel(operation, names, device), f"Autocast{device.upper()}")


def _kernel(operation: str, names: tuple[str, ...], device: str):
    operator = getattr(getattr(torch.ops, NAMESPACE), operation).default

    def kernel(*args, **keywords):
        arguments = dict(zip(names, args)) | keywords
        with torch.autocast(device, enabled=False):
            return operator(**_cast(arguments, device))

    return kernel


def _cast(arguments: dict, device: str) -> dict:
    result = dict(arguments)
    for name in _LAYER:
        tensor = arguments.get(name)
        if isinstance(tensor, torch.Tensor) and tensor.device.type == device and tensor.dtype in _LAYER_DTYPES:
            result[name] = tensor.to(_dtype(arguments.get(_CACHE_OF[name]), device))
    return result


def _dtype(cache, device: str) -> torch.dtype:
    """The dtype of the cache that is read or written, since a cache is never cast; else autocast's."""
    return cache.dtype if cache is not None and cache.dtype in _LAYER_DTYPES else torch.get_autocast_dtype(device)
