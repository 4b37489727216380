"""The short precisions of sparse_conv_fused. Integers equal an exact integer reference bit for bit, on every ISA and
over all geometries. bfloat16 stays within the rounding of float32 sums."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import SMALL, Problem, problems
from hypothesis import given
from hypothesis import strategies as st
from test_fused import beside, changed
from torch import Tensor

from sparsegan.ops import PADDING_MODES, native, reference
from sparsegan.ops.plan import compile_direct_plan
from sparsegan.ops.precisions import PRECISIONS

sparse_conv_fused = torch.ops.sparsegan.sparse_conv_fused.default
MOST = {one.dtype: one.most for one in PRECISIONS.values()}
LANE = {one.dtype: one.lane for one in PRECISIONS.values()}
dtypes = st.sampled_from(list(LANE))


@dataclass
class Call:
    """A call in a short precision. `given`: the op's arguments; `values`: its values in the order of the support."""

    p: Problem
    given: dict[str, Any]
    values: Tensor

    @classmethod
    def of(cls, p: Problem, dtype: torch.dtype, deep: int = 1, transform: bool = True) -> Call:
        """A random call with units of ``deep`` lanes of source channels. All its numbers are small multiples of 1/8, so
        that rounding happens only where the precision asks for it."""
        p = short(p, LANE[dtype] * deep)
        support, (n, channels, *_) = p.support(), p.y_shape
        plan, order = compile_direct_plan(support, p.geometry, p.adjoint)
        count = len(support) * p.geometry.vector
        values = (
            torch.randn(count).to(dtype) if dtype == torch.bfloat16 else torch.randint(-100, 101, (count,)).to(dtype)
        )
        eighths = torch.randint(-80, 81, (n, p.x_shape[1], *p.x_shape[2:])) / 8
        x = beside(p.x_shape, 1, 1, torch.float32).copy_(eighths)
        maps = (torch.randint(-2, 3, (n, p.x_shape[1])) / 2, torch.randint(-8, 9, (n, p.x_shape[1])) / 8)
        slope = torch.randint(0, 3, (p.x_shape[1],)) / 2
        integer = dtype != torch.bfloat16
        given = {
            "x": x,
            "scale": maps[0] if transform else None,
            "shift": maps[1] if transform else None,
            "slope": slope if transform else None,
            "values": values.view(-1, p.geometry.vector)[order].flatten(),
            "bias": None if integer else torch.randn(channels),
            "support": support,
            "plan": plan,
            "geometry": p.numbers,
            "adjoint": p.adjoint,
            "padding_mode": PADDING_MODES.index(p.padding_mode),
            "pad_before": list(p.pad_before),
            "negative_slope": 1.0,
            "output_activation": 0,
            "shuffle": 1,
            "norm_weight": None,
            "norm_bias": None,
            "eps": 0.0,
            "y": torch.full(p.y_shape, torch.nan),
            "y_scale": None,
            "y_shift": None,
            "panel": None,
            "panel_channels": 0,
            "panel_packed": 0,
            "panel_tile": [0, 0],
            "sum_scale": 2.0 ** torch.randint(-4, 1, (channels,)) if integer else None,
            "to_integer": 11.3,
            "most": MOST[dtype],
        }
        return cls(p, given, values)

    def run(self) -> Tensor:
        sparse_conv_fused(*self.given.values())
        return self.given["y"]

    def rounded(self) -> Tensor:
        """x after the input transform, in the precision of the call."""
        g = self.given
        x = changed(g["x"], (g["scale"], g["shift"]), g["slope"])
        if self.values.dtype == torch.bfloat16:
            return x.bfloat16()
        return (x * g["to_integer"]).clamp(-g["most"], g["most"]).round()

    def expected(self) -> Tensor:
        """The exact result, float64."""
        p, g = self.p, self.given
        bias = None if g["bias"] is None else g["bias"].double()
        y = reference.sparse_conv(
            self.rounded().double(), self.values.double(), bias, g["support"], p.geometry, p.adjoint, p.y_shape[1:],
            *p.padding,
        )  # fmt: skip
        return y if g["sum_scale"] is None else y.float().double() * g["sum_scale"].double()[:, None, None]

    def check(self) -> None:
        found, expected = self.run().double(), self.expected()
        if self.values.dtype != torch.bfloat16:
            assert torch.equal(found, expected)
            return
        p, g = self.p, self.given
        size = reference.sparse_conv(
            self.rounded().double().abs(), self.values.double().abs(), g["bias"].double().abs(), g["support"],
            p.geometry, p.adjoint, p.y_shape[1:], *p.padding,
        )  # fmt: skip
        assert ((found - expected).abs() <= 1e-5 * size + 1e-30).all()  # products are exact, sums are float32


