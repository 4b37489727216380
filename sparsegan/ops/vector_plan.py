"""Plans of the Triton kernels, compiled from supports on any device. ``csrc/core/vector_plan.h`` has their layout."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Direction, Geometry
from . import native
from .plan import numbers_of


def plan_size(geometry: Geometry, adjoint: bool, units: int) -> int:
    """The length of a plan for ``units`` units. It does not depend on their positions."""
    return Direction(geometry, adjoint).plan_size(units)


def compile_plan(support: Tensor, geometry: Geometry, adjoint: bool = False) -> Tensor:
    """Compiles the plan that :func:`sparsegan.ops.plan.compile_plan` gives for vectors on a GPU, on any device.

    Args:
        support: int32 ``[units]``, strictly increasing positions in the flattened ``geometry.unit_shape``.
        geometry: the geometry of the layer; ``coarse_vector`` or ``fine_vector`` is above 1.
        adjoint: ``False`` for fine to coarse (a convolution), ``True`` for coarse to fine (its transpose).

    Returns:
        int32 ``[plan_size(geometry, adjoint, units)]`` on the support's device.

    Raises:
        ValueError: as in :func:`sparsegan.ops.plan.compile_plan`, or the plan would have more numbers than int32 can
            count.
    """
    plan = native.compile_plan(numbers_of(support), geometry.numbers(), adjoint, native.PlanKind.VECTOR)
    return torch.from_numpy(plan).to(support.device)
