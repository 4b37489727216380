"""Signals as maps: the one adapter between 1-D layers and the kernels, which know rows and columns only.

A signal ``[N, C, L]`` is a map ``[N, C, 1, L]`` of one row. Both are the same memory, so nothing is copied. The length
lies along the columns, not the rows. Neighbours in a row are neighbours in memory, and the kernels load them together.
The CPU kernels also let the signals of a batch take the place of the missing rows. A plan, a support and the flat
positions in a weight ``[out, in, K]`` are those of the weight ``[out, in, 1, K]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .geometry import Pair

#: The number of dimensions of a batch of signals ``[N, C, L]``, and of a batch of images ``[N, C, H, W]``.
SIGNAL, IMAGE = 3, 4


def as_map(x: Tensor) -> Tensor:
    """A signal ``[N, C, L]`` as ``[N, C, 1, L]``, a view. An image ``[N, C, H, W]`` comes back as it is."""
    return x.unsqueeze(2) if x.dim() == SIGNAL else x


def rows_and_columns(numbers: Sequence[int], rows: int) -> Pair:
    """A number for the rows and one for the columns. Of a 1-D layer's single number, ``rows`` is that of the rows."""
    return (numbers[0] if len(numbers) > 1 else rows, numbers[-1])
