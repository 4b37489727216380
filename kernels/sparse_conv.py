# mypy: disable-error-code="no-untyped-def"
"""sparse_conv for units that are vectors: an implicit matrix product of gathered elements, on tensor cores.

    y[n, o, p] = f(bias[o] + sum over taps (v * x[n, c, p + shift]))

A program computes one tile of target positions for some blocks of target channels (``csrc/core/vector_plan.h``). For
each block it runs through the taps, ``BLOCK_K`` at a time: it multiplies a tile of x [positions, taps] by a tile of
values [taps, channels] and sums in float32. A deep tap stands for V source channels and takes V consecutive places of
the summed dimension, so that small V need no padding. If there would be too few programs (small maps, few images), each
program takes only some kernel columns and writes a float32 partial sum.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sparse_conv_kernel(
    x,
    values,
    bias,
    y,
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
    walk,  # blocks per program
    phase_height,  # rows of a phase
    column_tiles,
    columns,  # that a tile writes, in units of ALIGN if DEFERRED
    lead,  # first source column of a tile minus its first target column, in units of ALIGN
    negative_slope,
    SOURCE_STEP_H: tl.constexpr,
    SOURCE_STEP_W: tl.constexpr,
    TARGET_STEP_H: tl.constexpr,
    TARGET_STEP_W: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PARTIAL_COLUMNS: tl.constexpr,  # kernel columns of a partial sum; with all of them, y is the result
    DEPTH: tl.constexpr,  # source channels per unit
    WIDTH: tl.constexpr,  # target channels per unit
    LANES: tl.constexpr,  # units that a tap may stand for
    ALIGN: tl.constexpr,  # rows of x begin at multiples of this many elements
    DEFERRED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,  # positions of a tile
    TILE_W: tl.constexpr,  # columns of a tile
    BLOCK_O: tl.constexpr,  # channels of a block, rounded up to fill a tensor core's tile
    BLOCK_K: tl.constexpr,  # taps times DEPTH that are multiplied at a time
):
    # Programs that read the same x run next to each other. The elements of x that a program has read for one block are
    # in the first-level cache for its next block.
    walks = (blocks + walk - 1) // walk
    first_block, tile = tl.program_id(0) % walks * walk, tl.program_id(0) // walks
    partial_sum = tl.program_id(1)
    first_column = partial_sum * PARTIAL_COLUMNS
    width = source_width * ALIGN

    lane = tl.arange(0, BLOCK_P)
    row = tile // column_tiles * (BLOCK_P // TILE_W) + lane // TILE_W
    n, h, tile_col = row // phase_height, row % phase_height, lane % TILE_W
    if DEFERRED:
        columns *= ALIGN
    w_first = tile % column_tiles * columns
    image = x + n.to(tl.int64) * sources * source_height * width + (h * SOURCE_STEP_H) * width
    live_row = n < images

    o = tl.arange(0, BLOCK_O)
    first_of_group = plan + 2 * KERNEL_W
    channel_of = first_of_group + blocks * KERNEL_W + 1
    row_of = channel_of + units
    unit_of = row_of + units

    for block in range(first_block, tl.minimum(first_block + walk, blocks)):
        total = tl.full((BLOCK_P, BLOCK_O), 0.0, tl.float32)
        for j in range(first_column, tl.minimum(first_column + PARTIAL_COLUMNS, KERNEL_W)):
            shift, source_phase = tl.load(plan + 2 * j), tl.load(plan + 2 * j + 1)
            group = first_of_group + block * KERNEL_W + j
            first, end = tl.load(group), tl.load(group + 1)
            first, end = tl.minimum(tl.maximum(first, 0), units), tl.minimum(end, units)
            # All taps of a kernel column have the same column shift. If DEFERRED, x is read unshifted, at aligned
            # addresses, and the sum is shifted instead: once per kernel column, not once per tap.
            if DEFERRED:
                w = w_first + lead * ALIGN + tile_col
                part = tl.full((BLOCK_P, BLOCK_O), 0.0, tl.float32)
            else:
                w = w_first + shift + tile_col
                part = total
            # With a step of 1 the phase is 0. Without the addition the compiler sees how rows of x are aligned.
            source_col = w if SOURCE_STEP_W == 1 else w * SOURCE_STEP_W + source_phase
            inside_cols = live_row & (source_col >= 0) & (source_col < width)
            column = image + source_col
            for k_first in range(first * DEPTH, end * DEPTH, BLOCK_K):
                k = k_first + tl.arange(0, BLOCK_K)
                tap, live = k // DEPTH, k < end * DEPTH
                channel = tl.load(channel_of + tap, live, 0) + k % DEPTH
                live &= (channel >= 0) & (channel < sources)  # plans are not trusted: no read outside x
                source_row = tl.load(row_of + tap, live, 0)
                h_read = (h * SOURCE_STEP_H)[:, None] + source_row[None, :]
                inside = inside_cols[:, None] & live[None, :] & (h_read >= 0) & (h_read < source_height)
                offset = channel * source_height * width + source_row * width
                x_tile = tl.load(column[:, None] + offset[None, :], inside, 0.0, cache_modifier=".ca")
                if LANES == 1:
                    unit = tl.load(unit_of + tap, live, -1)[:, None]
                    kept = (unit >= 0) & (unit < units) & (o < WIDTH)[None, :]
                    index = unit * WIDTH + o[None, :]
                else:
                    unit = tl.load(unit_of + tap[:, None] * LANES + o[None, :], live[:, None], -1)
                    kept = (unit >= 0) & (unit < units)
                    index = unit * DEPTH + (k % DEPTH)[:, None]
                v_tile = tl.load(values + index, kept, 0.0)
                part = tl.dot(x_tile, v_tile, part, input_precision=PRECISION)
            if DEFERRED:
                from_col = tile_col + shift - lead * ALIGN
                there = (from_col >= 0) & (from_col < TILE_W)
                from_lane = lane - tile_col + tl.where(there, from_col, 0)
                moved = tl.gather(part, tl.broadcast_to(from_lane[:, None], (BLOCK_P, BLOCK_O)), 0)
                total += tl.where(there[:, None], moved, 0.0)
            else:
                total = part

        phase = block % (TARGET_STEP_H * TARGET_STEP_W)
        out_channel = block // (TARGET_STEP_H * TARGET_STEP_W) * (WIDTH * LANES) + o
        write_channel = (o < WIDTH * LANES) & (out_channel < targets)
        if HAS_BIAS:
            total += tl.load(bias + out_channel, write_channel, 0.0).to(tl.float32)[None, :]
        if ACTIVATES:
            below = tl.where(negative_slope == 0, 0.0, total * negative_slope)  # 0 for minus infinity too
            total = tl.where(total < 0, below, total)
        out_row = h * TARGET_STEP_H + phase // TARGET_STEP_W
        out_col = (w_first + tile_col) * TARGET_STEP_W + phase % TARGET_STEP_W
        write = live_row & (out_row < target_height) & (tile_col < columns) & (out_col < target_width)
        image_of_sum = partial_sum.to(tl.int64) * images + n
        out_image = y + image_of_sum * targets * target_height * target_width + (out_row * target_width + out_col)
        out = out_image[:, None] + (out_channel * target_height * target_width)[None, :]
        tl.store(out, total.to(y.dtype.element_ty), write[:, None] & write_channel[None, :])
