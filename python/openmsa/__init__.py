"""MiniMax Sparse Attention on CPUs and Hopper GPUs, for arrays of NumPy, PyTorch, CuPy and JAX.

``o = openmsa.msa_attention(q, k, v, index_q, index_k, block_size=128, topk=16)`` is one layer; `openmsa.Plan` is for
repeated calls and CUDA graphs. `openmsa.torch` has operators with gradients and a module,
`openmsa.integrations.transformers` runs MiniMax-M3 of Hugging Face on them.
"""

from ._functions import (
    append_kv,
    block_recall,
    block_scores,
    dense_attention,
    dense_attention_backward,
    kl_loss,
    msa_attention,
    select_blocks,
    sparse_attention,
    sparse_attention_backward,
    topk,
)
from ._openmsa import Error, cpu_features, cuda_device
from ._openmsa import version as _version
from ._plan import Plan
from ._workspace import free_workspace, workspace_bytes

__version__ = _version()
__all__ = [
    "Error",
    "Plan",
    "append_kv",
    "block_recall",
    "block_scores",
    "cpu_features",
    "cuda_device",
    "dense_attention",
    "dense_attention_backward",
    "free_workspace",
    "kl_loss",
    "msa_attention",
    "select_blocks",
    "sparse_attention",
    "sparse_attention_backward",
    "topk",
    "workspace_bytes",
]
