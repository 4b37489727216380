"""The plain-PyTorch twin of compressed training: dense weights times a mask, as the code of pruning papers does it.

`granularity` is "element", "vector:V" or "input:D": V consecutive output or D consecutive input channels are kept or
dropped as one unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Mask(nn.Module):
    """Multiplies a weight by a mask."""

    def __init__(self, weight: Tensor, granularity: str) -> None:
        super().__init__()
        kind, _, length = granularity.partition(":")
        self.inputs, self.vector = kind == "input", int(length or 1)
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mask]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and parametrize.is_parametrized(module):
            yield name, module, module.parametrizations.weight[0]


def sparsify(
    model: nn.Module, sparsity: float, granularity: str = "element", exclude: tuple[str, ...] = ()
) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and name not in exclude:
            parametrize.register_parametrization(module, "weight", Mask(module.weight, granularity))
    shrink(model, sparsity)
    return model


@torch.no_grad()
def shrink(model: nn.Module, sparsity: float, optimizer: object = None) -> None:
    """Keeps the units with the largest norms among those that are still kept. A dropped unit never comes back."""
    for _, module, mask in masks(model):
        weight = module.parametrizations.weight.original
        dim = int(isinstance(module, nn.ConvTranspose2d) != mask.inputs)  # the dimension of a unit's channels
        # one slice along that dimension for each channel of a unit
        slices = [(weight * mask.mask).movedim(dim, 0)[i :: mask.vector] for i in range(mask.vector)]
        score = sum(part.square() for part in slices)
        keep = score.numel() - round(sparsity * score.numel())
        chosen = torch.zeros_like(score, dtype=torch.bool).flatten()
        chosen[score.flatten().topk(keep).indices] = True
        mask.mask &= chosen.view_as(score).repeat_interleave(mask.vector, 0).movedim(0, dim)
