"""Sparse layers on torch's dense convolution, with a dense weight that has zeros at the dropped positions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .kept_weights import KeptWeights
from .plan_cache import PlanCache, is_readable

#: torch's functions by the number of dimensions of a layer.
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}
TRANSPOSED_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


def run_dense(
    layer: KeptWeights, x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: tuple[int, ...]
) -> Tensor:
    """The layer's output by torch's dense convolution with ``weight``, negative slope included."""
    padding = layer.padding
    if layer.transposed:
        assert isinstance(padding, tuple)
        transposed = TRANSPOSED_CONVOLUTIONS[layer.dims]
        y = transposed(x, weight, bias, layer.stride, padding, output_padding, layer.groups, layer.dilation)
    else:
        if layer.padding_mode != "zeros":
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0,) * layer.dims
        y = CONVOLUTIONS[layer.dims](x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
    return y if layer.negative_slope == 1 else F.leaky_relu(y, layer.negative_slope)


def weight_for_call(layer: KeptWeights, values: Tensor, cache: PlanCache | None) -> Tensor:
    """The dense weight for one call: cached on a CPU while gradients are off, else scattered anew from ``values``.

    The cache compares the values at each call. On a GPU it is not used, because a comparison would wait for the device.
    """
    if cache is None or torch.is_grad_enabled() or values.device.type != "cpu" or not is_readable(values):
        return layer.scattered(values)
    return cache.dense_weight(values, layer.weight_shape, layer.positions_of(cache.support))


def record(layer: KeptWeights, x: Tensor, output_padding: tuple[int, ...]) -> Tensor:
    """The forward that ``torch.jit.trace`` records: torch's dense convolution, which serves every batch and image size.

    The sparse op would be recorded with the output size of the example input.
    """
    warn_of_dense("torch.jit.trace records")
    return run_dense(layer, x, layer.scattered(layer.values), layer.bias, output_padding)


def warn_of_dense(who: str) -> None:
    """Warns that a sparse layer runs dense. ``who``: subject and verb, such as "torch.jit.trace records".

    Text and line are the same for all layers, so Python shows the warning once.
    """
    warnings.warn(
        f"{who} sparse layers as torch's own dense convolutions: results are the same, speed is a dense layer's. "
        "torch.compile and torch.export keep the sparse kernels",
        stacklevel=2,
    )
