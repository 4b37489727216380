"""``auto``: which kernel runs a layer, and why.

Two ways exist to run a sparse layer: ``sparse``, the kernels of this package, and ``dense``, torch's own convolution on
the values scattered into a dense buffer. ``auto`` models the time of both for a shape and a mask and takes the faster.
The model counts cycles of the kernels' inner loops (``csrc/cpu/conv.cpp``), so that the same model and input choose the
same kernel on every run; :func:`sparsegan.tune` measures instead and pins the result on each layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from . import _native
from .plan import Geometry

KERNELS = ("auto", "sparse", "dense")

#: Share of the FMA peak that torch's dense convolution reaches on layers with room to spread.
DENSE_EFFICIENCY = 0.85
#: Output channels that it computes together: fewer cost as much as these.
DENSE_CHANNELS = 16
#: Time of its transposed convolution against a convolution of as many multiplications.
DENSE_TRANSPOSED = 1.2
#: Bytes a cycle at which dense weights arrive when a layer is too small to reuse them.
WEIGHT_BYTES_PER_CYCLE = 8.0
#: Cycles to put one kept weight into the dense buffer.
SCATTER_CYCLES = 10.0
#: Under torch.compile and torch.export a shape may be a symbol: at and above this sparsity, sparse.
BREAK_EVEN_SPARSITY = 0.6


class Choice(NamedTuple):
    """A decision and the sentence that explains it."""

    kernel: str
    why: str


def check_kernel(kernel: str) -> str:
    """Returns it; raises ``ValueError`` when it is not one of :data:`KERNELS`."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; accepted: {', '.join(map(repr, KERNELS))}")
    return kernel


def choose(
    geometry: Geometry,
    adjoint: bool,
    units: int,
    images: int,
    x_size: tuple[int, int],
    y_size: tuple[int, int],
    float64: bool = False,
) -> Choice:
    """Models one forward of both kernels on one core.

    Args:
        geometry, adjoint: the layer's.
        units: kept units, the length of its support.
        images: batch size.
        x_size, y_size: (height, width) of input and output.
    """
    if units == 0 or images == 0 or 0 in x_size or 0 in y_size:
        return Choice("sparse", "nothing to multiply")
    coarse = x_size if adjoint else y_size
    lanes = _native.lanes(float64)
    weights = math.prod(geometry.weight_shape)
    outputs = (geometry.fine_channels if adjoint else geometry.coarse_channels) // geometry.groups
    padded = -(-outputs // DENSE_CHANNELS) * DENSE_CHANNELS / outputs
    dense = padded * weights * images * coarse[0] * coarse[1] / (2 * lanes * DENSE_EFFICIENCY)
    dense *= DENSE_TRANSPOSED if adjoint else 1
    dense += weights * (8 if float64 else 4) / WEIGHT_BYTES_PER_CYCLE + units * geometry.vector * SCATTER_CYCLES
    parts = _native.gather_cycles(geometry.numbers(), adjoint, units, images, list(x_size), list(y_size), float64)
    sparse, most = sum(parts.values()), max(parts, key=lambda part: parts[part])
    kernel = "sparse" if sparse <= dense else "dense"
    where = f"{parts[most] / sparse:.0%} {most}"
    return Choice(kernel, f"model: sparse {sparse / 1e6:.2f} Mcycles, {where}; dense {dense / 1e6:.2f}")


def choose_by_sparsity(sparsity: float) -> Choice:
    """The rule while tracing, where shapes may be symbols."""
    kernel = "sparse" if sparsity >= BREAK_EVEN_SPARSITY else "dense"
    return Choice(kernel, f"traced: sparsity {sparsity:.2f}, break-even taken as {BREAK_EVEN_SPARSITY}")
