"""The plan cache of a sparse layer: plans, choices of a backend, and the dense weight for evaluation.

One cache belongs to one state of the support. A thread takes the layer's cache once per call, so a call never mixes two
states of the support. An entry is complete before another thread can find it. Two threads may therefore compute the
same entry twice, but neither waits for the other.
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

#: The most positions of a support that are compared at each call, evenly spread: about 2 microseconds.
SAMPLED = 4096
#: The most choices of a backend that are kept. There is one per input shape, output size, dtype and precision.
MOST_CHOICES = 1024


class PlanCache:
    """The plan cache for one state of ``support``; see the module. ``numbers``: a copy of the support's positions.

    The cache must notice when the support changes in place. torch counts changes of a tensor in place, except changes
    through ``.data`` or by another process, and an inference tensor has no counter. On a CPU the cache therefore
    compares a sample of the positions too. The digest tells whether a counted change really changed a position.
    """

    def __init__(self, support: Tensor, version: int | None, numbers: np.ndarray) -> None:
        self.support = support
        self.plans: dict[tuple[bool, bool, bool], Tensor] = {}
        self.choices: dict[Any, Choice] = {}
        self.single: tuple[Tensor, Tensor] | None = None
        self.digest = hashlib.blake2b(numbers.tobytes()).digest()
        self._version = version
        self._address = support.data_ptr()
        self._sample = None if support.is_cuda else _sample(numbers)
        self._dense: tuple[Tensor, Tensor] | None = None

    def describes(self, support: Tensor) -> bool:
        """Whether ``support`` is the tensor that this cache was made for, and is unchanged."""
        return (
            support is self.support
            and version_of(support) == self._version
            and support.data_ptr() == self._address
            and (self._sample is None or _sample(support.numpy()) == self._sample)
        )

    def unchanged(self) -> bool:
        """Whether torch has counted no change of the support in place. Reads no positions, so it works in tracing."""
        return version_of(self.support) == self._version

    def take_over(self, other: PlanCache) -> None:
        """Takes the entries of another cache, which was made for the same positions on the same device."""
        self.plans, self.choices, self._dense = other.plans, other.choices, other._dense
        self.single = other.single

    def single_weights(self, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The result of ``make()``, which is ``KeptWeights.single_weights``, at the first call."""
        if (single := self.single) is None:
            with torch.inference_mode(False):
                self.single = single = make()
        return single

    def plan(self, variant: tuple[bool, bool], support: Tensor, geometry: list[int], adjoint: bool) -> Tensor:
        """The plan of one direction. ``variant``: whether the coarse grid is one element high, and one element wide.

        ``support``: the cache's, or that of its single weights where the layer runs these.
        """
        key = (*variant, adjoint)
        if key not in self.plans:
            with torch.inference_mode(False):  # a plan that is compiled in inference mode must serve training too
                self.plans[key] = plan_of(support, geometry, adjoint)
        return self.plans[key]

    def choice(self, key: Any, choose: Callable[[], Choice]) -> Choice:
        """The result of ``choose()`` at the first call with this key."""
        choice = self.choices.get(key)
        if choice is None:
            if len(self.choices) >= MOST_CHOICES:  # as in a server that gets new image sizes all the time
                self.choices.clear()
            self.choices[key] = choice = choose()
        return choice

    def dense_weight(self, values: Tensor, shape: tuple[int, ...], positions: Tensor) -> Tensor:
        """The dense weight of ``values``, cached until the values change. Callers must not write into the result.

        The values are compared at each call, because torch's count of changes is not reliable: it misses
        ``values.data.mul_()``.
        """
        kept = self._dense
        if kept is None or kept[0].dtype != values.dtype or not torch.equal(values, kept[0]):
            with torch.inference_mode(False), torch.no_grad():  # usable in and outside of inference mode
                copy = values.detach().clone()
                weight = copy.new_zeros(shape)
                weight.view(-1).index_copy_(0, positions, copy)
            # A new tensor each time: another thread may be convolving with the old one.
            self._dense = kept = (copy, weight)
        return kept[1]

    def plan_bytes(self) -> int:
        """The bytes of all plans in the cache, and of the support and places of single weights."""
        tensors = [*list(self.plans.values()), *(self.single or ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def version_of(support: Tensor) -> int | None:
    """torch's count of changes of the support in place, or None for an inference tensor."""
    return None if support.is_inference() else support._version


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be read now: it is not fake or on the meta device, and no graph is traced."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not tensor.is_meta
        and not torch._is_functional_tensor(tensor)
    )


def _sample(numbers: np.ndarray) -> bytes:
    return numbers[:: len(numbers) // SAMPLED + 1].tobytes()
