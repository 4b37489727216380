# mypy: disable-error-code="no-untyped-def"
"""The gradient of a wide sparse_conv with respect to its values, at the kept positions only.

    dv[t, o] = sum over n, p (gy[n, o, p] * x[n, c, p + shift])

A program takes the taps of one block of target channels, one phase and one kernel column
(``csrc/core/vector_plan.h``), and every ``splits``-th tile of positions. For ``BLOCK_K`` taps at a time it multiplies
tiles of x [taps, positions] by tiles of gy [positions, channels] and writes a float32 partial sum. The caller adds the
partial sums, always in the same order. The gradient of a deep sparse_conv is the wide gradient of the other direction
with x and gy exchanged.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wgrad_kernel(
    gy,
    x,
    partial_sums,  # float32 [splits, units * WIDTH]
    plan,
    units,
    images,
    sources,  # channels
    source_height,
    source_width,  # in units of ALIGN
    targets,  # channels
    target_height,
    target_width,
    blocks,  # of target channels, times the number of phases
    phase_height,  # rows of a phase
    column_tiles,
    tiles,
    splits,
    SOURCE_STEP_H: tl.constexpr,
    SOURCE_STEP_W: tl.constexpr,
    TARGET_STEP_H: tl.constexpr,
    TARGET_STEP_W: tl.constexpr,
    KERNEL_W: tl.constexpr,
    WIDTH: tl.constexpr,  # target channels per unit
    ALIGN: tl.constexpr,  # rows of x begin at multiples of this many elements
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,  # positions of a tile
    TILE_W: tl.constexpr,  # columns of a tile
    BLOCK_O: tl.constexpr,  # channels of a block, rounded up to fill a tensor core's tile
    BLOCK_K: tl.constexpr,  # taps that are multiplied at a time
):
    # Programs that read the same positions run next to each other.
    group, split = tl.program_id(0) % (blocks * KERNEL_W), tl.program_id(0) // (blocks * KERNEL_W)
    block, j = group // KERNEL_W, group % KERNEL_W
    phase = block % (TARGET_STEP_H * TARGET_STEP_W)
    width = source_width * ALIGN

    lane = tl.arange(0, BLOCK_P)
    o = tl.arange(0, BLOCK_O)
    first_channel = block // (TARGET_STEP_H * TARGET_STEP_W) * WIDTH
    live_channel = (o < WIDTH) & (first_channel + o < targets)
    first_of_group = plan + 2 * KERNEL_W
    channel_of = first_of_group + blocks * KERNEL_W + 1
    row_of = channel_of + units
    unit_of = row_of + units

    shift, source_phase = tl.load(plan + 2 * j), tl.load(plan + 2 * j + 1)
    first, end = tl.load(first_of_group + group), tl.load(first_of_group + group + 1)
    first, end = tl.minimum(tl.maximum(first, 0), units), tl.minimum(end, units)
    for first_tap in range(first, end, BLOCK_K):
        tap = first_tap + tl.arange(0, BLOCK_K)
        live = tap < end
        channel, source_row = tl.load(channel_of + tap, live, 0), tl.load(row_of + tap, live, 0)
        live &= (channel >= 0) & (channel < sources)  # plans are not trusted: no read outside x
        offset = channel * source_height * width + source_row * width
        total = tl.full((BLOCK_K, BLOCK_O), 0.0, tl.float32)
        for tile in range(split, tiles, splits):
            row = tile // column_tiles * (BLOCK_P // TILE_W) + lane // TILE_W
            n, h = row // phase_height, row % phase_height
            # Tiles follow the columns of x, whose rows are aligned; gy is read shifted.
            w = tile % column_tiles * TILE_W + lane % TILE_W
            source_col = w if SOURCE_STEP_W == 1 else w * SOURCE_STEP_W + source_phase
            h_read = source_row[:, None] + (h * SOURCE_STEP_H)[None, :]
            inside = live[:, None] & ((n < images) & (source_col >= 0) & (source_col < width))[None, :]
            inside &= (h_read >= 0) & (h_read < source_height)
            image = x + n.to(tl.int64) * sources * source_height * width + (h * SOURCE_STEP_H) * width + source_col
            x_tile = tl.load(image[None, :] + offset[:, None], inside, 0.0)

            out_row = h * TARGET_STEP_H + phase // TARGET_STEP_W
            out_col = (w - shift) * TARGET_STEP_W + phase % TARGET_STEP_W
            there = (n < images) & (out_row < target_height) & (out_col >= 0) & (out_col < target_width)
            plane = gy + (n.to(tl.int64) * targets + first_channel) * target_height * target_width
            column = plane + out_row * target_width + out_col
            gy_tile = tl.load(
                column[:, None] + (o * target_height * target_width)[None, :],
                there[:, None] & live_channel[None, :],
                0.0,
            )
            total = tl.dot(x_tile, gy_tile, total, input_precision=PRECISION)
        unit = tl.load(unit_of + tap, tap < end, -1)
        write = ((unit >= 0) & (unit < units))[:, None] & (o < WIDTH)[None, :]
        partial_sum = partial_sums + split.to(tl.int64) * units * WIDTH
        tl.store(partial_sum + unit[:, None] * WIDTH + o[None, :], total, write)
