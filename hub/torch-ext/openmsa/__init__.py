"""MiniMax Sparse Attention on CPUs and Hopper GPUs: operators with gradients, a layer and a paged cache.

Everything is that of the Python package's `openmsa.torch`; `Plan`, `Error` and what says where it runs are its root's."""

from ._package import Error, Plan, __version__, cpu_features, cuda_device
from ._package import torch as _torch
from ._package.torch import *  # noqa: F403

__all__ = ["Error", "Plan", "__version__", "cpu_features", "cuda_device", *_torch.__all__]
