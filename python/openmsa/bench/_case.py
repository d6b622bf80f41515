"""What is measured: a layer, a section and a size, and its random inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

SECTIONS = {
    "prefill": "a whole prompt, forward",
    "decode": "one new token per sequence, on a cache",
    "training": "one sequence, forward, loss of the index branch and backward",
}


# Of a decode step on a GPU: layers that run one behind another, at most, and their keys and values together.
MOST_LAYERS = 8
MOST_LAYER_BYTES = 12 << 30


@dataclasses.dataclass(frozen=True)
class Layer:
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    block_size: int
    topk: int


@dataclasses.dataclass(frozen=True)
class Case:
    section: str
    context: int
    batch: int
    layer: Layer
    device: str

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.section == "decode" else ""
        return f"{self.section}, {self.context} tokens{batch}"

    def num_layers(self) -> int:
        """How many are measured as one: a step of a model has many, and a kernel's start hides behind the one before."""
        if self.section != "decode" or self.device != "cuda":
            return 1
        layer_bytes = 4 * self.batch * self.context * self.layer.num_heads_kv * self.layer.head_dim
        return max(1, min(MOST_LAYERS, MOST_LAYER_BYTES // layer_bytes))

    def inputs(self, number: int = 0) -> dict[str, Any]:
        """Of one layer: q [tokens, heads, dim], index_q, and keys [total_k, ...] of a prompt or [batch, context, ...] of
        a cache."""
        layer = self.layer
        is_decode = self.section == "decode"
        tokens = self.batch if is_decode else self.context
        keys = (self.batch, self.context) if is_decode else (self.context,)
        shapes: dict[str, tuple[int, ...]] = {
            "q": (tokens, layer.num_heads_q, layer.head_dim),
            "k": (*keys, layer.num_heads_kv, layer.head_dim),
            "v": (*keys, layer.num_heads_kv, layer.head_dim),
            "index_q": (tokens, layer.num_heads_kv, layer.head_dim),
            "index_k": (*keys, layer.head_dim),
        }
        if self.device == "cuda":
            import torch

            torch.manual_seed(number)
            return {n: torch.randn(shape, dtype=torch.bfloat16, device="cuda") for n, shape in shapes.items()}
        rng = np.random.default_rng(number)
        return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}

    def pages(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The keys as a paged cache of openmsa: views, a page per kv_block, in order."""
        size = self.layer.block_size
        num_pages = self.batch * self.context // size
        caches = {
            f"{name}_cache": inputs[name].reshape(
                num_pages, size, *inputs[name].shape[len(inputs[name].shape) - rest :]
            )
            for name, rest in (("k", 2), ("v", 2), ("index_k", 1))
        }
        table = np.arange(num_pages, dtype=np.int32).reshape(self.batch, -1)
        caches |= {"block_table": table, "seqlens_k": np.full(self.batch, self.context, np.int32)}
        caches["cu_seqlens_q"] = np.arange(self.batch + 1, dtype=np.int32) * (len(inputs["q"]) // self.batch)
        if self.device == "cuda":
            import torch

            caches = {n: torch.from_numpy(c).cuda() if isinstance(c, np.ndarray) else c for n, c in caches.items()}
        return caches
