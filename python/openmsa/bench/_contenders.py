"""Who is measured. Each contender turns a case and its inputs into a function without arguments that computes o; it raises
ImportError where it is not installed and anything else where it does not serve the case."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import openmsa

from ._case import Case

Prepare = Callable[[Case, dict[str, Any]], Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Contender:
    name: str
    is_sparse: bool  # the same layer as openmsa's, or dense attention
    prepare: Prepare


class Refused(RuntimeError):
    """The contender has nothing for this case."""


def _plan(case: Case, inputs) -> openmsa.Plan:
    layer = case.layer
    is_decode = case.section == "decode"
    return openmsa.Plan(
        num_heads_q=layer.num_heads_q,
        num_heads_kv=layer.num_heads_kv,
        head_dim=layer.head_dim,
        index_dim=layer.head_dim,
        block_size=layer.block_size,
        topk=layer.topk,
        dtype="bfloat16" if case.device == "cuda" else "float32",
        backend=case.device,
        max_total_q=len(inputs["q"]),
        max_seqlen_k=case.context,
        max_batch=case.batch,
        page_size=layer.block_size if is_decode else 0,
    )


def _openmsa(case, inputs):
    plan = _plan(case, inputs)
    if case.section == "training":
        return lambda: _train_step(plan, inputs, is_sparse=True)
    arrays = inputs
    if case.section == "decode":
        arrays = {name: inputs[name] for name in ("q", "index_q")} | case.pages(inputs)
    o = inputs["q"] * 0
    return lambda: openmsa.msa_attention(**arrays, plan=plan, o=o)


def _openmsa_dense(case, inputs):
    plan = _plan(case, inputs)
    if case.section == "training":
        return lambda: _train_step(plan, inputs, is_sparse=False)
    arrays = {name: inputs[name] for name in ("q", "k", "v")}
    if case.section == "decode":
        pages = case.pages(inputs)
        arrays = {"q": inputs["q"]} | {name: pages[name] for name in pages if name != "index_k_cache"}
    o = inputs["q"] * 0
    return lambda: openmsa.dense_attention(**arrays, plan=plan, o=o)


def _train_step(plan, inputs, is_sparse):
    q, k, v, index_q, index_k = (inputs[name] for name in ("q", "k", "v", "index_q", "index_k"))
    if is_sparse:
        indices = openmsa.select_blocks(index_q, index_k, plan=plan)
        o, lse = openmsa.sparse_attention(q, k, v, indices, return_lse=True, plan=plan)
        openmsa.kl_loss(q, k, lse, index_q, index_k, indices, return_gradients=True, plan=plan)
        openmsa.sparse_attention_backward(o, q, k, v, indices, o, lse, plan=plan)
    else:
        o, lse = openmsa.dense_attention(q, k, v, return_lse=True, plan=plan)
        openmsa.dense_attention_backward(o, q, k, v, o, lse, plan=plan)
    return o


def _pytorch(backend: str) -> Prepare:
    def prepare(case, inputs):
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        if backend == "CUDNN_ATTENTION" and case.device == "cpu":
            raise Refused("cuDNN is the GPU's")
        q, k, v = (torch.as_tensor(inputs[name]) for name in ("q", "k", "v"))
        is_decode = case.section == "decode"
        # [batch, heads, tokens, dim] as views; a new token sees every key, so it needs no mask.
        q = q.unsqueeze(2) if is_decode else q.transpose(0, 1)[None]
        k, v = (x.transpose(-3, -2) if is_decode else x.transpose(0, 1)[None] for x in (k, v))

        def attend(q, k, v):
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return scaled_dot_product_attention(q, k, v, is_causal=not is_decode, enable_gqa=True)

        if case.section == "training":
            return _with_backward(attend, (q, k, v), lambda o: o[0].transpose(0, 1))
        return lambda: attend(q, k, v)[..., 0, :] if is_decode else attend(q, k, v)[0].transpose(0, 1)

    return prepare


def _with_backward(attend, tensors, finish):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]

    def step():
        import torch

        o = attend(*leaves)
        torch.autograd.grad(o, leaves, o.detach())
        return finish(o.detach())

    return step


def _flash_attn(module: str) -> Prepare:
    def prepare(case, inputs):
        library = importlib.import_module(module)
        q, k, v = (inputs[name] for name in ("q", "k", "v"))
        if case.section == "decode":
            lengths = case.pages(inputs)["seqlens_k"]
            return lambda: _first(library.flash_attn_with_kvcache(q[:, None], k, v, cache_seqlens=lengths))[:, 0]
        attend = lambda q, k, v: _first(library.flash_attn_func(q, k, v, causal=True))  # noqa: E731
        layer = (q[None], k[None], v[None])
        if case.section == "training":
            return _with_backward(attend, layer, lambda o: o[0])
        return lambda: attend(*layer)[0]

    return prepare


def _flashinfer(case, inputs):
    import flashinfer
    import torch

    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    if case.section == "training":
        raise Refused("no backward")
    if case.section == "prefill":
        return lambda: flashinfer.single_prefill_with_kv_cache(q, k, v, causal=True)
    layer, pages = case.layer, case.pages(inputs)
    memory = torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(memory, "NHD", use_tensor_cores=True)
    per_sequence = case.context // layer.block_size
    bounds = torch.arange(case.batch + 1, dtype=torch.int32, device="cuda") * per_sequence
    full = torch.full((case.batch,), layer.block_size, dtype=torch.int32, device="cuda")
    wrapper.plan(
        bounds,
        pages["block_table"].flatten(),
        full,
        layer.num_heads_q,
        layer.num_heads_kv,
        layer.head_dim,
        layer.block_size,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
    )
    return lambda: wrapper.run(q, (pages["k_cache"], pages["v_cache"]))


def _vllm(case, inputs):
    """The Triton kernels that vLLM runs MiniMax-M3 with where nothing faster is built in."""
    index = importlib.import_module("vllm.models.minimax_m3.common.ops.index_topk")
    attend = importlib.import_module("vllm.models.minimax_m3.common.ops.sparse_attn")
    import torch

    if case.section == "training":
        raise Refused("no backward")
    layer, pages, q = case.layer, case.pages(inputs), inputs["q"]
    if layer.block_size != index.SPARSE_BLOCK_SIZE:
        raise Refused(f"kv_blocks of {index.SPARSE_BLOCK_SIZE} only")
    tokens = len(q) // case.batch
    common = {
        "q": q,
        "idx_q": inputs["index_q"],
        "kv_cache": torch.cat([pages["k_cache"], pages["v_cache"]], -1).transpose(1, 2).contiguous(),
        "index_kv_cache": pages["index_k_cache"],
        "block_table": pages["block_table"],
        "cu_seqlens_q": pages["cu_seqlens_q"],
        "seq_lens": pages["seqlens_k"],
        "prefix_lens": pages["seqlens_k"] - tokens,
        "max_query_len": tokens,
        "max_seq_len": case.context,
        "decode_query_len": tokens,
        "max_decode_query_len": tokens,
        "num_kv_heads": layer.num_heads_kv,
        "sm_scale": layer.head_dim**-0.5,
        "topk": layer.topk,
        "init_blocks": 0,
        "local_blocks": 1,
        "output": torch.empty_like(q),
    }

    def run():
        if case.section == "decode":
            chosen = _call(index.minimax_m3_index_decode, common)
            _call(attend.minimax_m3_sparse_attn_decode, common | {"topk_idx": chosen})
        else:
            score = _call(index.minimax_m3_index_score, common)
            chosen = _call(index.minimax_m3_index_topk, common | {"score": score})
            _call(attend.minimax_m3_sparse_attn, common | {"topk_idx": chosen})
        return common["output"]

    return run


def _sglang(case, inputs):
    """The Triton kernels of SGLang for the same."""
    kernels = importlib.import_module("sglang.srt.layers.attention.minimax_sparse_ops.minimax_sparse")
    import torch

    if case.section == "training":
        raise Refused("no backward")
    layer, pages = case.layer, case.pages(inputs)
    tokens = len(inputs["q"]) // case.batch
    slots = torch.arange(case.batch * case.context, dtype=torch.int32, device=inputs["q"].device)
    common = {
        "q": inputs["q"],
        "k_cache": inputs["k"].flatten(0, -3),
        "v_cache": inputs["v"].flatten(0, -3),
        "sink": None,
        "idx_q": inputs["index_q"],
        "idx_k_cache": inputs["index_k"].flatten(0, -2)[:, None],
        "idx_v_cache": None,
        "idx_sink": None,
        "req_to_token": slots.view(case.batch, -1),
        "slot_ids": torch.arange(case.batch, device=inputs["q"].device),
        "cu_seqlens": pages["cu_seqlens_q"],
        "seq_lens": pages["seqlens_k"],
        "prefix_lens": pages["seqlens_k"] - tokens,
        "max_seqlen_q": tokens,
        "max_seqlen_k": case.context,
        "max_seqlen": case.context,
        "seqlens_cpu": [tokens] * case.batch,
        "page_size": layer.block_size,
        "block_size_q": 1,
        "block_size_k": layer.block_size,
        "topk": layer.topk,
        "init_blocks": 0,
        "local_blocks": 1,
        "disable_index_value": True,
    }
    run = kernels.minimax_sparse_decode if case.section == "decode" else kernels.minimax_sparse_prefill
    return lambda: _call(run, common)[1]


def _call(function, arguments):
    """With those arguments that this version of the function names."""
    names = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in names})


def _first(result):
    return result[0] if isinstance(result, tuple) else result


CONTENDERS = (
    Contender("openmsa", True, _openmsa),
    Contender("vLLM Triton", True, _vllm),
    Contender("SGLang Triton", True, _sglang),
    Contender("PyTorch cuDNN", False, _pytorch("CUDNN_ATTENTION")),
    Contender("PyTorch flash", False, _pytorch("FLASH_ATTENTION")),
    Contender("flash-attn 3", False, _flash_attn("flash_attn_interface")),
    Contender("flash-attn 2", False, _flash_attn("flash_attn")),
    Contender("FlashInfer", False, _flashinfer),
    Contender("openmsa dense", False, _openmsa_dense),
)
_GPU_ONLY = ("vLLM Triton", "SGLang Triton", "PyTorch cuDNN", "flash-attn 3", "flash-attn 2", "FlashInfer")


def contenders_on(device: str) -> list[Contender]:
    return [one for one in CONTENDERS if device == "cuda" or one.name not in _GPU_ONLY]


def sample(o) -> np.ndarray:
    """64 tokens of o or fewer, in float64."""
    rows = np.unique(np.linspace(0, len(o) - 1, 64).astype(int)).tolist()
    o = o[rows]
    return np.asarray(o.detach().double().cpu() if hasattr(o, "detach") else o, np.float64)
