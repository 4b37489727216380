"""The tensors that flow through an engine, and the work on them that is deferred.

A norm, an activation or a padding needs no separate step. The work is deferred: the value records the work, and each
step that reads the value does the work while it reads. The input transform comes first: ``z = x * scale + shift``, then
``z * slope`` where z is at or below 0. The padding comes after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .meanings import Padding


@dataclass(eq=False)
class Slot:
    """The tensor that one step writes in each run.

    Most slots lie in the arena. The model's inputs, the results of torch ops and the engine's results lie `outside` the
    arena. The engine's results are also `fresh`: each run allocates them. A slot with a `parent` is the parent's
    channels from `offset` on. The parts of a concatenation are such slots, so that nothing is copied.
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
    """The scale and shift of an input transform.

    They are `constant`, ``[C]`` each, or a norm computes them in each run, ``[N, C]`` each. An Affine with a `parent`
    is the parent's channels from `offset` on, as for slots.
    """

    images: int
    channels: int
    constant: tuple[Tensor, Tensor] | None = None
    parent: Affine | None = None
    offset: int = 0
    parts: list[Affine] = field(default_factory=list)


@dataclass(eq=False)
class Slopes:
    """The slopes of an input transform that each run computes, ``[channels]``."""

    channels: int


@dataclass(eq=False)
class Value:
    """A slot and its deferred work, which each step does while it reads the slot.

    `affine`: scale and shift. `slope`: ``[C]``, constant or computed in each run. `padding`: with zeros or with
    elements of the image. Each is None if no such work is deferred.
    """

    slot: Slot
    affine: Affine | None = None
    slope: Tensor | Slopes | None = None
    padding: Padding | None = None

    @property
    def deferred(self) -> list[str]:
        """The kinds of work that are deferred; empty if the slot holds the final value."""
        kinds = {"scale and shift": self.affine, "activation": self.slope, "padding": self.padding}
        return [kind for kind, work in kinds.items() if work is not None]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, H, W)`` or ``(N, C, L)``, the padding included."""
        if self.padding is None:
            return self.slot.shape
        left, right, top, bottom = self.padding.sizes
        n, channels, *rows, width = self.slot.shape
        return n, channels, *(one + top + bottom for one in rows), width + left + right

    def copy(self) -> Value:
        """A copy of the value with the same slot and the same deferred work. A later :meth:`overwrite` of the original
        does not change the copy."""
        return replace(self)

    def overwrite(self, other: Value) -> None:
        """Makes this object equal to another value. An operation in place uses this, so that every holder of this
        object sees the result."""
        self.slot, self.affine, self.slope, self.padding = other.slot, other.affine, other.slope, other.padding

    def activated(self, slope: Tensor) -> Value | None:
        """This value with an activation deferred. `slope`: ``[C]``.

        None if the activation cannot be combined with the work that is deferred already: a padding, an activation
        whose slopes each run computes, or one with a negative slope, which makes negative numbers positive.
        """
        if self.padding is not None or isinstance(self.slope, Slopes):
            return None
        if self.slope is not None:
            if bool((self.slope < 0).any()):
                return None
            slope = self.slope * slope  # the first activation keeps every number at or below 0 at or below 0
        return replace(self, slope=slope)

    def mapped(self, scale: Tensor, shift: Tensor) -> Value | None:
        """This value with ``x * scale + shift`` deferred. `scale`, `shift`: ``[C]`` each.

        None if the map cannot be combined with the work that is deferred already: a padding, an activation, or a norm
        whose scale and shift each run computes.
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
    """The deferred work of a concatenation: scale and shift, and slopes. Each is None if no part defers such work.

    No part may have slopes that each run computes.

    The scale and shift of a part become views of those of the whole, so a norm of the part writes into the whole.
    """
    channels = [part.slot.shape[1] for part in parts]
    slope = None
    if any(part.slope is not None for part in parts):
        like = next(part.slope for part in parts if isinstance(part.slope, Tensor))
        ones = [like.new_ones(count) for count in channels]
        slope = torch.cat([p.slope if isinstance(p.slope, Tensor) else one for p, one in zip(parts, ones, strict=True)])
    if all(part.affine is None for part in parts):
        return None, slope
    images, offset = parts[0].slot.shape[0], 0
    whole = Affine(images, sum(channels))
    for part, count in zip(parts, channels, strict=True):
        known = part.affine
        if known is None:
            known = Affine(images, count, (torch.ones(count), torch.zeros(count)))
        elif known.constant is not None:  # a copy, because other values may use the same object
            known = Affine(images, count, known.constant)
        known.parent, known.offset = whole, offset
        whole.parts.append(known)
        offset += count
    return whole, slope
