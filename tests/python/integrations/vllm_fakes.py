"""What the plug-in touches of vLLM 0.33.0, with the names and fields that it has there (test_vllm_engine compares
them)."""

import sys
import types
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class MiniMaxM3SparsePrefillMetadata:
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    seq_lens: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    max_query_len: int
    max_seq_len: int
    total_kv_blocks: int
    query_req_id: torch.Tensor | None = None
    query_abs_pos: torch.Tensor | None = None


@dataclass
class MiniMaxM3SparseDecodeMetadata:
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    decode_query_len: int


@dataclass
class MiniMaxM3SparseMetadata:
    seq_lens: torch.Tensor
    max_seq_len: int
    slot_mapping: torch.Tensor
    num_actual_tokens: int
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int
    num_prefill_tokens: int
    prefill: MiniMaxM3SparsePrefillMetadata | None = None
    decode: MiniMaxM3SparseDecodeMetadata | None = None
    page16_slot_mapping: torch.Tensor | None = None


@dataclass
class MiniMaxM3IndexerPrefillMetadata:
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    max_query_len: int
    max_seq_len: int


@dataclass
class MiniMaxM3IndexerDecodeMetadata:
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    max_seq_len: int
    decode_query_len: int
    max_decode_query_len: int


@dataclass
class MiniMaxM3IndexerMetadata:
    seq_lens: torch.Tensor
    max_seq_len: int
    slot_mapping: torch.Tensor
    num_actual_tokens: int
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int
    num_prefill_tokens: int
    prefill: MiniMaxM3IndexerPrefillMetadata | None = None
    decode: MiniMaxM3IndexerDecodeMetadata | None = None


SPARSE_METADATA = (MiniMaxM3SparseMetadata, MiniMaxM3SparsePrefillMetadata, MiniMaxM3SparseDecodeMetadata)
INDEX_METADATA = (MiniMaxM3IndexerMetadata, MiniMaxM3IndexerPrefillMetadata, MiniMaxM3IndexerDecodeMetadata)


class MiniMaxM3IndexerCache(nn.Module):
    def __init__(self, prefix, dtype):
        super().__init__()
        self.prefix, self.dtype = prefix, dtype
        self.kv_cache = torch.tensor([])


class MiniMaxM3IndexerImpl(nn.Module):
    def __init__(self, *, config, prefix, topk_indices_buffer):
        super().__init__()
        self.num_kv_heads = self.num_index_heads = config.heads_kv
        self.index_head_dim = 128
        self.init_blocks, self.local_blocks = 0, 1
        self.score_type = config.score_type
        self.indexer_kv_dtype = config.indexer_kv_dtype
        self.topk_indices_buffer = topk_indices_buffer
        dtype = torch.bfloat16 if config.indexer_kv_dtype == "bf16" else torch.float8_e4m3fn
        self.index_cache = MiniMaxM3IndexerCache(f"{prefix}.index_cache", dtype)


class MiniMaxM3IndexerTritonImpl(MiniMaxM3IndexerImpl):
    pass


class MiniMaxM3IndexerMSAImpl(MiniMaxM3IndexerImpl):
    pass


class MiniMaxM3SparseImpl:
    def __init__(
        self,
        num_heads,
        head_size,
        scale,
        num_kv_heads=None,
        kv_cache_dtype="auto",
        *,
        topk_blocks,
        sparse_block_size,
        msa_decode_backend="triton",
    ):
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.use_fp8_kv = kv_cache_dtype.startswith("fp8")
        self.kv_cache_fp8_dtype = torch.float8_e5m2 if "e5m2" in kv_cache_dtype else torch.float8_e4m3fn
        self.topk_blocks, self.block_size = topk_blocks, sparse_block_size


class MiniMaxM3SparseTritonImpl(MiniMaxM3SparseImpl):
    pass


class Indexer(nn.Module):
    def __init__(self, impl):
        super().__init__()
        self.impl = impl

    def forward(self, index_query):
        return self.impl(index_query)


