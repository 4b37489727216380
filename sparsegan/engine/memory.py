"""The tensors of one run. Most of them lie in an arena, the rest outside the arena."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..signals import SIGNAL, as_map
from .values import Affine, Slopes, Slot, Value


@dataclass
class Layout:
    """The size of the arena in bytes, and the offset in bytes of each slot that is not a part of another slot."""

    bytes: int
    offsets: dict[Slot, int]


def new_arena(size: int) -> Tensor:
    """An uninitialized arena: uint8 ``[size]``."""
    return torch.empty(size, dtype=torch.uint8)


class Memory:
    """The tensors of one run. The arena has at least the layout's bytes. Simultaneous runs need separate memories."""

    def __init__(self, layout: Layout, map_dtype: torch.dtype, arena: Tensor) -> None:
        self.arena = arena
        self.outside: dict[Slot, Any] = {}
        self._layout, self._map_dtype = layout, map_dtype
        self._views: dict[Slot, Tensor] = {}
        self._maps: dict[Affine, tuple[Tensor, Tensor]] = {}
        self._slopes: dict[Slopes, Tensor] = {}

    def reader(self, slot: Slot) -> Callable[[], Any]:
        """A function that returns the slot's tensor in the present run."""
        if slot.outside:
            return lambda: self.outside[slot]
        view = self._view(slot)
        return lambda: view

    def map_reader(self, slot: Slot) -> Callable[[], Tensor]:
        """A function that returns the slot's tensor as the kernels take it: a signal as a contiguous map of one row.

        Outside the arena a tensor of three dimensions may be no signal, so it is made contiguous only here.
        """
        read = self.reader(slot)
        if len(slot.shape) != SIGNAL:
            return read
        if slot.outside:
            return lambda: as_map(read().contiguous())
        view = as_map(read())
        return lambda: view

    def _view(self, slot: Slot) -> Tensor:
        if slot not in self._views:
            if slot.parent is not None:
                view = self._view(slot.parent).narrow(1, slot.offset, slot.shape[1])
            else:
                at = self._layout.offsets[slot]
                view = self.arena[at : at + slot.bytes].view(slot.dtype).view(slot.shape)
            self._views[slot] = view
        return self._views[slot]

    def maps(self, affine: Affine | None) -> tuple[Tensor | None, Tensor | None]:
        """scale and shift, ``[N, C]`` each; None for both if `affine` is None."""
        if affine is None:
            return None, None
        if affine not in self._maps:
            if affine.parent is not None:
                scale, shift = self.maps(affine.parent)
                assert scale is not None
                assert shift is not None
                found = tuple(whole.narrow(1, affine.offset, affine.channels) for whole in (scale, shift))
            else:
                found = tuple(torch.empty(affine.images, affine.channels, dtype=self._map_dtype) for _ in range(2))
            self._maps[affine] = (found[0], found[1])
            for part in affine.parts:
                self.maps(part)
            for own, numbers in zip(found, affine.constant or (), strict=False):
                own.copy_(numbers)
        return self._maps[affine]

    def input_transform(self, value: Value) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """scale, shift and slope of a value's deferred work, in the order of the ops' arguments. Each may be None."""
        return (*self.maps(value.affine), self.slopes(value.slope))

    def slopes(self, slope: Tensor | Slopes | None) -> Tensor | None:
        """The slopes of an activation, ``[C]``; None for None."""
        if not isinstance(slope, Slopes):
            return slope
        if slope not in self._slopes:
            self._slopes[slope] = torch.empty(slope.channels, dtype=self._map_dtype)
        return self._slopes[slope]

    def forget(self) -> None:
        """Drops the references to a run's inputs and results."""
        self.outside.clear()
