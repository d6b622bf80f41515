"""MiniMax-M3 of Hugging Face transformers (model type minimax_m3_vl) on openmsa, selection included.

    import openmsa.integrations.transformers
    openmsa.integrations.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="openmsa")

How the library asks, and what it gets:

- the mask function, once per forward, says which keys count: see _masks;
- the indexer returns its queries and keys in the place of block numbers;
- the attention function runs one layer of openmsa per row of the batch, on views of the cache: nothing is copied.

Rows are read as sequences of the library (_rows): documents of a packed row, which position_ids or cu_seq_lens_q and
cu_seq_lens_k tell, each see themselves alone; so do the tokens behind padding to the left. Behind padding to the right in
a prompt no real token sees any of it, so it costs nothing. Padding between keys (to the right, once generation goes on
behind it) is cut out, which copies them. Positions and kv_blocks are those of each sequence for itself.

The index branch learns where the model is given kl_weights: see kl_loss.
"""

from __future__ import annotations

import functools
import re

import torch

try:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, causal_mask_function
    from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as m3
except ImportError as error:
    raise ImportError(f"openmsa.integrations.transformers: expected transformers 5.17 to 5.24 ({error})") from error

from .. import torch as openmsa_torch
from .._openmsa import Error
from . import _masks
from ._rows import LastRows, Row

NAME = "openmsa"
#: Versions of transformers that the tests pass with.
OLDEST, NEWEST = (5, 17), (5, 24)

_EXPECTED_LAYERS = "attn_implementation='openmsa': expected causal layers of MiniMax-M3 (minimax_m3_vl)"
_rows_of = LastRows()


def register() -> None:
    """Makes attn_implementation="openmsa" known to transformers. May be called again; other implementations stay as they
    are. Raises openmsa.Error for versions of transformers other than 5.17 to 5.24."""
    import transformers  # here, since the package puts another module in its own place while it is imported

    version = re.match(r"(\d+)\.(\d+)", transformers.__version__)
    if version is None or not OLDEST <= tuple(map(int, version.groups())) <= NEWEST:
        expected = " to ".join(".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise Error(f"transformers: expected version {expected}, got {transformers.__version__}")
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _keys_that_count)
    if not hasattr(m3.MiniMaxM3VLIndexer.forward, "is_openmsa"):
        m3.MiniMaxM3VLIndexer.forward = _indexer_forward(m3.MiniMaxM3VLIndexer.forward)  # type: ignore[method-assign]


def _indexer_forward(original):
    @functools.wraps(original)
    def forward(self, hidden_states, position_embeddings, cache, position_ids):
        if self.config._attn_implementation != NAME:
            return original(self, hidden_states, position_embeddings, cache, position_ids)
        hidden_states = hidden_states.detach()  # kl_loss trains the index branch alone
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        index_q = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        index_k = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        cos, sin = (table[..., : self.head_dim] for table in position_embeddings)
        index_q, index_k = m3.apply_rotary_pos_emb(index_q, index_k, cos, sin)
        if cache is not None:
            index_k = _layer_of(cache, self.layer_idx).update_index(index_k)
        return index_q, index_k

    forward.is_openmsa = True  # type: ignore[attr-defined]
    return forward


def _layer_of(cache, layer_idx: int):
    layers = getattr(cache, "layers", None)
    if layers is None or not hasattr(layers[layer_idx], "update_index"):
        raise ValueError(
            "past_key_values: expected a cache that keeps index keys, as DynamicCache(config=model.config) does, got "
            f"{type(cache if layers is None else layers[layer_idx]).__name__}"
        )
    return layers[layer_idx]


def _keys_that_count(
    *, q_length, kv_length, q_offset, mask_function=causal_mask_function, attention_mask=None, device=None, **_
):
    # Packed documents come as a causal mask and something more, or, traced, whatever comes: they are read in _attend.
    if mask_function is bidirectional_mask_function:
        raise ValueError(f"{_EXPECTED_LAYERS}, got a bidirectional mask")
    return _masks.keys_that_count(attention_mask, q_offset, q_length, kv_length, device)


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, block_indices=None, **keywords):
    """query [batch, heads, q_length, dim], key and value [batch, kv_heads, length, dim]; returns [batch, q_length, heads,
    dim]."""
    if isinstance(module, m3.MiniMaxM3VLVisionAttention):  # sees everything
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **keywords)
    _check(module, attention_mask, dropout)
    layer = {"q": query, "k": key, "v": value}
    if block_indices is not None:
        layer |= dict(zip(("index_q", "index_k"), block_indices))
    rows = _rows_of(attention_mask, keywords.get("position_ids"), _given(keywords), query.shape[0], query.shape[2])
    weights = keywords.get("kl_weights")
    results = [
        _attend_row(
            {name: tensor[b].transpose(0, 1) for name, tensor in layer.items()},
            row,
            _options(module, scaling),
            None if weights is None or block_indices is None else weights[b],
        )
        for b, row in enumerate(rows)
    ]
    if weights is not None and block_indices is not None:
        total = weights.float().sum() * key.shape[1]
        kl = sum(kl for _, kl in results) / total.where(total != 0, 1)
        if not _is_backward():
            module.kl_loss = kl
    return torch.stack([o for o, _ in results]), None


