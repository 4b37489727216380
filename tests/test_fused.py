"""The ops of the inference engine against torch: every geometry and ISA, views, and bad calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, Problem, assert_exact, problems
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsegan.ops import OUTPUT_ACTIVATIONS, PADDING_MODES, reference
from sparsegan.ops.plan import compile_direct_plan

sparse_conv_fused = torch.ops.sparsegan.sparse_conv_fused.default
pointwise = torch.ops.sparsegan.pointwise.default


def changed(x: Tensor, maps: tuple[Tensor | None, Tensor | None], slope: Tensor | None) -> Tensor:
    scale, shift = maps
    if scale is not None and shift is not None:
        x = x * scale[:, :, None, None] + shift[:, :, None, None]
    return x if slope is None else torch.where(x <= 0, x * slope[:, None, None], x)


def beside(shape: tuple[int, ...], before: int, after: int, dtype: torch.dtype) -> Tensor:
    """A random view of some channels of a larger tensor, like one part of a concatenation."""
    n, c, h, w = shape
    return torch.randn(n, before + c + after, h, w, dtype=dtype)[:, before : before + c]


def arguments(p: Problem, shuffle: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Random arguments of sparse_conv_fused by name, in the order of the op."""
    support = p.support()
    n, channels, height, width = p.y_shape
    y = beside((n, channels // shuffle**2, height * shuffle, width * shuffle), 1, 2, dtype)
    numbers = [torch.randn(n, p.x_shape[1] + 1, dtype=dtype)[:, 1:] for _ in range(2)]
    of_norm = [torch.randn(y.shape[1], dtype=dtype) for _ in range(2)]
    found = [torch.randn(n, y.shape[1] + 3, dtype=dtype)[:, 2 : 2 + y.shape[1]] for _ in range(2)]
    return {
        "x": beside(p.x_shape, 2, 0, dtype),
        "scale": numbers[0],
        "shift": numbers[1],
        "slope": torch.randn(p.x_shape[1], dtype=dtype).clamp(min=0),
        "values": torch.randn(len(support) * p.geometry.vector, dtype=dtype),
        "bias": torch.randn(channels, dtype=dtype),
        "support": support,
        "plan": p.plans(support)[p.adjoint],
        "geometry": p.numbers,
        "adjoint": p.adjoint,
        "padding_mode": PADDING_MODES.index(p.padding_mode),
        "pad_before": list(p.pad_before),
        "negative_slope": 1.0,
        "output_activation": 0,
        "shuffle": shuffle,
        "norm_weight": of_norm[0],
        "norm_bias": of_norm[1],
        "eps": 0.1,
        "y": y,
        "y_scale": found[0],
        "y_shift": found[1],
    }


#: The output activations in torch, in the order of their numbers.
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
}
#: Whether the bound of the error in float32, 3 * 2^-23, is relative to the result (y) or to the input (x).
BOUNDS = {"tanh": "y", "sigmoid": "y", "silu": "y", "gelu": "x", "gelu_tanh": "x", "hardswish": "y", "softplus": "y"}


def bent(x: Tensor, output_activation: str) -> Tensor:
    return CURVES[output_activation](x)


def direct(a: dict[str, Any], p: Problem) -> dict[str, Any]:
    """The same call with a direct plan, and with the values in the order of this plan."""
    plan, order = compile_direct_plan(a["support"], p.geometry, p.adjoint)
    return a | {"plan": plan, "values": a["values"].view(-1, p.geometry.vector)[order].flatten()}


def check(p: Problem, shuffle: int, affine: bool, slope: bool, norm: bool, output_activation: str = "none") -> None:
    given_arguments = arguments(p, shuffle) | {"output_activation": OUTPUT_ACTIVATIONS.index(output_activation)}
    if not affine:
        given_arguments.update(scale=None, shift=None)
    if not slope:
        given_arguments.update(slope=None)
    if not norm:
        given_arguments.update(y_scale=None, y_shift=None)
    a = given_arguments
    whole, around = a["y"]._base, a["y"]._base.clone()
    for call in (a, direct(a, p)):
        a["y"].fill_(torch.nan)
        sparse_conv_fused(*call.values())
        _compare(p, a, shuffle, norm, output_activation)
    channels = a["y"].shape[1]
    for part in (slice(0, 1), slice(1 + channels, None)):  # the channels beside y stay unchanged
        assert torch.equal(whole[:, part], around[:, part])


def _compare(p: Problem, a: dict[str, Any], shuffle: int, norm: bool, output_activation: str) -> None:
    x = changed(a["x"], (a["scale"], a["shift"]), a["slope"])
    expected = reference.sparse_conv(
        x, a["values"], a["bias"], a["support"], p.geometry, p.adjoint, p.y_shape[1:], *p.padding
    )
    expected = bent(F.pixel_shuffle(expected, shuffle), output_activation)
    assert_exact(a["y"], expected)
    if norm:
        variance, mean = torch.var_mean(expected, (2, 3), correction=0)
        scale = a["norm_weight"] / (variance + a["eps"]).sqrt()
        # Both follow from all elements of y, each of which may differ by 1e-12 of itself.
        assert_exact(a["y_scale"], scale, 1e-11)
        assert_exact(a["y_shift"], a["norm_bias"] - mean * scale, 1e-11)


@given(problems(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from(OUTPUT_ACTIVATIONS))
def test_sparse_conv_fused(isa: str, p: Problem, affine: bool, slope: bool, norm: bool, output_activation: str) -> None:
    check(p, 1, affine, slope, norm, output_activation)


@given(problems(), st.integers(2, 3), st.booleans(), st.sampled_from(OUTPUT_ACTIVATIONS))
def test_pixel_shuffle(isa: str, p: Problem, shuffle: int, norm: bool, output_activation: str) -> None:
    g = p.geometry
    channels = g.coarse_channels * shuffle**2
    geometry = replace(g, coarse_channels=channels, coarse_vector=1, fine_vector=1)
    check(replace(p, adjoint=False, geometry=geometry), shuffle, True, True, norm, output_activation)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_many_tiles_and_threads(isa: str, threads: int) -> None:
    """Statistics of many tiles and groups, with the work divided among threads by groups and by target channels."""
    g = replace(SMALL.geometry, coarse_channels=12, groups=1, kernel=(3, 3), dilation=(1, 1), padding=(1, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for images, coarse, stride in ((1, (70, 33), (1, 1)), (5, (17, 40), (2, 2)), (40, (3, 2), (1, 2))):
            fine = tuple((n - 1) * s + 1 for n, s in zip(coarse, stride, strict=True))
            problem = Problem(replace(g, stride=stride), False, images, coarse, (fine[0], fine[1]), 0.5, True)
            for adjoint in (False, True):
                check(replace(problem, adjoint=adjoint), 1, True, True, True)
    finally:
        torch.set_num_threads(before)


def test_statistics_do_not_cancel(isa: str) -> None:
    """The mean is ten thousand times the spread. In float32, sums of squares would give no digit of the variance."""
    p = Problem(replace(SMALL.geometry, groups=1, coarse_channels=1), False, 1, (40, 40), (80, 41), 0.0, False)
    a = arguments(p, dtype=torch.float32)
    a |= dict.fromkeys(("scale", "shift", "slope", "norm_weight", "norm_bias"))
    a |= {"bias": torch.full((1,), 4096.0), "eps": 0.0}
    a["values"].mul_(1e-1)
    sparse_conv_fused(*a.values())
    variance = a["y"].double().var((2, 3), correction=0)
    torch.testing.assert_close(a["y_scale"].double(), variance.rsqrt(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_infinities_and_nan(isa: str, slope: float) -> None:
    x = torch.randn(1, 1, 3, 9)
    x[0, 0, 1, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    y = torch.empty_like(x)
    pointwise(x, None, None, torch.tensor([slope]), None, None, None, None, 0, 1, y)
    torch.testing.assert_close(y, F.leaky_relu(x, slope) if slope else x.relu(), equal_nan=True)


@pytest.mark.parametrize("output_activation", BOUNDS)
def test_output_activations_in_single_precision(isa: str, output_activation: str) -> None:
    """The error is within the documented bound, for small and large values of both signs. NaN stays NaN. Infinities
    give the limits, where some of torch's functions give NaN."""
    sizes = torch.logspace(-30, 1.93, 20000, dtype=torch.float64).float()
    ends = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan, 86.0, -86.0])
    x = torch.cat([sizes, -sizes, torch.linspace(-12, 12, 20000), ends])
    y = torch.empty_like(x).reshape(1, 1, 1, -1)
    number = OUTPUT_ACTIVATIONS.index(output_activation)
    pointwise(x.reshape(y.shape), None, None, None, None, None, None, None, number, 1, y)
    y, limits = y.flatten().double(), {"tanh": -1.0}
    expected = bent(x.double(), output_activation)
    expected[x == -torch.inf] = limits.get(output_activation, 0.0)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.isposinf(), expected.isposinf())
    finite = expected.isfinite()
    size = (expected if BOUNDS[output_activation] == "y" else x.double().clamp(-1e3)).abs()
    # 1e-34: the kernels clamp inputs at -86, where a function as good as vanishes
    assert bool(((y - expected).abs() <= 3 * 2.0**-23 * size + 1e-34)[finite].all())


def test_the_tests_know_all_output_activations() -> None:
    assert tuple(CURVES) == OUTPUT_ACTIVATIONS == ("none", *BOUNDS)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 19)),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(OUTPUT_ACTIVATIONS),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pointwise(
    isa: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    repeat: int,
    add: bool,
    plain: bool,
    output_activation: str,
) -> None:
    n, c, h, w = shape
    maps = torch.float64 if dtype == torch.float64 else torch.float32

    def operand() -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        x = beside(shape, 1, 1, torch.float64).to(dtype)
        numbers = [torch.randn(n, c, dtype=maps) for _ in range(2)]
        return (x, None, None, None) if plain else (x, *numbers, torch.rand(c, dtype=maps))

    a = operand()
    b: tuple[Tensor | None, ...] = operand() if add else (None,) * 4
    expected = changed(a[0].to(maps), (a[1], a[2]), a[3])
    if b[0] is not None:
        expected = expected + changed(b[0].to(maps), (b[1], b[2]), b[3])
    expected = bent(expected, output_activation).repeat_interleave(repeat, 2).repeat_interleave(repeat, 3).to(dtype)
    y = beside((n, c, h * repeat, w * repeat), 0, 2, torch.float64).to(dtype) if repeat > 1 else a[0]  # else in place
    pointwise(*a, *b, OUTPUT_ACTIVATIONS.index(output_activation), repeat, y)
    torch.testing.assert_close(y, expected)


BAD = {
    "scale and shift must be given together": {"shift": None},
    r"shift must have shape \[2, 2\]": {"shift": torch.zeros(2, 5, dtype=torch.float64)},
    "scale must be float64": {"scale": torch.zeros(2, 2)},
    r"slope must have shape \[2\]": {"slope": torch.zeros(3, dtype=torch.float64)},
    "contiguous channels": {"slope": torch.zeros(4, dtype=torch.float64)[::2]},
    "bias has 3 elements; it must have 4": {"bias": torch.zeros(3, dtype=torch.float64)},
    "values has 1 elements": {"values": torch.zeros(1, dtype=torch.float64)},
    "each image of y must be contiguous": {"y": torch.zeros(2, 4, 3, 6, dtype=torch.float64)[..., ::2]},
    "each image of x must be contiguous": {"x": torch.zeros(2, 2, 5, 5, dtype=torch.float64).transpose(2, 3)},
    "images of y": {"y": torch.zeros(1, 4, 3, 3, dtype=torch.float64).expand(2, 4, 3, 3)},
    "y has another dtype": {"y": torch.zeros(2, 4, 3, 3)},
    "it must have 2 images": {"y": torch.zeros(3, 4, 3, 3, dtype=torch.float64)},
    "the output has 5 channels": {"y": torch.zeros(2, 5, 3, 3, dtype=torch.float64)},
    "shuffle is 0": {"shuffle": 0},
    "whole blocks of 2 x 2": {"shuffle": 2},
    "eps is -1": {"eps": -1.0},
    "y_scale and y_shift must be given together": {"y_shift": None},
    "rows that do not overlap": {
        f"y_{one}": torch.zeros(4, dtype=torch.float64).expand(2, 4) for one in ("scale", "shift")
    },
    "negative_slope is 2": {"negative_slope": 2.0},
    "output_activation is 8; it must be from 0": {"output_activation": 8},
    "padding_mode is 4": {"padding_mode": 4},
    "plan: it has 3 numbers where 5 are expected": {"plan": torch.zeros(3, dtype=torch.int32)},
    "norm_weight must have shape": {"norm_weight": torch.zeros(1, dtype=torch.float64)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_calls_are_refused(message: str) -> None:
    a = arguments(SMALL) | BAD[message]
    if message == "images of y":
        message = "each image of y must be contiguous"
    with pytest.raises((RuntimeError, ValueError), match=message):
        sparse_conv_fused(*a.values())


@pytest.mark.parametrize("adjoint", [False, True])
def test_bad_direct_plans_are_refused(adjoint: bool) -> None:
    p = replace(SMALL, adjoint=adjoint)
    a = direct(arguments(p), p)
    codes = a["plan"].view(torch.int16)
    for damaged, message in (
        (torch.where(torch.arange(len(codes)) == len(codes) - 4, -1, codes).view(torch.int32), "a tap has code 65535"),
        (a["plan"][:-1], "numbers where"),
        (torch.cat([a["plan"][:1] + 1, a["plan"][1:]]), "its rows do not rise"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse_conv_fused(*(a | {"plan": damaged}).values())
    plans = (None, a["plan"]) if adjoint else (a["plan"], None)
    with pytest.raises(ValueError, match="numbers where"):  # this op takes no direct plan
        torch.ops.sparsegan.sparse_conv(
            a["x"], a["values"], None, a["support"], *plans, p.numbers, adjoint, list(p.y_shape[1:])
        )


def test_bad_pointwise_calls_are_refused() -> None:
    x = torch.zeros(2, 3, 4, 4)
    nothing = (None, None, None)
    for other, y, repeat, message in (
        (None, torch.zeros(2, 3, 4, 5), 1, "y must have the input's shape, 1 times as high and wide"),
        (None, torch.zeros(2, 3, 4, 4), 2, "2 times as high"),
        (None, torch.zeros(2, 3, 4, 4), 0, "y must have"),
        (torch.zeros(2, 3, 4, 3), torch.zeros(2, 3, 4, 4), 1, "other has 3 elements along dimension 3"),
        (torch.zeros(2, 3, 4, 4).double(), torch.zeros(2, 3, 4, 4), 1, "other has another dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pointwise(x, *nothing, other, *nothing, 0, repeat, y)
    with pytest.raises(RuntimeError, match="output_activation is -1; it must be from 0"):
        pointwise(x, *nothing, None, *nothing, -1, 1, x)


def test_opcheck() -> None:
    a = arguments(SMALL)
    torch.library.opcheck(sparse_conv_fused, tuple(a.values()), test_utils=("test_schema", "test_faketensor"))
    x, y = torch.randn(2, 3, 4, 4), torch.empty(2, 3, 4, 4)
    nothing = (None, None, None)
    opcheck = (x, *nothing, x.clone(), *nothing, 0, 1, y)
    torch.library.opcheck(pointwise, opcheck, test_utils=("test_schema", "test_faketensor"))
