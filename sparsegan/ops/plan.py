"""Plans. A plan is a support and a geometry compiled to the taps that an op runs, once per support and direction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..geometry import Geometry
from . import native
from .native import PlanKind


def _kind(support: Tensor, geometry: list[int]) -> PlanKind:
    """The kind of plan that the kernels of the support's device read."""
    if not support.is_cuda:
        return PlanKind.CPU
    return PlanKind.VECTOR if is_vector(geometry) else PlanKind.DEVICE


def _compile(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    plan = native.compile_plan(numbers_of(support), geometry, adjoint, _kind(support, geometry))
    return torch.from_numpy(plan).to(support.device)


@torch.library.custom_op("sparsegan::plan", mutates_args=())
def _plan(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    return _compile(support, geometry, adjoint)


@_plan.register_fake
def _(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    return support.new_empty(native.plan_size(geometry, adjoint, support.shape[0], _kind(support, geometry)))


def is_vector(geometry: list[int]) -> bool:
    """Whether a unit is more than one weight, from the flat list of :meth:`sparsegan.geometry.Geometry.numbers`."""
    return geometry[-1] * geometry[-2] > 1


def compile_plan(support: Tensor, geometry: Geometry, adjoint: bool = False) -> Tensor:
    """Compiles a support to the taps that an op runs, in the order that the kernels of its device read.

    The compilers run on the host. A support on a GPU is copied to the host once per mask, and the copy waits for the
    GPU.

    Args:
        support: int32 ``[units]``, strictly increasing positions in the flattened ``geometry.unit_shape``.
        geometry: the geometry of the layer.
        adjoint: ``False`` for fine to coarse (a convolution), ``True`` for coarse to fine (its transpose).

    Returns:
        The plan, int32 with one dimension, on the support's device. ``csrc/core/plan.h`` has the layout for CPUs,
        ``csrc/core/device_plan.h`` that for single weights on a GPU, ``csrc/core/vector_plan.h`` that for vectors.

    Raises:
        ValueError: a position is out of range, out of order or repeated, or a number of the geometry is impossible.
    """
    return plan_of(support, geometry.numbers(), adjoint)


def plan_of(support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
    """:func:`compile_plan` for a geometry's flat list.

    The custom op is called only while a graph is traced: its first call loads all of torch's compiler.
    """
    plain = type(support) is Tensor and not support.is_meta and not torch.compiler.is_compiling()
    return (_compile if plain else torch.ops.sparsegan.plan)(support, geometry, adjoint)


def compile_direct_plan(support: Tensor, geometry: Geometry, adjoint: bool) -> tuple[Tensor, Tensor]:
    """A direct plan (a CPU plan for values that lie in the order of the taps), and the value index of each tap.

    ``sparsegan::sparse_conv_fused`` takes the plan with ``values.view(units, vector)[value_index].flatten()``. A call
    then looks up no value index per tap. Raises as :func:`compile_plan` does.
    """
    plan, value_index = native.compile_direct_plan(support.numpy(), geometry.numbers(), adjoint)
    return torch.from_numpy(plan), torch.from_numpy(value_index)


def check_support(support: Tensor, size: int) -> None:
    """Raises ``ValueError`` unless ``support`` is int32 ``[units]``, strictly increasing, inside ``[0, size)``."""
    if support.dtype != torch.int32 or support.dim() != 1:
        raise ValueError(
            f"support has dtype {support.dtype} and {support.dim()} dimensions; it must be torch.int32 with one"
        )
    if support.shape[0] > size:  # before the copy: an expanded view may claim more positions than memory can hold
        raise ValueError(f"support has {support.shape[0]} positions; at most {size} are possible")
    native.check_support(numbers_of(support), size)


def numbers_of(support: Tensor) -> np.ndarray:
    """The positions of a support as a contiguous array. A contiguous CPU tensor is not copied: memory is shared."""
    return np.ascontiguousarray((support if support.is_cpu else support.cpu()).numpy())
