"""Values of compressed files as short integers: a value is its integer times the scale of its output channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Name in a file -> dtype of the integers.
SHORT = {"int16": torch.int16, "int8": torch.int8}


def channels_of(positions: Tensor, shape: Sequence[int], transposed: bool, groups: int) -> Tensor:
    """The output channel of each position in a flattened dense weight, int64. `shape`: of the weight."""
    if not transposed:
        return positions // math.prod(shape[1:])
    group = positions // math.prod(shape[1:]) // (shape[0] // groups)
    return group * shape[1] + positions // math.prod(shape[2:]) % shape[1]


def shorten(values: Tensor, channels: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest integers ``[nnz]`` and the scales, float32 ``[count]``: one per output channel.

    The largest value of a channel becomes the largest integer: the error of a value is at most half its channel's
    scale. A channel of zeros has scale 0. Raises ValueError for a value that is not finite.
    """
    values, most = values.double(), torch.iinfo(dtype).max
    if bool((lost := ~values.isfinite()).any()):
        raise ValueError(f"a value of {values[lost][0].item():.6g}")
    largest = values.new_zeros(count).scatter_reduce(0, channels, values.abs(), "amax")
    scales = (largest / most).float()
    scales = torch.where((scales == 0) & (largest > 0), torch.finfo(torch.float32).tiny, scales)
    of_value = scales.double()[channels]
    integers = torch.where(of_value > 0, values / of_value, 0.0).round().clamp(-most, most)
    if bool((lost := scales.isinf()).any()):
        raise ValueError(f"a value of {largest[lost][0].item():.6g}")
    return integers.to(dtype), scales


def widen(integers: Tensor, scales: Tensor, channels: Tensor) -> Tensor:
    """The values, float32 ``[nnz]``: each integer times its channel's scale."""
    return integers.float() * scales[channels]
