"""The ops under the names that they had before 0.1. Programs that were exported before 0.1 still run, until 0.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..renamed import warn_of_old_name
from .sparse_conv import OUTPUT_ACTIVATIONS, sparse_conv, vector_ops

CURVES = OUTPUT_ACTIVATIONS

_SPARSE_CONV = (
    "(Tensor x, Tensor values, Tensor? bias, Tensor support, Tensor? plan, Tensor? adjoint_plan, int[] geometry, "
    "bool adjoint, SymInt[] output_size, "
)
_SCHEMAS = (
    f"gather{_SPARSE_CONV}int padding_mode=0, int[] pad_before=[0, 0], float negative_slope=1.0) -> Tensor",
    f"vector_gather{_SPARSE_CONV}float negative_slope=1.0) -> Tensor",
    "gather_fused(Tensor x, Tensor? scale, Tensor? shift, Tensor? slope, Tensor values, Tensor? bias, Tensor support, "
    "Tensor plan, int[] geometry, bool adjoint, int padding_mode, int[] pad_before, float negative_slope, int curve, "
    "int shuffle, Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor(a!) y, Tensor(b!)? y_scale, "
    "Tensor(c!)? y_shift) -> ()",
)


def gather(*args: Any, **kwargs: Any) -> Tensor:
    """:func:`sparsegan.ops.sparse_conv` under its old name."""
    warn_of_old_name("sparsegan.ops.gather", "sparsegan.ops.sparse_conv")
    return sparse_conv(*args, **kwargs)


def _gather(*args: Any) -> Any:
    warn_of_old_name("sparsegan::gather", "sparsegan::sparse_conv")
    return torch.ops.sparsegan.sparse_conv(*args)


def _vector_gather(*args: Any) -> Any:
    warn_of_old_name("sparsegan::vector_gather", "sparsegan::vector_sparse_conv")
    return vector_ops().vector_sparse_conv(*args)


def _gather_fused(*args: Any) -> Any:
    warn_of_old_name("sparsegan::gather_fused", "sparsegan::sparse_conv_fused")
    return torch.ops.sparsegan.sparse_conv_fused(*args)


_library = torch.library.Library("sparsegan", "FRAGMENT")
for _schema, _call in zip(_SCHEMAS, (_gather, _vector_gather, _gather_fused), strict=True):
    _library.impl(_library.define(_schema), _call, "CompositeImplicitAutograd")