class MiniMaxM3SparseAttention(nn.Module):
    def __init__(self, config, prefix, topk_indices_buffer):
        super().__init__()
        self.layer_name = f"{prefix}.attn"
        self.total_num_kv_heads = config.total_heads_kv or config.heads_kv
        self.total_idx_heads = config.index_heads or self.total_num_kv_heads
        self.num_idx_heads = config.heads_kv
        self.kv_cache_dtype = config.kv_cache_dtype
        self.kv_cache_torch_dtype = config.kv_cache_torch_dtype or config.dtype
        for name in ("_k_scale", "_v_scale"):
            self.register_buffer(name, torch.tensor(1.0))
        self.topk_indices_buffer = topk_indices_buffer
        self.impl = MiniMaxM3SparseTritonImpl(
            config.heads_q,
            128,
            128**-0.5,
            config.heads_kv,
            config.kv_cache_dtype,
            topk_blocks=config.topk,
            sparse_block_size=128,
        )
        impl_cls = MiniMaxM3IndexerMSAImpl if config.is_sm100 else MiniMaxM3IndexerTritonImpl
        self.indexer = Indexer(impl_cls(config=config, prefix=self.layer_name, topk_indices_buffer=topk_indices_buffer))
        self.kv_cache = torch.tensor([])

    def run_attention(self, query, index_query, output):
        self.indexer(index_query)
        return self.impl.forward(self, query, self.kv_cache, output, query_fp8=None)


class MiniMaxM3SparseForCausalLM(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        config = vllm_config.fake
        shape = (vllm_config.scheduler_config.max_num_batched_tokens, config.heads_kv, config.topk)
        buffer = torch.full(shape, -2, dtype=torch.int32)
        names = [f"model.layers.{i}.self_attn" for i in range(config.num_layers)]
        self.layers = nn.ModuleList([MiniMaxM3SparseAttention(config, name, buffer) for name in names])

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **kwargs):
        return input_ids


class MiniMaxM3MTP(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.layer = MiniMaxM3SparseAttention(vllm_config.fake, "model.layers.0.transformer_layer.self_attn", None)


@dataclass
class Config:
    heads_q: int = 4
    heads_kv: int = 2
    topk: int = 3
    num_layers: int = 2
    dtype: torch.dtype = torch.bfloat16
    kv_cache_dtype: str = "auto"
    kv_cache_torch_dtype: torch.dtype | None = None
    indexer_kv_dtype: str = "bf16"
    score_type: str = "max"
    index_heads: int | None = None
    total_heads_kv: int | None = None
    is_sm100: bool = False


def vllm_config(fake=None, additional_config=None, context_parallel=1, num_speculative_tokens=0):
    space = types.SimpleNamespace
    fake = fake or Config()
    return space(
        fake=fake,
        additional_config={} if additional_config is None else additional_config,
        model_config=space(dtype=fake.dtype, max_model_len=2047),
        scheduler_config=space(max_num_seqs=8, max_num_batched_tokens=1024),
        parallel_config=space(decode_context_parallel_size=context_parallel, prefill_context_parallel_size=1),
        num_speculative_tokens=num_speculative_tokens,
    )


class Registry:
    def __init__(self):
        self.models = {}

    def register_model(self, architecture, model_cls):
        self.models[architecture] = model_cls


def install(monkeypatch):
    """A `vllm` of these in sys.modules, and openmsa.integrations.vllm imported anew. Returns both and the records of
    log lines, as (level, text)."""
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("openmsa.integrations.vllm")]:
        monkeypatch.delitem(sys.modules, name)
    lines, context = [], types.SimpleNamespace(attn_metadata=None)
    tp_group = types.SimpleNamespace(world_size=1, device_group=None)

    class Logger:
        def info(self, text, *values):
            lines.append(("info", text % values))

        def warning(self, text, *values):
            lines.append(("warning", text % values))

    here = globals()
    modules = {
        "vllm": {"__version__": "0.33.0", "ModelRegistry": Registry(), "context": context, "lines": lines},
        "vllm.distributed": {"get_tp_group": lambda: tp_group},
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
        "vllm.logger": {"init_logger": lambda name: Logger()},
        "vllm.forward_context": {"get_forward_context": lambda: context},
        "vllm.models": {},
        "vllm.models.minimax_m3": {},
        "vllm.models.minimax_m3.common": {},
        "vllm.models.minimax_m3.common.indexer": ("MiniMaxM3IndexerImpl", "MiniMaxM3IndexerTritonImpl"),
        "vllm.models.minimax_m3.common.sparse_attention": ("MiniMaxM3SparseImpl", "MiniMaxM3SparseTritonImpl"),
        "vllm.models.minimax_m3.nvidia": {},
        "vllm.models.minimax_m3.nvidia.model": ("MiniMaxM3SparseAttention", "MiniMaxM3SparseForCausalLM"),
        "vllm.models.minimax_m3.nvidia.mtp": ("MiniMaxM3MTP",),
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(content if isinstance(content, dict) else {n: here[n] for n in content})
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    return sys.modules["vllm"]
