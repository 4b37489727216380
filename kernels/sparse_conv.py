# mypy: disable-error-code="no-untyped-def, assignment"
"""sparse_conv for units that are vectors of target channels: an implicit matrix product of gathered elements.

    y[n, o, p] = f(bias[o] + sum over taps (v * x[n, c, p + shift]))

A program computes one tile of target positions for ``BLOCKS`` blocks of target channels (``csrc/core/vector_plan.h``)
and one phase. It runs through the taps of all its blocks side by side, ``BLOCK_K`` of each block per step. Per block it
multiplies a tile of x [positions, taps] by a tile of values [taps, channels] on tensor cores and sums in float32. The
taps of a block are sorted by source channel, so the blocks read the same channels at about the same time, and the
first-level cache has what the second block reads.

If there would be too few programs (small maps, few images), each program takes only some kernel columns and writes a
float32 partial sum.
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
    blocks,  # of target channels
    phase_height,  # rows of a phase
    column_tiles,
    columns,  # that a tile writes, in units of ALIGN if DEFERRED
    lead,  # first source column of a tile minus its first target column, in units of ALIGN
    offset,  # the smallest source column of a sum in its tile, minus its target column, or 0 where that is smaller
    negative_slope,
    SOURCE_STEP_H: tl.constexpr,
    SOURCE_STEP_W: tl.constexpr,
    TARGET_STEP_H: tl.constexpr,
    TARGET_STEP_W: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PARTIAL_COLUMNS: tl.constexpr,  # kernel columns of a partial sum; with all of them, y is the result
    REVERSED: tl.constexpr,  # the last kernel column has the smallest shift
    WIDTH: tl.constexpr,  # target channels per unit
    BLOCKS: tl.constexpr,  # blocks of target channels per program
    ALIGN: tl.constexpr,  # rows of x begin at multiples of this many elements
    DEFERRED: tl.constexpr,
    EDGE: tl.constexpr,  # the most columns of sums that leave a tile at once, rounded up; 0 where none do
    HAS_BIAS: tl.constexpr,
    ACTIVATES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,  # positions of a tile
    TILE_W: tl.constexpr,  # columns of a tile
    BLOCK_O: tl.constexpr,  # channels of a block, rounded up to fill a tensor core's tile
    BLOCK_K: tl.constexpr,  # taps of a block that are multiplied at a time
):
    PHASES: tl.constexpr = TARGET_STEP_H * TARGET_STEP_W
    # Programs that read the same x run next to each other.
    programs_of_tile = (blocks + BLOCKS - 1) // BLOCKS * PHASES
    phase, first_block = tl.program_id(0) % PHASES, tl.program_id(0) % programs_of_tile // PHASES * BLOCKS
    tile = tl.program_id(0) // programs_of_tile
    partial_sum = tl.program_id(1)
    width = source_width * ALIGN
    if DEFERRED:
        columns *= ALIGN
        lead *= ALIGN

    lane = tl.arange(0, BLOCK_P)
    first_row = tile // column_tiles * (BLOCK_P // TILE_W)
    row, tile_col = first_row + lane // TILE_W, lane % TILE_W
    n, h = row // phase_height, row % phase_height
    w_first = tile % column_tiles * columns
    image = x + n.to(tl.int64) * sources * source_height * width + (h * SOURCE_STEP_H) * width
    live_row = n < images

    o = tl.arange(0, BLOCK_O)
    first_of_group = plan + 2 * KERNEL_W
    channel_of = first_of_group + blocks * PHASES * KERNEL_W + 1
    row_of = channel_of + units
    unit_of = row_of + units

    y += partial_sum.to(tl.int64) * images * targets * target_height * target_width

    totals = ()
    for _ in tl.static_range(BLOCKS):
        totals = totals + (tl.full((BLOCK_P, BLOCK_O), 0.0, tl.float32),)  # noqa: RUF005 # Triton has no unpacking

    for i in range(partial_sum * PARTIAL_COLUMNS, tl.minimum((partial_sum + 1) * PARTIAL_COLUMNS, KERNEL_W)):
        j = KERNEL_W - 1 - i if REVERSED else i
        shift, source_phase = tl.load(plan + 2 * j), tl.load(plan + 2 * j + 1)
        firsts, ends, taps = (), (), 0
        for b in tl.static_range(BLOCKS):
            there = first_block + b < blocks
            group = first_of_group + ((first_block + b) * PHASES + phase) * KERNEL_W + j
            first, end = tl.load(group, there, 0), tl.load(group + 1, there, 0)
            first, end = tl.minimum(tl.maximum(first, 0), units), tl.minimum(end, units)
            firsts, ends, taps = firsts + (first,), ends + (end,), tl.maximum(taps, end - first)  # noqa: RUF005
        if DEFERRED:
            # All taps of a kernel column have the same column shift. x is read unshifted, at aligned addresses. Instead
            # the sums move along the tile from kernel column to kernel column, so that each sum lies where its source
            # is. Sums enter at the left as zeros. Those that leave at the right have no more sources and are written.
            w = w_first + lead + tile_col
            step = tl.maximum(shift - lead - offset, 0)
            if (taps > 0) & (step > 0):
                for b in tl.static_range(BLOCKS):
                    if EDGE > 0:
                        edge = tl.arange(0, BLOCK_P // TILE_W * EDGE)
                        edge_row, edge_col = edge // EDGE, TILE_W - step + edge % EDGE
                        from_col = tl.minimum(tl.maximum(edge_col, 0), TILE_W - 1)
                        leaving = rows_of(totals[b], edge_row * TILE_W + from_col, BLOCK_P, BLOCK_O)
                        live_edge = (edge_col >= 0) & (edge_col < TILE_W)
                        write(
                            leaving, y, bias, first_block + b, phase, first_row + edge_row, edge_col - offset,
                            live_edge, w_first, columns, images, targets, target_height, target_width,
                            phase_height, negative_slope, TARGET_STEP_H, TARGET_STEP_W, WIDTH, BLOCK_O, HAS_BIAS,
                            ACTIVATES,
                        )  # fmt: skip
                    moved = moved_right(totals[b], step, tile_col, BLOCK_P, BLOCK_O)
                    totals = totals[:b] + (moved,) + totals[b + 1 :]  # noqa: RUF005
                offset += step
        else:
            w = w_first + shift + tile_col
        # With a step of 1 the phase is 0. Without the addition the compiler sees how rows of x are aligned.
        source_col = w if SOURCE_STEP_W == 1 else w * SOURCE_STEP_W + source_phase
        inside_cols = live_row & (source_col >= 0) & (source_col < width)
        column = image + source_col
        for k in range(0, taps, BLOCK_K):
            for b in tl.static_range(BLOCKS):
                tap = firsts[b] + k + tl.arange(0, BLOCK_K)
                live = tap < ends[b]
                channel, source_row = tl.load(channel_of + tap, live, 0), tl.load(row_of + tap, live, 0)
                live &= (channel >= 0) & (channel < sources)  # plans are not trusted: no read outside x
                h_read = (h * SOURCE_STEP_H)[:, None] + source_row[None, :]
                inside = inside_cols[:, None] & live[None, :] & (h_read >= 0) & (h_read < source_height)
                source = channel * source_height * width + source_row * width
                x_tile = tl.load(column[:, None] + source[None, :], inside, 0.0, cache_modifier=".ca")
                unit = tl.load(unit_of + tap, live, -1)[:, None]
                kept = (unit >= 0) & (unit < units) & (o < WIDTH)[None, :]
                v_tile = tl.load(values + unit * WIDTH + o[None, :], kept, 0.0)
                total = tl.dot(x_tile, v_tile, totals[b], input_precision=PRECISION)
                totals = totals[:b] + (total,) + totals[b + 1 :]  # noqa: RUF005

    for b in tl.static_range(BLOCKS):
        total = totals[b]
        if DEFERRED:
            if offset < 0:
                total = moved_right(total, -offset, tile_col, BLOCK_P, BLOCK_O)
        write(
            total, y, bias, first_block + b, phase, row, tile_col - tl.maximum(offset, 0), live_row, w_first, columns,
            images, targets, target_height, target_width, phase_height, negative_slope, TARGET_STEP_H,
            TARGET_STEP_W, WIDTH, BLOCK_O, HAS_BIAS, ACTIVATES,
        )  # fmt: skip


@triton.jit
def moved_right(total, step, tile_col, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr):
    """``total`` with every row of the tile moved by ``step`` columns, zeros at its left end."""
    there = tile_col >= step
    place = tl.arange(0, BLOCK_P)
    moved = rows_of(total, tl.where(there, place - step, place), BLOCK_P, BLOCK_O)
    return tl.where(there[:, None], moved, 0.0)


@triton.jit
def rows_of(total, places, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr):
    """``total[places]``, through shared memory.

    The order of the elements there, [positions / 8, channels / 8, 8, 8], is that of a tensor core's registers, so that
    no two threads of a warp meet in a bank. A gather of one dimension, unlike one of two, is not done by shuffles.
    """
    ordered = tl.permute(tl.reshape(total, (BLOCK_P // 8, 8, BLOCK_O // 8, 8)), (0, 2, 1, 3))
    o = tl.arange(0, BLOCK_O)
    index = (places // 8 * (BLOCK_O * 8) + places % 8 * 8)[:, None] + (o // 8 * 64 + o % 8)[None, :]
    taken = tl.gather(tl.reshape(ordered, (BLOCK_P * BLOCK_O,)), tl.reshape(index, (places.shape[0] * BLOCK_O,)), 0)
    return tl.reshape(taken, (places.shape[0], BLOCK_O))


@triton.jit
def write(
    total,  # [rows times columns, channels]
    y,
    bias,
    block,
    phase,
    row,  # of the phase, counted over all images
    w,  # column of the phase, counted from the tile's first
    live,
    w_first,
    columns,
    images,
    targets,
    target_height,
    target_width,
    phase_height,
    negative_slope,
    TARGET_STEP_H: tl.constexpr,
    TARGET_STEP_W: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_O: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATES: tl.constexpr,
):
    """Finishes the sums of one block and writes those whose column the tile has to write."""
    o = tl.arange(0, BLOCK_O)
    channel = block * WIDTH + o
    write_channel = (o < WIDTH) & (channel < targets)
    if HAS_BIAS:
        total += tl.load(bias + channel, write_channel, 0.0).to(tl.float32)[None, :]
    if ACTIVATES:
        below = tl.where(negative_slope == 0, 0.0, total * negative_slope)  # 0 for minus infinity too
        total = tl.where(total < 0, below, total)
    n, h = row // phase_height, row % phase_height
    out_row = h * TARGET_STEP_H + phase // TARGET_STEP_W
    out_col = (w_first + w) * TARGET_STEP_W + phase % TARGET_STEP_W
    live &= (n < images) & (out_row < target_height) & (w >= 0) & (w < columns) & (out_col < target_width)
    out = y + n.to(tl.int64) * targets * target_height * target_width + (out_row * target_width + out_col)
    address = out[:, None] + (channel * target_height * target_width)[None, :]
    tl.store(address, total.to(y.dtype.element_ty), live[:, None] & write_channel[None, :])
