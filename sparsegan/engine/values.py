"""The tensors that flow through an engine, and the work on them that is deferred.

A norm, an activation or a padding needs no step of its own: the work is deferred, which means that the value records
it, and each step that reads the value does that work while it reads. First the input transform: ``z = x * scale +
shift``, then ``z * slope`` where z is not above 0. Then the padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .rules import Padding


@dataclass(eq=False)
class Slot:
    """The tensor that one step writes in each run.

    Most lie in the arena. `outside` of it are the model's inputs, the results of torch's own ops, and the engine's
    results, which are `fresh`: each run allocates them. A slot with a `parent` is the parent's channels from `offset`
    on, so that the parts of a concatenation are written where the whole lies.
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
        """The size of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def adopt(self, part: Slot, offset: int) -> None:
        """Makes another slot this slot's channels from `offset` on."""
        part.parent, part.offset = self, offset
        self.parts.append(part)


@dataclass(eq=False)
class Affine:
    """scale and shift, ``[N, C]`` each.

    A norm finds them in each run, unless they are `constant`, ``[C]`` each. One with a `parent` is the parent's
    channels from `offset` on, as with slots.
    """

    images: int
    channels: int
    constant: tuple[Tensor, Tensor] | None = None
    parent: Affine | None = None
    offset: int = 0
    parts: list[Affine] = field(default_factory=list)


@dataclass(eq=False)
class Value:
    """A slot, and the deferred work, which each step does while it reads the slot.

    `affine`: scale and shift. `slope`: ``[C]``. `padding`: with zeros or with elements of the image. Each is None where
    no such work is deferred.
    """

    slot: Slot
    affine: Affine | None = None
    slope: Tensor | None = None
    padding: Padding | None = None

    @property
    def deferred(self) -> list[str]:
        """The kinds of work that are deferred; empty where the slot holds the value itself."""
        kinds = {"norm": self.affine, "activation": self.slope, "padding": self.padding}
        return [kind for kind, work in kinds.items() if work is not None]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, H, W)``, the padding included."""
        n, channels, height, width = self.slot.shape
        left, right, top, bottom = self.padding.sizes if self.padding else (0, 0, 0, 0)
        return n, channels, height + top + bottom, width + left + right

    def copy(self) -> Value:
        """A value of its own with the same slot and the same deferred work. :meth:`overwrite` leaves it alone."""
        return replace(self)

    def overwrite(self, other: Value) -> None:
        """Makes this object equal to another value: so an operation in place reaches all who hold this object."""
        self.slot, self.affine, self.slope, self.padding = other.slot, other.affine, other.slope, other.padding

    def activated(self, slope: Tensor) -> Value | None:
        """This value with an activation deferred, slopes ``[C]``.

        None where the activation cannot join the work that is deferred: a padding, or an activation that makes numbers
        below 0 positive.
        """
        if self.padding is not None:
            return None
        if self.slope is not None:
            if bool((self.slope < 0).any()):
                return None
            slope = self.slope * slope  # a number that is not above 0 stays so in the first activation
        return replace(self, slope=slope)

    def mapped(self, scale: Tensor, shift: Tensor) -> Value | None:
        """This value with ``x * scale + shift`` deferred, ``[C]`` each.

        None where the map cannot join the work that is deferred: a padding, an activation, or a norm whose numbers a
        run has yet to find.
        """
        if self.padding is not None or self.slope is not None:
            return None
        if self.affine is not None:
            if self.affine.constant is None:
                return None
            before = self.affine.constant
            scale, shift = before[0] * scale, before[1] * scale + shift
        return replace(self, affine=Affine(self.slot.shape[0], len(scale), (scale, shift)))


def concatenated(parts: Sequence[Value]) -> tuple[Affine | None, Tensor | None]:
    """scale and shift, and slopes, of a concatenation's channels.

    A norm that finds scale and shift of one part in a run writes them into the whole's.
    """
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
        elif known.constant is not None:  # a copy: other values may have the same
            known = Affine(images, count, known.constant)
        known.parent, known.offset = whole, offset
        whole.parts.append(known)
        offset += count
    return whole, slope
