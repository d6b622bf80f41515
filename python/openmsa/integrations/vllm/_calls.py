"""A step of the engine as calls of openmsa: one for its decode rows and one for its prefill rows, on views of its
caches.

Metadata is what vLLM builds once per step, alike for attention and for the index branch (MiniMaxM3SparseMetadata and
MiniMaxM3IndexerMetadata): decode rows come first, every request with the same number of them, then prefill rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import openmsa

from ..._workspace import workspace_per_call
from .._index_ranks import IndexPlans, IndexRanks

PAGE_SIZE = 128  # tokens that vLLM's kernels of M3 find in a page of its caches: those of a kv_block


class Sequences(NamedTuple):
    """Rows of a step that go into one call."""

    rows: slice
    cu_seqlens_q: torch.Tensor
    seqlens_k: torch.Tensor
    block_table: torch.Tensor

    def batch(self) -> dict[str, Any]:
        """Arguments of openmsa's functions, arrays all of them."""
        return {name: value for name, value in self._asdict().items() if name != "rows"}


class Plans(NamedTuple):
    """Of a layer, for as many rows as max_total_q.

    attention     and the whole layer, where selection is the same plan
    selection     the index branch; another plan where its cache has another 16-bit dtype than the model
    of_ranks      the index branch where it is divided among ranks; None: it is not
    """

    attention: openmsa.Plan
    selection: openmsa.Plan
    of_ranks: IndexPlans | None = None

    @property
    def can_fuse(self) -> bool:
        """Whether one call of `msa_attention` serves the layer."""
        return self.attention is self.selection and self.of_ranks is None

    def workspace_bytes(self) -> int:
        """What a call takes for as long as it runs: that of the largest."""
        return max(
            self.attention.workspace_bytes("msa_attention") if self.can_fuse else 0,
            self.attention.workspace_bytes("sparse_attention"),
            self.of_ranks.workspace_bytes() if self.of_ranks else self.selection.workspace_bytes("select_blocks"),
        )


