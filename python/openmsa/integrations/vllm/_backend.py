"""Attention and index branch of one sparse layer, in the places of vLLM's Triton kernels.

vLLM runs the index branch first, then attention, for the same rows. Where both read the same pages (which vLLM's
planner sees to, but a draft model or a connector may change) the index branch only hands its queries on, and attention
makes the one call of msa_attention. Else each makes its own, with the block numbers in vLLM's buffer in between."""

from __future__ import annotations

import torch
from torch import nn
from vllm.forward_context import get_forward_context
from vllm.models.minimax_m3.common.indexer import MiniMaxM3IndexerImpl
from vllm.models.minimax_m3.common.sparse_attention import MiniMaxM3SparseImpl

from ._calls import Calls, caches_of, share_block_table


class OpenmsaIndexerImpl(MiniMaxM3IndexerImpl):
    """The index branch. Takes over the side cache of the impl that it replaces, which vLLM knows already."""

    def __init__(self, stock: MiniMaxM3IndexerImpl, calls: Calls, layer_name: str):
        nn.Module.__init__(self)  # the base would register a second cache
        self.num_index_heads = stock.num_index_heads
        self.index_head_dim = stock.index_head_dim
        self.topk_indices_buffer = stock.topk_indices_buffer
        self.index_cache = stock.index_cache
        self.calls = calls
        self.layer_name = layer_name
        self._handed_on: list[torch.Tensor] = []  # one or none; a list, for a module looks at all that it is given

    def forward(self, index_query: torch.Tensor) -> tuple[None, None]:
        """index_query [tokens, num_index_heads * index_head_dim], of which a step may use fewer. Block numbers go to
        the buffer or nowhere: nobody reads what vLLM's own impls return."""
        self._handed_on.clear()
        metadata = get_forward_context().attn_metadata
        if not isinstance(metadata, dict):  # there are no caches yet
            return None, None
        index_metadata = metadata[self.index_cache.prefix]
        index_q = index_query.view(-1, self.num_index_heads, self.index_head_dim)
        if self.calls.can_fuse and share_block_table(metadata[self.layer_name], index_metadata):
            self._handed_on.append(index_q)
        else:
            sides = self.calls.sequences(index_metadata)
            self.calls.select(sides, index_q, self.index_cache.kv_cache, self.topk_indices_buffer)
        return None, None

    def take_index_q(self) -> torch.Tensor | None:
        """[tokens, num_index_heads, index_head_dim], once; None: block numbers are in the buffer."""
        return self._handed_on.pop() if self._handed_on else None


class OpenmsaImpl(MiniMaxM3SparseImpl):
    """Attention over the chosen kv_blocks."""

    def __init__(self, stock: MiniMaxM3SparseImpl, calls: Calls):
        super().__init__(
            stock.num_heads,
            stock.head_size,
            stock.scale,
            stock.num_kv_heads,
            stock.kv_cache_dtype,
            topk_blocks=stock.topk_blocks,
            sparse_block_size=stock.block_size,
        )
        self.calls = calls

    def forward(self, layer, query, kv_cache, output, *, query_fp8=None) -> torch.Tensor:
        """query, output [tokens, num_heads * head_size], of which a step may use fewer; kv_cache: see caches_of. Writes
        and returns output."""
        assert query_fp8 is None, "vLLM makes fp8 queries for its own SM100 kernels alone"
        metadata = get_forward_context().attn_metadata
        if not isinstance(metadata, dict):
            return output
        metadata = metadata[layer.layer_name]
        q, o = (rows.view(-1, self.num_heads, self.head_size) for rows in (query, output))
        if self.use_fp8_kv:
            caches = caches_of(kv_cache.view(self.kv_cache_fp8_dtype), layer._k_scale, layer._v_scale)
        else:
            caches = caches_of(kv_cache)
        sides = self.calls.sequences(metadata)
        index_branch = layer.indexer.impl
        index_q = index_branch.take_index_q()
        if index_q is None:
            self.calls.attend(sides, q, caches, index_branch.topk_indices_buffer, o)
        else:
            self.calls.select_and_attend(sides, q, index_q, caches, index_branch.index_cache.kv_cache, o)
        return output
