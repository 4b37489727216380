"""Plans of the Triton kernels: a support seen from its targets, compiled by torch ops on the support's own device.

A sparse_conv reads sources and writes targets. Its *width* is how many target channels a unit has, its *depth* how many
source channels: a vector on the target side makes a sparse_conv **wide** (width V, depth 1), one on the source side
**deep** (width 1, depth V). A program writes one block of target channels: a unit's, or ``DEEP_BLOCK`` of a deep
sparse_conv's.

A plan is one int32 tensor. Its size follows from the geometry and the number of units alone, so nothing here waits for
the device:

    columns  [kernel width, 2]               shift and source phase of each kernel column
    first    [blocks * phases * kernel width + 1]  first tap of each (block, phase, kernel column)
    channel  [units]                         source channel of a tap, its unit's first
    row      [units]                         source row of a tap, less (target row * source step)
    unit     [units, 1]                      wide: which unit the tap is
             [units, DEEP_BLOCK]             deep: which unit serves each target channel of the block; -1: none does

A tap of a deep block is a (source unit, kernel position) that any of its channels keeps; there may be fewer than units,
and then the tail is unused. Phases sit on the fine side, as in ``csrc/core/plan.h``: targets have them in a coarse to
fine sparse_conv. A column's shift and phase are those of ``csrc/core/geometry.h``, from the target's side:

    fine to coarse   source column = (target column + shift) * stride + phase
    coarse to fine   source column =  target column of the phase + shift
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Direction, Geometry


def plan_size(geometry: Geometry, adjoint: bool, units: int) -> int:
    """Numbers of a plan, whatever positions the ``units`` are at."""
    return Direction(geometry, adjoint).plan_size(units)


def compile_plan(support: Tensor, geometry: Geometry, adjoint: bool = False) -> Tensor:
    """Compiles a support for the Triton kernels, without waiting for the device that it lies on.

    Args:
        support: int32 ``[units]``, strictly increasing positions in the flattened ``geometry.unit_shape``; not checked
            here, for that would wait: :func:`sparsegan.ops.plan.check_support` does.
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

    # csrc/core/plan.cpp's TapReader: a unit's index to its source unit, its target unit, its kernel position.
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
