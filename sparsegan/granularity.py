"""What is kept or dropped as one, and which of it to keep."""

from __future__ import annotations

import re

import torch
from torch import Tensor

#: Most output channels of one vector.
MAX_VECTOR = 64


def vector_length(granularity: str) -> int:
    """Weights a unit: 1 for ``"element"`` (0-D), V for ``"vector:V"`` (1-D: V consecutive output channels).

    Raises ``ValueError`` when this version does not have the granularity.
    """
    if granularity == "element":
        return 1
    match = re.fullmatch(r"vector:([1-9][0-9]?)", granularity) if isinstance(granularity, str) else None
    if match is None or not 2 <= int(match[1]) <= MAX_VECTOR:
        raise ValueError(
            f"granularity is {granularity!r}; accepted: 'element', and 'vector:V' with V from 2 to {MAX_VECTOR}"
        )
    return int(match[1])


def check_granularity(granularity: str) -> str:
    """Returns it; raises ``ValueError`` when this version does not have it."""
    vector_length(granularity)
    return granularity


def check_channels(granularity: str, out_channels: int, groups: int = 1) -> None:
    """Raises ``ValueError`` unless the output channels of each group are whole vectors."""
    vector, channels = vector_length(granularity), out_channels // groups
    if channels % vector:
        where = f"{channels} output channel{'s' if channels != 1 else ''}"
        where += f" in each of its {groups} groups" if groups > 1 else ""
        raise ValueError(
            f"granularity is {granularity!r} and the layer has {where}, which is no multiple of {vector}; "
            "leave the layer dense with exclude=, or use another granularity"
        )


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


def as_units(weight: Tensor, granularity: str, transposed: bool = False) -> Tensor:
    """A dense weight (or mask) seen unit by unit.

    Args:
        weight: of the dense weight's shape: output channels are dimension 0, or dimension 1 when ``transposed``.

    Returns:
        A view ``[*unit shape, V]``. The unit shape is the weight's with its output channels divided by V.

    Raises:
        ValueError: the output channels are not whole vectors.
    """
    dim, vector = int(transposed), vector_length(granularity)
    check_channels(granularity, weight.shape[dim])
    return weight.unflatten(dim, (weight.shape[dim] // vector, vector)).movedim(dim + 1, -1)


def magnitudes(units: Tensor) -> Tensor:
    """What pruning ranks units by: the L2 norm of each, ``[..., V]`` to ``[...]``.

    In float64, where no square of a float32 overflows or vanishes; of one weight a unit, its magnitude as it is.
    """
    if units.shape[-1] == 1:
        return units.abs().squeeze(-1)
    return torch.linalg.vector_norm(units, dim=-1, dtype=torch.float64)


def magnitude_mask(weight: Tensor, sparsity: float, granularity: str = "element", transposed: bool = False) -> Tensor:
    """The mask that keeps the units of largest L2 norm (single weights: of largest magnitude).

    Args:
        weight: the dense weight; for ``"element"`` of any shape.
        sparsity: share of units to drop, in [0, 1).
        granularity: what is kept or dropped as one.
        transposed: the weight is a ``ConvTranspose2d``'s, whose output channels are dimension 1.

    Returns:
        bool, shape of ``weight``: True where kept.

    Raises:
        ValueError: an argument is out of range, the output channels are not whole vectors, or a weight is NaN.
    """
    scores = magnitudes(as_units(weight.detach(), granularity, transposed))
    keep = largest(scores, kept(scores.numel(), sparsity))
    return keep.repeat_interleave(vector_length(granularity), int(transposed))
