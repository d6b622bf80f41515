"""A small decoder around openmsa.torch.MSAAttention, for the Python examples."""

from collections.abc import Callable

from openmsa.torch import MSAAttention
from torch import nn


class Layer(nn.Module):
    def __init__(self, hidden_size: int, heads: dict, options: dict):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.attention = MSAAttention(hidden_size, **heads, **options)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 3 * hidden_size), nn.SiLU(), nn.Linear(3 * hidden_size, hidden_size)
        )


class Decoder(nn.Module):
    """logits, kl_loss = decoder(ids, cu_seqlens): ids [total], sequences packed one after the other; kl_loss is the sum
    over layers.

    heads    num_heads_q, num_heads_kv, head_dim, index_dim, rotary_dim of every layer
    options  block_size, topk and other options of openmsa.torch.msa_attention
    """

    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int, heads: dict, options: dict):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(Layer(hidden_size, heads, options) for _ in range(num_layers))
        self.norm, self.head = nn.RMSNorm(hidden_size), nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, ids, cu_seqlens=None):
        kl_losses = []

        def attend(number, attention, x):
            y, kl_loss = attention(x, cu_seqlens)
            kl_losses.append(kl_loss)
            return y

        logits = self.logits(self.embed(ids), attend)
        return logits, sum(kl_losses) if self.training else None

    def logits(self, x, attend: Callable):
        """Of the embedded tokens x; attend(number of the layer, its MSAAttention, x) is the attention."""
        for number, layer in enumerate(self.layers):
            x = x + attend(number, layer.attention, layer.attention_norm(x))
            x = x + layer.mlp(layer.mlp_norm(x))
        return self.head(self.norm(x))

    def set_warmup(self, warmup: bool) -> None:
        """Dense attention, with the index branch learning over the whole history; or sparse attention."""
        for layer in self.layers:
            layer.attention.warmup = warmup

    def index_parameters(self):
        """What kl_loss trains, and nothing else does."""
        return [parameter for layer in self.layers for parameter in layer.attention.indexer.parameters()]
