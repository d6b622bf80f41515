"""The golden layers, made with Hugging Face's MiniMax-M3: bf16 inputs, a float64 result."""

import os
from pathlib import Path

import numpy as np
import openmsa
import pytest
from safetensors import safe_open
from support import error

FOLDER = Path(os.environ.get("OPENMSA_GOLDEN_DIR", Path(__file__).parents[3] / "shared" / "golden"))
LAYERS = ("m3_layer_small", "m3_layer_d128")


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    torch = pytest.importorskip("torch", reason="safetensors reads bf16 through PyTorch")
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no golden file {path}")
    with safe_open(path, "pt") as file:
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
