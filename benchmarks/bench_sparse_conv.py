"""Benchmarks of the op sparse_conv alone: pytest benchmarks/bench_sparse_conv.py --benchmark-enable"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsegan.nn.layer import SparseConv


def test_forward(benchmark: Any, problem: tuple[SparseConv, Tensor]) -> None:
    layer, x = problem
    with torch.inference_mode():
        benchmark(layer, x)


def test_input_gradient(benchmark: Any, problem: tuple[SparseConv, Tensor]) -> None:
    layer, x = problem
    layer.requires_grad_(False)
    y = layer(x.requires_grad_())
    gy = torch.randn_like(y)
    benchmark(torch.autograd.grad, y, x, gy, retain_graph=True)