def kl_loss(model: torch.nn.Module) -> torch.Tensor:
    """What trains the index branches, the sum over sparse layers for the last forward, which was given kl_weights:

        output = model(**inputs, kl_weights=inputs["attention_mask"])
        loss = output.loss + kl_loss(model)

    kl_weights [batch, length] say how much each token counts. Nothing but the index branches gets a gradient from it.
    """
    layers = [x for x in model.modules() if isinstance(x, m3.MiniMaxM3VLAttention) and x.indexer is not None]
    losses = [vars(layer).pop("kl_loss", None) for layer in layers]
    if not losses or any(loss is None for loss in losses):
        raise ValueError("kl_weights: expected [batch, length], an argument of the model's last forward, got none")
    if torch.is_grad_enabled() and not all(loss.requires_grad for loss in losses):
        raise ValueError(
            "kl_loss: expected a forward with gradients, got one without; checkpoints: use_reentrant=False"
        )
    return torch.stack(losses).sum()


def _is_backward() -> bool:
    """Whether a checkpoint runs its layer again."""
    return torch._C._current_graph_task_id() != -1


def _check(module, attention_mask, dropout) -> None:
    if not isinstance(module, m3.MiniMaxM3VLAttention):
        raise ValueError(f"{_EXPECTED_LAYERS}, got {type(module).__name__}")
    if dropout != 0:
        raise ValueError(f"attention_dropout: expected 0 for attn_implementation='openmsa', got {dropout}")
    if attention_mask is None or not (_masks.are_bounds(attention_mask) or _masks.are_marks(attention_mask)):
        kind = "a dict with None" if attention_mask is None else f"{attention_mask.dtype} {list(attention_mask.shape)}"
        raise ValueError(
            f"attention_mask: expected [batch, length], or no argument, for attn_implementation='openmsa', got {kind}"
        )


def _given(keywords: dict):
    """Prefix sums of documents, of a collator that flattens."""
    of_queries, of_keys = (keywords.get(f"cu_seq_lens_{x}") for x in "qk")
    if of_queries is None and of_keys is None:
        return None
    return (of_keys if of_queries is None else of_queries, of_queries if of_keys is None else of_keys)


def _options(module, scaling) -> dict:
    if module.indexer is None:
        return {"softmax_scale": scaling}
    return {
        "softmax_scale": scaling,
        "block_size": module.indexer.block_size,
        "topk": module.indexer.topk_blocks,
        "num_local_blocks": module.indexer.local_blocks,
    }


def _attend_row(layer: dict, row: Row, options: dict, kl_weights):
    """o, and with kl_weights the weighted sum of KL."""
    if row.queries is None:
        return _attend_sequences(layer, row, options, kl_weights)
    orders = {name: row.queries if name in ("q", "index_q") else row.keys for name in layer}
    kl_weights = None if kl_weights is None else kl_weights[row.queries]
    layer = {name: tensor[orders[name]] for name, tensor in layer.items()}
    o, kl = _attend_sequences(layer, row, options, kl_weights)
    return torch.zeros_like(o).index_copy(0, row.queries, o), kl


def _attend_sequences(layer: dict, row: Row, options: dict, kl_weights):
    bounds = {"cu_seqlens_k": row.cu_seqlens_k, "cu_seqlens_q": row.cu_seqlens_q}
    if "index_q" not in layer:
        return openmsa_torch.dense_attention(**layer, **bounds, **options), None
    layer = layer | {"index_k": layer["index_k"].squeeze(1)}
    if kl_weights is None:
        return openmsa_torch.msa_attention(**layer, **bounds, **options), None
    options = options | {"return_kl": True, "kl_weights": kl_weights, "kl_reduction": "sum"}
    return openmsa_torch.msa_attention(**layer, **bounds, **options)