@dataclass(frozen=True)
class Calls:
    """What all layers of a rank share. Nothing here reads a number of a tensor, and on a GPU no memory outlives a call,
    so that calls may be captured in CUDA graphs.

    any_rows      plans for all rows that a step may have
    few_rows      plans for the rows of decodes. Workspace grows with the rows that a plan is for, and a CUDA graph keeps
                  what a call in it took: with plans for prompts, half a GiB at 8192 rows
    counting      int32 [max_total_q + 1] 0, 1, 2, ...: every n-th, the prefix sums of decode requests with n rows each.
                  Those of the engine count no rows for requests that only fill up a CUDA graph, though they have some
    ranks         that divide the index branch among them; None: it is not divided
    """

    any_rows: Plans
    few_rows: Plans
    counting: torch.Tensor
    ranks: IndexRanks | None = None

    @classmethod
    def make(cls, any_rows: Plans, few_rows: Plans, device, ranks: IndexRanks | None = None) -> Calls:
        counting = torch.arange(any_rows.attention.max_total_q + 1, dtype=torch.int32, device=device)
        return cls(any_rows, few_rows, counting, ranks)

    @property
    def can_fuse(self) -> bool:
        return self.any_rows.can_fuse

    def plans(self, side: Sequences) -> Plans:
        num_rows = side.rows.stop - side.rows.start
        return self.few_rows if num_rows <= self.few_rows.attention.max_total_q else self.any_rows

    def workspace_bytes(self) -> int:
        return max(plans.workspace_bytes() for plans in (self.any_rows, self.few_rows))

    def sequences(self, metadata) -> list[Sequences]:
        """The sides of a step that have rows."""
        num_decode_tokens = metadata.num_decode_tokens
        sides = []
        if metadata.num_decodes > 0:
            decode = metadata.decode
            step = decode.decode_query_len
            bounds = self.counting[: metadata.num_decodes * step + 1 : step]
            sides.append(Sequences(slice(0, num_decode_tokens), bounds, decode.seq_lens, decode.block_table))
        if metadata.num_prefills > 0:
            prefill = metadata.prefill
            rows = slice(num_decode_tokens, metadata.num_actual_tokens)
            sides.append(Sequences(rows, prefill.cu_seqlens_q, prefill.seq_lens, prefill.block_table))
        return sides

    def select(self, sides: list[Sequences], index_q, index_k_cache, topk_indices) -> None:
        """Writes topk_indices [total_q, num_heads_kv, topk] for index_q [total_q, num_heads_kv, index_dim], in the dtype of the
        cache.

        index_k_cache [num_pages, 128, index_dim]
        """
        with workspace_per_call():
            for side in sides:
                plans = self.plans(side)
                arrays: dict[str, Any] = side.batch() | {"topk_indices": topk_indices[side.rows].transpose(0, 1)}
                if self.ranks is not None:
                    assert plans.of_ranks is not None
                    self.ranks.select(plans.of_ranks, index_q[side.rows], index_k_cache=index_k_cache, **arrays)
                else:
                    openmsa.select_blocks(
                        index_q[side.rows], index_k_cache=index_k_cache, plan=plans.selection, **arrays
                    )

    def attend(self, sides: list[Sequences], q, caches: dict, topk_indices, o) -> None:
        """Writes o [total_q, num_heads_q, head_dim] for q of the same shape; caches: see `caches_of`."""
        with workspace_per_call():
            for side in sides:
                openmsa.sparse_attention(
                    q[side.rows],
                    topk_indices=topk_indices[side.rows].transpose(0, 1),
                    o=o[side.rows],
                    plan=self.plans(side).attention,
                    **caches,
                    **side.batch(),
                )

    def select_and_attend(self, sides: list[Sequences], q, index_q, caches: dict, index_k_cache, o) -> None:
        """Both at once: block numbers are not written anywhere."""
        with workspace_per_call():
            for side in sides:
                openmsa.msa_attention(
                    q[side.rows],
                    index_q=index_q[side.rows],
                    index_k_cache=index_k_cache,
                    o=o[side.rows],
                    plan=self.plans(side).attention,
                    **caches,
                    **side.batch(),
                )


def caches_of(kv_cache: torch.Tensor, k_scale=None, v_scale=None) -> dict[str, torch.Tensor]:
    """k_cache, v_cache [num_pages, 128, num_heads_kv, head_dim] and their scales, as views.

    kv_cache      [num_pages, num_heads_kv, 128, 2 head_dim] with any strides but the last: k, then v of each token
    k_scale, v_scale
                  fp32, one number in any shape, or [num_heads_kv, slots] with at least num_pages * 128 slots; None: 1
    """
    tokens = kv_cache.transpose(1, 2)
    head_dim = kv_cache.shape[-1] // 2
    caches = {"k_cache": tokens[..., :head_dim], "v_cache": tokens[..., head_dim:]}
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    num_slots = kv_cache.shape[0] * kv_cache.shape[2]
    for name, scale in scales.items():
        if scale is not None:
            caches[name] = scale.view(1) if scale.numel() == 1 else scale[:, :num_slots]
    return caches


def share_block_table(metadata, index_metadata) -> bool:
    """Whether attention and the index branch of a step read the same pages of the same lengths."""
    if metadata.num_decodes != index_metadata.num_decodes or metadata.num_prefills != index_metadata.num_prefills:
        return False
    for side, is_there in (("decode", metadata.num_decodes), ("prefill", metadata.num_prefills)):
        if is_there and not _is_same_side(getattr(metadata, side), getattr(index_metadata, side)):
            return False
    return True


def _is_same_side(side, index_side) -> bool:
    return all(
        mine.data_ptr() == other.data_ptr() and mine.stride() == other.stride() and mine.shape == other.shape
        for mine, other in (
            (side.block_table, index_side.block_table),
            (side.seq_lens, index_side.seq_lens),
        )
    )
