"""What calls of several libraries have in common: arguments that change from one version to the next, a form of caches."""

from __future__ import annotations

import inspect


def call_with(function, arguments: dict):
    """Calls the function with those arguments that its version names."""
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in names})


def joined(k_cache, v_cache):
    """[pages, heads, tokens, 2 head_dim], without a third copy on the way."""
    pages, size, heads, dim = k_cache.shape
    result = k_cache.new_empty((pages, heads, size, 2 * dim))
    result[..., :dim].copy_(k_cache.transpose(1, 2))
    result[..., dim:].copy_(v_cache.transpose(1, 2))
    return result
