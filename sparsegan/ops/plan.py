"""Plans: a support and a geometry compiled to the taps that an op runs, once per support and direction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..geometry import Geometry, geometry_of
from . import native


def _compile(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    if support.is_cuda and is_vector(geometry):
        from . import vector_plan as vectors

        return vectors.compile_plan(support, geometry_of(geometry), adjoint)
    compile_native = native.compile_device_plan if support.is_cuda else native.compile_plan
    plan = torch.from_numpy(compile_native(numbers_of(support), geometry, adjoint))
    return plan.to(support.device) if support.is_cuda else plan


@torch.library.custom_op("sparsegan::plan", mutates_args=())
def _plan(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    return _compile(support, geometry, adjoint)


@_plan.register_fake
def _(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    units = support.shape[0]
    if support.is_cuda and is_vector(geometry):
        from . import vector_plan as vectors

        return support.new_empty(vectors.plan_size(geometry_of(geometry), adjoint, units))
    size = native.device_plan_size if support.is_cuda else native.plan_size
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
        int32, one dimension, on the support's device. Its layout: ``csrc/core/plan.h``; on a GPU
        ``csrc/core/device_plan.h`` for elements and ``sparsegan/ops/vector_plan.py`` for vectors.

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

    ``sparsegan::sparse_conv_fused`` takes it with ``values.view(units, vector)[order].flatten()``, and a call has
    nothing left to do a tap. Raises as ``compile_plan`` does.
    """
    plan, order = native.compile_direct_plan(support.numpy(), geometry.numbers(), adjoint)
    return torch.from_numpy(plan), torch.from_numpy(order)


def check_support(support: Tensor, size: int) -> None:
    """Raises ``ValueError`` unless ``support`` is int32 ``[units]``, strictly increasing, inside ``[0, size)``."""
    if support.dtype != torch.int32 or support.dim() != 1:
        raise ValueError(
            f"support has dtype {support.dtype} and {support.dim()} dimensions; it must be torch.int32 with one"
        )
    if support.shape[0] > size:  # before a copy is made of what a view may claim to have
        raise ValueError(f"support has {support.shape[0]} positions; at most {size} are possible")
    native.check_support(numbers_of(support), size)


def numbers_of(support: Tensor) -> np.ndarray:
    """A support's positions, contiguous; on a CPU the tensor's own memory where that is."""
    return np.ascontiguousarray((support if support.is_cpu else support.cpu()).numpy())
