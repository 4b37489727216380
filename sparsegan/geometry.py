"""The geometry of a sparse layer: numbers only, no tensors.

A convolution and its transpose relate two grids. The *coarse* grid is a convolution's output and a transposed
convolution's input. The *fine* grid is ``stride`` times denser. ``csrc/core/geometry.h`` has the arithmetic. The dense
weight has the same shape in both, ``[coarse_channels, fine_channels / groups, kernel_h, kernel_w]``, as in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The geometry of one layer, for the ops. ``padding`` is the padding before the first row and column.

    A unit is ``coarse_vector`` consecutive coarse channels or ``fine_vector`` consecutive fine channels at one kernel
    position; at least one of these two numbers is 1. A support lists the kept units, as sorted positions in a tensor of
    ``unit_shape``. Values are ``[units * vector]``, unit by unit.
    """

    coarse_channels: int
    fine_channels: int
    groups: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    coarse_vector: int = 1
    fine_vector: int = 1

    @property
    def vector(self) -> int:
        """Weights per unit."""
        return self.coarse_vector * self.fine_vector

    @property
    def unit_shape(self) -> tuple[int, int, int, int]:
        """The shape of the dense weight, counted in units."""
        coarse, fine, *kernel = self.weight_shape
        return (coarse // self.coarse_vector, fine // self.fine_vector, kernel[0], kernel[1])

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """The shape of the dense weight."""
        return (self.coarse_channels, self.fine_channels // self.groups, *self.kernel)

    def numbers(self) -> list[int]:
        """The geometry as the flat list that the ops take."""
        pairs = (self.kernel, self.stride, self.padding, self.dilation)
        numbers = [n for pair in pairs for n in pair]
        return [self.coarse_channels, self.fine_channels, self.groups, *numbers, self.coarse_vector, self.fine_vector]

    def single(self) -> Geometry:
        """This geometry with units of single weights."""
        return replace(self, coarse_vector=1, fine_vector=1)

    def extent(self, coarse_size: Sequence[int]) -> Pair:
        """Rows and columns of the fine grid that belongs to a coarse grid of ``coarse_size``, padding included."""
        axes = zip(coarse_size, self.kernel, self.stride, self.dilation, strict=True)
        rows, columns = ((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in axes)
        return (rows, columns)

    def fine_size(self, coarse_size: Sequence[int]) -> Pair:
        """Rows and columns of a transposed convolution's output, without output padding."""
        rows, columns = (n - 2 * p for n, p in zip(self.extent(coarse_size), self.padding, strict=True))
        return (rows, columns)

    def output_padding(self, coarse_size: Sequence[int], fine_size: Sequence[int]) -> Pair:
        """The output padding of ``torch.nn.ConvTranspose2d`` that gives ``fine_size`` for ``coarse_size``."""
        rows, columns = (n - least for n, least in zip(fine_size, self.fine_size(coarse_size), strict=True))
        return (rows, columns)

    def for_coarse_size(self, height: int, width: int) -> Geometry:
        """An equal geometry with the best stride for a coarse grid of ``height`` x ``width``.

        On an axis where the coarse grid has one element, any stride gives the same result. The best stride then gives
        every kernel position its own phase, so that no tap meets padding. A generator's first layer (1x1 to 4x4) and a
        discriminator's last layer thus run without a wasted multiplication.
        """
        stride_h, stride_w = (
            _separating_stride(k, d) if size == 1 and k > s else s
            for size, k, s, d in zip((height, width), self.kernel, self.stride, self.dilation, strict=True)
        )
        return replace(self, stride=(stride_h, stride_w))


def _separating_stride(kernel: int, dilation: int) -> int:
    """The smallest stride for which the offsets ``i * dilation`` of all kernel positions differ modulo the stride."""
    stride = kernel
    while len({i * dilation % stride for i in range(kernel)}) < kernel:
        stride += 1
    return stride


def geometry_of(numbers: list[int]) -> Geometry:
    """The geometry of a flat list: the inverse of :meth:`Geometry.numbers`. A wrong length raises ``ValueError``."""
    if len(numbers) != 13:
        raise ValueError(f"geometry has {len(numbers)} numbers; it must have 13, as Geometry.numbers() gives them")
    coarse, fine, groups, kh, kw, sh, sw, ph, pw, dh, dw, coarse_vector, fine_vector = map(int, numbers)
    return Geometry(coarse, fine, groups, (kh, kw), (sh, sw), (ph, pw), (dh, dw), coarse_vector, fine_vector)


@dataclass(frozen=True)
class Direction:
    """One direction of a geometry, for the Triton kernels; ``csrc/core/vector_plan.h`` explains the words."""

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
        """Source channels per unit."""
        return self.geometry.coarse_vector if self.adjoint else self.geometry.fine_vector

    @property
    def width(self) -> int:
        """Target channels per unit."""
        return self.geometry.fine_vector if self.adjoint else self.geometry.coarse_vector

    @property
    def blocks(self) -> int:
        """Blocks of target channels: the channels of one unit."""
        return self.targets // self.width

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
        """Phases on the target side: 1 unless the targets are on the fine grid."""
        return self.target_step[0] * self.target_step[1]

    @property
    def groups(self) -> int:
        """Groups of taps in a wide plan. The taps of a group have the same block, phase and kernel column."""
        return self.blocks * self.phases * self.geometry.kernel[1]

    def column_shifts(self) -> list[int]:
        """The shift of each kernel column, as ``csrc/core/vector_plan.h`` defines it."""
        g = self.geometry
        shifts = [(j * g.dilation[1] - g.padding[1]) // g.stride[1] for j in range(g.kernel[1])]
        return [-shift for shift in shifts] if self.adjoint else shifts

    def plan_size(self, units: int) -> int:
        """The length of a vector plan of ``units`` units. ``units`` may be a symbol (torch.SymInt)."""
        columns = 2 * self.geometry.kernel[1]
        if self.depth == 1:
            return columns + self.groups + 1 + 3 * units
        return columns + self.sources // self.depth + 1 + self.targets * self.phases + 1 + 4 * units
