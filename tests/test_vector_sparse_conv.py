"""The Triton kernels in Triton's interpreter, on CPU tensors: both ops and their gradients against their twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, Problem, assert_close, problems, same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sparsegan
from sparsegan import kernels
from sparsegan.geometry import Direction, Geometry
from sparsegan.ops import reference
from sparsegan.ops.vector_plan import compile_plan, plan_size

pytest.importorskip("triton")

import triton
from sparsegan.kernels import tiling
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from sparsegan.ops import vector_ops as ops

pytestmark = pytest.mark.skipif(
    triton.__version__ < "3.7" and np.__version__ >= "2.4",
    reason="the interpreter of Triton 3.6 makes numbers of arrays, which NumPy 2.4 refuses",
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables TF32, and multiplies bfloat16 as float32. The interpreter would multiply its bits as integers."""
    dot: Callable[..., TensorHandle] = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits the programs: each writes several blocks, as in large layers, and only some launches use partial sums.

    Deep calls take few images at a time.
    """
    monkeypatch.setattr(tiling, "PROGRAMS", 8)
    monkeypatch.setattr(tiling, "LEAST_PROGRAMS", 8)
    monkeypatch.setattr(tiling, "PART_BYTES", 2000)
    ops._kept_launch.cache_clear()
    yield
    ops._kept_launch.cache_clear()


@st.composite
def vector_problems(draw: st.DrawFn) -> Problem:
    """Draws problems with vectors and zero padding. Images are few because the interpreter is slow."""
    p = draw(problems(most=4))
    assume(p.geometry.vector > 1 and p.padding_mode == "zeros")
    return replace(p, images=min(p.images, 2))


def plans(p: Problem, support: Tensor) -> tuple[Tensor, Tensor]:
    compiled = tuple(compile_plan(support, p.geometry, adjoint) for adjoint in (False, True))
    assert [c.shape[0] for c in compiled] == [plan_size(p.geometry, a, support.shape[0]) for a in (False, True)]
    return compiled[0], compiled[1]


def tensors(p: Problem, support: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random gy, x, values and bias of a problem."""
    shapes = (p.y_shape, p.x_shape, (support.shape[0] * p.geometry.vector,), (p.y_shape[1],))
    gy, x, values, bias = (torch.randn(shape).to(dtype) for shape in shapes)
    return gy, x, values, bias


def check(p: Problem, dtype: torch.dtype, slope: float = 1.0) -> None:
    """Compares sparse_conv and wgrad with their twins."""
    support = p.support()
    taps = (support, *plans(p, support), p.numbers, p.adjoint)
    gy, x, values, bias = tensors(p, support, dtype)

    def twin(f: Callable[[Tensor], Tensor]) -> Tensor:
        size = p.y_shape[1:]
        y = reference.sparse_conv(f(x), f(values), f(bias), support, p.geometry, p.adjoint, size)
        return F.leaky_relu(y, slope)

    y = ops.vector_sparse_conv(x, values, bias, *taps, list(p.y_shape[1:]), slope)
    assert y.dtype == dtype
    assert_close(y, twin(Tensor.double), twin(same), twin(lambda t: t.double().abs()))

    def wgrad_twin(f: Callable[[Tensor], Tensor]) -> Tensor:
        return reference.wgrad(f(gy), f(x), support, p.geometry, p.adjoint)

    gv = ops.vector_wgrad(gy, x, *taps)
    assert gv.dtype == dtype
    assert_close(gv, wgrad_twin(Tensor.double), wgrad_twin(same), wgrad_twin(lambda t: t.double().abs()))


@settings(max_examples=20)
@given(vector_problems(), st.sampled_from(DTYPES), st.sampled_from([1.0, 0.2, 0.0]))
def test_any_geometry(p: Problem, dtype: torch.dtype, slope: float) -> None:
    check(p, dtype, slope)


def conv(vector: int, channels: int, kernel: int, **rest: Any) -> Geometry:
    padding = kernel // 2
    return replace(Geometry(vector, channels, 1, *[(n, n) for n in (kernel, 1, padding, 1)], vector), **rest)


#: Cases that random geometries rarely give: every kind of tile, wide vectors, vectors that are no power of 2.
CASES = {
    "one tile a row": Problem(conv(16, 4, 3), False, 2, (3, 16), (3, 16), 0.5, False),
    "tiles that overlap": Problem(conv(16, 3, 3), False, 1, (2, 136), (2, 136), 0.5, False),
    "tiles that overlap, deep": Problem(conv(16, 3, 3), True, 1, (2, 136), (2, 136), 0.5, False),
    "kernel wider than a tile": Problem(
        conv(4, 2, 3, dilation=(1, 80), padding=(1, 80)), False, 1, (1, 200), (1, 200), 0.0, False
    ),
    "mostly padding": Problem(conv(4, 2, 1, padding=(0, 9)), False, 1, (2, 26), (2, 8), 0.0, False),
    "many images of one pixel": Problem(conv(8, 40, 1), False, 150, (1, 1), (1, 1), 0.5, False),
    "vector of 12": Problem(conv(24, 3, 3, coarse_vector=12), False, 2, (4, 8), (4, 8), 0.5, False),
    "vector of 64, deep": Problem(conv(128, 20, 3, coarse_vector=64), True, 1, (4, 4), (4, 4), 0.8, False),
    "transposed": Problem(
        Geometry(6, 64, 2, (4, 4), (2, 2), (1, 1), (1, 1), 1, 32), True, 2, (4, 16), (8, 32), 0.5, False
    ),
}


