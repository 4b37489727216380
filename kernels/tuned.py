"""Block sizes of the Triton kernels. ``python -m sparsegan.kernels.tune`` measures on a GPU and rewrites ``TUNED``."""

from __future__ import annotations

from typing import NamedTuple


class Blocks(NamedTuple):
    """How a kernel is cut: positions and taps a step, warps a program, stages of the software pipeline."""

    positions: int
    taps: int
    warps: int
    stages: int


#: Where the figures come from.
SOURCE = "not measured yet"
#: Op ("gather", "wgrad"), channels a block, bytes an element; positions and taps a target rounded down to a power of 4.
Key = tuple[str, int, int, int, int]
TUNED: dict[Key, Blocks] = {}

#: By op, bytes an element and channels a block, where nothing is tuned.
DEFAULTS = {
    ("gather", 2, 16): Blocks(128, 32, 4, 3),
    ("gather", 2, 32): Blocks(128, 32, 4, 3),
    ("gather", 2, 64): Blocks(128, 32, 8, 3),
    ("gather", 4, 16): Blocks(128, 16, 4, 3),
    ("gather", 4, 32): Blocks(128, 16, 4, 3),
    ("gather", 4, 64): Blocks(128, 16, 8, 3),
    ("wgrad", 2, 16): Blocks(64, 64, 4, 3),
    ("wgrad", 2, 32): Blocks(64, 64, 4, 3),
    ("wgrad", 2, 64): Blocks(64, 64, 4, 3),
    ("wgrad", 4, 16): Blocks(32, 64, 4, 3),
    ("wgrad", 4, 32): Blocks(32, 64, 4, 3),
    ("wgrad", 4, 64): Blocks(32, 64, 4, 3),
}


def key(op: str, channels: int, itemsize: int, positions: int, taps: int) -> Key:
    """The table's key: ``channels`` a block, ``positions`` in all images, ``taps`` of an average target."""
    return (op, channels, itemsize, _power_of_4(positions), _power_of_4(taps))


def blocks(op: str, channels: int, itemsize: int, positions: int, taps: int) -> Blocks:
    """The tuned choice for a call, or the default."""
    return TUNED.get(key(op, channels, itemsize, positions, taps), DEFAULTS[op, itemsize, channels])


def _power_of_4(n: int) -> int:
    power = 1
    while power * 4 <= n:
        power *= 4
    return power
