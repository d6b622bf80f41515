"""M3's models in vLLM, whose sparse layers openmsa serves where it is asked to and can."""

from __future__ import annotations

from collections import Counter

import torch
import vllm.envs
from vllm.distributed import get_tp_group
from vllm.forward_context import get_forward_context
from vllm.models.minimax_m3.common.indexer import MiniMaxM3IndexerTritonImpl
from vllm.models.minimax_m3.common.sparse_attention import MiniMaxM3SparseTritonImpl
from vllm.models.minimax_m3.nvidia.model import MiniMaxM3SparseAttention, MiniMaxM3SparseForCausalLM
from vllm.models.minimax_m3.nvidia.mtp import MiniMaxM3MTP

import openmsa

from ..._plan import cached_plan
from .._index_ranks import IndexRanks
from . import logger, requested
from ._backend import OpenmsaImpl, OpenmsaIndexerImpl
from ._calls import PAGE_SIZE, Calls, Plans

_E4M3 = ("fp8", "fp8_e4m3")


class OpenmsaM3ForCausalLM(MiniMaxM3SparseForCausalLM):
    """M3's text model."""

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._calls = serve(self, vllm_config) if requested(vllm_config).is_on else []

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **kwargs):
        """As of the base. While vLLM measures memory, which it does without attention, the workspace of attention is
        held."""
        held = None
        if self._calls and get_forward_context().attn_metadata is None:
            num_bytes = max(calls.workspace_bytes() for calls in self._calls)
            held = torch.empty(num_bytes, dtype=torch.uint8, device=positions.device)
        result = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        del held
        return result


class OpenmsaM3MTP(MiniMaxM3MTP):
    """M3's layers that predict further tokens. Their workspace is that of the text model, which runs before them."""

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if requested(vllm_config).is_on:
            serve(self, vllm_config)


def serve(model: torch.nn.Module, vllm_config) -> list[Calls]:
    """Puts openmsa into the sparse layers of `model` that it serves, and says in the log which ones and why not the
    others. Returns what those layers share."""
    layers = [module for module in model.modules() if isinstance(module, MiniMaxM3SparseAttention)]
    left: Counter[str] = Counter()
    undivided: Counter[str] = Counter()
    shared: dict[tuple, Calls] = {}
    buffer = None
    ranks = ranks_of(layers, vllm_config) if requested(vllm_config).shard_index else None
    for layer in layers:
        reason = why_not(layer, vllm_config)
        if reason is None:
            try:
                plans, why_whole = plans_of(layer, vllm_config), None
                if ranks is not None:
                    plans, why_whole = divided(layer, vllm_config, ranks, plans)
            except (openmsa.Error, ValueError) as error:
                reason = str(error)
        if reason is not None:
            left[reason] += 1
            continue
        if why_whole is not None:
            undivided[why_whole] += 1
        if plans not in shared:
            shared[plans] = Calls.make(*plans, layer._k_scale.device, ranks if plans[0].of_ranks else None)
        if layer.topk_indices_buffer is None:  # MTP
            buffer = _new_buffer(layer, vllm_config) if buffer is None else buffer
            layer.topk_indices_buffer = layer.indexer.impl.topk_indices_buffer = buffer
        layer.indexer.impl = OpenmsaIndexerImpl(layer.indexer.impl, shared[plans], layer.layer_name)
        layer.impl = OpenmsaImpl(layer.impl, shared[plans])
    for calls in shared.values():
        plan, index_plan, _ = calls.any_rows
        logger().info(
            "openmsa %s serves %d of %d sparse layers of %s: %s, backend %s%s",
            openmsa.__version__,
            sum(layer.impl.calls is calls for layer in layers if isinstance(layer.impl, OpenmsaImpl)),
            len(layers),
            type(model).__name__,
            f"{plan.num_heads_q}/{plan.num_heads_kv} heads, {plan.dtype}, caches {plan.kv_dtype or plan.dtype} and "
            f"{index_plan.index_dtype or index_plan.dtype}",
            plan.backend,
            f", index branch divided among {calls.ranks.count} ranks" if calls.ranks else "",
        )
    for reason, count in undivided.items():
        logger().warning("openmsa does not divide the index branch of %d sparse layers among ranks: %s", count, reason)
    for reason, count in left.items():
        logger().warning(
            "openmsa leaves %d of %d sparse layers of %s to vLLM: %s", count, len(layers), type(model).__name__, reason
        )
    return list(shared.values())


