"""The op sparse_conv against its plain-PyTorch twin: every geometry, dtype and ISA, gradients, and bad calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import SMALL, Problem, assert_close, assert_exact, problems, same, small_problems
from hypothesis import given
from torch import Tensor

from sparsegan import ops
from sparsegan.geometry import Geometry
from sparsegan.ops import reference

UNPADDED = replace(SMALL.geometry, padding=(0, 0)).numbers()


def call(p: Problem, x: Tensor, values: Tensor, bias: Tensor | None, support: Tensor, slope: float = 1.0) -> Tensor:
    plan, adjoint_plan = p.plans(support)
    taps = (support, plan, adjoint_plan, p.numbers)
    return ops.sparse_conv(x, values, bias, *taps, p.adjoint, list(p.y_shape[1:]), *p.padding, slope)


def twin(p: Problem, x: Tensor, values: Tensor, bias: Tensor | None, support: Tensor) -> Tensor:
    return reference.sparse_conv(x, values, bias, support, p.geometry, p.adjoint, p.y_shape[1:], *p.padding)


@given(problems())
def test_float64(isa: str, p: Problem) -> None:
    support = p.support()
    x, values = torch.randn(p.x_shape).double(), torch.randn(len(support) * p.geometry.vector).double()
    bias = torch.randn(p.y_shape[1]).double()
    assert_exact(call(p, x, values, bias, support), twin(p, x, values, bias, support))


@given(problems())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(isa: str, dtype: torch.dtype, p: Problem) -> None:
    support = p.support()
    x, values = torch.randn(p.x_shape).to(dtype), torch.randn(len(support) * p.geometry.vector).to(dtype)
    bias = torch.randn(p.y_shape[1]).to(dtype)
    exact, magnitude = (
        twin(p, f(x.double()), f(values.double()), f(bias.double()), support) for f in (same, torch.abs)
    )
    assert_close(call(p, x, values, bias, support), exact, twin(p, x, values, bias, support), magnitude)


@pytest.mark.parametrize(
    ("coarse_channels", "fine_channels", "kernel", "stride", "size"),
    [(70, 40, 3, 1, 33), (40, 70, 4, 2, 40), (130, 3, 7, 1, 30), (20, 300, 1, 1, 17), (9, 9, 5, 3, 70)],
)
@pytest.mark.parametrize("adjoint", [False, True])
def test_many_blocks_and_tiles(
    isa: str, adjoint: bool, coarse_channels: int, fine_channels: int, kernel: int, stride: int, size: int
) -> None:
    """Layers large enough for several source blocks, register tiles of every kind and several groups of tiles."""
    padding = kernel // 2
    g = Geometry(coarse_channels, fine_channels, 1, (kernel, kernel), (stride, stride), (padding, padding), (1, 1))
    coarse = (size + 2 * padding - kernel) // stride + 1
    p = Problem(g, adjoint, 2, (coarse, coarse), (size, size), 0.8, True)
    support = p.support()
    x, values = torch.randn(p.x_shape), torch.randn(len(support) * p.geometry.vector)
    exact, magnitude = (twin(p, f(x.double()), f(values.double()), None, support) for f in (same, torch.abs))
    assert_close(call(p, x, values, None, support), exact, twin(p, x, values, None, support), magnitude)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_activation(isa: str, slope: float) -> None:
    """The activation is that of torch, also for infinities and NaN, in partial vectors, phases and wide strides."""
    for stride in (1, 2, 3):
        g = Geometry(9, 6, 1, (3, 3), (stride, stride), (1, 1), (1, 1))
        for adjoint in (False, True):
            p = Problem(g, adjoint, 2, (7, 11), (6 * stride + 1, 10 * stride + 1), 0.5, True)
            support = p.support()
            x, values = torch.randn(p.x_shape), torch.randn(len(support))
            x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
            plain = call(p, x, values, None, support)
            active = call(p, x, values, None, support, slope=slope)
            expected = torch.nn.functional.leaky_relu(plain, slope) if slope else plain.relu()
            assert torch.equal(active.nan_to_num(7.0), expected.nan_to_num(7.0))


@small_problems
def test_derivatives(p: Problem) -> None:
    support = p.support()
    x = torch.randn(p.x_shape, dtype=torch.float64, requires_grad=True)
    values = torch.randn(len(support) * p.geometry.vector, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(p.y_shape[1], dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return call(p, x, values, bias, support, slope=0.25)

    assert torch.autograd.gradcheck(function, (x, values, bias))
    assert torch.autograd.gradgradcheck(function, (x, values, bias))


@small_problems
def test_opcheck(p: Problem) -> None:
    support = p.support()
    plan, adjoint_plan = p.plans(support)
    x = torch.randn(p.x_shape, requires_grad=True)
    values, bias = (torch.randn(n, requires_grad=True) for n in (len(support) * p.geometry.vector, p.y_shape[1]))
    padding = (ops.PADDING_MODES.index(p.padding_mode), list(p.pad_before))
    taps = (support, plan, adjoint_plan, p.numbers)
    args = (x, values, bias, *taps, p.adjoint, list(p.y_shape[1:]), *padding, 0.25)
    torch.library.opcheck(torch.ops.sparsegan.sparse_conv.default, args)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("vectors", [(1, 1), (8, 1), (1, 8)])
@pytest.mark.parametrize(("images", "size"), [(3, 20), (1, 4)])
def test_same_bits_for_any_number_of_threads_and_from_several_threads(
    isa: str, adjoint: bool, vectors: tuple[int, int], images: int, size: int
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    g = Geometry(48, 32, 1, (4, 4), (2, 2), (1, 1), (1, 1), *vectors)
    p = Problem(g, adjoint, images, (size, size), (2 * size, 2 * size), 0.7, False)
    support = p.support()
    x, values = torch.randn(p.x_shape), torch.randn(len(support) * g.vector)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):  # 5 threads use one panel together
            torch.set_num_threads(threads)
            results.append(call(p, x, values, None, support))
        with ThreadPoolExecutor(2) as pool:
            results += pool.map(lambda _: call(p, x, values, None, support), range(8))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_not_contiguous_and_empty_batch() -> None:
    support = SMALL.support()
    values = torch.randn(len(support))
    x = torch.randn(SMALL.x_shape).to(memory_format=torch.channels_last)
    assert torch.equal(call(SMALL, x, values, None, support), call(SMALL, x.contiguous(), values, None, support))
    assert call(SMALL, x[:0], values, None, support).shape == (0, *SMALL.y_shape[1:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 3, 5, 5)}, "3 channels; the geometry says 2"),
        ({"x": torch.randn(2, 5, 5)}, "3 dimensions; it must have 4"),
        ({"x": torch.randn(2, 2, 5, 5).half()}, "float32, float64 or bfloat16"),
        ({"x": torch.randn(2, 2, 0, 5)}, "at least 1"),
        ({"values": torch.randn(9).double()}, "another dtype"),
        ({"values": torch.randn(3)}, "3 elements; a support of 9 units has 9"),
        ({"support": torch.arange(8, dtype=torch.int32)}, "rows do not rise"),
        ({"support": torch.arange(9)}, "one-dimensional int32"),
        ({"padding_mode": "mirror"}, "'mirror'; accepted: 'zeros', 'reflect'"),
        ({"padding_mode": "reflect", "geometry": UNPADDED, "pad_before": (5, 0)}, "5 elements would be padded by 5"),
        ({"padding_mode": "reflect"}, "the geometry's padding is 1; it must be 0"),
        ({"pad_before": (1, 0)}, "must be \\[0, 0\\] for zeros"),
        ({"negative_slope": -0.5}, "negative_slope is -0.5"),
        ({"bias": torch.randn(5)}, "bias has 5 elements; it must have 4"),
        ({"plan": None}, "plan is None"),
        ({"plan": torch.zeros(3)}, "one-dimensional int32"),
        ({"geometry": [1, 2, 3]}, "geometry has 3 numbers"),
        ({"geometry": [4, 2, 2, 3, 2, 0, 1, 1, 0, 1, 2, 1, 1]}, "stride is 0"),
        ({"geometry": [4, 2, 3, 3, 2, 2, 1, 1, 0, 1, 2, 1, 1]}, "groups is 3"),
        ({"output_size": [4, 3]}, "output_size has 2 numbers"),
        ({"output_size": [4, 0, 3]}, "at least 1"),
        ({"output_size": [5, 3, 3]}, "5 channels; the geometry says 4"),
    ],
)
def test_bad_calls_raise_a_sentence(change: dict[str, object], words: str) -> None:
    support = torch.arange(9, dtype=torch.int32)
    plan, adjoint_plan = SMALL.plans(support)
    args = {
        "x": torch.randn(SMALL.x_shape),
        "values": torch.randn(9),
        "bias": None,
        "support": support,
        "plan": plan,
        "adjoint_plan": adjoint_plan,
        "geometry": SMALL.numbers,
        "adjoint": False,
        "output_size": list(SMALL.y_shape[1:]),
    }
    ops.sparse_conv(**args)  # type: ignore[arg-type]
    with pytest.raises((RuntimeError, ValueError), match=words):
        ops.sparse_conv(**{**args, **change})  # type: ignore[arg-type]
