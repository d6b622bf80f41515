"""The golden layers, made with Hugging Face's MiniMax-M3: bf16 inputs, a float64 result."""

from pathlib import Path

import numpy as np
import openmsa
import pytest
from safetensors import safe_open
from support import error

FOLDER = Path(__file__).parents[1] / "golden" / "data"
LAYERS = ("m3_layer_small", "m3_layer_d128")


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    torch = pytest.importorskip("torch", reason="safetensors reads bf16 through PyTorch")
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        golden = {key: file.get_tensor(key) for key in file.keys()}
    inputs = {key: golden[key].contiguous() for key in ("q", "k", "v", "index_q", "index_k")}
    inputs["index_k"] = inputs["index_k"].reshape(inputs["index_k"].shape[0], -1)
    topk = golden["topk"].shape[-1]
    o, lse, indices = openmsa.msa_attention(
        **inputs, block_size=int(metadata["block_size"]), topk=topk, return_lse=True, return_indices=True
    )
    assert o.dtype == torch.bfloat16
    assert error(o.float(), golden["o_f64"]) <= 5e-3
    assert (lse - golden["lse"].float()).abs().max() <= 1e-3
    expected = golden["topk"].permute(1, 0, 2).sort(-1).values
    np.testing.assert_array_equal(indices.sort(-1).values, expected)
