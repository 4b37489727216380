"""SRGAN (Ledig et al., arXiv 1609.04802): a residual generator that enlarges images, a discriminator of whole images.

Layer names and shapes are those of the public leftthomas/SRGAN, so its checkpoints load key for key. Images are in
[-1, 1] here and in [0, 1] there; the networks below convert them. x are images of low resolution, y the same images in
full resolution, D is the probability of being real, and phi a feature network (by default phi(y) = y, the pixels):

    D minimises Dis = -mean log D(y) - mean log(1 - D(G(x)))
    Content = mean (phi(y) - phi(G(x)))^2
    Gen     = -mean log D(G(x))
    G minimises Content + 0.001 Gen
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data.kinds import CROPS
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, check, count_up, cross_entropy, size_of
from .pix2pix import Pair
from .reference import Reference, Training

Features = Callable[[Tensor], Tensor]


class ResidualBlock(nn.Module):
    """x -> x + two 3x3 convolutions of x; [N, width, S, S] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.prelu = nn.PReLU()
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class UpsampleBlock(nn.Module):
    """[N, width, S, S] -> [N, width, 2S, 2S]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.pixel_shuffle(self.conv(x)))


class Generator(nn.Module):
    """Images [N, channels, S, S] in [-1, 1] -> images [N, channels, scale * S, scale * S] in [-1, 1].

    `scale`: a power of two, at least 2. `blocks`: residual blocks.
    """

    def __init__(self, width: int = 64, blocks: int = 5, scale: int = 4, channels: int = 3) -> None:
        super().__init__()
        check(width=width, blocks=blocks, scale=scale, channels=channels)
        if scale < 2 or scale & (scale - 1):
            raise ValueError(f"scale is {scale}; it must be a power of two, at least 2")
        self.block1 = nn.Sequential(nn.Conv2d(channels, width, 9, padding=4), nn.PReLU())
        self.body = [f"block{index}" for index in range(2, blocks + 3)]
        for name in self.body[:-1]:
            self.add_module(name, ResidualBlock(width))
        self.add_module(self.body[-1], nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)))
        self.last = f"block{blocks + 3}"
        doublings = [UpsampleBlock(width) for _ in range(scale.bit_length() - 1)]
        self.add_module(self.last, nn.Sequential(*doublings, nn.Conv2d(width, channels, 9, padding=4)))

    def forward(self, images: Tensor) -> Tensor:
        first = self.block1((images + 1) / 2)  # the public network's input is in [0, 1]
        x = first
        for name in self.body:
            x = self.get_submodule(name)(x)
        return torch.tanh(self.get_submodule(self.last)(first + x))  # the public network's output is (tanh + 1) / 2


class Discriminator(nn.Module):
    """Images [N, channels, S, S], any S -> probability of being real [N]. `width`: channels after the first layer."""

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        check(width=width, channels=channels)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for index, factor in enumerate((1, 2, 2, 4, 4, 8, 8)):
            layers.append(nn.Conv2d(before, factor * width, 3, stride=2 - index % 2, padding=1))
            before = factor * width
            layers += [nn.BatchNorm2d(before), nn.LeakyReLU(0.2)]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(before, 2 * before, 1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(2 * before, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.net((images + 1) / 2).flatten())


def generate(generator: nn.Module, batch: Pair) -> Tensor:
    """Returns G(x) for `batch` = (x, y)."""
    return generator(batch[0])


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
) -> Terms:
    """Returns {"dis": -mean log D(y) - mean log(1 - D(fake))}."""
    on_real = cross_entropy(discriminator(batch[1]), 1.0, reduce)
    return {"dis": on_real + cross_entropy(discriminator(fake), 0.0, reduce)}


def views(fake: Tensor, batch: Pair) -> dict[str, View]:
    """Returns one view: the small image, the enlarged image and the true image."""
    return {"output": View(batch[0], fake, batch[1], paired=True)}


def objective_with(features: Features = lambda images: images) -> Objective:
    """Returns the objective with the content loss measured in `features(images)`, by default the pixels."""

    def generator_terms(
        generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
    ) -> Terms:
        """Returns {"content": mean (phi(y) - phi(fake))^2, "gen": -mean log D(fake)}."""
        with torch.no_grad():
            wanted = features(batch[1])
        content = reduce((wanted - features(fake)).square())
        return {"content": content, "gen": cross_entropy(discriminator(fake), 1.0, reduce)}

    weights, own = {"gen": 1e-3}, lambda fake, batch: (batch[0], fake)
    return Objective(
        generator_terms, discriminator_terms, generate, weights, distances=("content",), views=views, own=own
    )


objective = objective_with()


def build(
    *, width: int, blocks: int = 5, scale: int = 4, channels: int = 3, discriminator_width: int | None = None
) -> tuple[Generator, Discriminator]:
    """Returns untrained networks. `discriminator_width`: the same as `width` by default."""
    return (
        Generator(width, blocks, scale, channels),
        Discriminator(width if discriminator_width is None else discriminator_width, channels),
    )


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns the arguments of `build` that fit a generator's state_dict."""
    blocks = max(count_up(state, "block{}.conv1.weight", start=2), 1)
    return [
        {
            "width": size_of(state, "block1.0.weight", 0, 64),
            "blocks": blocks,
            "scale": 2 ** max(count_up(state, f"block{blocks + 3}.{{}}.conv.weight"), 1),
            "channels": size_of(state, "block1.0.weight", 1, 3),
        }
    ]


def discriminator_sizes(state: State) -> dict[str, Any]:
    """Returns the arguments of `build` that a discriminator's state_dict decides."""
    return {"discriminator_width": size_of(state, "net.0.weight", 0, 64)}


def example(network: Mapping[str, Any], count: int, size: int) -> tuple[Tensor, ...]:
    """Returns random images of low resolution; the generator enlarges them to `size`."""
    low = size // network.get("scale", 4)
    return (torch.rand(count, network.get("channels", 3), low, low) * 2 - 1,)


reference = Reference(
    name="srgan",
    text="four times larger images",
    build=build,
    objective=lambda network: objective,
    objective_with=objective_with,
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    example=example,
    samples=CROPS,
    network={"width": 32, "blocks": 5, "scale": 4},
    training=Training(
        data="photos", size=64, batch=8, steps=6000, lr=2e-4, discriminator_lr=1e-4, betas=(0.9, 0.999), decay=True
    ),
)
