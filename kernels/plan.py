"""Plans of the Triton kernels: a support seen from its targets, compiled by torch ops on the support's own device.

A gather reads sources and writes targets. Its *width* is how many target channels a unit has, its *depth* how many
source channels: a vector on the target side makes a gather **wide** (width V, depth 1), one on the source side **deep**
(width 1, depth V). A program writes one block of target channels: a unit's, or ``DEEP_BLOCK`` of a deep gather's.

A plan is one int32 tensor. Its size follows from the geometry and the number of units alone, so nothing here waits for
the device:

    columns  [kernel width, 2]               shift and source phase of each kernel column
    first    [blocks * phases * kernel width + 1]  first tap of each (block, phase, kernel column)
    channel  [units]                         source channel of a tap, its unit's first
    row      [units]                         source row of a tap, less (target row * source step)
    unit     [units, 1]                      wide: which unit the tap is
             [units, DEEP_BLOCK]             deep: which unit serves each target channel of the block; -1: none does

A tap of a deep block is a (source unit, kernel position) that any of its channels keeps; there may be fewer than units,
and then the tail is unused. Phases sit on the fine side, as in ``csrc/plan/plan.h``: targets have them in a coarse to
fine gather. A column's shift and phase are those of ``csrc/plan/geometry.h``, from the target's side:

    fine to coarse   source column = (target column + shift) * stride + phase
    coarse to fine   source column =  target column of the phase + shift
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsegan.plan import Geometry

#: Target channels of a deep gather's block: the least that fills a tensor core's tile.
DEEP_BLOCK = 16


def geometry_of(numbers: list[int]) -> Geometry:
    """The geometry of a flat list, :meth:`sparsegan.plan.Geometry.numbers` the other way round."""
    if len(numbers) != 13:
        raise ValueError(f"geometry has {len(numbers)} numbers; it must have 13, as Geometry.numbers() gives them")
    coarse, fine, groups, kh, kw, sh, sw, ph, pw, dh, dw, coarse_vector, fine_vector = map(int, numbers)
    return Geometry(coarse, fine, groups, (kh, kw), (sh, sw), (ph, pw), (dh, dw), coarse_vector, fine_vector)


@dataclass(frozen=True)
class Direction:
    """One direction of a geometry: what a gather's sources and targets are."""

    geometry: Geometry
    adjoint: bool

    @property
    def sources(self) -> int:
        """Source channels."""
        return self.geometry.coarse_channels if self.adjoint else self.geometry.fine_channels

    @property
    def targets(self) -> int:
        """Target channels."""
        return self.geometry.fine_channels if self.adjoint else self.geometry.coarse_channels

    @property
    def depth(self) -> int:
        """Source channels a unit."""
        return self.geometry.coarse_vector if self.adjoint else self.geometry.fine_vector

    @property
    def width(self) -> int:
        """Target channels a unit."""
        return self.geometry.fine_vector if self.adjoint else self.geometry.coarse_vector

    @property
    def lanes(self) -> int:
        """Units that a tap may stand for: 1, or the channels of a deep block."""
        return DEEP_BLOCK if self.depth > 1 else 1

    @property
    def block(self) -> int:
        """Target channels a block."""
        return self.width * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.targets // self.block)

    @property
    def source_step(self) -> tuple[int, int]:
        """Source rows and columns from one target position to the next."""
        return (1, 1) if self.adjoint else self.geometry.stride

    @property
    def target_step(self) -> tuple[int, int]:
        """Target rows and columns from one position of a phase to the next."""
        return self.geometry.stride if self.adjoint else (1, 1)

    @property
    def phases(self) -> int:
        """Phases of the targets."""
        return self.target_step[0] * self.target_step[1]

    @property
    def groups(self) -> int:
        """Runs of taps with one block, phase and kernel column."""
        return self.blocks * self.phases * self.geometry.kernel[1]

    def shifts(self, axis: int) -> tuple[list[int], list[int]]:
        """Shift and phase of every kernel position along an axis, the shift from the target's side."""
        g = self.geometry
        offsets = [i * g.dilation[axis] - g.padding[axis] for i in range(g.kernel[axis])]
        shifts = [offset // g.stride[axis] for offset in offsets]
        phases = [offset % g.stride[axis] for offset in offsets]
        return ([-shift for shift in shifts] if self.adjoint else shifts), phases

    def plan_size(self, units: int) -> int:
        """Numbers of a plan of so many units."""
        return 2 * self.geometry.kernel[1] + self.groups + 1 + units * (2 + self.lanes)


def plan_size(geometry: Geometry, adjoint: bool, units: int) -> int:
    """Numbers of a plan, whatever positions the ``units`` are at."""
    return Direction(geometry, adjoint).plan_size(units)


def compile_plan(support: Tensor, geometry: Geometry, adjoint: bool = False) -> Tensor:
    """Compiles a support for the Triton kernels, without waiting for the device that it lies on.

    Args:
        support: int32 ``[units]``, strictly increasing positions in the flattened ``geometry.unit_shape``; not checked
            here, for that would wait: :func:`sparsegan.plan.check_support` does.
        geometry: of the layer; one of its vectors is above 1.
        adjoint: ``False`` for fine to coarse (a convolution), ``True`` for coarse to fine (its transpose).

    Returns:
        int32 ``[plan_size(geometry, adjoint, units)]``, on the support's device.

    Raises:
        ValueError: the plan would have more numbers than int32 can count.
    """
    d, g, device = Direction(geometry, adjoint), geometry, support.device
    (kh, kw), units = g.kernel, support.shape[0]
    if d.plan_size(units) >= 2**31:
        raise ValueError(f"plan: it would have {d.plan_size(units)} numbers; at most 2147483647 are possible")

    def table(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)

    (row_shift, row_phase), (col_shift, col_phase) = d.shifts(0), d.shifts(1)
    columns = table([n for pair in zip(col_shift, [0] * kw if adjoint else col_phase, strict=True) for n in pair])
    # What a tap adds to its target's row times the source step.
    rows = table(row_shift if adjoint else [s * g.stride[0] + p for s, p in zip(row_shift, row_phase, strict=True)])

    # csrc/plan/plan.cpp's TapReader: a unit's index to its source unit, its target unit, its kernel position.
    position, pair = support.long() % (kh * kw), support.long() // (kh * kw)
    i, j = position // kw, position % kw
    fine_units, coarse_units = g.unit_shape[1], g.coarse_channels // g.groups // g.coarse_vector
    coarse = pair // fine_units
    fine = coarse // coarse_units * fine_units + pair % fine_units
    source, target = (coarse, fine) if adjoint else (fine, coarse)
    phase = table(row_phase)[i] * g.stride[1] + table(col_phase)[j] if adjoint else 0

    block, lane = target // d.lanes, target % d.lanes
    group = (block * d.phases + phase) * kw + j
    tap = (group * (d.sources // d.depth) + source) * kh + i  # sorts by group, then channel, then row
    _, order = torch.sort(tap * d.lanes + lane, stable=True)
    group, source, i, lane, tap = (numbers[order] for numbers in (group, source, i, lane, tap))

    # Units of a deep block that share a tap become one: `slot` numbers the taps.
    starts = torch.cat([tap.new_zeros(1), torch.ones_like(tap[:1]), (tap[1:] != tap[:-1]).long()])[: units + 1]
    taps_before = starts.cumsum(0)
    slot = taps_before[1:] - 1
    first = taps_before[torch.searchsorted(group, torch.arange(d.groups + 1, device=device))]
    channel = torch.zeros_like(tap).scatter_(0, slot, source * d.depth)
    row = torch.zeros_like(tap).scatter_(0, slot, rows[i])
    unit = tap.new_full((units * d.lanes,), -1).scatter_(0, slot * d.lanes + lane, order)
    return torch.cat([columns, first, channel, row, unit]).int()
