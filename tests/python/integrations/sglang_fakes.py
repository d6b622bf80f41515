"""What SGLang 0.5.23 hands to its backend of sparse layers, with the fields that the integration reads and no others;
test_sglang_engine.py compares these fields with the engine's. And a small batch of requests in the engine's caches."""

import enum
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import openmsa
import torch
from openmsa.integrations.sglang._backend import OpenmsaSparseLayers, Sizes

BLOCK, TOPK, DIM = 128, 2, 128


class ForwardMode(enum.IntEnum):
    EXTEND = 1
    DECODE = 2
    MIXED = 3
    IDLE = 4
    TARGET_VERIFY = 5

    def is_decode(self):
        return self == ForwardMode.DECODE

    def is_target_verify(self):
        return self == ForwardMode.TARGET_VERIFY


@dataclass
class Batch:
    """Of ForwardBatch, whose comparison by == fails on tensors, as a dataclass's does."""

    forward_mode: ForwardMode
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    out_cache_loc: torch.Tensor
    extend_seq_lens: torch.Tensor | None = None
    seq_lens_cpu: torch.Tensor | None = None
    minimax_m3_precached_sparse_layers: set | None = None


@dataclass
class Layer:
    """Of RadixAttention."""

    layer_id: int
    q_scale_float: float | None = None
    k_scale_float: float | None = None
    v_scale_float: float | None = None
    idx_q_scale_float: float | None = None
    idx_k_scale_float: float | None = None
    idx_v_scale_float: float | None = None


@dataclass
class SubPool:
    """Of MHATokenToKVPool and MHATokenToKOnlyPool."""

    dtype: torch.dtype
    head_num: int
    head_dim: int = DIM
    kv_cache_layout: str = "nhd"


class Pool:
    """Of MiniMaxSparseKVPool, with layers without index values. Slot 0's page belongs to no request."""

    def __init__(self, size, page_size, num_layers, num_heads_kv, dtype, index_dtype, layout="nhd"):
        self.page_size = page_size
        self.main_pool = SubPool(dtype, num_heads_kv, kv_cache_layout=layout)
        self.index_k_pool = SubPool(index_dtype, 1)
        slots = size + page_size
        shape = (slots, num_heads_kv, DIM)
        if layout == "hnd":
            shape = (slots // page_size, num_heads_kv, page_size, DIM)
        self.k, self.v = (torch.full((num_layers, *shape), torch.nan).to(dtype) for _ in range(2))
        self.index_k = torch.full((num_layers, slots, 1, DIM), torch.nan).to(index_dtype)

    def get_kv_buffer(self, layer_id):
        return self.k[layer_id], self.v[layer_id]

    def get_index_k_buffer(self, layer_id):
        return self.index_k[layer_id]

    def set_fused_kv_index_buffer(
        self, layer, loc, cache_k, cache_v, cache_idx_k, cache_idx_v, k_scale, v_scale, idx_k_scale, idx_v_scale
    ):
        assert cache_idx_v is None
        given = ((self.k, cache_k, k_scale), (self.v, cache_v, v_scale), (self.index_k, cache_idx_k, idx_k_scale))
        for buffer, numbers, scale in given:
            if buffer.dtype != numbers.dtype and scale is not None:
                numbers = numbers / scale
            cache, numbers = buffer[layer.layer_id], numbers.to(buffer.dtype)
            if cache.dim() == 3:
                cache[loc] = numbers
            else:
                cache[loc // self.page_size, :, loc % self.page_size] = numbers


class StockBackend:
    """Of MiniMaxSparseAttnBackend: what its __init__ leaves, its interface, and marks where it would compute."""

    def __init__(self, runner):
        self.kv_pool = runner.token_to_kv_pool
        self.req_to_token = runner.req_to_token_pool.req_to_token
        self.idx_head_dim = DIM
        self.block_size_k, self.topk_blocks, self.init_blocks, self.local_blocks = BLOCK, TOPK, 0, 1
        self.score_type = "max"
        self.disable_value_layer_ids = {0, 1}
        self.hisparse_coordinator = self.indexer_cp = None
        self.index_cache_enabled = self.use_dense_sparse_decode = self.fp8_attn_gemm = False
        self.stock_calls = []
        for name, value in runner.changes.items():
            setattr(self, name, value)

    def init_forward_metadata_out_graph(self, forward_batch, in_capture=False):
        self.stock_calls.append("out_graph")

    def init_forward_metadata_in_graph(self, forward_batch):
        self.stock_calls.append("in_graph")

    def _is_sparse_kv_cached_by_fusion(self, forward_batch, layer_id):
        layer_ids = forward_batch.minimax_m3_precached_sparse_layers
        return layer_ids is not None and layer_id in layer_ids

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, *, idx_q, idx_k, idx_v, **kwargs):
        self.stock_calls.append("decode")
        return "stock"

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, *, idx_q, idx_k, idx_v):
        self.stock_calls.append("extend")
        return "stock"


class Backend(OpenmsaSparseLayers, StockBackend):
    sizes = Sizes(num_heads_q=32, num_index_heads=2, max_tokens=1024, dtype=torch.bfloat16)

    group, total_index_heads = SimpleNamespace(size=lambda: 1), sizes.num_index_heads

    def engine_sizes(self, runner):
        return self.sizes._replace(dtype=runner.model_config.dtype)

    def engine_ranks(self, runner):
        return self.group, self.total_index_heads


