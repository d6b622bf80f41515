"""Kernels in Triton that openmsa is measured beside. Only their callers import them: they need PyTorch and Triton."""
