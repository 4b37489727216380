"""The op wgrad against its plain-PyTorch twin: every geometry, dtype and ISA, and its own gradients."""

from __future__ import annotations

import pytest
import torch
from conftest import Problem, assert_close, assert_exact, problems, same
from hypothesis import given
from torch import Tensor

from sparsegan import ops, reference
from sparsegan.plan import Geometry

SMALL = Problem(Geometry(4, 2, 2, (3, 2), (2, 1), (1, 0), (1, 2)), False, 2, (3, 3), (5, 5), 0.5, True)


def call(p: Problem, gy: Tensor, x: Tensor, support: Tensor) -> Tensor:
    plan, adjoint_plan = p.plans(support)
    return ops.wgrad(gy, x, plan, adjoint_plan, p.numbers, p.adjoint, len(support))


def twin(p: Problem, gy: Tensor, x: Tensor, support: Tensor) -> Tensor:
    return reference.wgrad(gy, x, support, p.geometry, p.adjoint)


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


@pytest.mark.parametrize("adjoint", [False, True])
def test_derivatives(adjoint: bool) -> None:
    p = Problem(**{**SMALL.__dict__, "adjoint": adjoint})
    support = p.support()
    gy = torch.randn(p.y_shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(p.x_shape, dtype=torch.float64, requires_grad=True)

    def function(gy: Tensor, x: Tensor) -> Tensor:
        return call(p, gy, x, support)

    assert torch.autograd.gradcheck(function, (gy, x))
    assert torch.autograd.gradgradcheck(function, (gy, x))


@pytest.mark.parametrize("adjoint", [False, True])
def test_opcheck(adjoint: bool) -> None:
    p = Problem(**{**SMALL.__dict__, "adjoint": adjoint})
    support = p.support()
    plan, adjoint_plan = p.plans(support)
    gy, x = (torch.randn(shape, requires_grad=True) for shape in (p.y_shape, p.x_shape))
    args = (gy, x, plan, adjoint_plan, p.numbers, p.adjoint, len(support))
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
        ops.wgrad(gy[:1], x, plan, adjoint_plan, SMALL.numbers, False, 9)
    with pytest.raises(RuntimeError, match="nnz is -1"):
        ops.wgrad(gy, x, plan, adjoint_plan, SMALL.numbers, False, -1)
    with pytest.raises(RuntimeError, match="another dtype"):
        ops.wgrad(gy.double(), x, plan, adjoint_plan, SMALL.numbers, False, 9)
