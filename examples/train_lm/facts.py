"""Facts such as ``# note: shard=49317``, hidden between lines and asked for again: the same line, whose value is the answer. A
fact begins with the line feed that ends the line before it. Keys are words of one token, so that a fact is looked up by what
one position holds, and an answer takes no chain of matches."""

from __future__ import annotations

import string

import numpy as np

VALUE_LENGTH = 5


def value(draw: np.random.Generator) -> str:
    return "".join(draw.choice(list(string.digits), VALUE_LENGTH))


def question(key: str) -> str:
    return f"\n# note: {key}="
