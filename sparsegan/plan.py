"""Geometry and plans: what the ops need to know about a layer, compiled once a mask.

A convolution and its transpose relate a *coarse* grid (a convolution's output, a transposed convolution's input) to a
*fine* one, ``stride`` times denser; ``csrc/plan/geometry.h`` has the arithmetic. The dense weight is
``[coarse_channels, fine_channels / groups, kernel_h, kernel_w]`` for both, torch's own layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import _native

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Geometry of one layer, for the ops. ``padding`` is what lies before the first element (top, left).

    A kept unit is ``coarse_vector`` consecutive coarse channels, or ``fine_vector`` consecutive fine ones, at one
    kernel position; at least one of the two is 1. A support lists units: sorted positions in a tensor of
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
        """Weights a unit."""
        return self.coarse_vector * self.fine_vector

    @property
    def unit_shape(self) -> tuple[int, int, int, int]:
        """Shape of the dense weight, counted in units."""
        coarse, fine, *kernel = self.weight_shape
        return (coarse // self.coarse_vector, fine // self.fine_vector, kernel[0], kernel[1])

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the dense weight."""
        return (self.coarse_channels, self.fine_channels // self.groups, *self.kernel)

    def numbers(self) -> list[int]:
        """The flat list that the ops take."""
        pairs = (self.kernel, self.stride, self.padding, self.dilation)
        numbers = [n for pair in pairs for n in pair]
        return [self.coarse_channels, self.fine_channels, self.groups, *numbers, self.coarse_vector, self.fine_vector]

    def for_coarse_size(self, height: int, width: int) -> Geometry:
        """The same relation with the stride that serves a coarse grid of ``height`` x ``width`` best.

        Where the coarse grid is one element wide its stride has no meaning, and a stride that gives every kernel
        position a phase of its own is better: no tap then meets padding. This is how a generator's first layer (1x1 to
        4x4) and a discriminator's last run without a wasted multiplication.
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


def _compile(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    if support.is_cuda and is_vector(geometry):
        from .kernels import plan as vectors

        return vectors.compile_plan(support, vectors.geometry_of(geometry), adjoint)
    compile_native = _native.compile_device_plan if support.is_cuda else _native.compile_plan
    plan = torch.from_numpy(compile_native(numbers_of(support), geometry, adjoint))
    return plan.to(support.device) if support.is_cuda else plan


@torch.library.custom_op("sparsegan::plan", mutates_args=())
def _plan(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    return _compile(support, geometry, adjoint)


@_plan.register_fake
def _(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    units = support.shape[0]
    if support.is_cuda and is_vector(geometry):
        from .kernels import plan as vectors

        return support.new_empty(vectors.plan_size(vectors.geometry_of(geometry), adjoint, units))
    size = _native.device_plan_size if support.is_cuda else _native.plan_size
    return support.new_empty(size(geometry, adjoint, units))


def is_vector(geometry: list[int]) -> bool:
    """Whether a unit is more than one weight, of a geometry's flat list."""
    return geometry[-1] * geometry[-2] > 1


def compile_plan(support: Tensor, geometry: Geometry, adjoint: bool = False) -> Tensor:
    """Compiles a support to the taps that an op runs, in the order that the kernels of its device read.

    Args:
        support: int32 ``[units]``, strictly increasing positions in the flattened ``geometry.unit_shape``.
        geometry: of the layer.
        adjoint: ``False`` for fine to coarse (a convolution), ``True`` for coarse to fine (its transpose).

    Returns:
        int32, one dimension, on the support's device. Its layout: ``csrc/plan/plan.h``; on a GPU
        ``csrc/plan/device_plan.h`` for elements and ``kernels/plan.py`` for vectors.

    Raises:
        ValueError: a position is out of range, out of order or there twice, or the geometry has an impossible number.
    """
    return plan_of(support, geometry.numbers(), adjoint)


def plan_of(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    """The same from a geometry's flat list. A plain call, where nothing traces: the first call of a custom op loads all
    of torch's compiler."""
    plain = type(support) is Tensor and not support.is_meta and not torch.compiler.is_compiling()
    return (_compile if plain else torch.ops.sparsegan.plan)(support, geometry, adjoint)


def compile_direct_plan(support: Tensor, geometry: Geometry, adjoint: bool) -> tuple[Tensor, Tensor]:
    """What :func:`compile_plan` gives on a CPU, for values that lie in the order of the taps: the plan, and that order.

    ``sparsegan::gather_fused`` takes it with ``values.view(units, vector)[order].flatten()``, and a call has nothing
    left to do a tap. Raises as ``compile_plan`` does.
    """
    plan, order = _native.compile_direct_plan(support.numpy(), geometry.numbers(), adjoint)
    return torch.from_numpy(plan), torch.from_numpy(order)


def check_support(support: Tensor, size: int) -> None:
    """Raises ``ValueError`` unless ``support`` is int32 ``[units]``, strictly increasing, inside ``[0, size)``."""
    if support.dtype != torch.int32 or support.dim() != 1:
        raise ValueError(
            f"support has dtype {support.dtype} and {support.dim()} dimensions; it must be torch.int32 with one"
        )
    if support.shape[0] > size:  # before a copy is made of what a view may claim to have
        raise ValueError(f"support has {support.shape[0]} positions; at most {size} are possible")
    _native.check_support(numbers_of(support), size)


def numbers_of(support: Tensor) -> np.ndarray:
    """A support's positions, contiguous; on a CPU the tensor's own memory where that is."""
    return np.ascontiguousarray((support if support.is_cpu else support.cpu()).numpy())
