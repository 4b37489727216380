"""Benchmarks of the op wgrad alone: pytest benchmarks/bench_wgrad.py --benchmark-enable"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsegan.nn.layer import SparseConv


def test_values_gradient(benchmark: Any, problem: tuple[SparseConv, Tensor]) -> None:
    layer, x = problem
    y = layer(x)
    gy = torch.randn_like(y)
    benchmark(torch.autograd.grad, y, layer.values, gy, retain_graph=True)