def why_not(layer, vllm_config) -> str | None:
    """What keeps openmsa from serving a layer, of what its plan does not know; None: nothing."""
    impl, index_impl = layer.impl, layer.indexer.impl
    parallel = vllm_config.parallel_config
    if type(impl) is not MiniMaxM3SparseTritonImpl or type(index_impl) is not MiniMaxM3IndexerTritonImpl:
        return f"it runs {type(impl).__name__} and {type(index_impl).__name__} here, not Triton"
    if index_impl.score_type != "max":
        return f"score type {index_impl.score_type}, openmsa has max"
    if layer.total_idx_heads != layer.total_num_kv_heads:
        return f"{layer.total_idx_heads} index heads for {layer.total_num_kv_heads} KV heads, openmsa has one for each"
    if index_impl.indexer_kv_dtype not in ("bf16", *_E4M3):
        return f"index cache {index_impl.indexer_kv_dtype}, openmsa has bf16 and fp8 (e4m3)"
    if impl.use_fp8_kv and impl.kv_cache_dtype not in _E4M3:
        return f"KV cache {impl.kv_cache_dtype}, openmsa has bf16, fp16 and fp8 (e4m3)"
    if not impl.use_fp8_kv and layer.kv_cache_torch_dtype != vllm_config.model_config.dtype:
        return f"KV cache {layer.kv_cache_torch_dtype} of a model in {vllm_config.model_config.dtype}"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "context parallelism"
    if vllm.envs.VLLM_BATCH_INVARIANT:
        return "VLLM_BATCH_INVARIANT: which kernels run depends on the batch"
    return None


def ranks_of(layers, vllm_config) -> IndexRanks | None:
    """The ranks of tensor parallelism, which have been found to agree; None, and a warning, where there is nothing to divide."""
    served = [layer for layer in layers if why_not(layer, vllm_config) is None]
    group = get_tp_group()
    if not served:  # which another warning says
        return None
    if group.world_size == 1:
        logger().warning("openmsa: expected several ranks of tensor parallelism to divide the index branch, got one")
        return None
    index = served[0].indexer.impl
    facts = {"topk": served[0].impl.topk_blocks, "block_size": served[0].impl.block_size}
    facts |= {"num_init_blocks": index.init_blocks, "num_local_blocks": index.local_blocks}
    facts |= {"index_dtype": index.index_cache.dtype, "sparse layers": len(served)}
    return IndexRanks(group.device_group, num_heads_kv=served[0].total_num_kv_heads, **facts)


def plans_of(layer, vllm_config, ranks: IndexRanks | None = None) -> tuple[Plans, Plans]:
    """(any_rows, few_rows): see Calls. Equal layers get the same ones. Raises openmsa.Error or ValueError where
    the GPU or the shape is not served, or not with the index branch divided among `ranks`."""
    impl, index_impl = layer.impl, layer.indexer.impl
    scheduler = vllm_config.scheduler_config
    longest = vllm_config.model_config.max_model_len + vllm_config.num_speculative_tokens
    options = {
        "num_heads_q": impl.num_heads,
        "num_heads_kv": impl.num_kv_heads,
        "head_dim": impl.head_size,
        "index_dim": index_impl.index_head_dim,
        "max_batch": scheduler.max_num_seqs,
        "max_seqlen_k": -(-longest // PAGE_SIZE) * PAGE_SIZE,
        "page_size": PAGE_SIZE,
        "block_size": impl.block_size,
        "topk": impl.topk_blocks,
        "num_init_blocks": index_impl.init_blocks,
        "num_local_blocks": index_impl.local_blocks,
        "softmax_scale": impl.scale,
        "backend": layer._k_scale.device.type,
    }
    dtype, index_dtype = vllm_config.model_config.dtype, index_impl.index_cache.dtype
    options["kv_dtype"] = "float8_e4m3fn" if impl.use_fp8_kv else None
    has_fp8_index = index_dtype == torch.float8_e4m3fn
    of_index = {"index_dtype": index_dtype, "index_q_rounding": "cast"} if has_fp8_index else {}

    def plans(max_total_q: int) -> Plans:
        of_layer = options | of_index | {"max_total_q": max_total_q, "dtype": dtype}
        of_selection = of_layer
        if not has_fp8_index and dtype != index_dtype:
            of_selection = of_layer | {"kv_dtype": None, "dtype": index_dtype}
        plan, selection = cached_plan(**of_layer), cached_plan(**of_selection)
        return Plans(plan, selection, ranks.plans(**of_selection) if ranks is not None else None)

    decode_rows = scheduler.max_num_seqs * (1 + vllm_config.num_speculative_tokens)
    return plans(scheduler.max_num_batched_tokens), plans(min(decode_rows, scheduler.max_num_batched_tokens))


def divided(
    layer, vllm_config, ranks: IndexRanks, whole: tuple[Plans, Plans]
) -> tuple[tuple[Plans, Plans], str | None]:
    """plans_of with the index branch divided among ranks; or `whole`, and the reason why it is not."""
    try:
        return plans_of(layer, vllm_config, ranks), None
    except (openmsa.Error, ValueError) as error:
        return whole, str(error)


def _new_buffer(layer, vllm_config) -> torch.Tensor:
    """Of block numbers, [max_num_batched_tokens, num_index_heads, topk], for layers that vLLM gives none."""
    shape = (vllm_config.scheduler_config.max_num_batched_tokens, layer.num_idx_heads, layer.impl.topk_blocks)
    return torch.empty(shape, dtype=torch.int32, device=layer._k_scale.device)
