"""MiniMax Sparse Attention on CPUs and GPUs, for arrays of NumPy, PyTorch, CuPy and JAX.

``o = openmsa.msa_attention(q, k, v, index_q, index_k, block_size=128, topk=16)`` is one layer; `openmsa.Plan` is for
repeated calls and CUDA graphs. `openmsa.torch` has operators with gradients and a module,
`openmsa.integrations.transformers` runs MiniMax-M3 of Hugging Face on them.
"""

from . import _functions
from ._functions import *  # noqa: F403
from ._openmsa import Error, cpu_features, cuda_device
from ._openmsa import version as _version
from ._plan import Plan
from ._workspace import Workspace, free_workspace, workspace_bytes, workspace_per_call

__version__ = _version()
__all__ = ["Error", "Plan", "Workspace", "cpu_features", "cuda_device", "free_workspace", "workspace_bytes"]
__all__ += ["workspace_per_call"]
__all__ += _functions.__all__