@pytest.mark.parametrize("p", CASES.values(), ids=CASES)
def test_case(p: Problem) -> None:
    check(p, torch.float16)


def test_cases_meet_every_tiling() -> None:
    tilings = {
        name: tiling.choose_tiling(Direction(p.geometry, p.adjoint), p.x_shape[3], p.y_shape[3], 128, 2)
        for name, p in CASES.items()
    }
    assert tilings["one tile a row"].deferred
    assert tilings["one tile a row"].tiles == 1
    assert tilings["tiles that overlap"].deferred
    assert tilings["tiles that overlap"].lead < 0
    assert not tilings["kernel wider than a tile"].deferred
    assert not tilings["many images of one pixel"].deferred


#: Both directions, with the vector on either side.
SIDES = {
    "wide": replace(SMALL, geometry=replace(SMALL.geometry, coarse_vector=2)),
    "deep": replace(SMALL, geometry=replace(SMALL.geometry, coarse_vector=2), adjoint=True),
    "wide, adjoint": replace(SMALL, geometry=replace(SMALL.geometry, fine_channels=4, fine_vector=2), adjoint=True),
    "wide, rows that no tap reads": replace(SMALL, geometry=replace(SMALL.geometry, coarse_vector=2), fine=(7, 6)),
    "deep, adjoint": replace(SMALL, geometry=replace(SMALL.geometry, fine_channels=4, fine_vector=2)),
}
sides = pytest.mark.parametrize("p", SIDES.values(), ids=SIDES)


