"""Triton kernels for NVIDIA GPUs, installed as ``sparsegan.kernels``. None is built yet."""
