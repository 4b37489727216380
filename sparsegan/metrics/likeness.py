"""How like the original generator's images those of another generator are, from the same inputs.

Neither real images nor a discriminator are needed. Images have values in [-1, 1]. With x the original's images, y those
of the other generator and m the mean of x over all images:

    PSNR             10 log10(4 / mean (x - y)^2) dB, one mean over all images and elements
    difference       mean |x - y|
    edge energy      sum of the squared Sobel gradients of y / sum of those of x; below 1, y is softer than x
    mean image       10 log10(4 / mean (x - m)^2) dB

The mean image is the floor: of all generators that ignore their input, the one that always gives m has the highest
PSNR. The PSNR is not a mean of PSNRs of single images, because the floor would then be none.

**The verdict.** Each kind of image that a GAN makes is judged by these rules, and the worst kind decides:

    FAR      PSNR less than `FAR_ABOVE_MEAN` = 5 dB above the mean image (a third of the variation or more is lost), or
             below `FAR_PSNR` = 15 dB, or an edge energy below 1/4 or above 4
    CLOSE    PSNR at least `CLOSE_ABOVE_MEAN` = 8 dB above the mean image (a sixth of the variation is lost) and at
             least `CLOSE_PSNR` = 22 dB, and an edge energy from 4/5 to 5/4
    PARTLY   all between these

The verdict says whether a generator does what the original does. It does not say whether its images are good: a loss
that matches scores and not images can lead to good images that are far from the original's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gans.objective import Objective
from ..modes import in_mode
from ..placement import device_of, moved
from ..randomness import seeded
from .distances import MOST_PSNR

FAR, PARTLY, CLOSE = "far", "partly", "close"
FAR_ABOVE_MEAN, CLOSE_ABOVE_MEAN = 5.0, 8.0
FAR_PSNR, CLOSE_PSNR = 15.0, 22.0
FAR_EDGES, CLOSE_EDGES = 4.0, 1.25
#: From this PSNR of the mean image on, all images of the original are alike.
ALIKE_PSNR = MOST_PSNR - CLOSE_ABOVE_MEAN

_NEGLIGIBLE = 1e-12  # energy; added on both sides of a ratio, so that an image without edges is like itself


@dataclass(frozen=True)
class Likeness:
    """The figures of one kind of image; see the module's text. `psnr` and `mean_image` are at most `MOST_PSNR`."""

    psnr: float
    difference: float
    edges: float
    mean_image: float

    @property
    def verdict(self) -> str:
        """`FAR`, `PARTLY` or `CLOSE`, by the rules of the module's text."""
        # Images that hardly differ have a mean image near the highest PSNR that is told apart. Room is left above it.
        above, off = self.psnr - min(self.mean_image, ALIKE_PSNR), max(self.edges, 1 / self.edges)
        if not (above >= FAR_ABOVE_MEAN and self.psnr >= FAR_PSNR and off <= FAR_EDGES):
            return FAR
        near = above >= CLOSE_ABOVE_MEAN and self.psnr >= CLOSE_PSNR and off <= CLOSE_EDGES
        return CLOSE if near else PARTLY


def worst(figures: Mapping[str, Likeness]) -> tuple[str, Likeness]:
    """The kind of image that decides the verdict, and its figures: the lowest verdict, and in it the lowest PSNR.

    Raises ValueError where `figures` is empty.
    """
    if not figures:
        raise ValueError("figures is empty; it must hold the likeness of at least one kind of image")
    order = (FAR, PARTLY, CLOSE)
    return min(figures.items(), key=lambda one: (order.index(one[1].verdict), one[1].psnr))


class OriginalImages:
    """The original generator's images of fixed inputs, with which other generators are compared.

    `batches`: batches as `objective.generate` takes them. `seed`: decides the noise; each batch has its own. The images
    of a kind are the fakes of the objective's view of that name. They stay on the original's device. Raises ValueError
    where `batches` is empty.
    """

    def __init__(self, original: nn.Module, objective: Objective, batches: Iterable[Any], seed: int = 0) -> None:
        self.objective, self.seed = objective, seed
        self.batches = [moved(batch, device_of(generator=original)) for batch in batches]
        if not self.batches:
            raise ValueError("batches is empty; at least one is needed")
        self._images = list(self._made(original))
        kinds = dict.fromkeys(name for images in self._images for name in images)  # a batch may lack a kind
        self._mean_image = {name: self._mean_image_psnr(name) for name in kinds}

    @property
    def count(self) -> int:
        """The number of images of the most frequent kind."""
        return max(sum(len(images.get(name, ())) for images in self._images) for name in self._mean_image)

    def compare(self, generator: nn.Module) -> dict[str, Likeness]:
        """The likeness of a generator by kind of image.

        The generator runs in evaluation mode on the original's inputs and noise, and no random state changes. Raises
        ValueError for images of another shape or of other kinds than the original's, and for values that are not
        finite.
        """
        sums: dict[str, _Sums] = {}
        for ours, theirs in zip(self._made(generator), self._images, strict=True):
            shapes = [{name: tuple(images.shape) for name, images in made.items()} for made in (ours, theirs)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"the generator makes images {shapes[0]}, the original {shapes[1]}; both must agree")
            for name in theirs:
                sums.setdefault(name, _Sums()).add(ours[name], theirs[name])
        return {
            name: Likeness(
                psnr(one.squared / one.elements),
                one.absolute / one.elements,
                (one.ours + _NEGLIGIBLE) / (one.theirs + _NEGLIGIBLE),
                self._mean_image[name],
            )
            for name, one in sums.items()
        }

    def _made(self, generator: nn.Module) -> Iterator[dict[str, Tensor]]:
        """The images of each batch by kind, limited to [-1, 1]."""
        for index, batch in enumerate(self.batches):
            with in_mode(generator, False), torch.no_grad(), seeded((self.seed + index) % 2**63):
                views = self.objective.views(self.objective.generate(generator, batch), batch)
            bad = [name for name, view in views.items() if not view.fake.isfinite().all()]
            if bad:
                raise ValueError(f"images of the kind {bad[0]!r} hold values that are not finite; all must be numbers")
            yield {name: view.fake.float().clamp(-1, 1) for name, view in views.items() if len(view.fake)}

    def _mean_image_psnr(self, name: str) -> float:
        made = [images[name].double() for images in self._images if name in images]
        count = sum(map(len, made))
        mean = torch.stack([images.sum(0) for images in made]).sum(0) / count
        squared = sum((images - mean).square().sum().item() for images in made)
        return psnr(squared / (count * mean.numel()))


def psnr(squared: float) -> float:
    """The PSNR in dB, at most `MOST_PSNR`, of a mean squared error between images in [-1, 1]."""
    return min(MOST_PSNR, 10 * math.log10(4 / squared)) if squared > 0 else MOST_PSNR


@dataclass
class _Sums:
    """Sums over all images of one kind: errors, edge energies of both generators, and the number of elements."""

    squared: float = 0.0
    absolute: float = 0.0
    ours: float = 0.0
    theirs: float = 0.0
    elements: int = 0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        error = ours.double() - theirs.double()
        self.squared += error.square().sum().item()
        self.absolute += error.abs().sum().item()
        self.ours += edge_energy(ours)
        self.theirs += edge_energy(theirs)
        self.elements += error.numel()


def edge_energy(images: Tensor) -> float:
    """The sum of the squared Sobel gradients of images [N, C, H, W], both directions. Borders are repeated."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    filters = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth]).to(images)[:, None]
    planes = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(planes, filters).double().square().sum().item()
