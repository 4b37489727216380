"""Samples of each kind, and the batches that a training loop takes from them.

The batches of each kind (`sparsegan.data.KINDS`); all images are float32 in [-1, 1]:

    images    images [n, C, S, S]
    pairs     (input, target), each [n, C, S, S]
    unpaired  (a, b), each [n, C, S, S]; an epoch goes once through the longer side
    domains   (images [n, C, S, S], labels int64 [n]); from an attribute file, labels are float32 [n, K] of 0 and 1
    crops     (low [n, C, S/4, S/4], high [n, C, S, S]); low is a bicubic reduction of high, rounded to 8 bits
    sounds    sounds [n, 1, S], S samples of a sound (`sounds.py`)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

#: Images uint8 [C, H, W], or float in [-1, 1]: a tensor [N, C, H, W], a list, or a sequence that decodes when indexed.
Images = Sequence[Tensor] | Tensor

FACTOR = 4  # high resolution over low resolution of a crop


class Samples:
    """The samples that a GAN learns from or is scored on.

    `images`: the images that the samples are cut from. `names`: a name per sample. `size`: S in the module's docstring.
    `flip`: half of the samples are mirrored in training. `workers`: processes that decode images which are not in
    memory. `domains`: the names of the labels, if there are labels.
    """

    def __init__(
        self, images: Images, names: Iterable[Any], size: int, *, flip: bool = False, workers: int = 0
    ) -> None:
        self.images = images
        self.names = [str(name) for name in names]
        self.size = size
        self.flip = flip
        self.workers = workers
        self.domains: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    @property
    def distinct(self) -> int:
        """The number of samples that may begin an epoch before an image is repeated."""
        return len(self)

    @property
    def channels(self) -> int:
        """The number of channels of an image that a generator makes."""
        return self.images[0].shape[0]

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""
        return isinstance(self.images, Tensor | list)

    def batches(self, batch_size: int) -> Batches:
        """Returns shuffled batches of `batch_size` samples, as a sized iterable of one epoch; see `Batches`."""
        return Batches(self, batch_size, 0 if self.in_memory else self.workers)

    def in_order(self, batch_size: int) -> Iterator[Any]:
        """Yields every sample once, in the order of `names`, without augmentation. The last batch may be smaller."""
        for chosen in self.order(shuffled=False).split(batch_size):
            yield self.batch(chosen, None)

    def order(self, shuffled: bool = True) -> Tensor:
        """Returns the indices of an epoch's samples, int64 [N, ...]. Shuffling draws from torch's generator."""
        return torch.randperm(len(self)) if shuffled else torch.arange(len(self))

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> Any:
        """Returns the batch of the rows `chosen` of `order`.

        `draws`: the source of random numbers for augmentation; None means no augmentation.
        """
        raise NotImplementedError

    def _cut(self, images: Images, chosen: Tensor, draws: torch.Generator | None) -> Tensor:
        """Returns windows of `size`: at random places, half of them mirrored if `flip`; or, without `draws`, the middle
        of each image, not mirrored."""
        random = torch.full((len(chosen), 3), 0.5) if draws is None else torch.rand(len(chosen), 3, generator=draws)
        cut = []
        for index, (down, right, mirror) in zip(chosen.tolist(), random.tolist(), strict=True):
            image = images[index]
            top, left = (int(u * (n - self.size + 1)) for u, n in zip((down, right), image.shape[1:], strict=True))
            image = image[:, top : top + self.size, left : left + self.size]
            cut.append(image.flip(2) if self.flip and mirror < 0.5 else image)
        return torch.stack(cut)


class Single(Samples):
    """One image per sample. `labels`: int64 [N], or None. Batches do not contain them."""

    def __init__(self, *arguments: Any, labels: Tensor | None = None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.labels = labels

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> Any:
        return _scaled(self._cut(self.images, chosen, draws))


class Labelled(Single):
    """One image and its label per sample. `labels`: int64 [N] or float32 [N, K]."""

    def __init__(self, *arguments: Any, labels: Tensor, domains: Sequence[str], **more: Any) -> None:
        super().__init__(*arguments, labels=labels, **more)
        self.domains = list(domains)

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> tuple[Tensor, Tensor]:
        assert self.labels is not None
        return super().batch(chosen, draws), self.labels[chosen]


class Pairs(Samples):
    """An input and its target per sample. Both are stored in the channels of one image, so that both are cut alike."""

    @property
    def channels(self) -> int:
        return self.images[0].shape[0] // 2

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> tuple[Tensor, Tensor]:
        both = _scaled(self._cut(self.images, chosen, draws))
        given, target = both.chunk(2, 1)
        return given.contiguous(), target.contiguous()


class Unpaired(Samples):
    """Two unpaired sides. In an epoch, the shorter side is repeated, in a new order, until the longer side ends."""

    def __init__(self, *arguments: Any, other: Images, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.other = other

    @property
    def in_memory(self) -> bool:
        return super().in_memory and isinstance(self.other, Tensor)

    def __len__(self) -> int:
        return max(len(self.images), len(self.other))

    @property
    def distinct(self) -> int:
        return min(len(self.images), len(self.other))

    def order(self, shuffled: bool = True) -> Tensor:
        sides = []
        for count in (len(self.images), len(self.other)):
            rounds = -(-len(self) // count)
            perms = [torch.randperm(count) if shuffled else torch.arange(count) for _ in range(rounds)]
            sides.append(torch.cat(perms)[: len(self)])
        return torch.stack(sides, 1)

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> tuple[Tensor, Tensor]:
        a, b = (self._cut(images, chosen[:, i], draws) for i, images in enumerate((self.images, self.other)))
        return _scaled(a), _scaled(b)


class Crops(Samples):
    """Crops of photographs. A grid of windows is laid over each photograph, and each whole window is a sample.

    In training, a sample is a window at a random place of its photograph. `in_order` yields the windows of the grid.
    `cells`: int64 [N, 3], the photograph, top and left of each window of the grid.
    """

    def __init__(self, *arguments: Any, cells: Tensor, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.cells = cells

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> tuple[Tensor, Tensor]:
        cells = self.cells[chosen]
        if draws is not None:
            high = self._cut(self.images, cells[:, 0], draws)
        else:
            s = self.size
            high = torch.stack([self.images[i][:, y : y + s, x : x + s] for i, y, x in cells.tolist()])
        low = F.interpolate(high.float(), scale_factor=1 / FACTOR, mode="bicubic", antialias=True)
        return _scaled(low.round().clamp(0, 255).to(torch.uint8)), _scaled(high)


class _Plain(Samples):
    """The rows of a tensor [N, ...], unchanged."""

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> Tensor:
        assert isinstance(self.images, Tensor)
        return self.images[chosen]


def _scaled(images: Tensor) -> Tensor:
    """Returns bytes as float32 in [-1, 1]. Floats are returned unchanged."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


