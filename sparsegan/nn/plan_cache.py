"""What a sparse layer makes of its support and keeps: plans, choices of a backend, the dense weight of an evaluation.

All of it stands in one object that belongs to one state of the support. A thread takes that object once a call, so no
call mixes two states, and nothing that was made for an old support reaches a new one. Each entry is complete before it
can be found: two threads may make the same entry twice, and neither waits for the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.plan import plan_of
from .dispatch import Choice

#: Positions of a support that are compared at each call, of a larger one evenly spread: about 2 microseconds.
SAMPLED = 4096
#: Choices of a backend that are kept, one per shape of an input.
MOST_CHOICES = 1024


class PlanCache:
    """See the module. ``numbers``: the support's positions, a copy that was checked.

    torch counts the changes of a tensor in place, but not those through ``.data``, nor those by another process; an
    inference tensor has no counter. Hence the sample, on a CPU. A digest tells whether a counted change was one.
    """

    def __init__(self, support: Tensor, version: int | None, numbers: np.ndarray) -> None:
        self.support = support
        self.plans: dict[tuple[bool, bool, bool], Tensor] = {}
        self.choices: dict[Any, Choice] = {}
        self.digest = hashlib.blake2b(numbers.tobytes()).digest()
        self._version = version
        self._address = support.data_ptr()
        self._sample = None if support.is_cuda else _sample(numbers)
        self._dense: tuple[Tensor, Tensor] | None = None

    def describes(self, support: Tensor) -> bool:
        """Whether a layer's support is the one that this was made from, unchanged."""
        return (
            support is self.support
            and version_of(support) == self._version
            and support.data_ptr() == self._address
            and (self._sample is None or _sample(support.numpy()) == self._sample)
        )

    def unchanged(self) -> bool:
        """Whether torch has counted no change of the support in place; reads no numbers, so it serves while tracing."""
        return version_of(self.support) == self._version

    def take_over(self, other: PlanCache) -> None:
        """Everything that was made from the same positions, in another tensor or before a copy onto themselves."""
        self.plans, self.choices, self._dense = other.plans, other.choices, other._dense

    def plan(self, variant: tuple[bool, bool], geometry: list[int], adjoint: bool) -> Tensor:
        """The plan of one direction; ``variant``: whether the coarse grid is one element high, and wide."""
        key = (*variant, adjoint)
        if key not in self.plans:
            with torch.inference_mode(False):  # a plan made while evaluating serves training too
                self.plans[key] = plan_of(self.support, geometry, adjoint)
        return self.plans[key]

    def choice(self, key: Any, choose: Callable[[], Choice]) -> Choice:
        """What ``choose()`` gave for a key when it was first asked."""
        choice = self.choices.get(key)
        if choice is None:
            if len(self.choices) >= MOST_CHOICES:  # a server meets ever new sizes
                self.choices.clear()
            self.choices[key] = choice = choose()
        return choice

    def dense_weight(self, values: Tensor, shape: tuple[int, ...], positions: Tensor) -> Tensor:
        """The dense weight of some values, kept until they change; nobody may write into it.

        The values are compared every time: nothing else tells reliably whether they have changed
        (``values.data.mul_()`` does not).
        """
        kept = self._dense
        if kept is None or kept[0].dtype != values.dtype or not torch.equal(values, kept[0]):
            with torch.inference_mode(False), torch.no_grad():  # usable in both modes
                copy = values.detach().clone()
                weight = copy.new_zeros(shape)
                weight.view(-1).index_copy_(0, positions, copy)
            # A new tensor each time: another thread may be convolving with the old one.
            self._dense = kept = (copy, weight)
        return kept[1]

    def plan_bytes(self) -> int:
        """Bytes of the plans."""
        return sum(plan.numel() * plan.element_size() for plan in list(self.plans.values()))


def version_of(support: Tensor) -> int | None:
    """torch's count of changes in place."""
    return None if support.is_inference() else support._version


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be read now: it is not fake or on the meta device, and no graph is being made."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not tensor.is_meta
        and not torch._is_functional_tensor(tensor)
    )


def _sample(numbers: np.ndarray) -> bytes:
    return numbers[:: len(numbers) // SAMPLED + 1].tobytes()
