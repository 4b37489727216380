"""What flows through an engine: tensors, with what is still to be done to them.

A norm, an activation or a padding costs nothing by itself: it is noted on the value, and whoever reads the value does
it on the way. That is ``z = x * scale + shift``, then ``z * slope`` where z is not above 0, then padding around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(eq=False)
class Slot:
    """What one step writes, once a run.

    It lies in the arena, unless `outside`: the model's inputs, what torch's own ops return, and what the engine returns
    (`fresh`: allocated by each run). `parent`: the slot of which this one is channels `offset` and on, which makes a
    concatenation of slots without a copy.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    outside: bool = False
    fresh: bool = False
    parent: Slot | None = None
    offset: int = 0
    parts: list[Slot] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def adopt(self, part: Slot, offset: int) -> None:
        """Makes another slot some of this one's channels."""
        part.parent, part.offset = self, offset
        self.parts.append(part)


@dataclass(eq=False)
class Affine:
    """scale and shift, ``[N, C]`` each: what a norm finds in a run, or numbers (`constant`, ``[C]`` each)."""

    images: int
    channels: int
    constant: tuple[Tensor, Tensor] | None = None
    parent: Affine | None = None
    offset: int = 0
    parts: list[Affine] = field(default_factory=list)


@dataclass(frozen=True)
class Padding:
    """`mode`: one of ops.PADDING_MODES. `sizes`: elements at the left, right, top and bottom."""

    mode: str
    sizes: tuple[int, int, int, int]


@dataclass(eq=False)
class Value:
    """A slot, and what its readers do on the way. `slope`: ``[C]``."""

    slot: Slot
    affine: Affine | None = None
    slope: Tensor | None = None
    padding: Padding | None = None

    @property
    def raw(self) -> bool:
        """Whether the slot holds the value itself."""
        return self.affine is None and self.slope is None and self.padding is None

    def now(self) -> Value:
        """A copy, which what is noted later does not reach."""
        return replace(self)

    def become(self, other: Value) -> None:
        """What an operation in place does: everyone who holds this value has the other from now on."""
        self.slot, self.affine, self.slope, self.padding = other.slot, other.affine, other.slope, other.padding

    def activated(self, slope: Tensor) -> Value | None:
        """With an activation noted; None where what is noted already stands in its way."""
        if self.padding is not None:
            return None
        if self.slope is not None:
            if bool((self.slope < 0).any()):
                return None
            slope = self.slope * slope  # what is not above 0 is so still after the first
        return replace(self, slope=slope)

    def mapped(self, scale: Tensor, shift: Tensor) -> Value | None:
        """With ``x * scale + shift`` noted, ``[C]`` each; None where what is noted already stands in its way."""
        if self.padding is not None or self.slope is not None:
            return None
        if self.affine is not None:
            if self.affine.constant is None:
                return None
            before = self.affine.constant
            scale, shift = before[0] * scale, before[1] * scale + shift
        return replace(self, affine=Affine(self.slot.shape[0], len(scale), (scale, shift)))


def concatenated(parts: Sequence[Value]) -> tuple[Affine | None, Tensor | None]:
    """The map and the slopes of a concatenation's channels; the maps that norms find become parts of it."""
    channels = [part.slot.shape[1] for part in parts]
    slope = None
    if any(part.slope is not None for part in parts):
        like = next(part.slope for part in parts if part.slope is not None)
        ones = [like.new_ones(count) for count in channels]
        slope = torch.cat([one if p.slope is None else p.slope for p, one in zip(parts, ones, strict=True)])
    if all(part.affine is None for part in parts):
        return None, slope
    images, offset = parts[0].slot.shape[0], 0
    whole = Affine(images, sum(channels))
    for part, count in zip(parts, channels, strict=True):
        known = part.affine
        if known is None:
            known = Affine(images, count, (torch.ones(count), torch.zeros(count)))
        elif known.constant is not None:  # which other values may have too
            known = Affine(images, count, known.constant)
        known.parent, known.offset = whole, offset
        whole.parts.append(known)
        offset += count
    return whole, slope
