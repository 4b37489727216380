"""Panels that several sparse convolutions share, as in a dense block, whose convolutions read ever more channels of one
concatenation. Each channel is then packed once, by the first step that reads the channel."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..ops import native
from ..ops.precisions import FULL
from ..signals import rows_and_columns
from .arena import plan_arena
from .steps import SharedPanel, SparseConvStep, Step
from .values import Slot

#: The arena may grow by this factor for the sake of shared panels.
MOST_GROWTH = 1.2
#: A larger panel leaves the cache between the steps that read it. Packing again is then as fast (csrc/cpu/NOTES.md).
MOST_BYTES = 8 << 20


def share_panels(steps: Sequence[Step]) -> None:
    """Gives a shared panel to the sparse convolutions that read the first channels of the same slot on the same grid.

    The arena grows by at most `MOST_GROWTH`. The largest panels are given up first.
    """
    most = MOST_GROWTH * plan_arena(steps).bytes
    runs = sorted((run for run in readers_of_one_slot(steps) if _share(run)), key=_bytes)
    while runs and plan_arena(steps).bytes > most:
        for step in runs.pop():
            step.panel, step.packed = None, 0


def readers_of_one_slot(steps: Sequence[Step]) -> list[list[SparseConvStep]]:
    """The steps that read the first channels of the same slot, with the same kernel, padding, sizes and precision."""
    runs: dict[Hashable, list[SparseConvStep]] = defaultdict(list)
    for step in steps:
        if not isinstance(step, SparseConvStep) or step.x.affine is not None:
            continue
        root, offset = step.x.slot, 0
        while root.parent is not None:
            root, offset = root.parent, offset + root.offset
        if offset == 0 and not root.outside:
            axes = tuple(step.geometry[3:-2])  # the numbers that are not about channels
            grid = (axes, step.adjoint, step.padding_mode, step.pad_before, _output_size(step))
            rounding = None if step.short is None else (step.short.precision, step.short.to_integer)
            runs[root, grid, rounding].append(step)
    return list(runs.values())


def _share(steps: Sequence[SparseConvStep]) -> bool:
    """Gives one panel to those of the steps whose activations agree. Returns whether there are at least two of them."""
    packed, slopes, readers, found = 0, torch.ones(0), [], []
    for step in steps:
        channels = step.x.slot.shape[1]
        own = step.x.slope if isinstance(step.x.slope, Tensor) else torch.ones(channels)
        both = min(packed, channels)
        if _equal(own[:both], slopes[:both]):
            readers.append(step)
            found.append(both)
            if channels > packed:
                packed, slopes = channels, own
    if len(readers) < 2:
        return False
    largest = max(readers, key=lambda one: one.support.shape[0])  # its tile serves all of them
    n, _, *x_size = largest.x.slot.shape
    dtype = largest.x.slot.dtype
    tile, size = native.shared_panel(
        largest.geometry,
        largest.adjoint,
        largest.support.shape[0],
        n,
        rows_and_columns(x_size, 1),
        _output_size(largest),
        FULL[dtype] if largest.short is None else largest.short.precision.number,
        packed,
    )
    if size > MOST_BYTES:
        return False
    panel = SharedPanel(Slot((size,), torch.uint8), packed, tile)
    for step, before in zip(readers, found, strict=True):
        step.panel, step.packed = panel, before
    return True


def _output_size(step: SparseConvStep) -> tuple[int, int]:
    """Rows and columns of the output before a PixelShuffle."""
    height, width = rows_and_columns(step.y.shape[2:], 1)
    return height // step.shuffle, width // step.shuffle


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.double(), b.double())


def _bytes(steps: Sequence[SparseConvStep]) -> int:
    return max((math.prod(step.panel.slot.shape) for step in steps if step.panel is not None), default=0)
