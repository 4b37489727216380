"""Synthetic images for generators that start from an image, where no images are at hand.

Dead leaves (Lee, Mumford and Huang, International Journal of Computer Vision 41, 2001): discs of random places and
colours cover each other. A disc has radius r with a probability proportional to r**-3. Edges and flat parts then appear
at all scales, as in photographs. Colours lie near grey, as they mostly do in photographs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layouts import Reading
from .samples import FACTOR, Crops, Pairs, Samples, Unpaired

#: The name of the set for `data.load` and --data.
NAME = "dead-leaves"
COUNT = 96
#: The seed of each split. The splits have no image in common.
SEEDS = {"train": 0, "fit": 0, "all": 0, "test": 1, "validation": 2}


def images(count: int, size: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Returns `count` images, uint8 [count, channels, size, size]. They depend on the arguments alone."""
    draws = torch.Generator().manual_seed(seed)
    made = torch.empty(count, channels, size, size)
    rows = torch.arange(size, dtype=torch.float32)
    least, most = 2.0, size / 2
    for image in made:
        image[:] = _colour(channels, draws)
        for _ in range(10 * size):
            u, y, x, *slope = torch.rand(5, generator=draws).tolist()
            radius = (least**-2 + u * (most**-2 - least**-2)) ** -0.5  # the inverse of the distribution function
            y, x = y * size, x * size
            top, bottom = max(int(y - radius), 0), min(int(y + radius) + 2, size)
            left, right = max(int(x - radius), 0), min(int(x + radius) + 2, size)
            down, across = rows[top:bottom, None] - y, rows[left:right] - x
            shade = 0.3 * ((slope[0] - 0.5) * down + (slope[1] - 0.5) * across) / radius
            inside = (radius + 0.5 - (down.square() + across.square()).sqrt()).clamp(0, 1)  # soft over one pixel
            image[:, top:bottom, left:right].lerp_((_colour(channels, draws) + shade).clamp(0, 1), inside)
    return (made * 255).round().to(torch.uint8)


def _colour(channels: int, draws: torch.Generator) -> Tensor:
    """Returns a random brightness with a weak tint, [channels, 1, 1], about in [0, 1]."""
    bright, tint = torch.rand(1, generator=draws), torch.rand(channels, generator=draws) - 0.5
    return (bright + 0.4 * tint).view(channels, 1, 1)


def samples(kind: str, how: Reading) -> Samples:
    """Returns samples of a kind: crops, pairs whose target is the input, or two unpaired sides.

    Raises ValueError for another kind.
    """
    seed = SEEDS[how.split]
    names = [f"{NAME}/{index}" for index in range(COUNT)]
    if kind == "crops":
        if how.size % FACTOR:
            raise ValueError(f"size is {how.size}; for crops it must be a multiple of {FACTOR}")
        cells = torch.tensor([(index, 0, 0) for index in range(COUNT)])
        return Crops(images(COUNT, how.size + 8, how.channels, seed), names, how.size, cells=cells, **how.training)
    if kind not in ("pairs", "unpaired"):
        raise ValueError(f"{NAME} are crops, pairs or unpaired images; this GAN learns from {kind}: name real images")
    a = images(COUNT, how.load_size, how.channels, seed)
    if kind == "pairs":
        return Pairs(torch.cat([a, a], 1), names, how.size, **how.training)
    b = images(COUNT, how.load_size, how.channels, seed + len(SEEDS))
    return Unpaired(a, names, how.size, other=b, **how.training)
