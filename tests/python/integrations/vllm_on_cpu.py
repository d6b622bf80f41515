"""vLLM where there is no GPU: enough of CUDA is made up that its modules import and its models of M3 are made on the
CPU. Its kernels do not run there. For a module of tests, since PyTorch is told of a GPU that is not there."""

import ctypes
import json
import os
import subprocess
import types

import pytest
import torch

#: Of the driver's library, which vLLM's extensions are linked with.
_DRIVER = ("cuGetProcAddress_v2", "cuPointerGetAttribute", "cuTensorMapEncodeTiled")
MODEL = "MiniMaxM3SparseForCausalLM"


def import_vllm(patch: pytest.MonkeyPatch, folder):
    """vLLM, or a skip that says what is missing."""
    patch.setenv("VLLM_CACHE_ROOT", str(folder))
    patch.setenv("VLLM_PLUGINS", "")
    patch.setenv("VLLM_NO_USAGE_STATS", "1")
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("VLLM_DISABLE_SHARED_EXPERTS_STREAM", "1")
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    if not torch.cuda.is_available():
        _make_driver(folder)
        _make_gpu(patch)
    import vllm.model_executor.models.registry as registry

    patch.setattr(registry, "_run_in_subprocess", lambda function: function())  # a new process would know of no GPU
    return vllm


def _make_driver(folder) -> None:
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in _DRIVER))
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source)]
    try:
        subprocess.run(command, check=True)
    except OSError:
        pytest.skip("no GPU, and no C compiler to make up its driver")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _make_gpu(patch) -> None:
    gpu = types.SimpleNamespace(
        major=9, minor=0, name="NVIDIA H200", total_memory=141 << 30, multi_processor_count=132, uuid=""
    )
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (gpu.major, gpu.minor))
    patch.setattr(torch.cuda, "get_device_name", lambda *_: gpu.name)
    patch.setattr(torch.cuda, "get_device_properties", lambda *_: gpu)
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform

    patch.setattr(vllm.platforms, "_current_platform", NonNvmlCudaPlatform())


def checkpoint(folder, heads_q=4, heads_kv=2, topk=3, num_mtp_modules=0):
    """A folder with the configuration of a small M3: a dense layer and two sparse ones."""
    sparse = [0, 1, 1]
    text = {
        "model_type": "minimax_m3_text",
        "architectures": [MODEL],
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 128,
        "dense_intermediate_size": 128,
        "shared_intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": heads_q,
        "num_key_value_heads": heads_kv,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "rotary_dim": 64,
        "partial_rotary_factor": 0.5,
        "rope_theta": 5000000,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_layer_freq": [0, 0, 0],
        "num_mtp_modules": num_mtp_modules,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-6,
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_index_dim": 128,
            "sparse_num_index_heads": heads_kv,
            "sparse_topk_blocks": topk,
            "sparse_block_size": 128,
            "sparse_disable_index_value": sparse,
            "sparse_score_type": "max",
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_attention_freq": sparse,
        },
    }
    config = {
        "model_type": "minimax_m3_vl",
        "architectures": [MODEL],
        "dtype": "bfloat16",
        "text_config": text,
        "vision_config": None,
    }
    os.makedirs(folder, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def engine_config(model, **options):
    from vllm.engine.arg_utils import EngineArgs

    options = {
        "skip_tokenizer_init": True,
        "block_size": 128,
        "max_model_len": 2048,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": 8,
        "attention_backend": "TRITON_ATTN",
        "enforce_eager": True,
    } | options
    return EngineArgs(model=str(model), **options).create_engine_config()


def start_single_rank(vllm_config, folder) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(vllm_config):
        init_distributed_environment(1, 0, f"file://{folder}/ranks", 0, backend="gloo")
        initialize_model_parallel(1, 1, backend="gloo")


def make_model(vllm_config, model_cls=None):
    """As the engine makes it, on the CPU."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import get_model_architecture

    model_cls = model_cls or get_model_architecture(vllm_config.model_config)[0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(vllm_config.model_config.dtype)
    try:
        with set_current_vllm_config(vllm_config), torch.device("cpu"):
            return model_cls(vllm_config=vllm_config)
    finally:
        torch.set_default_dtype(before)
