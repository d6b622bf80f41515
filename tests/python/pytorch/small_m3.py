"""Small MiniMax-M3 models of transformers with random weights: a decoder in which 150 tokens are five blocks of which two are
read, and the whole model with a vision tower."""

import copy

import openmsa.integrations.transformers as integration
import torch
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3

TEXT = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "index_n_heads": 2,
    "index_head_dim": 64,
    "index_block_size": 32,
    "index_topk_blocks": 2,
    "layer_types": ["full_attention", "minimax_m3_sparse"],
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "hidden_size": 64,
    "dense_intermediate_size": 128,
    "intermediate_size": 32,
    "shared_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "eos_token_id": None,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
VISION = {
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "patch_size": 4,
    "image_size": 32,
}
IMAGE_TOKEN = 510


def decoder(implementation="openmsa", *, experts=False, seed=0, **changes):
    """Dense MLPs by default: the experts' backward in transformers does not compile."""
    integration.register()
    torch.manual_seed(seed)
    config = m3.MiniMaxM3VLTextConfig(**TEXT | changes, mlp_layer_types=["dense", "sparse" if experts else "dense"])
    return m3.MiniMaxM3VLForCausalLM._from_config(config, attn_implementation=implementation).eval()


def whole_models(**changes):
    """The same weights with eager attention and with openmsa's."""
    integration.register()
    torch.manual_seed(0)
    text = {**TEXT, **changes, "mlp_layer_types": ["dense", "sparse"]}
    config = m3.MiniMaxM3VLConfig(
        text_config=text, vision_config=VISION, image_token_index=IMAGE_TOKEN, video_token_index=511,
        projector_hidden_size=64,
    )  # fmt: skip
    make = m3.MiniMaxM3SparseForConditionalGeneration._from_config
    eager = make(copy.deepcopy(config), attn_implementation="eager").eval()
    mine = make(copy.deepcopy(config), attn_implementation="openmsa").eval()
    mine.load_state_dict(eager.state_dict())
    return eager, mine


def tokens(batch, length, seed=0):
    return torch.randint(2, 500, (batch, length), generator=torch.Generator().manual_seed(seed))


def error(result, expected):
    return float((result - expected).detach().float().norm() / expected.detach().float().norm())