def short(p: Problem, depth: int) -> Problem:
    """The problem with units of ``depth`` source channels and one target channel."""
    g = p.geometry
    name, other = ("coarse", "fine") if p.adjoint else ("fine", "coarse")
    channels = {
        f"{name}_channels": g.groups * depth * max(1, getattr(g, f"{name}_channels") // g.groups // 2),
        f"{other}_channels": getattr(g, f"{other}_channels"),
        f"{name}_vector": depth,
        f"{other}_vector": 1,
    }
    return replace(p, geometry=replace(g, **channels))


@given(problems(), dtypes, st.integers(1, 2), st.booleans())
def test_equal_to_the_exact_reference(isa: str, p: Problem, dtype: torch.dtype, deep: int, transform: bool) -> None:
    Call.of(p, dtype, deep, transform).check()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", LANE)
def test_many_tiles_blocks_and_threads(isa: str, threads: int, dtype: torch.dtype) -> None:
    g = replace(SMALL.geometry, fine_channels=64, coarse_channels=72, groups=1, kernel=(3, 3), dilation=(1, 1))
    g = replace(g, stride=(2, 2), padding=(1, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for adjoint in (False, True):
            Call.of(Problem(g, adjoint, 2, (17, 23), (34, 45), 0.7, True), dtype).check()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
@pytest.mark.parametrize("adjoint", [False, True])
def test_extremes_at_the_bound(isa: str, dtype: torch.dtype, adjoint: bool) -> None:
    """The largest inputs and the largest weights that the bound admits add up to almost 2^31, with either sign."""
    g = replace(SMALL.geometry, fine_channels=8, coarse_channels=8, groups=1, kernel=(1, 1), stride=(1, 1))
    g = replace(g, padding=(0, 0), dilation=(1, 1))
    most = 32767 if dtype == torch.int16 else 127
    for sign in (1, -1):
        call = Call.of(Problem(g, adjoint, 1, (5, 9), (5, 9), 0.0, False), dtype, transform=False)
        call.given |= {"most": most, "to_integer": 1e6, "x": torch.full_like(call.given["x"], float(sign))}
        weight = (2**31 - 1) // most // call.p.x_shape[1] if dtype == torch.int16 else 127
        call.values.fill_(weight)
        call.given["values"] = call.values
        call.check()
        assert call.given["y"].abs().max() > 0
    if dtype == torch.int16:
        call.given["values"] = torch.full_like(call.values, weight + 1)
        with pytest.raises(Exception, match="the sums may leave 32 bits"):
            call.run()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
def test_what_is_no_number_counts_as_the_largest_input(isa: str, dtype: torch.dtype) -> None:
    call = Call.of(replace(SMALL, empty_filter=False), dtype, transform=False)
    call.given["x"].fill_(torch.inf)
    call.check()
    largest = call.given["y"].clone()
    for bits in (0x7FC00000, 0x7FC07FFF, -1):  # NaNs whose own low bits are 0, a large integer, and -1
        call.given["x"].copy_(torch.full_like(call.given["x"], bits, dtype=torch.int32).view(torch.float32))
        assert torch.equal(call.run(), largest)


@pytest.mark.parametrize("dtype", LANE)
def test_a_shared_panel_holds_the_lanes_that_an_earlier_call_packed(isa: str, dtype: torch.dtype) -> None:
    p = replace(SMALL, geometry=replace(SMALL.geometry, groups=1, fine_channels=12, kernel=(3, 3)), fine=(5, 7))
    small = Call.of(p, dtype, transform=False)
    half = small.p.geometry.fine_channels
    large = Call.of(replace(p, geometry=replace(p.geometry, fine_channels=24)), dtype, transform=False)
    large.given["x"] = large.given["x"].contiguous()
    small.given["x"] = large.given["x"][:, :half]
    x_size, y_size = large.p.x_shape[2:], large.p.y_shape[2:]
    channels = large.p.x_shape[1]
    number = next(one.number for one in PRECISIONS.values() if one.dtype == dtype)
    tile, size = native.shared_panel(
        large.p.numbers, False, len(large.given["support"]), large.p.images, x_size, y_size, number, channels
    )
    room = torch.empty(size + 64, dtype=torch.uint8)
    panel = room[-room.data_ptr() % 64 :][:size]
    for call, packed in ((small, 0), (large, half)):
        call.given |= {"panel": panel, "panel_channels": channels, "panel_packed": packed, "panel_tile": list(tile)}
        call.check()


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("multiple of 4", {"values": torch.zeros(1, dtype=torch.int8)}),
        ("sum_scale must be given for integer", {"sum_scale": None}),
        ("most must be from 1 to 32767", {"most": 40000}),
        ("most must be from 1 to 32767", {"most": 0}),
        ("to_integer", {"to_integer": float("nan")}),
        ("to_integer", {"to_integer": -1.0}),
        ("sum_scale must have shape", {"sum_scale": torch.ones(1)}),
    ],
)
def test_bad_calls_are_refused(message: str, changes: dict[str, Any]) -> None:
    call = Call.of(SMALL, torch.int16)
    if "values" in changes:
        changes = {"values": torch.zeros(len(call.values), dtype=torch.int8)}
    with pytest.raises(RuntimeError, match=message):
        sparse_conv_fused(*(call.given | changes).values())


def test_a_plan_without_the_order_of_the_taps_is_refused() -> None:
    call = Call.of(replace(SMALL, adjoint=True), torch.int16)
    with pytest.raises(RuntimeError, match="direct plan"):
        sparse_conv_fused(*(call.given | {"plan": call.p.plans(call.given["support"])[1]}).values())
