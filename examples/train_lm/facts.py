"""Facts such as ``# note: KXQWP=49317``, hidden between lines and asked for again: the same line, whose value is the
answer. A fact begins with the line feed that ends the line before it."""

from __future__ import annotations

import string

import numpy as np

KEY_LENGTH = VALUE_LENGTH = 5


def key_and_value(draw: np.random.Generator) -> tuple[str, str]:
    pick = lambda alphabet, count: "".join(draw.choice(list(alphabet), count))  # noqa: E731
    return pick(string.ascii_uppercase, KEY_LENGTH), pick(string.digits, VALUE_LENGTH)


def question(key: str) -> str:
    return f"\n# note: {key}="


def answer(value: str) -> str:
    return value
