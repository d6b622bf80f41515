"""MiniMax-M3 of Hugging Face transformers (model type minimax_m3_vl) on openmsa, selection included.

    import openmsa.integrations.transformers
    openmsa.integrations.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="openmsa")

How the library asks, and what it gets:

- the mask function, once per forward, says how long the keys are: an int32 tensor [1, 1, 1, 2] with the prefix sums
  (0, length), or, where padding lies in front of a token that counts, a bool tensor [batch, 1, 1, length] of the keys that
  count. It has four dimensions because transformers hands on unchanged only what looks like a finished mask;
- the indexer returns its queries and keys in the place of block numbers;
- the attention function runs one layer of openmsa per row of the batch, on views of the cache: nothing is copied. Dense
  layers on a GPU, which openmsa's CUDA backend does not have, go to PyTorch's attention.

Behind padding to the right in a prompt no real token sees any of it, so it costs nothing. Padding in front of tokens (to
the left, or to the right once generation goes on behind it) is cut out of each row's keys, which copies them; positions
and kv_blocks then are those of the unpadded sequence.
"""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3

from .. import torch as openmsa_torch

NAME = "openmsa"


def register() -> None:
    """Makes attn_implementation="openmsa" known to transformers. May be called again; other implementations stay as they
    are."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _keys_that_count)
    if not hasattr(m3.MiniMaxM3VLIndexer.forward, "__wrapped__"):
        m3.MiniMaxM3VLIndexer.forward = _indexer_forward(m3.MiniMaxM3VLIndexer.forward)  # type: ignore[method-assign]


def _indexer_forward(original):
    @functools.wraps(original)
    def forward(self, hidden_states, position_embeddings, past_key_values, position_ids):
        if self.config._attn_implementation != NAME:
            return original(self, hidden_states, position_embeddings, past_key_values, position_ids)
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        index_q = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        index_k = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        cos, sin = (table[..., : self.head_dim] for table in position_embeddings)
        index_q, index_k = m3.apply_rotary_pos_emb(index_q, index_k, cos, sin)
        if past_key_values is not None:
            index_k = past_key_values.layers[self.layer_idx].update_index(index_k)
        return index_q, index_k

    return forward


def _keys_that_count(*, q_length, q_offset, mask_function=causal_mask_function, attention_mask=None, device=None, **_):
    if mask_function is not causal_mask_function:
        raise ValueError(
            "attention_mask: expected a causal one for attn_implementation='openmsa', got packed sequences"
        )
    length = q_offset + q_length
    if attention_mask is not None:
        counts = attention_mask[:, : int(length)].bool()
        if (counts[:, 1:] & ~counts[:, :-1]).any():
            return counts[:, None, None]
    end = torch.as_tensor(length, device=device).reshape(1).int()
    return torch.cat((torch.zeros_like(end), end)).view(1, 1, 1, 2)


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, block_indices=None, **keywords):
    """query [batch, heads, q_length, dim], key and value [batch, kv_heads, length, dim]; returns [batch, q_length, heads,
    dim]."""
    if not isinstance(module, m3.MiniMaxM3VLAttention):  # the vision tower sees everything
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **keywords)
    if dropout != 0:
        raise ValueError(f"attention_dropout: expected 0 for attn_implementation='openmsa', got {dropout}")
    if attention_mask is None or attention_mask.dtype not in (torch.int32, torch.bool):
        kind = None if attention_mask is None else attention_mask.dtype
        raise ValueError(
            f"attention_mask: expected [batch, length] or none for attn_implementation='openmsa', got {kind}"
        )
    layer = {"q": query, "k": key, "v": value}
    if block_indices is not None:
        layer |= dict(zip(("index_q", "index_k"), block_indices))
    row = _padded_row if attention_mask.dtype == torch.bool else _row
    rows = [
        row(
            {name: tensor[b].transpose(0, 1) for name, tensor in layer.items()},
            attention_mask[b % len(attention_mask)],
            _options(module, scaling),
        )
        for b in range(query.shape[0])
    ]
    return torch.stack(rows), None


def _options(module, scaling) -> dict:
    if module.indexer is None:
        return {"softmax_scale": scaling}
    return {
        "softmax_scale": scaling,
        "block_size": module.indexer.block_size,
        "topk": module.indexer.topk_blocks,
        "num_local_blocks": module.indexer.local_blocks,
    }


def _row(layer: dict, bounds, options: dict):
    """One row of the batch; bounds [1, 1, 2] are the prefix sums of its keys."""
    bounds = bounds.flatten()
    if "index_q" not in layer and layer["q"].is_cuda:
        return _dense_row_on_gpu(**layer, end=bounds[1], scale=options["softmax_scale"])
    bounds = {"cu_seqlens_k": bounds}
    if "index_q" not in layer:
        return openmsa_torch.dense_attention(**layer, **bounds, **options)
    index_k = layer["index_k"].squeeze(1)
    return openmsa_torch.msa_attention(**layer | {"index_k": index_k}, **bounds, **options)


def _dense_row_on_gpu(q, k, v, end, scale):
    """PyTorch's attention, since the CUDA backend has no dense one. A prompt needs no mask, so that flash attention takes
    it; otherwise queries lie behind a prefix, in a cache that may be longer than `end`."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    total_q, total_k = q.shape[2], k.shape[2]
    options = {"scale": scale, "enable_gqa": True}
    if total_q == total_k:
        o = scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    else:
        positions = end - total_q + torch.arange(total_q, device=q.device)
        mask = torch.arange(total_k, device=q.device) <= positions[:, None]
        o = scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
    return o[0].transpose(0, 1)


def _padded_row(layer: dict, counts, options: dict):
    """One row of which counts [1, 1, length] says what is padding. Padded queries get zeros."""
    counts = counts.flatten()
    queries = counts[-layer["q"].shape[0] :].nonzero().flatten()
    keys = counts.nonzero().flatten()
    real = {name: tensor[queries if name in ("q", "index_q") else keys] for name, tensor in layer.items()}
    bounds = torch.tensor([0, len(keys)], dtype=torch.int32, device=counts.device)
    result = layer["q"].new_zeros(layer["q"].shape)
    return result.index_copy(0, queries, _row(real, bounds, options))
