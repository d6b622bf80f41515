"""Facts such as ``# note: shard amber``, hidden between lines and asked for again: the same line, whose last word is the answer.
A fact begins with the line feed that ends the line before it. Its key and its value are words of one token, one after the
other, so that a fact is looked up by one match: what followed this word before?"""

from __future__ import annotations

import numpy as np


def keys(words: list[str]) -> list[str]:
    return words[::2]


def value(words: list[str], draw: np.random.Generator) -> str:
    """No key: where it was told it would be a second match."""
    values = words[1::2]
    return f" {values[draw.integers(len(values))]}"


def question(key: str) -> str:
    return f"\n# note: {key}"
