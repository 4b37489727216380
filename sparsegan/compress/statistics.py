"""What pruning takes from a generator's statistics, put back: the contrast of its images, its batch norms' averages."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..modes import in_mode
from ..nn.layer import SparseConv


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def match_contrast(
    generator: nn.Module, original: nn.Module, sample: Callable[[nn.Module], Tensor], rounds: int = 12
) -> float:
    """Scale the generator's last convolution so that its images have the original's standard deviation.

    A pruned network that regresses to another one's outputs comes out paler: what it cannot represent averages out
    (Jordan et al., "REPAIR", arXiv 2211.08403, on the same collapse of variance in merged networks). One number, found
    by bisection in [0.5, 2], puts it back; no real image is looked at. `sample(network)` gives images, the same noise
    at every call. In place; returns the scale. When no scale in the range does it, or the convolution is frozen, warns
    and changes nothing.
    """
    last = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | SparseConv)]
    if not last:
        raise ValueError("the generator has no convolution whose weights could be scaled")
    weight = last[-1].values if isinstance(last[-1], SparseConv) else last[-1].weight
    if not weight.requires_grad:
        text = "contrast is asked for and the generator's last convolution is frozen; the contrast is left as it is"
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
        text = (
            f"no scale of the last layer from {low} to {high} gives images the original's contrast; it is left as it is"
        )
        warnings.warn(text, stacklevel=2)
        return 1.0
    for _ in range(rounds):
        scale = math.sqrt(low * high)
        low, high = (scale, high) if contrast(scale) < wanted else (low, scale)
    weight.copy_(kept * low)
    return low


@torch.no_grad()
def recalibrate_batch_norm(generator: nn.Module, sample: Callable[[], Any], batches: int = 20) -> nn.Module:
    """Replace the batch norms' running statistics by their plain average over `batches` calls of `sample()`.

    Pruning changes what each layer puts out, so the running statistics no longer fit. In place; returns `generator`,
    every module in the mode it had. Random numbers come from torch's generator. Raises ValueError for batches below 1.
    """
    if batches < 1:
        raise ValueError(f"batches is {batches}; it must be at least 1")
    asked = [norm for norm in batch_norms(generator) if norm.track_running_stats]
    norms = [norm for norm in asked if norm.training or not generator.training]  # others are held on purpose
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
