"""The engine's backend of sparse layers with its two forward functions on openmsa."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ... import __version__
from ..._openmsa import Error
from .._index_ranks import IndexRanks
from . import SHARD_INDEX
from ._attention import SparseAttention
from ._step import StepTensors
from ._support import page_size_of, reason_against, reason_against_layer

if TYPE_CHECKING:
    from sglang.srt.layers.attention.minimax_sparse_backend import MiniMaxSparseAttnBackend as Stock
else:
    Stock = object  # stands behind this class in the one that the engine gets

_log = logging.getLogger(__name__)


class Sizes(NamedTuple):
    """What the engine's configuration says: heads of this rank, most tokens of a prefill (0: a whole prompt's), and the dtype
    of the model."""

    num_heads_q: int
    num_index_heads: int
    max_tokens: int
    dtype: torch.dtype


class Step(NamedTuple):
    """The tensors of a step, the keys of its longest request (or more), and the batch that they were made of."""

    tensors: dict[str, torch.Tensor]
    max_seqlen_k: int
    forward_batch: Any
    is_decode: bool

    def is_of(self, forward_batch, is_decode: bool) -> bool:
        """The very batch. If the engine has padded it since, queries of no request are padding too."""
        return self.forward_batch is forward_batch and self.is_decode == is_decode


class OpenmsaSparseLayers(Stock):
    """Goes in front of the engine's MiniMaxSparseAttnBackend, which keeps metadata, idle ranks and whatever openmsa does
    not serve."""

    def __init__(self, runner):
        super().__init__(runner)
        self._openmsa: SparseAttention | None = None
        self._openmsa_step: Step | None = None
        self._openmsa_layers: dict[int, bool] = {}
        self._openmsa_said: set[str] = set()
        sizes = self.engine_sizes(runner)
        reason = reason_against(self, sizes.num_index_heads, sizes.dtype)
        if reason is None:
            try:
                self._make_openmsa(sizes, self._index_ranks(runner))
            except (Error, ValueError) as error:
                reason = str(error)
        if reason is not None:
            _log.warning("openmsa leaves the sparse layers to SGLang: %s", reason)

    def engine_sizes(self, runner) -> Sizes:
        raise NotImplementedError

    def engine_ranks(self, runner) -> tuple[Any, int]:
        """The process group of tensor parallelism in attention, and index heads of the whole layer."""
        raise NotImplementedError

    def _index_ranks(self, runner) -> IndexRanks | None:
        """Those that are asked to divide the index branch among them, which have been found to agree."""
        if os.environ.get(SHARD_INDEX, "0") != "1":
            return None
        group, num_heads_kv = self.engine_ranks(runner)
        if group.size() == 1:
            _log.warning("%s: expected several ranks of tensor parallelism, got one", SHARD_INDEX)
            return None
        facts = {"topk": self.topk_blocks, "block_size": self.block_size_k, "num_init_blocks": self.init_blocks}
        facts |= {"num_local_blocks": self.local_blocks, "index_dtype": self.kv_pool.index_k_pool.dtype}
        return IndexRanks(group, num_heads_kv=num_heads_kv, **facts)

    def _make_openmsa(self, sizes: Sizes, ranks: IndexRanks | None) -> None:
        main, index = self.kv_pool.main_pool, self.kv_pool.index_k_pool
        page_size = page_size_of(self)
        num_requests, num_slots = self.req_to_token.shape
        options = {
            "num_heads_q": sizes.num_heads_q,
            "num_heads_kv": main.head_num,
            "head_dim": main.head_dim,
            "index_dim": self.idx_head_dim,
            "dtype": sizes.dtype,
            "kv_dtype": main.dtype,
            "index_dtype": index.dtype,
            # SGLang multiplies index keys in fp8 by its 16-bit queries.
            "index_q_rounding": "exact" if index.dtype == torch.float8_e4m3fn else "scaled",
            "backend": "cuda" if self.req_to_token.is_cuda else "cpu",
            "block_size": self.block_size_k,
            "topk": self.topk_blocks,
            "num_init_blocks": self.init_blocks,
            "num_local_blocks": self.local_blocks,
        }
        whole_step = (sizes.max_tokens or num_slots, 1, num_slots)
        attention = SparseAttention(self.kv_pool, page_size, options)
        plan = attention.plan(*whole_step)
        if ranks is not None:
            divided = SparseAttention(self.kv_pool, page_size, options, ranks)
            try:
                divided.plan(*whole_step)
                attention = divided
                _log.info("openmsa divides the index branch among %d ranks", ranks.count)
            except (Error, ValueError) as error:
                _log.warning("openmsa does not divide the index branch among ranks: %s", error)
        self._openmsa_tensors = StepTensors(self.req_to_token, page_size, num_requests)
        self._openmsa = attention
        _log.info(
            "openmsa %s serves the sparse layers: %d/%d heads, topk %d, %s on caches in %s and %s, pages of %d; a prefill of "
            "%d tokens needs %.0f MiB of workspace",
            __version__,
            plan.num_heads_q,
            plan.num_heads_kv,
            plan.topk,
            plan.dtype,
            plan.kv_dtype,
            plan.index_dtype,
            plan.page_size,
            plan.max_total_q,
            attention.workspace_bytes() / 2**20,
        )

    def init_forward_metadata_out_graph(self, forward_batch, in_capture: bool = False):
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        self._openmsa_step = None
        if self._openmsa is not None:
            self._openmsa_tensors.reserve(len(forward_batch.seq_lens))

    def init_forward_metadata_in_graph(self, forward_batch):
        super().init_forward_metadata_in_graph(forward_batch)
        self._openmsa_step = None  # a graph must record what follows, though the batch may be that of its warm-up
        if self._openmsa is not None and forward_batch.forward_mode.is_decode():
            self._step_of(forward_batch, is_decode=True)

    def forward_decode(
        self, q, k, v, layer, forward_batch, save_kv_cache: bool = True, *, idx_q, idx_k, idx_v, **kwargs
    ):
        if not self._serves(layer, forward_batch) or kwargs:
            return super().forward_decode(
                q, k, v, layer, forward_batch, save_kv_cache, idx_q=idx_q, idx_k=idx_k, idx_v=idx_v, **kwargs
            )
        return self._forward(q, k, v, layer, forward_batch, idx_q, idx_k, is_decode=True)

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache: bool = True, *, idx_q, idx_k, idx_v):
        if not self._serves(layer, forward_batch):
            return super().forward_extend(
                q, k, v, layer, forward_batch, save_kv_cache, idx_q=idx_q, idx_k=idx_k, idx_v=idx_v
            )
        return self._forward(q, k, v, layer, forward_batch, idx_q, idx_k, is_decode=False)

    def _forward(self, q, k, v, layer, forward_batch, idx_q, idx_k, *, is_decode: bool):
        if not self._is_sparse_kv_cached_by_fusion(forward_batch, layer.layer_id):
            self.kv_pool.set_fused_kv_index_buffer(
                layer,
                forward_batch.out_cache_loc,
                k,
                v,
                idx_k,
                None,
                layer.k_scale_float,
                layer.v_scale_float,
                layer.idx_k_scale_float,
                layer.idx_v_scale_float,
            )
        step = self._step_of(forward_batch, is_decode=is_decode)
        kind = "decode" if is_decode else "prefill"
        if self._is_first(kind):
            _log.info("openmsa runs %s, first %d tokens of %d requests", kind, len(q), len(forward_batch.seq_lens))
        assert self._openmsa is not None  # _serves has looked
        return None, self._openmsa(q, idx_q, layer, step.tensors, step.max_seqlen_k)

    def _serves(self, layer, forward_batch) -> bool:
        if self._openmsa is None:
            return False
        if layer.layer_id not in self._openmsa_layers:
            reason = reason_against_layer(self, layer)
            self._openmsa_layers[layer.layer_id] = reason is None
            if reason is not None:
                _log.warning("openmsa leaves layer %d to SGLang: %s", layer.layer_id, reason)
        if forward_batch.forward_mode.is_target_verify():
            if self._is_first("verification"):
                _log.warning("openmsa leaves the verification of drafts to SGLang")
            return False
        return self._openmsa_layers[layer.layer_id]

    def _step_of(self, forward_batch, *, is_decode: bool) -> Step:
        """Made once for all layers."""
        step = self._openmsa_step
        if step is None or not step.is_of(forward_batch, is_decode):
            batch = (forward_batch.req_pool_indices, forward_batch.seq_lens)
            if is_decode:
                tensors = self._openmsa_tensors.of_decode(*batch)
            else:
                tensors = self._openmsa_tensors.of_extend(*batch, forward_batch.extend_seq_lens)
            max_seqlen_k = self._max_seqlen_k_of(forward_batch, is_decode)
            step = self._openmsa_step = Step(tensors, max_seqlen_k, forward_batch, is_decode)
        return step

    def _max_seqlen_k_of(self, forward_batch, is_decode: bool) -> int:
        """Of a prefill, a plan for the keys that there are. Decodes and what a CUDA graph captures get one for all that a
        request may have: the lengths of a capture are not those of its replays."""
        lengths = forward_batch.seq_lens_cpu
        if is_decode or lengths is None or _is_captured(forward_batch.seq_lens):
            return self.req_to_token.shape[1]
        return int(lengths.max())

    def _is_first(self, kind: str) -> bool:
        is_first = kind not in self._openmsa_said
        self._openmsa_said.add(kind)
        return is_first


def _is_captured(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def backend_of_engine() -> type:
    """OpenmsaSparseLayers on SGLang's MiniMaxSparseAttnBackend. Imports SGLang."""
    from sglang.srt.configs.model_config import get_minimax_sparse_attention_config
    from sglang.srt.layers.attention.minimax_sparse_backend import MiniMaxSparseAttnBackend
    from sglang.srt.runtime_context import get_parallel, get_schedule

    class OpenmsaMiniMaxSparseAttnBackend(OpenmsaSparseLayers, MiniMaxSparseAttnBackend):
        def engine_sizes(self, runner):
            num_ranks = get_parallel().attn_tp_size
            index_heads = get_minimax_sparse_attention_config(runner.model_config.hf_config)["sparse_num_index_heads"]
            return Sizes(
                num_heads_q=runner.model_config.num_attention_heads // num_ranks,
                num_index_heads=max(index_heads // num_ranks, 1),  # replicated where there are more ranks than heads
                max_tokens=max(get_schedule().chunked_prefill_size or 0, 0),
                dtype=runner.model_config.dtype,
            )

        def engine_ranks(self, runner):
            config = get_minimax_sparse_attention_config(runner.model_config.hf_config)
            return get_parallel().attn_tp_group.device_group, config["sparse_num_index_heads"]

    return OpenmsaMiniMaxSparseAttnBackend