class Batches:
    """Shuffled batches of `samples`, or of a tensor [N, ...]. Each iteration is an epoch in a new order.

    The order and the augmentation of an epoch depend only on numbers that are drawn from torch's generator at the start
    of the epoch. Batches are therefore the same whether an epoch is read at once, resumed, or read by `workers`.
    `workers`: processes that make batches ahead of time; 0 makes each batch on demand. With workers, only one epoch is
    open at a time.
    The last, smaller batch of an epoch is left out. Raises ValueError for fewer samples than one batch.
    """

    def __init__(self, samples: Samples | Tensor, batch_size: int, workers: int = 0) -> None:
        if isinstance(samples, Tensor):
            samples = _Plain(samples, range(len(samples)), 0)
        if not 1 <= batch_size <= len(samples):
            raise ValueError(f"batch_size is {batch_size}; it must be from 1 to the number of images, {len(samples)}")
        self.samples = samples
        self.batch_size = batch_size
        self._made = _Made(samples)
        self._plan: list[tuple[Tensor, int]] = []  # of the open epoch: rows of the order, and a seed, per batch
        self._loader: Iterable[Any] | None = None
        if workers:
            self._loader = DataLoader(
                self._made,
                None,
                sampler=self._plan,
                num_workers=workers,
                persistent_workers=True,
                generator=_private_generator(),
            )

    def __len__(self) -> int:
        return len(self.samples) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        order = self.samples.order()[: len(self) * self.batch_size].split(self.batch_size)
        seed = int(torch.randint(2**62, ()))
        plan = [(chosen, seed + index) for index, chosen in enumerate(order)]
        if self._loader is None:
            made: Iterable[Any] = map(self._made.__getitem__, plan)
        else:
            self._plan[:] = plan
            made = self._loader
        for batch in made:
            if isinstance(batch, Exception):
                raise batch
            yield batch


def _private_generator() -> torch.Generator:
    """Returns a generator for the loader, which would otherwise draw from torch's default generator."""
    return torch.Generator().manual_seed(0)


class _Made(Dataset[Any]):
    """The batches that a plan describes. An error is returned, because a worker would add pages of traceback to it."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, planned: tuple[Tensor, int]) -> Any:
        chosen, seed = planned
        try:
            return self.samples.batch(chosen, torch.Generator().manual_seed(seed))
        except (ValueError, OSError) as error:
            return error
