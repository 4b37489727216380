# mypy: disable-error-code="no-untyped-def"
"""sparse_conv for units that are vectors of source channels, in two steps (``csrc/core/vector_plan.h``).

    product[t, q] = sum over the channels c of t's source unit (v[t, c] * x[n, c, q])     at all source positions q
    y[n, o, p]    = f(bias[o] + sum over the taps of o (product[t, p + shift]))

The first step is a matrix product per source unit without a wasted multiplication: all units of a source unit, at any
target channel and kernel position, read the same x. The second step adds a few shifted rows per target channel. A call
takes so many images at a time that their products stay in the second-level cache. Products are rounded to the dtype of
x; both sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first_image"])
def products_kernel(
    x,
    values,
    products,  # [units, images of a part, source positions]
    plan,
    first_image,  # of the part
    units,
    images,  # of the part
    sources,  # channels
    source_size,  # positions of an image, in units of ALIGN
    tiles,
    product_first,  # places in the plan
    unit_first,
    KEPT: tl.constexpr,  # source channels per unit
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,  # positions of a tile
    BLOCK_U: tl.constexpr,  # units that are multiplied at a time
    BLOCK_K: tl.constexpr,  # channels of a unit, rounded up to fill a tensor core's tile
):
    source_unit, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    size = source_size * ALIGN
    position = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    n, place = position // size, position % size
    live = n < images
    k = tl.arange(0, BLOCK_K)
    image = x + (first_image + n).to(tl.int64) * sources * size + place
    channel = source_unit * KEPT + k
    x_tile = tl.load(
        image[None, :] + (channel * size)[:, None], ((k < KEPT) & (channel < sources))[:, None] & live[None, :], 0.0
    )
    first, end = tl.load(plan + product_first + source_unit), tl.load(plan + product_first + source_unit + 1)
    first, end = tl.minimum(tl.maximum(first, 0), units), tl.minimum(end, units)  # plans are not trusted
    for start in range(first, end, BLOCK_U):
        product = start + tl.arange(0, BLOCK_U)
        unit = tl.load(plan + unit_first + product, product < end, -1)
        kept = ((unit >= 0) & (unit < units))[:, None] & (k < KEPT)[None, :]
        v_tile = tl.load(values + unit[:, None] * KEPT + k[None, :], kept, 0.0)
        total = tl.dot(v_tile, x_tile, input_precision=PRECISION)
        row = products + product.to(tl.int64) * images * size
        tl.store(
            row[:, None] + position[None, :],
            total.to(products.dtype.element_ty),
            (product < end)[:, None] & live[None, :],
        )


@triton.jit(do_not_specialize=["first_image"])
def sum_kernel(
    products,
    bias,
    y,
    plan,
    first_image,  # of the part
    units,
    images,  # of the part
    source_height,
    source_width,
    targets,  # channels
    target_height,
    target_width,
    phase_height,  # rows and columns of a phase
    phase_width,
    tiles,
    taps_first,  # places in the plan
    product_first,
    negative_slope,
    SOURCE_STEP_H: tl.constexpr,
    SOURCE_STEP_W: tl.constexpr,
    TARGET_STEP_H: tl.constexpr,
    TARGET_STEP_W: tl.constexpr,
    KERNEL_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATES: tl.constexpr,
    BLOCK_P: tl.constexpr,  # positions of a tile
):
    # Programs of one tile run next to each other.
    PHASES: tl.constexpr = TARGET_STEP_H * TARGET_STEP_W
    group, tile = tl.program_id(0) % (targets * PHASES), tl.program_id(0) // (targets * PHASES)
    target, phase = group // PHASES, group % PHASES
    position = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    row, w = position // phase_width, position % phase_width
    n, h = row // phase_height, row % phase_height
    live = n < images
    image = n * source_height * source_width

    product_of = plan + product_first
    row_of, column_of = product_of + units, product_of + 2 * units
    first, end = tl.load(plan + taps_first + group), tl.load(plan + taps_first + group + 1)
    first, end = tl.minimum(tl.maximum(first, 0), units), tl.minimum(end, units)  # plans are not trusted
    total = tl.full((BLOCK_P,), 0.0, tl.float32)
    for tap in range(first, end):
        product, source_row, j = tl.load(product_of + tap), tl.load(row_of + tap), tl.load(column_of + tap)
        known = (product >= 0) & (product < units) & (j >= 0) & (j < KERNEL_W)
        shift, source_phase = tl.load(plan + 2 * j, known, 0), tl.load(plan + 2 * j + 1, known, 0)
        source_row = tl.where(known, source_row, -(2**30))  # outside
        h_read, w_read = h * SOURCE_STEP_H + source_row, (w + shift) * SOURCE_STEP_W + source_phase
        inside = live & (h_read >= 0) & (h_read < source_height) & (w_read >= 0) & (w_read < source_width)
        start = products + product.to(tl.int64) * images * source_height * source_width
        total += tl.load(start + (image + h_read * source_width + w_read), inside, 0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + target).to(tl.float32)
    if ACTIVATES:
        below = tl.where(negative_slope == 0, 0.0, total * negative_slope)  # 0 for minus infinity too
        total = tl.where(total < 0, below, total)
    out_row = h * TARGET_STEP_H + phase // TARGET_STEP_W
    out_col = w * TARGET_STEP_W + phase % TARGET_STEP_W
    out = y + ((first_image + n).to(tl.int64) * targets + target) * target_height * target_width
    there = live & (out_row < target_height) & (out_col < target_width)
    tl.store(out + (out_row * target_width + out_col), total.to(y.dtype.element_ty), there)
