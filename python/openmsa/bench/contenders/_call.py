"""Calls of functions whose arguments change from one version of their library to the next."""

from __future__ import annotations

import inspect


def call_with(function, arguments: dict):
    """Calls the function with those arguments that its version names."""
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in names})
