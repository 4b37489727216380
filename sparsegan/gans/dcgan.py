"""DCGAN (Radford, Metz and Chintala, arXiv 1511.06434) for 64x64 images, as PyTorch's public example builds it.

Layer names and shapes are those of the example, so the example's checkpoints load key for key. D(x) is the
discriminator's probability that x is real, and z ~ N(0, 1):

    D minimises Dis = -mean log D(x) - mean log(1 - D(G(z)))
    G minimises Gen = -mean log D(G(z))                             (the non-saturating form)
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.kinds import IMAGES
from ..placement import device_of
from ..randomness import Draw, afresh
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, check, cross_entropy, initialise, size_of
from .reference import Reference, Training


class Generator(nn.Module):
    """Noise [N, nz, 1, 1] -> images [N, nc, 64, 64] in [-1, 1]. `ngf`: channels before the last layer."""

    def __init__(self, nz: int = 100, ngf: int = 64, nc: int = 3) -> None:
        super().__init__()
        check(nz=nz, ngf=ngf, nc=nc)
        self.nz = nz
        widths = (8 * ngf, 4 * ngf, 2 * ngf, ngf)
        layers: list[nn.Module] = []
        before, stride, padding = nz, 1, 0  # the first layer opens 1x1 to 4x4; each later one doubles
        for width in widths:
            layers.append(nn.ConvTranspose2d(before, width, 4, stride, padding, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
            before, stride, padding = width, 2, 1
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(before, nc, 4, 2, 1, bias=False), nn.Tanh())
        self.apply(initialise)

    def forward(self, noise: Tensor) -> Tensor:  # [N, nz, 1, 1] -> [N, nc, 64, 64]
        return self.main(noise)


class Discriminator(nn.Module):
    """Images [N, nc, 64, 64] -> probability of being real [N]. `ndf`: channels after the first layer."""

    def __init__(self, nc: int = 3, ndf: int = 64) -> None:
        super().__init__()
        check(nc=nc, ndf=ndf)
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for width in (ndf, 2 * ndf, 4 * ndf):
            layers.append(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, inplace=True)]
        self.main = nn.Sequential(*layers, nn.Conv2d(8 * ndf, 1, 4, 1, 0, bias=False), nn.Sigmoid())
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:  # [N, nc, 64, 64] -> [N]
        return self.main(images).flatten()


def noise(generator: Generator, count: int, seed: int | None = None) -> Tensor:
    """Returns noise float32 [count, nz, 1, 1] on the generator's device.

    The noise is drawn on the CPU, so that a `seed` gives the same noise on every device. Without a `seed` it is drawn
    from torch's default generator.
    """
    source = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(count, generator.nz, 1, 1, generator=source).to(device_of(generator=generator))


def generate(generator: nn.Module, images: Tensor, draws: Draw = afresh) -> Tensor:
    """Returns one fake per real image: the generator's output for noise [N, nz, 1, 1]."""
    first, shape = next(generator.parameters()), (len(images), cast(Generator, generator).nz, 1, 1)
    return generator(draws("noise", lambda: torch.randn(shape, dtype=first.dtype, device=first.device)))


def generator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, images: Tensor, reduce: Reduce = mean
) -> Terms:
    """Returns {"gen": -mean log D(fake)}."""
    return {"gen": cross_entropy(discriminator(fake), 1.0, reduce)}


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, images: Tensor, reduce: Reduce = mean
) -> Terms:
    """Returns {"dis": -mean log D(images) - mean log(1 - D(fake))}."""
    on_real = cross_entropy(discriminator(images), 1.0, reduce)
    return {"dis": on_real + cross_entropy(discriminator(fake), 0.0, reduce)}


def views(fake: Tensor, images: Tensor) -> dict[str, View]:
    """Returns one view: the samples and real images."""
    return {"samples": View(None, fake, images)}


objective = Objective(generator_terms, discriminator_terms, generate, views=views, own=lambda fake, batch: fake)


def build(
    *, nz: int, width: int, channels: int, discriminator_width: int | None = None
) -> tuple[Generator, Discriminator]:
    """Returns untrained networks. `width`: ngf. `discriminator_width`: ndf, the same as `width` by default."""
    ndf = width if discriminator_width is None else discriminator_width
    return Generator(nz, width, channels), Discriminator(channels, ndf)


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns the arguments of `build` that fit a generator's state_dict."""
    return [
        {
            "nz": size_of(state, "main.0.weight", 0, 100),
            "width": size_of(state, "main.12.weight", 0, 64),
            "channels": size_of(state, "main.12.weight", 1, 3),
        }
    ]


def discriminator_sizes(state: State) -> dict[str, Any]:
    """Returns the arguments of `build` that a discriminator's state_dict decides."""
    return {"discriminator_width": size_of(state, "main.0.weight", 0, 64)}


reference = Reference(
    name="dcgan",
    text="images from noise, 64x64",
    build=build,
    objective=lambda network: objective,
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    example=lambda network, count, size: (torch.randn(count, network["nz"], 1, 1),),
    from_noise=True,
    samples=IMAGES,
    size=64,
    network={"nz": 100, "width": 32, "channels": 1},
    training=Training(data="mnist", size=64, batch=32, steps=2496, lr=1e-3, discriminator_lr=2e-4),
)
