"""The plain-PyTorch twin of compressed training: dense weights times a mask. What pruning papers' code does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Mask(nn.Module):
    """weight -> weight * mask."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mask]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and parametrize.is_parametrized(module):
            yield name, module, module.parametrizations.weight[0]


def sparsify(model: nn.Module, sparsity: float) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            parametrize.register_parametrization(module, "weight", Mask(module.weight))
    shrink(model, sparsity)
    return model


@torch.no_grad()
def shrink(model: nn.Module, sparsity: float, optimizer: object = None) -> None:
    """Keep the largest magnitudes among the survivors; nothing comes back."""
    for _, module, mask in masks(model):
        weight = module.parametrizations.weight.original
        keep = weight.numel() - round(sparsity * weight.numel())
        score = weight.abs().masked_fill(~mask.mask, -1).flatten()
        chosen = torch.zeros_like(score, dtype=torch.bool)
        chosen[score.topk(keep).indices] = True
        mask.mask &= chosen.view_as(mask.mask)
