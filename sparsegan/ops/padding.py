"""Padding other than zeros: the extent of the padding, and the adjoint of the padding for the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..geometry import geometry_of

#: The padding modes of torch. The ops take the index in this tuple.
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def padding_number(padding_mode: str) -> int:
    """The index of a padding mode. Raises ``ValueError`` for an unknown one."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode is {padding_mode!r}; accepted: {', '.join(map(repr, PADDING_MODES))}")
    return PADDING_MODES.index(padding_mode)


def extents(
    geometry: list[int], x_size: Sequence[int], output_size: Sequence[int], before: Sequence[int]
) -> list[tuple[int, int]]:
    """The padding (before, after) of the rows and of the columns. ``after`` follows from the output size."""
    g = geometry_of(geometry)
    axes = zip(g.extent(output_size), g.padding, before, x_size, strict=True)
    return [(b, max(0, needed - zeros - b - size)) for needed, zeros, b, size in axes]


def padded(x: Tensor, geometry: list[int], output_size: Sequence[int], mode: int, before: Sequence[int]) -> Tensor:
    """``x`` with its padding around it, or ``x`` itself for zeros: the ops add zeros themselves."""
    if mode == 0:
        return x
    rows, columns = extents(geometry, x.shape[2:], output_size, before)
    return F.pad(x, (*columns, *rows), PADDING_MODES[mode])


def folded(gx: Tensor, sizes: list[tuple[int, int]], mode: int) -> Tensor:
    """The adjoint of :func:`padded`: the gradient of each padded element is added to the element that it repeats."""
    for axis, (before, after) in enumerate(sizes):
        gx = _fold(gx, 2 + axis, before, after, PADDING_MODES[mode])
    return gx


def _fold(g: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    n = g.shape[dim] - before - after
    if before == after == 0:
        return g
    front, inside, back = g.split([before, n, after], dim)
    inside = inside.clone()
    if mode == "replicate":
        front, back = front.sum(dim, keepdim=True), back.sum(dim, keepdim=True)
    elif mode == "reflect":
        front, back = front.flip(dim), back.flip(dim)
    to_front, to_back = {"replicate": (0, n - 1), "reflect": (1, n - 1 - after), "circular": (n - before, 0)}[mode]
    inside.narrow(dim, to_front, front.shape[dim]).add_(front)
    inside.narrow(dim, to_back, back.shape[dim]).add_(back)
    return inside
