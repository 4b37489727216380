"""Compression without the training data: the dense generator's own images stand in for the real ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..gans.objective import Objective
from ..modes import in_mode
from ..placement import device_of, moved
from ..randomness import seeded


class GeneratedBatches:
    """Batches of `loader` with what `generator` makes of them in the place of what is real.

    A generator that starts from noise needs no data at all: `BlankBatches` gives the batches that only say how many.
    One that starts from an image needs inputs, and never looks at their targets. The generator runs in evaluation mode
    and is left as it was; all noise of an epoch follows from what is drawn from torch's generator when it is opened.
    Raises ValueError where the objective does not say what is real in a batch (`Objective.own`).
    """

    def __init__(self, generator: nn.Module, objective: Objective, loader: Any) -> None:
        if objective.own is None:
            raise ValueError("objective.own is None; it must say what of a batch the generator's images stand in for")
        self.generator, self.objective, self.loader, self.own = generator, objective, loader, objective.own

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        seed = int(torch.randint(2**62, ()))
        for index, batch in enumerate(self.loader):
            batch = moved(batch, device_of(generator=self.generator))
            with in_mode(self.generator, False), torch.no_grad(), seeded(seed + index):
                fake = self.objective.generate(self.generator, batch)
            yield self.own(fake, batch)


class BlankBatches:
    """`count` batches of zeros, float32 [batch_size, channels, size, size]: for a generator that looks at none."""

    def __init__(self, batch_size: int, channels: int, size: int, count: int = 100) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.shape, self.count = (batch_size, channels, size, size), count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.zeros(self.shape)


class OwnImages(GeneratedBatches):
    """The old name of `GeneratedBatches`, until 0.2."""

    def __init__(self, generator: nn.Module, objective: Objective, loader: Any) -> None:
        _warn_of_old_name("OwnImages", "GeneratedBatches")
        super().__init__(generator, objective, loader)


class Blank(BlankBatches):
    """The old name of `BlankBatches`, until 0.2."""

    def __init__(self, batch_size: int, channels: int, size: int, count: int = 100) -> None:
        _warn_of_old_name("Blank", "BlankBatches")
        super().__init__(batch_size, channels, size, count)


def _warn_of_old_name(old: str, new: str) -> None:
    warnings.warn(f"{old} is {new} now; the old name goes in 0.2", DeprecationWarning, stacklevel=3)
