"""Pictures of generators' images: a grid, or one strip per sample, from the sample's input to its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..atomic_files import write_whole
from ..data import Samples
from ..gans.objective import Objective, named_views
from ..placement import device_of, moved
from ..randomness import seeded

GAP, HEAD = 2, 13  # pixels between two cells; height of a line of text in pixels
LEAST = 64  # the smallest side of a cell; smaller images are enlarged by a whole factor


def grid(images: Tensor, columns: int = 8) -> Tensor:
    """A picture, uint8 [rows*(H+2)+2, columns*(W+2)+2, 1 or 3], of images [N, C, H, W] in [-1, 1].

    Empty cells are black.
    """
    images = images_to_see(images)
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    picture = torch.full((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), 64, dtype=torch.uint8)
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    for index in range(rows * columns):
        top, left = index // columns * (height + 2) + 2, index % columns * (width + 2) + 2
        picture[top : top + height, left : left + width] = pixels[index] if index < count else 0
    return picture


def write_png(path: Path, picture: Tensor) -> None:
    """Write a picture, uint8 [H, W, 1 or 3], as PNG, completely or not at all. Needs pillow."""
    from PIL import Image

    array = picture.numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))


def images_to_see(images: Tensor) -> Tensor:
    """Images [N, C, H, W] with the channels that a picture can show: 1, or 3.

    Of four channels and more the first three are shown, and two channels are shown as their mean.
    """
    channels = images.shape[1]
    return images.mean(1, keepdim=True) if channels == 2 else images[:, :3]


def some(samples: Samples, count: int) -> Any:
    """A batch of `count` samples that are spread evenly over `samples`, without augmentation."""
    order = samples.order(shuffled=False)
    chosen = torch.linspace(0, len(order) - 1, min(count, len(order))).long()
    return samples.batch(order[chosen], None)


def comparison(
    generators: Mapping[str, nn.Module],
    objective: Objective,
    batch: Any,
    seed: int = 0,
    domains: Sequence[str] = (),
) -> Tensor:
    """A picture, uint8 [H, W, 3], with one strip per sample of `batch`: input, each generator's image, target.

    `generators`: by the heading of their column. All of them draw the same noise, from `seed`. Several strips of fewer
    than eight cells lie side by side. `domains`: the names of StarGAN's domain numbers.
    """
    batch = moved(batch, device_of(generator=next(iter(generators.values()))))
    galleries = {}
    for name, generator in generators.items():
        with seeded(seed):
            galleries[name] = named_views(objective.look(generator, batch), domains)
    columns: list[tuple[str, str, Tensor]] = []  # of a strip: kind of image, name of its origin, images
    for kind, view in next(iter(galleries.values())).items():
        if view.source is not None and not any(images is view.source for _, _, images in columns):
            columns.append(("", "input", view.source))
        columns += [(kind, name, gallery[kind].fake) for name, gallery in galleries.items()]
        if view.paired and view.real is not None:
            columns.append(("", "target", view.real))
    side = max(max(images.shape[2:]) for _, _, images in columns)
    side *= -(-LEAST // side)
    cells = torch.stack([_cells(images, side) for _, _, images in columns], 1)  # [N, columns, side, side, 3]
    beside = max(1, 8 // len(columns))
    heads = [(kind, name if len(generators) > 1 or name in ("input", "target") else "") for kind, name, _ in columns]
    return _laid_out(cells, heads, beside)


def _cells(images: Tensor, side: int) -> Tensor:
    """Cells, uint8 [N, side, side, 3]: images [N, C, H, W] in [-1, 1], enlarged by a whole factor, on grey."""
    factor = max(1, side // max(images.shape[2:]))
    pixels = ((images_to_see(images).cpu().float().clamp(-1, 1) + 1) * 127.5).round()
    pixels = F.interpolate(pixels, scale_factor=factor, mode="nearest") if factor > 1 else pixels
    right, below = side - pixels.shape[3], side - pixels.shape[2]
    pixels = F.pad(pixels, (right // 2, right - right // 2, below // 2, below - below // 2), value=64)
    return pixels.expand(-1, 3, -1, -1).to(torch.uint8).permute(0, 2, 3, 1)


def _laid_out(cells: Tensor, heads: list[tuple[str, str]], beside: int) -> Tensor:
    from PIL import Image, ImageDraw

    count, columns, side = cells.shape[:3]
    rows, step = -(-count // beside), side + GAP
    top = GAP + HEAD * (any(kind for kind, _ in heads) + any(name for _, name in heads))
    width = beside * (columns * step + 3 * GAP)
    picture = torch.full((top + rows * step, width, 3), 32, dtype=torch.uint8)
    for index in range(count):
        y, strip = top + index // beside * step, index % beside * (columns * step + 3 * GAP)
        for column in range(columns):
            x = strip + GAP + column * step
            picture[y : y + side, x : x + side] = cells[index, column]
    image = Image.fromarray(picture.numpy())
    draw = ImageDraw.Draw(image)
    for strip in range(min(beside, count)):
        for column, (kind, name) in enumerate(heads):
            x = strip * (columns * step + 3 * GAP) + GAP + column * step
            if kind and (column == 0 or heads[column - 1][0] != kind):
                draw.text((x, 0), kind, fill=(230, 230, 230))
            draw.text((x, top - GAP - HEAD if name else 0), name, fill=(170, 170, 170))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(picture.shape)
