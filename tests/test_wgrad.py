"""The op wgrad against its plain-PyTorch twin: every geometry, dtype and ISA, gradients of wgrad, and bad calls."""

from __future__ import annotations

import pytest
import torch
from conftest import SMALL, Problem, assert_close, assert_exact, problems, same, small_problems
from hypothesis import given
from torch import Tensor

from sparsegan import ops
from sparsegan.geometry import Geometry
from sparsegan.ops import reference


def call(p: Problem, gy: Tensor, x: Tensor, support: Tensor) -> Tensor:
    plan, adjoint_plan = p.plans(support)
    return ops.wgrad(gy, x, support, plan, adjoint_plan, p.numbers, p.adjoint, *p.padding)


def twin(p: Problem, gy: Tensor, x: Tensor, support: Tensor) -> Tensor:
    return reference.wgrad(gy, x, support, p.geometry, p.adjoint, *p.padding)


@given(problems())
def test_float64(isa: str, p: Problem) -> None:
    support = p.support()
    gy, x = torch.randn(p.y_shape).double(), torch.randn(p.x_shape).double()
    assert_exact(call(p, gy, x, support), twin(p, gy, x, support))


@given(problems())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(isa: str, dtype: torch.dtype, p: Problem) -> None:
    support = p.support()
    gy, x = torch.randn(p.y_shape).to(dtype), torch.randn(p.x_shape).to(dtype)
    exact, magnitude = (twin(p, f(gy.double()), f(x.double()), support) for f in (same, torch.abs))
    assert_close(call(p, gy, x, support), exact, twin(p, gy, x, support), magnitude)


@pytest.mark.parametrize("adjoint", [False, True])
def test_many_blocks_and_groups(isa: str, adjoint: bool) -> None:
    p = Problem(Geometry(70, 40, 1, (4, 4), (2, 2), (1, 1), (1, 1)), adjoint, 3, (20, 21), (40, 42), 0.8, True)
    support = p.support()
    gy, x = torch.randn(p.y_shape), torch.randn(p.x_shape)
    exact, magnitude = (twin(p, f(gy.double()), f(x.double()), support) for f in (same, torch.abs))
    assert_close(call(p, gy, x, support), exact, twin(p, gy, x, support), magnitude)


@small_problems
def test_derivatives(p: Problem) -> None:
    support = p.support()
    gy = torch.randn(p.y_shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(p.x_shape, dtype=torch.float64, requires_grad=True)

    def function(gy: Tensor, x: Tensor) -> Tensor:
        return call(p, gy, x, support)

    assert torch.autograd.gradcheck(function, (gy, x))
    assert torch.autograd.gradgradcheck(function, (gy, x))


@small_problems
def test_opcheck(p: Problem) -> None:
    support = p.support()
    plan, adjoint_plan = p.plans(support)
    gy, x = (torch.randn(shape, requires_grad=True) for shape in (p.y_shape, p.x_shape))
    args = (
        gy,
        x,
        support,
        plan,
        adjoint_plan,
        p.numbers,
        p.adjoint,
        ops.PADDING_MODES.index(p.padding_mode),
        list(p.pad_before),
    )
    torch.library.opcheck(torch.ops.sparsegan.wgrad.default, args)


def test_same_bits_for_any_number_of_threads() -> None:
    p = Problem(Geometry(48, 32, 1, (3, 3), (1, 1), (1, 1), (1, 1)), False, 3, (20, 20), (20, 20), 0.7, False)
    support = p.support()
    gy, x = torch.randn(p.y_shape), torch.randn(p.x_shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(call(p, gy, x, support))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_bad_calls_raise_a_sentence() -> None:
    support = torch.arange(9, dtype=torch.int32)
    plan, adjoint_plan = SMALL.plans(support)
    gy, x = torch.randn(SMALL.y_shape), torch.randn(SMALL.x_shape)
    with pytest.raises(RuntimeError, match="gy has 1 images and x 2"):
        ops.wgrad(gy[:1], x, support, plan, adjoint_plan, SMALL.numbers, False)
    with pytest.raises(RuntimeError, match="another dtype"):
        ops.wgrad(gy.double(), x, support, plan, adjoint_plan, SMALL.numbers, False)
