"""The ops on a GPU equal their plain-PyTorch twins in float64, for single weights (CUDA C++) and vectors (Triton)."""

from __future__ import annotations

import torch
from conftest import Problem, assert_close, problems, same
from gpu_device import DEVICE, DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsegan import ops
from sparsegan.ops import reference


def taps(p: Problem, support: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    support = support.to(DEVICE)
    return (support, *p.plans(support), p.numbers)


@given(problems(), st.sampled_from(DTYPES), st.sampled_from([1.0, 0.2]))
@settings(max_examples=150)
def test_sparse_conv(p: Problem, dtype: torch.dtype, slope: float) -> None:
    support = p.support()
    x, values = torch.randn(p.x_shape).to(dtype), torch.randn(len(support) * p.geometry.vector).to(dtype)
    bias = torch.randn(p.y_shape[1]).to(dtype)

    def twin(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        y = reference.sparse_conv(x, values, bias, support, p.geometry, p.adjoint, p.y_shape[1:], *p.padding)
        return torch.nn.functional.leaky_relu(y, slope)

    exact = twin(x.double(), values.double(), bias.double())
    magnitude = twin(x.double().abs(), values.double().abs(), bias.double().abs())
    inputs = (tensor.to(DEVICE) for tensor in (x, values, bias))
    y = ops.sparse_conv(*inputs, *taps(p, support), p.adjoint, list(p.y_shape[1:]), *p.padding, slope)
    assert_close(y.cpu(), exact, twin(x, values, bias), magnitude)


@given(problems(), st.sampled_from(DTYPES))
@settings(max_examples=150)
def test_gradients(p: Problem, dtype: torch.dtype) -> None:
    """The gradients with respect to the input (the adjoint sparse_conv) and to the values (wgrad)."""
    support = p.support()
    x, values = torch.randn(p.x_shape).to(dtype), torch.randn(len(support) * p.geometry.vector).to(dtype)
    gy = torch.randn(p.y_shape).to(dtype)

    def twin(x: Tensor, values: Tensor, gy: Tensor) -> tuple[Tensor, ...]:
        x, values = x.requires_grad_(), values.requires_grad_()
        y = reference.sparse_conv(x, values, None, support, p.geometry, p.adjoint, p.y_shape[1:], *p.padding)
        return torch.autograd.grad(y, (x, values), gy)

    exact, magnitude = (twin(*(f(t.double()) for t in (x, values, gy))) for f in (same, torch.abs))
    own = twin(x.clone(), values.clone(), gy)
    x, values = x.to(DEVICE).requires_grad_(), values.to(DEVICE).requires_grad_()
    y = ops.sparse_conv(x, values, None, *taps(p, support), p.adjoint, list(p.y_shape[1:]), *p.padding)
    ours = torch.autograd.grad(y, (x, values), gy.to(DEVICE))
    for results in zip(ours, exact, own, magnitude, strict=True):
        assert_close(results[0].cpu(), *results[1:])
