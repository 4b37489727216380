"""Block sizes of the Triton kernels: measured ones from ``tuned_table.py``, and defaults for all other calls."""

from __future__ import annotations

from typing import NamedTuple

from .tuned_table import TABLE


class Blocks(NamedTuple):
    """Block sizes of a kernel: positions and taps per step, warps per program, stages of the software pipeline.

    ``together``: the most blocks of target channels that a program of a sparse_conv computes side by side.
    """

    positions: int
    taps: int
    warps: int
    stages: int
    together: int = 1


#: Op, channels per block, bytes per element; positions in all images and taps per average target, as powers of 4.
Key = tuple[str, int, int, int, int]

#: By op, bytes per element and channels per block. They were not measured on a GPU; kernels/NOTES.md has the reasons.
DEFAULTS = {
    ("sparse_conv", 2, 16): Blocks(256, 16, 8, 2, 8),
    ("sparse_conv", 2, 32): Blocks(256, 16, 8, 3, 4),
    ("sparse_conv", 2, 64): Blocks(256, 32, 4, 3, 1),
    ("sparse_conv", 4, 16): Blocks(128, 16, 4, 3, 4),
    ("sparse_conv", 4, 32): Blocks(128, 16, 4, 3, 2),
    ("sparse_conv", 4, 64): Blocks(128, 16, 4, 3, 1),
    ("wgrad", 2, 16): Blocks(64, 64, 4, 3),
    ("wgrad", 2, 32): Blocks(64, 64, 4, 3),
    ("wgrad", 2, 64): Blocks(64, 64, 4, 3),
    ("wgrad", 4, 16): Blocks(32, 64, 4, 3),
    ("wgrad", 4, 32): Blocks(32, 64, 4, 3),
    ("wgrad", 4, 64): Blocks(32, 64, 4, 3),
}


def key(op: str, channels: int, itemsize: int, positions: int, taps: int) -> Key:
    """The table's key for ``channels`` per block, ``positions`` in all images and ``taps`` per average target."""
    return (op, channels, itemsize, _power_of_4(positions), _power_of_4(taps))


def tuned_blocks(of: Key) -> Blocks:
    """The measured block sizes, or the defaults."""
    return Blocks(*TABLE[of]) if of in TABLE else DEFAULTS[of[0], of[2], of[1]]


def _power_of_4(n: int) -> int:
    """The largest power of 4 that is not above ``n``."""
    power = 1
    while power * 4 <= n:
        power *= 4
    return power
