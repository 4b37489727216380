"""Where a run's tensors lie: one arena, planned once, in which slots that are not needed at once share bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .steps import Pointwise, Step
from .values import Affine, Slot, Value

#: Slots begin on a cache line.
ALIGNMENT = 64


@dataclass
class Layout:
    """Bytes of the arena, and the byte at which each slot begins that is no part of another."""

    bytes: int
    offsets: dict[Slot, int]


def plan_arena(steps: Sequence[Step]) -> Layout:
    """Places every slot in the arena: the largest first, each at the lowest byte that is free while it is needed."""
    lives: dict[Slot, tuple[int, int]] = {}
    same: dict[Slot, Slot] = {}  # slots in another's place

    def place(slot: Slot) -> Slot:
        while slot.parent is not None:
            slot = slot.parent
        return slot

    def lives_on(slot: Slot, step: int) -> None:
        root = place(slot)
        if not root.outside:
            first, last = lives.get(root, (step, step))
            lives[root] = (min(first, step), max(last, step))

    for index, step in enumerate(steps):
        for slot in (*step.reads, *step.writes):
            lives_on(slot, index)
    # A pointwise step writes over what it reads where nobody needs that afterwards.
    for index, step in enumerate(steps):
        if not isinstance(step, Pointwise) or step.repeat > 1 or step.y not in lives:
            continue
        for x in step.reads:
            root = same.get(x, x)
            alone = root in lives and not x.parts and not step.y.parts
            if alone and x is place(x) and x.bytes == step.y.bytes and lives[root][1] == index:
                lives[root] = (lives[root][0], lives.pop(step.y)[1])
                same[step.y] = root
                break

    offsets: dict[Slot, int] = {}
    for slot in sorted(lives, key=lambda slot: -slot.bytes):
        first, last = lives[slot]
        taken = sorted(
            (offsets[other], offsets[other] + other.bytes)
            for other in offsets
            if lives[other][0] <= last and first <= lives[other][1]
        )
        at = 0
        for start, end in taken:
            if at + slot.bytes <= start:
                break
            at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[slot] = at
    size = max((at + slot.bytes for slot, at in offsets.items()), default=0)
    return Layout(size, {**offsets, **{slot: offsets[root] for slot, root in same.items()}})


def new_arena(size: int) -> Tensor:
    """uint8 ``[size]``."""
    return torch.empty(size, dtype=torch.uint8)


class Memory:
    """One run's tensors, in an arena of at least the layout's bytes. Runs at the same time each have their own."""

    def __init__(self, layout: Layout, map_dtype: torch.dtype, arena: Tensor) -> None:
        self.arena = arena
        self.outside: dict[Slot, Any] = {}
        self._layout, self._map_dtype = layout, map_dtype
        self._views: dict[Slot, Tensor] = {}
        self._maps: dict[Affine, tuple[Tensor, Tensor]] = {}

    def reader(self, slot: Slot) -> Callable[[], Any]:
        """A function that returns the slot's tensor of the run in progress."""
        if slot.outside:
            return lambda: self.outside[slot]
        view = self._view(slot)
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
        """scale and shift, ``[N, C]``."""
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

    def prologue(self, value: Value) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """scale, shift and slope of a value, as the ops take them."""
        return (*self.maps(value.affine), value.slope)

    def forget(self) -> None:
        """Lets go of a run's inputs and results."""
        self.outside.clear()