@sides
@pytest.mark.parametrize("both", [True, False], ids=["both plans", "without a needless deep one"])
def test_first_and_second_gradients(p: Problem, both: bool) -> None:
    support = p.support()
    needed = {p.adjoint, p.geometry.fine_vector > 1}  # for the forward pass, and for the gradient in the values
    plan, adjoint_plan = (
        compile_plan(support, p.geometry, adjoint) if both or adjoint in needed else None for adjoint in (False, True)
    )
    inputs = tensors(p, support, torch.float32)[1:]

    def derivatives(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        x, values, bias = (t.to(dtype).requires_grad_() for t in inputs)
        y = function(x, values, bias)
        first = torch.autograd.grad(y.square().sum(), (x, values, bias), create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (x, values))]

    def twin(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        y = reference.sparse_conv(x, values, bias, support, p.geometry, p.adjoint, p.y_shape[1:])
        return F.leaky_relu(y, 0.2)

    def ours(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        taps = (support, plan, adjoint_plan, p.numbers, p.adjoint)
        return ops.vector_sparse_conv(x, values, bias, *taps, list(p.y_shape[1:]), 0.2)

    for actual, exact in zip(derivatives(ours, torch.float32), derivatives(twin, torch.float64), strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


@pytest.mark.parametrize("least_programs", [1, 8], ids=["whole", "partial sums"])
def test_relu_of_minus_infinity_is_zero(least_programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "LEAST_PROGRAMS", least_programs)
    p = SIDES["wide"]
    support = p.support()
    _gy, x, values, bias = tensors(p, support, torch.float32)
    taps = (support, *plans(p, support), p.numbers, p.adjoint)
    y = ops.vector_sparse_conv(x, values, torch.full_like(bias, -torch.inf), *taps, list(p.y_shape[1:]), 0.0)
    assert torch.equal(y, torch.zeros(p.y_shape))


@sides
def test_opcheck(p: Problem) -> None:
    support = p.support()
    gy, x, values, bias = (t.requires_grad_() for t in tensors(p, support, torch.float32))
    taps = (support, *plans(p, support), p.numbers, p.adjoint)
    # "test_aot_dispatch" is left out, because it traces kernels, and those of the interpreter cannot be traced.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    args = (x, values, bias, *taps, list(p.y_shape[1:]), 0.2)
    torch.library.opcheck(torch.ops.sparsegan.vector_sparse_conv.default, args, test_utils=checks)
    torch.library.opcheck(torch.ops.sparsegan.vector_wgrad.default, (gy, x, *taps), test_utils=checks)


def arrays(d: Direction, plan: Tensor, units: int) -> dict[str, Tensor]:
    """The arrays of a plan, as views of it, by their names in csrc/core/vector_plan.h."""
    sizes = {"columns": 2 * d.geometry.kernel[1]}
    if d.depth == 1:
        sizes |= {"first": d.groups + 1, "channel": units, "row": units, "unit": units}
    else:
        sizes |= {"first": d.sources // d.depth + 1, "unit": units, "taps": d.targets * d.phases + 1}
        sizes |= {"product": units, "row": units, "column": units}
    return dict(zip(sizes, plan.split(list(sizes.values())), strict=True))


@sides
@pytest.mark.parametrize("bad", ["columns", "first", "unit", "channel", "taps", "product", "column"])
def test_a_wrong_plan_reads_nothing_outside(p: Problem, bad: str) -> None:
    support = p.support()
    plan = compile_plan(support, p.geometry, p.adjoint)
    d, units = Direction(p.geometry, p.adjoint), support.shape[0]
    if bad not in (array := arrays(d, plan, units)):
        return  # of a plan of the other kind
    limit = {"channel": d.sources, "column": p.geometry.kernel[1]}.get(bad, units)
    wrong = array[bad]
    if bad == "columns":
        wrong[::2], wrong[1::2] = 2**29 + 2**12, 2**20  # outside x, also where a product overflows
    elif bad in ("first", "taps"):
        wrong[: len(wrong) // 2], wrong[len(wrong) // 2 :] = 2**30, -(2**30)
    else:
        wrong[::3], wrong[1::3], wrong[2::3] = limit, -1, 2**31 - 1
    gy, x, values, bias = tensors(p, support, torch.float32)
    taps = (support, None, plan) if p.adjoint else (support, plan, None)
    y = ops.vector_sparse_conv(x, values, bias, *taps, p.numbers, p.adjoint, list(p.y_shape[1:]))
    # Products of a deep plan, and outputs of a wide one whose sums move out of the tile, may stay unwritten.
    if bad != ("columns" if d.depth == 1 else "first"):
        assert torch.equal(y, bias.view(-1, 1, 1).expand_as(y))
    if d.width > 1 and bad in ("columns", "channel"):
        assert not ops.vector_wgrad(gy, x, *taps, p.numbers, p.adjoint).any()


@sides
def test_flops_are_those_of_the_other_kernels(p: Problem) -> None:
    support = p.support()
    gy, x, values, bias = tensors(p, support, torch.float32)
    taps, size = (p.numbers, p.adjoint), list(p.y_shape[1:])
    with FlopCounterMode(display=False) as ours:
        ops.vector_sparse_conv(x, values, bias, support, *plans(p, support), *taps, size)
        ops.vector_wgrad(gy, x, support, *plans(p, support), *taps)
    with FlopCounterMode(display=False) as theirs:
        sparsegan.ops.sparse_conv(x, values, bias, support, *p.plans(support), *taps, size)
        sparsegan.ops.wgrad(gy, x, support, *p.plans(support), *taps)
    assert ours.get_total_flops() == theirs.get_total_flops() > 0


def test_bad_calls_raise_a_sentence() -> None:
    p = SIDES["wide"]
    support = p.support()
    plan, adjoint_plan = plans(p, support)
    gy, x, values, bias = tensors(p, support, torch.float32)
    size = list(p.y_shape[1:])

    def sparse_conv(
        x: Tensor = x,
        values: Tensor = values,
        plan: Tensor | None = plan,
        size: list[int] = size,
    ) -> Tensor:
        return ops.vector_sparse_conv(x, values, bias, support, plan, adjoint_plan, p.numbers, False, size)

    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 5, 5\)"):
        sparse_conv(x=x[:, :1])
    with pytest.raises(ValueError, match=r"x has dtype torch\.float64"):
        sparse_conv(x=x.double())
    with pytest.raises(ValueError, match=r"values has shape"):
        sparse_conv(values=values[1:])
    with pytest.raises(ValueError, match="plan is None; this call needs the plan"):
        sparse_conv(plan=None)
    with pytest.raises(ValueError, match=r"from sparsegan\.ops\.plan"):
        sparse_conv(plan=plan[1:])
    with pytest.raises(ValueError, match="output_size has 5 channels; the geometry writes 4"):
        sparse_conv(size=[5, *size[1:]])
    with pytest.raises(ValueError, match="gy has 1 images and x has 2; the two numbers must be equal"):
        ops.vector_wgrad(gy[:1], x, support, plan, adjoint_plan, p.numbers, False)
    with pytest.raises(ValueError, match="support is on cpu; it must be on meta, as x is"):
        ops.vector_wgrad(gy.to("meta"), x.to("meta"), support, plan, adjoint_plan, p.numbers, False)


def test_why_not() -> None:
    geometry, cpu = SIDES["wide"].geometry, torch.device("cpu")
    assert kernels.why_not(geometry, torch.float16, cpu) == "the tensors are on cpu, not on an NVIDIA GPU"
    assert "float64" in (kernels.why_not(geometry, torch.float64, cpu) or "")
    assert "not 2 to 64" in (kernels.why_not(SMALL.geometry, torch.float16, cpu) or "")
