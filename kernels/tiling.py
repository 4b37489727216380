"""How target positions are cut into tiles, and the arguments of a kernel's launch. This module launches nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from sparsegan.geometry import Direction

from .tuned import Blocks, Key, key, tuned_blocks

#: The number of programs that a launch aims at, a few per multiprocessor of a large GPU. Small calls have fewer.
PROGRAMS = 1024
#: A sparse_conv with fewer programs, two per multiprocessor of a large GPU, is cut into smaller ones.
LEAST_PROGRAMS = 264
#: The positions below which a tile of a sparse_conv is not cut further. Each tile reads all values.
FEWEST_POSITIONS = 64
#: The most positions of a sparse_conv's tile if x is read one element at a time. More would not fit into registers.
PLAIN_POSITIONS = 64

#: The most bytes of products that a deep sparse_conv has between its two steps: half of the second-level cache.
PART_BYTES = 24 * 2**20

Size = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """How the columns of a phase are cut into ``tiles`` tiles of ``width``, of which a program writes ``columns``.

    ``deferred``: x is read unshifted, ``lead`` columns after the tile's first one, and the sums are shifted instead.
    ``columns`` and ``lead`` are then multiples of ``align``.
    """

    deferred: bool
    width: int
    columns: int
    lead: int
    tiles: int
    align: int

    @property
    def cost(self) -> int:
        """The number of columns that are computed."""
        return self.tiles * self.width


@dataclass(frozen=True)
class Launch:
    """One launch: the number of programs, the arguments after the tensors, and the compile-time constants.

    The caller adds ``partial_sums`` partial sums: of kernel columns for a sparse_conv, of positions for a wgrad.
    """

    programs: int
    partial_sums: int
    numbers: list[Any]
    constants: dict[str, Any]


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of 2 that is not below ``n``."""
    power = 1
    while power < n:
        power *= 2
    return power


def phase_size(d: Direction, target_size: Size) -> Size:
    """The rows and columns of a target's largest phase."""
    return cdiv(target_size[0], d.target_step[0]), cdiv(target_size[1], d.target_step[1])


def plain_tiling(width: int, most: int) -> Tiling:
    """The tiling that covers ``width`` columns with the least waste. Tiles have 8 (or all) to ``most`` columns."""
    least = min(8, most, power_of_2(width))
    widths = [2**i for i in range(most.bit_length()) if 2**i >= least]
    options = [Tiling(False, n, n, 0, max(1, cdiv(width, n)), 1) for n in widths]
    return min(options, key=lambda t: (t.cost, -t.width))


def deferred_tiling(d: Direction, source_width: int, width: int, most: int, align: int) -> Tiling | None:
    """The best tiling that reads x unshifted, or ``None`` if the kernel spans too many columns."""
    shifts = d.column_shifts()
    lead = min(shifts) // align * align
    whole = max(width, min(source_width, width + max(shifts)))
    options = []
    for i in range(align.bit_length() - 1, most.bit_length()):
        tile = 2**i
        columns = (tile - max(shifts) + lead) // align * align
        if tile >= whole:  # one tile has all columns, so that nothing is read twice
            options.append(Tiling(True, tile, tile, 0, 1, align))
        elif columns > 0:
            options.append(Tiling(True, tile, columns, lead, cdiv(width, columns), align))
    return min(options, key=lambda t: (t.cost, -t.width), default=None)


