"""Repairs of statistics that pruning changes: the contrast of a generator's images, the averages of its batch norms."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..modes import in_mode
from ..nn.layer import DENSE_CLASSES, SparseConv


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def match_contrast(
    generator: nn.Module, original: nn.Module, sample: Callable[[nn.Module], Tensor], rounds: int = 12
) -> float:
    """Scale the generator's last convolution, in place, until its images have the original's standard deviation.

    Returns the scale, found by bisection in [0.5, 2] in `rounds` halvings. No real image is used. `sample(network)`
    returns the network's images and must use the same noise at every call.
    A pruned network that regresses to another network's outputs gives paler images, because details that it cannot
    represent average out (Jordan et al., "REPAIR", arXiv 2211.08403, on the same collapse of variance in merged
    networks). Where no scale in the range is enough, or the convolution is frozen, the function warns, changes nothing
    and returns 1. Raises ValueError for a generator without a convolution.
    """
    last = [m for m in generator.modules() if isinstance(m, (*DENSE_CLASSES, SparseConv))]
    if not last:
        raise ValueError("the generator has no convolution; its last convolution is scaled to match the contrast")
    weight: Any = last[-1].values if isinstance(last[-1], SparseConv) else last[-1].weight
    if not weight.requires_grad:
        text = "the generator's last convolution is frozen and cannot be scaled; the contrast is not changed"
        warnings.warn(text, stacklevel=2)
        return 1.0
    kept = weight.detach().clone()
    wanted = sample(original).std().item()

    def contrast(scale: float) -> float:
        weight.copy_(kept * scale)
        return sample(generator).std().item()

    low, high = 0.5, 2.0
    if not contrast(low) <= wanted <= contrast(high):
        weight.copy_(kept)
        text = f"no scale of the last layer from {low} to {high} gives the original's contrast; it stays unscaled"
        warnings.warn(text, stacklevel=2)
        return 1.0
    for _ in range(rounds):
        scale = math.sqrt(low * high)
        low, high = (scale, high) if contrast(scale) < wanted else (low, scale)
    weight.copy_(kept * low)
    return low


@torch.no_grad()
def recalibrate_batch_norm(generator: nn.Module, sample: Callable[[], Any], batches: int = 20) -> nn.Module:
    """Replace the batch norms' running statistics, in place, by their plain average over `batches` calls of `sample()`.

    Pruning changes the outputs of each layer, so the earlier statistics no longer fit. Returns `generator`, with every
    module in its earlier mode. Random numbers come from torch's generator. Raises ValueError for `batches` below 1.
    """
    if batches < 1:
        raise ValueError(f"batches is {batches}; it must be at least 1")
    asked = [norm for norm in batch_norms(generator) if norm.track_running_stats]
    # In a generator in training mode, a norm in evaluation mode keeps its statistics on purpose.
    norms = [norm for norm in asked if norm.training or not generator.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    with in_mode(generator, True):
        for norm in set(asked) - set(norms):
            norm.eval()
        for _ in range(batches):
            sample()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return generator
