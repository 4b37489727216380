"""The places of slots in the arena. Slots that are not needed at the same time may use the same bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .memory import Layout
from .steps import Pointwise, Step
from .values import Slot

#: Slots begin on a cache line.
ALIGNMENT = 64


def plan_arena(steps: Sequence[Step]) -> Layout:
    """Places every slot in the arena, the largest first. Each slot gets the lowest offset that is free as long as the
    slot is needed."""
    lives: dict[Slot, tuple[int, int]] = {}  # the first and the last step that need a slot
    same: dict[Slot, Slot] = {}  # a slot that takes the place of another slot, and that slot

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
    # A pointwise step overwrites its input if no later step needs the input.
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


def last_uses(steps: Sequence[Step], kept: Collection[Slot]) -> list[list[Slot]]:
    """For each step, the slots outside the arena that no later step needs. `kept`: slots that are never listed."""
    last = {slot: index for index, step in enumerate(steps) for slot in (*step.writes, *step.reads) if slot.outside}
    found: list[list[Slot]] = [[] for _ in steps]
    for slot, index in last.items():
        if slot not in kept:
            found[index].append(slot)
    return found


def bytes_outside(steps: Sequence[Step], kept: Collection[Slot]) -> int:
    """The most bytes that the tensors outside the arena have at the same time. `kept`: slots that live to the end.

    A view of another tensor counts as a copy. What torch allocates while it computes a step is not counted.
    """
    alive, most = 0, 0
    written: set[Slot] = set()
    for step, done in zip(steps, last_uses(steps, kept), strict=True):
        new = {slot for slot in (*step.reads, *step.writes) if slot.outside} - written
        written |= new
        alive += sum(slot.bytes for slot in new)
        most = max(most, alive)
        alive -= sum(slot.bytes for slot in done)
    return most
