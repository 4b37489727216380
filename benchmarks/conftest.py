"""A sparse layer of the reference generators and its input, for the kernel benchmarks beside this file."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsegan.benchmark import LAYERS, LayerCase
from sparsegan.nn.layer import SPARSE_CLASSES, SparseConv


@pytest.fixture(params=LAYERS, ids=str)
def problem(request: pytest.FixtureRequest) -> tuple[SparseConv, Tensor]:
    """A layer with 90 % of its weights dropped at random places, and an input."""
    case: LayerCase = request.param
    torch.manual_seed(0)
    dense = case.dense()
    layer = SPARSE_CLASSES[type(dense)].from_dense(dense, mask=torch.rand(dense.weight.shape) >= 0.9)
    layer.backend = "sparse"
    return layer, case.input()
