"""A sparse layer by torch's own dense convolution: the weight with zeros in place, and who gets that unasked."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Pair
from .kept_weights import KeptWeights
from .plan_cache import PlanCache, is_readable


def run_dense(layer: KeptWeights, x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: Pair) -> Tensor:
    """torch's own convolution."""
    padding = layer.padding
    if layer.transposed:
        assert isinstance(padding, tuple)
        y = F.conv_transpose2d(x, weight, bias, layer.stride, padding, output_padding, layer.groups, layer.dilation)
    else:
        if layer.padding_mode != "zeros":
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0, 0)
        y = F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
    return y if layer.negative_slope == 1 else F.leaky_relu(y, layer.negative_slope)


def weight_for_call(layer: KeptWeights, values: Tensor, cache: PlanCache | None) -> Tensor:
    """The dense weight for one call: kept where no gradient is taken, else a tensor of the graph.

    On a GPU always the latter: to compare would wait for the device.
    """
    if cache is None or torch.is_grad_enabled() or values.device.type != "cpu" or not is_readable(values):
        return layer.scattered(values)
    return cache.dense_weight(values, layer.weight_shape, layer.positions_of(cache.support))


def record(layer: KeptWeights, x: Tensor, output_padding: Pair) -> Tensor:
    """A forward that ``torch.jit.trace`` records: it then serves every batch and image size, as torch's own does.

    The sparse op would be recorded with the output size of the example.
    """
    warn_of_dense("torch.jit.trace records")
    return run_dense(layer, x, layer.scattered(layer.values), layer.bias, output_padding)


def warn_of_dense(who: str) -> None:
    """The same words from the same line for every layer: Python shows them once."""
    warnings.warn(
        f"{who} sparse layers as torch's own dense convolutions: results are the same, speed is a dense layer's. "
        "torch.compile and torch.export keep the sparse kernels",
        stacklevel=2,
    )
