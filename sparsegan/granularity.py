"""What is kept or dropped as one, and which of it to keep."""

from __future__ import annotations

import torch
from torch import Tensor

#: Granularities that the layers accept. ``element``: single weights (0-D).
GRANULARITIES = ("element",)


def check_granularity(granularity: str) -> str:
    """Returns it; raises ``ValueError`` when this version does not have it."""
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; accepted: {', '.join(map(repr, GRANULARITIES))}")
    return granularity


def check_sparsity(sparsity: float) -> float:
    """Returns it; raises ``ValueError`` outside [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must be at least 0 and below 1")
    return sparsity


def kept(size: int, sparsity: float) -> int:
    """How many of ``size`` units stay at a sparsity: what is dropped is rounded to the nearest."""
    return size - round(size * check_sparsity(sparsity))


def largest(scores: Tensor, keep: int) -> Tensor:
    """bool, shape of ``scores``: its ``keep`` largest entries; among equal ones the first. ``ValueError`` on NaN."""
    if bool(scores.isnan().any()):
        raise ValueError("the weights to prune contain NaN; magnitude has no order there")
    flat = scores.flatten()
    if keep >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if keep > 0:
        threshold = flat.kthvalue(flat.numel() - keep + 1).values
        chosen = flat > threshold
        ties = (flat == threshold).nonzero().flatten()
        chosen[ties[: keep - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


def magnitude_mask(weight: Tensor, sparsity: float, granularity: str = "element") -> Tensor:
    """The mask that keeps the weights of largest magnitude.

    Args:
        weight: the dense weight, any shape.
        sparsity: share to drop, in [0, 1).

    Returns:
        bool, shape of ``weight``: True where kept.
    """
    check_granularity(granularity)
    return largest(weight.detach().abs(), kept(weight.numel(), sparsity))