@dataclass
class Engine:
    """A rank with 32 query and 2 KV heads and two sparse layers. `changes`: attributes of the backend, set when it is made.

    Requests have a row of req_to_token each, from 1 on, and pages in any order; row 0 and page 0 take what is padded."""

    page_size: int = 128
    max_context: int = 1024
    max_requests: int = 8
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype | None = None
    index_dtype: torch.dtype | None = None
    layout: str = "nhd"
    changes: dict = field(default_factory=dict)
    backend_class: type = Backend

    def __post_init__(self):
        num_heads_kv = self.backend_class.sizes.num_index_heads
        pages = self.max_requests * self.max_context // self.page_size
        kv_dtype, index_dtype = self.kv_dtype or self.dtype, self.index_dtype or self.dtype
        self.pool = Pool(pages * self.page_size, self.page_size, 2, num_heads_kv, kv_dtype, index_dtype, self.layout)
        self.free_pages = iter((1 + np.random.default_rng(0).permutation(pages)).tolist())
        req_to_token = torch.zeros(self.max_requests + 1, self.max_context, dtype=torch.int32)
        self.req_to_token = req_to_token
        runner = SimpleNamespace(
            token_to_kv_pool=self.pool,
            req_to_token_pool=SimpleNamespace(req_to_token=req_to_token),
            changes=self.changes,
            model_config=SimpleNamespace(dtype=self.dtype),
        )
        self.backend = self.backend_class(runner)
        self.requests = []

    def add(self, length):
        """A request with room for `length` tokens."""
        self.requests.append(Request(self, len(self.requests) + 1, length))
        return self.requests[-1]

    def step(self, mode, requests, num_tokens, *, seed, layer=None, padded_rows=0, padded_tokens=0, **batch_changes):
        """Gives each request so many new tokens and runs a layer on them, as the engine does. Returns what the backend
        does, and the tensors of the new tokens."""
        layer = layer or Layer(0)
        count = sum(num_tokens) + padded_rows + padded_tokens
        tensors = new_tokens(count, self.backend.sizes, self.dtype, seed)
        slots = torch.cat([request.take(n) for request, n in zip(requests, num_tokens)])
        slots = torch.cat([slots, slots.new_zeros(count - len(slots))])
        rows = torch.tensor([request.row for request in requests] + [0] * padded_rows)
        lengths = torch.tensor([request.length for request in requests] + [1] * padded_rows)
        extend = torch.tensor([*num_tokens, *[0] * padded_rows]) if mode != ForwardMode.DECODE else None
        batch = self.make_batch(mode, rows, lengths, slots, extend)
        for name, value in batch_changes.items():
            setattr(batch, name, value)
        begin = 0
        for request, n in zip(requests, num_tokens):
            request.keep({name: tensor[begin : begin + n] for name, tensor in tensors.items()})
            begin += n
        return self.run(batch, tensors, layer), tensors

    def make_batch(self, mode, rows, lengths, slots, extend):
        return Batch(mode, rows, lengths, slots, extend, lengths.clone())

    def run(self, batch, tensors, layer, *, prepare=True):
        if prepare:
            self.backend.init_forward_metadata_out_graph(batch)
            self.backend.init_forward_metadata_in_graph(batch)
        forward = self.backend.forward_decode if batch.forward_mode.is_decode() else self.backend.forward_extend
        q, k, v, idx_q, idx_k = (tensors[name] for name in ("q", "k", "v", "index_q", "index_k"))
        with torch.inference_mode():
            return forward(q, k, v, layer, batch, idx_q=idx_q, idx_k=idx_k.unsqueeze(1), idx_v=None)


class Request:
    def __init__(self, engine, row, length):
        self.row, self.length = row, 0
        size = engine.page_size
        pages = [next(engine.free_pages) for _ in range(-(-length // size))]
        slots = torch.cat([torch.arange(page * size, (page + 1) * size) for page in pages])
        self.slots = slots[:length]
        engine.req_to_token[row, :length] = self.slots
        self.keys = {}

    def take(self, count):
        self.length += count
        return self.slots[self.length - count : self.length]

    def keep(self, tensors):
        for name in ("k", "v", "index_k"):
            before = self.keys.get(name, tensors[name][:0])
            self.keys[name] = torch.cat([before, tensors[name]])


def new_tokens(count, sizes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "q": (count, sizes.num_heads_q, DIM),
        "k": (count, sizes.num_index_heads, DIM),
        "v": (count, sizes.num_index_heads, DIM),
        "index_q": (count, sizes.num_index_heads, DIM),
        "index_k": (count, DIM),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def expected(requests, num_tokens, tensors):
    """o [tokens, heads * dim] in float64: each request alone, on the keys as it was given them, in one piece."""
    results, begin = [], 0
    for request, n in zip(requests, num_tokens):
        layer = request.keys | {name: tensors[name][begin : begin + n] for name in ("q", "index_q")}
        arrays = {name: tensor.to(torch.float64).numpy() for name, tensor in layer.items()}
        o = openmsa.msa_attention(**arrays, block_size=BLOCK, topk=TOPK, backend="reference")
        results.append(torch.from_numpy(o).flatten(1))
        begin += n
    return torch.cat(results)


def error(result, expected):
    result = result.to(torch.float64)
    assert result.isfinite().all()
    return float((result - expected).norm() / expected.norm())