def choose_tiling(d: Direction, source_width: int, width: int, most: int, itemsize: int) -> Tiling:
    """The deferred tiling if it loads 8 bytes or more at a time and computes at most twice the plain one's columns.

    Otherwise the plain tiling.
    """
    plain = plain_tiling(width, most)
    align = math.gcd(source_width, 16 // itemsize)
    if d.source_step[1] > 1 or align * itemsize < 8:
        return plain
    deferred = deferred_tiling(d, source_width, width, most, align)
    return deferred if deferred is not None and deferred.cost <= 2 * plain.cost else plain


def call_key(op: str, d: Direction, units: int, images: int, target_size: Size, dtype: torch.dtype) -> Key:
    """The key of a call of ``op`` (``"sparse_conv"`` or ``"wgrad"``) in the table of tuned blocks."""
    rows, width = phase_size(d, target_size)
    channels, taps = max(16, power_of_2(d.width)), units // (d.blocks * d.phases)
    return key(op, channels, dtype.itemsize, images * rows * width, taps)


def _fit(most: Blocks, images: int, rows: int, width: int) -> Blocks:
    """The blocks with no more positions than the call has."""
    there = power_of_2(images * rows) * power_of_2(width)
    return most._replace(positions=min(most.positions, max(16, there)))


def _steps(d: Direction) -> dict[str, Any]:
    return {
        "SOURCE_STEP_H": d.source_step[0],
        "SOURCE_STEP_W": d.source_step[1],
        "TARGET_STEP_H": d.target_step[0],
        "TARGET_STEP_W": d.target_step[1],
        "KERNEL_W": d.geometry.kernel[1],
    }


def _constants(d: Direction, precision: str, cut: Blocks) -> dict[str, Any]:
    return _steps(d) | {
        "WIDTH": d.width,
        "PRECISION": precision,
        "BLOCK_P": cut.positions,
        "BLOCK_O": max(16, power_of_2(d.width)),
        "BLOCK_K": cut.taps,
        "num_warps": cut.warps,
        "num_stages": cut.stages,
    }


def sparse_conv_launch(
    d: Direction,
    units: int,
    images: int,
    source_size: Size,
    target_size: Size,
    dtype: torch.dtype,
    precision: str,
    has_bias: bool,
    negative_slope: float,
    given: Blocks | None = None,
) -> Launch:
    """The launch of ``sparse_conv_kernel`` for a wide direction.

    ``precision`` is for ``tl.dot``; ``given`` replaces the tuned blocks. Where a call would have too few programs, a
    program has fewer blocks of target channels, then fewer positions, then only some kernel columns.
    """
    rows, width = phase_size(d, target_size)
    most = given or tuned_blocks(call_key("sparse_conv", d, units, images, target_size, dtype))
    cut = _fit(most, images, rows, width)
    cut = cut._replace(together=min(cut.together, power_of_2(d.blocks)))

    def tiling_of(cut: Blocks) -> tuple[Blocks, Tiling, int]:
        tiling = choose_tiling(d, source_size[1], width, cut.positions, dtype.itemsize)
        if not tiling.deferred:
            cut = cut._replace(positions=min(cut.positions, PLAIN_POSITIONS), together=1)
            tiling = plain_tiling(width, cut.positions)
        tiles = tiling.tiles * cdiv(images * rows, cut.positions // tiling.width)
        return cut, tiling, tiles * cdiv(d.blocks, cut.together) * d.phases

    cut, tiling, programs = tiling_of(cut)
    while programs < LEAST_PROGRAMS and (cut.together > 1 or cut.positions > FEWEST_POSITIONS):
        if cut.together > 1:
            cut = cut._replace(together=cut.together // 2)
        else:
            cut = cut._replace(positions=cut.positions // 2)
        cut, tiling, programs = tiling_of(cut)
    cut = cut._replace(warps=min(cut.warps, max(4, cut.positions // 32)))
    shifts, kernel_width = d.column_shifts(), d.geometry.kernel[1]
    numbers = [
        *(units, images, d.sources, source_size[0], source_size[1] // tiling.align),
        *(d.targets, *target_size, d.blocks, rows),
        *(tiling.tiles, tiling.columns // tiling.align, tiling.lead // tiling.align),
        *(min(0, min(shifts) - tiling.lead), negative_slope),
    ]
    columns = cdiv(kernel_width, max(1, min(kernel_width, LEAST_PROGRAMS // max(1, programs))))
    partial_sums = cdiv(kernel_width, columns)
    constants = _constants(d, precision, cut) | {
        "PARTIAL_COLUMNS": columns,
        "REVERSED": d.adjoint,
        "BLOCKS": cut.together,
        "ALIGN": tiling.align,
        "DEFERRED": tiling.deferred,
        "EDGE": min(tiling.width, power_of_2(max(shifts) - min(shifts))) if tiling.tiles == 1 else 0,
        "HAS_BIAS": has_bias and partial_sums == 1,
        "ACTIVATES": negative_slope != 1 and partial_sums == 1,
        "TILE_W": tiling.width,
    }
    return Launch(programs, partial_sums, numbers, constants)


def part_of(images: Any, bytes_per_image: Any) -> Any:
    """The images of one part of a deep sparse_conv, whose products then have at most :data:`PART_BYTES`."""
    if not isinstance(images, int) or not isinstance(bytes_per_image, int):  # symbols: a loop would fix the size
        return images
    parts = cdiv(images, max(1, PART_BYTES // max(1, bytes_per_image)))
    return cdiv(images, max(1, parts))


def deep_launches(
    d: Direction,
    units: int,
    images: int,
    source_size: Size,
    target_size: Size,
    dtype: torch.dtype,
    precision: str,
    has_bias: bool,
    negative_slope: float,
) -> tuple[Launch, Launch]:
    """The launches of ``products_kernel`` and ``sum_kernel`` for a part of ``images`` images of a deep direction."""
    (rows, width), places = phase_size(d, target_size), source_size[0] * source_size[1]
    align = math.gcd(places, 16 // dtype.itemsize)
    first = 2 * d.geometry.kernel[1]
    unit_first = first + d.sources // d.depth + 1
    taps_first = unit_first + units
    tile, sum_tile = (
        min(128, max(16, power_of_2(images * places))),
        min(1024, max(128, power_of_2(images * rows * width))),
    )
    tiles, sum_tiles = cdiv(images * places, tile), cdiv(images * rows * width, sum_tile)
    products = Launch(
        d.sources // d.depth * tiles,
        1,
        [units, images, d.sources, places // align, tiles, first, unit_first],
        {
            "KEPT": d.depth,
            "ALIGN": align,
            "PRECISION": precision,
            "BLOCK_P": tile,
            "BLOCK_U": 64,
            "BLOCK_K": max(16, power_of_2(d.depth)),
            "num_warps": 4,
            "num_stages": 3,
        },
    )
    sums = Launch(
        d.targets * d.phases * sum_tiles,
        1,
        [
            *(units, images, *source_size, d.targets, *target_size, rows, width),
            *(sum_tiles, taps_first, taps_first + d.targets * d.phases + 1, negative_slope),
        ],
        _steps(d)
        | {
            "HAS_BIAS": has_bias,
            "ACTIVATES": negative_slope != 1,
            "BLOCK_P": sum_tile,
            "num_warps": 4,
            "num_stages": 3,
        },
    )
    return products, sums


def wgrad_splits(d: Direction, tiles: int, positions: int, itemsize: int) -> int:
    """The number of parts that the positions are cut into.

    Writing and adding the partial sums moves at most half as many bytes as reading x.
    """
    affordable = positions * itemsize // (16 * d.width)
    return max(1, min(tiles, cdiv(PROGRAMS, d.groups), affordable))


def wgrad_launch(
    d: Direction,
    units: int,
    images: int,
    source_size: Size,
    target_size: Size,
    dtype: torch.dtype,
    precision: str,
    given: Blocks | None = None,
) -> Launch:
    """The launch of ``wgrad_kernel`` for a wide direction."""
    rows, width = phase_size(d, target_size)
    read = max(0, min(cdiv(source_size[1], d.source_step[1]), width + max(d.column_shifts())))
    most = given or tuned_blocks(call_key("wgrad", d, units, images, target_size, dtype))
    cut = _fit(most, images, rows, read)
    align = math.gcd(source_size[1], 16 // dtype.itemsize)
    tiling = plain_tiling(read, cut.positions)
    tiles = tiling.tiles * cdiv(images * rows, cut.positions // tiling.width)
    splits = wgrad_splits(d, tiles, images * rows * read, dtype.itemsize)
    all_blocks = d.blocks * d.phases
    numbers = [
        *(units, images, d.sources, source_size[0], source_size[1] // align),
        *(d.targets, *target_size, all_blocks, rows),
        *(tiling.tiles, tiles, splits),
    ]
    constants = _constants(d, precision, cut) | {"ALIGN": align, "TILE_W": tiling.width}
    return Launch(d.groups * splits, splits, numbers, constants)
