"""The Python examples of README.md and docs/python.md run as they are printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def examples():
    for document in ("README.md", "docs/python.md"):
        path = ROOT / document
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S) if path.exists() else []
        yield from (pytest.param(block, id=f"{document}-{number}") for number, block in enumerate(blocks))


@pytest.mark.parametrize("example", list(examples()))
def test_example(example):
    if "torch" in example:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    if "cuda" in example and not __import__("torch").cuda.is_available():
        pytest.skip("the example needs a GPU")
    if "transformers" in example:
        pytest.importorskip("transformers", minversion="5.17", reason="transformers 5.17 is not installed")
    exec(compile(example, "example", "exec"), {"__name__": "example"})
