"""A small MiniMax-M3 of random weights: M3's attention, little of anything else. Both engines load it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

HEAD_DIM = 128
VOCABULARY = 512
ARCHITECTURE = "MiniMaxM3SparseForCausalLM"


@dataclasses.dataclass(frozen=True)
class Model:
    """M3's shape where nothing else is said, but for hidden and mlp_size, which are thin, and the number of layers.

    num_heads_kv   also heads of the index branch
    num_dense      layers of dense attention, the first ones; M3 has 3 of 60
    num_experts    of every layer behind the dense ones; 0: MLPs
    num_mtp        layers that predict further tokens, sparse, with experts: 8 where num_experts is 0
    """

    num_heads_q: int = 64
    num_heads_kv: int = 4
    num_layers: int = 20
    num_dense: int = 1
    topk: int = 16
    hidden_size: int = 512
    mlp_size: int = 512
    num_experts: int = 0
    num_mtp: int = 0
    max_position: int = 1 << 20

    def bytes_per_token(self) -> int:
        """Of all caches in bf16."""
        num_sparse = self.num_layers - self.num_dense
        return 2 * HEAD_DIM * (2 * self.num_heads_kv * self.num_layers + num_sparse)


def configuration(model: Model) -> dict:
    """config.json. What an engine reads of the text model stands where vLLM looks for it and where SGLang does."""
    is_sparse = [int(layer >= model.num_dense) for layer in range(model.num_layers)]
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.mlp_size // 2,
        "dense_intermediate_size": model.mlp_size,
        "shared_intermediate_size": model.mlp_size // 2,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads_q,
        "num_key_value_heads": model.num_heads_kv,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": model.max_position,
        "rotary_dim": HEAD_DIM // 2,
        "partial_rotary_factor": 0.5,
        "rope_theta": 5000000,
        "num_local_experts": model.num_experts or 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_layer_freq": [flag if model.num_experts else 0 for flag in is_sparse],
        "num_mtp_modules": model.num_mtp,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-6,
        "hidden_act": "swigluoai",
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "use_gemma_norm": True,
        "use_routing_bias": True,
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 2.0,
        "tie_word_embeddings": False,
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_index_dim": HEAD_DIM,
            "sparse_num_index_heads": model.num_heads_kv,
            "sparse_topk_blocks": model.topk,
            "sparse_block_size": 128,
            "sparse_disable_index_value": is_sparse,
            "sparse_score_type": "max",
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_attention_freq": is_sparse,
        },
    }
    names = {"model_type": "minimax_m3_text", "architectures": [ARCHITECTURE]}
    outer = {"model_type": "minimax_m3_vl", "architectures": [ARCHITECTURE], "dtype": "bfloat16"}
    return text | outer | {"text_config": names | text, "vision_config": None}


def write_checkpoint(model: Model, folder: Path, seed: int = 0) -> Path:
    """Writes config.json and model.safetensors of bf16 weights into a new folder, and returns it. The norms of q and k
    are such that selections differ from query to query."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(configuration(model), indent=1) + "\n")
    save_file(dict(_weights(model, seed)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weights(model: Model, seed: int):
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def linear(name: str, rows: int, columns: int, scale: float = 1.0):
        return name + ".weight", (normal(rows, columns) * (scale / math.sqrt(columns))).bfloat16()

    def norm(name: str, size: int, mean: float = 0.0):
        return name + ".weight", (mean + 0.1 * normal(size)).bfloat16()

    def mlp(name: str, size: int, gate: str, up: str, down: str):
        yield linear(f"{name}.{gate}", size, hidden)
        yield linear(f"{name}.{up}", size, hidden)
        yield linear(f"{name}.{down}", hidden, size)

    def layer(name: str, is_sparse: bool, num_experts: int):
        attention = f"{name}.self_attn"
        yield norm(f"{name}.input_layernorm", hidden)
        yield norm(f"{name}.post_attention_layernorm", hidden)
        yield linear(f"{attention}.q_proj", q_size, hidden)
        yield linear(f"{attention}.k_proj", kv_size, hidden)
        yield linear(f"{attention}.v_proj", kv_size, hidden)
        yield linear(f"{attention}.o_proj", hidden, q_size, 2.0)
        yield norm(f"{attention}.q_norm", HEAD_DIM, 0.4)
        yield norm(f"{attention}.k_norm", HEAD_DIM, 0.4)
        if is_sparse:
            yield linear(f"{attention}.index_q_proj", kv_size, hidden)
            yield linear(f"{attention}.index_k_proj", HEAD_DIM, hidden)
            yield norm(f"{attention}.index_q_norm", HEAD_DIM)
            yield norm(f"{attention}.index_k_norm", HEAD_DIM)
        if not num_experts:
            yield from mlp(f"{name}.mlp", model.mlp_size, "gate_proj", "up_proj", "down_proj")
            return
        experts = f"{name}.block_sparse_moe"
        yield f"{experts}.gate.weight", linear("", num_experts, hidden)[1].float()
        yield f"{experts}.e_score_correction_bias", 0.1 * normal(num_experts)
        yield from mlp(f"{experts}.shared_experts", half, "gate_proj", "up_proj", "down_proj")
        for expert in range(num_experts):
            yield from mlp(f"{experts}.experts.{expert}", half, "w1", "w3", "w2")

    hidden, half = model.hidden_size, model.mlp_size // 2
    q_size, kv_size = model.num_heads_q * HEAD_DIM, model.num_heads_kv * HEAD_DIM
    yield "model.embed_tokens.weight", normal(VOCABULARY, hidden).bfloat16()
    for number in range(model.num_layers):
        name, is_sparse = f"model.layers.{number}", number >= model.num_dense
        yield from layer(name, is_sparse, model.num_experts if is_sparse else 0)
    yield norm("model.norm", hidden)
    yield linear("lm_head", VOCABULARY, hidden, 2.0)
    for number in range(model.num_mtp):
        name = f"model.mtp.layers.{number}"
        yield norm(f"{name}.enorm", hidden)
        yield norm(f"{name}.hnorm", hidden)
        yield linear(f"{name}.eh_proj", hidden, 2 * hidden)
        yield from layer(f"{name}.transformer_layer", True, model.num_experts or 8)
        yield norm(f"{name}.final_layernorm", hidden)
