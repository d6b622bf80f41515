"""Kernels in Triton that openmsa is measured beside. They need PyTorch and Triton: nothing imports them but their callers."""
