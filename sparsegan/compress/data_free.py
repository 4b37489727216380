"""Compression without the training data: images of the dense generator take the place of the real images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..gans.objective import Objective
from ..modes import in_mode
from ..placement import device_of, moved
from ..randomness import seeded
from ..renamed import warn_of_old_name


class GeneratedBatches:
    """The batches of `loader`, with their real images replaced by images that `generator` makes from the same batch.

    A generator that starts from noise needs no data: `BlankBatches` then gives batches of the right size. A generator
    that starts from an image needs input images, but no targets.
    The generator runs in evaluation mode, and each module then gets its earlier mode back. Opening an epoch draws one
    number from torch's random generator, and all noise of the epoch follows from that number.
    Raises ValueError where `Objective.own`, the function that puts the images into a batch, is None.
    """

    def __init__(self, generator: nn.Module, objective: Objective, loader: Any) -> None:
        if objective.own is None:
            raise ValueError("objective.own is None; it must be a function that puts generated images into a batch")
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
    """`count` batches of zeros, float32 [batch_size, channels, size, size], for a generator that starts from noise."""

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
    """The old name of `GeneratedBatches`. It will be removed in 0.2."""

    def __init__(self, generator: nn.Module, objective: Objective, loader: Any) -> None:
        warn_of_old_name("OwnImages", "GeneratedBatches")
        super().__init__(generator, objective, loader)


class Blank(BlankBatches):
    """The old name of `BlankBatches`. It will be removed in 0.2."""

    def __init__(self, batch_size: int, channels: int, size: int, count: int = 100) -> None:
        warn_of_old_name("Blank", "BlankBatches")
        super().__init__(batch_size, channels, size, count)
