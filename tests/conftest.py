"""Shared parts of the tests: the ISA levels to run on, random calls of the ops, and tolerances."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsegan import data
from sparsegan.geometry import Geometry
from sparsegan.ops import native
from sparsegan.ops.plan import compile_plan

#: The tests in tests/gpu/ need a GPU. benchmarks/gpu.sh runs them.
collect_ignore = [] if torch.cuda.is_available() or "SPARSEGAN_TEST_DEVICE" in os.environ else ["gpu"]

settings.register_profile(
    "sparsegan",
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("sparsegan")


@pytest.fixture(params=native.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once at every ISA level that this build has and this machine supports."""
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same seed."""
    torch.manual_seed(0)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the digits by 24 smooth images, which need no extra package and little time."""

    def blobs(size: int = 64) -> tuple[Tensor, Tensor]:
        coarse = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear"), torch.arange(24) % 10

    monkeypatch.setitem(data.DATASETS, "mnist", blobs)


@dataclass(frozen=True)
class Problem:
    """One call of an op: all of it except the numbers in the tensors."""

    geometry: Geometry
    adjoint: bool
    images: int
    coarse: tuple[int, int]
    fine: tuple[int, int]
    sparsity: float
    empty_filter: bool
    padding_mode: str = "zeros"
    pad_before: tuple[int, int] = (0, 0)

    @property
    def padding(self) -> tuple[str, tuple[int, int]]:
        return (self.padding_mode, self.pad_before)

    @property
    def numbers(self) -> list[int]:
        return self.geometry.numbers()

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self._shape(self.adjoint)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self._shape(not self.adjoint)

    def _shape(self, coarse: bool) -> tuple[int, int, int, int]:
        g = self.geometry
        return (self.images, *((g.coarse_channels, *self.coarse) if coarse else (g.fine_channels, *self.fine)))

    def support(self) -> Tensor:
        keep = torch.rand(self.geometry.unit_shape) >= self.sparsity
        if self.empty_filter:
            keep[0] = False
        return keep.flatten().nonzero().flatten().int()

    def plans(self, support: Tensor) -> tuple[Tensor, Tensor]:
        return compile_plan(support, self.geometry), compile_plan(support, self.geometry, adjoint=True)


SMALL = Problem(Geometry(4, 2, 2, (3, 2), (2, 1), (1, 0), (1, 2)), False, 2, (3, 3), (5, 5), 0.5, True)
#: Small problems: both directions, vectors on either side, and a padding that repeats elements.
SMALLS = {
    "fine to coarse": SMALL,
    "coarse to fine": replace(SMALL, adjoint=True),
    "wide": replace(SMALL, geometry=replace(SMALL.geometry, coarse_vector=2)),
    "deep": replace(SMALL, geometry=replace(SMALL.geometry, coarse_vector=2), adjoint=True),
    "reflect": replace(
        SMALL, geometry=replace(SMALL.geometry, padding=(0, 0)), fine=(5, 4), padding_mode="reflect", pad_before=(2, 1)
    ),
}
#: Parametrises a test over the small problems.
small_problems = pytest.mark.parametrize("p", SMALLS.values(), ids=SMALLS)


@st.composite
def problems(draw: st.DrawFn, most: int = 9) -> Problem:
    """Draws any kind of problem: strides, paddings, dilations, groups, vectors, odd sizes, empty and full supports."""
    small = st.integers(1, 3)
    pair = st.tuples(small, small)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride, dilation = draw(pair), draw(pair)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    padding = draw(st.tuples(st.integers(0, reach[0]), st.integers(0, reach[1])))
    vectors = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (4, 1), (1, 4), (8, 1), (1, 8)]))
    channels = [groups * draw(small) * vector for vector in vectors]
    geometry = Geometry(channels[0], channels[1], groups, kernel, stride, padding, dilation, *vectors)
    if draw(st.booleans()):
        fine = tuple(max(draw(st.integers(1, 3 * most)), r + 1 - 2 * p) for r, p in zip(reach, padding, strict=True))
        coarse = tuple((n + 2 * p - r - 1) // s + 1 for n, p, r, s in zip(fine, padding, reach, stride, strict=True))
    else:
        coarse = draw(st.tuples(st.integers(1, most), st.integers(1, most)))
        fine = tuple(
            max(1, (n - 1) * s - 2 * p + r + 1 + draw(st.integers(0, s - 1)))
            for n, s, p, r in zip(coarse, stride, padding, reach, strict=True)
        )
    adjoint, mode, before = draw(st.booleans()), "zeros", [0, 0]
    if not adjoint and draw(st.booleans()):  # the padded input is then the fine grid
        mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
        geometry = replace(geometry, padding=(0, 0))
        padded = tuple(
            (n - 1) * s + r + 1 + draw(st.integers(0, s - 1)) for n, s, r in zip(coarse, stride, reach, strict=True)
        )
        size = []
        for axis, n in enumerate(padded):
            most = {"reflect": (n - 1) // 3, "circular": n // 3, "replicate": (n - 1) // 2}[mode]
            before[axis] = draw(st.integers(0, most))
            size.append(n - before[axis] - draw(st.integers(0, most)))
        fine = (size[0], size[1])
    return Problem(
        geometry,
        adjoint=adjoint,
        images=draw(st.sampled_from([1, 2, 3, 17])),
        coarse=(coarse[0], coarse[1]),
        fine=(fine[0], fine[1]),
        sparsity=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        empty_filter=draw(st.booleans()),
        padding_mode=mode,
        pad_before=(before[0], before[1]),
    )


def same(x: Tensor) -> Tensor:
    return x


def assert_close(actual: Tensor, exact: Tensor, own: Tensor, magnitude: Tensor) -> None:
    """The error of `actual` is at most twice the error of PyTorch's result `own` in the same dtype.

    `exact` is the result in float64. `magnitude` is the result for absolute values of all inputs. One rounding of
    `magnitude` is allowed in addition, because PyTorch may be exact by luck.
    """
    assert actual.shape == exact.shape
    if exact.numel():
        rounding = torch.finfo(actual.dtype).eps * magnitude.abs().max()
        allowed = 2 * (own.double() - exact).abs().max() + rounding
        error = (actual.double() - exact).abs().max()
        assert error <= allowed, f"error {error:.3g}, PyTorch's error allows {allowed:.3g}"


def assert_exact(actual: Tensor, exact: Tensor, tolerance: float = 1e-12) -> None:
    """Compares two float64 results. They may differ only by the order of the additions."""
    torch.testing.assert_close(actual, exact, rtol=tolerance, atol=tolerance)
