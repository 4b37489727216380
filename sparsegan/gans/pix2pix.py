"""pix2pix (Isola, Zhu, Zhou and Efros, arXiv 1611.07004): U-Net generator, PatchGAN discriminator.

Layer names and shapes are those of the public pytorch-CycleGAN-and-pix2pix, so its checkpoints load key for key.
x is the input, y the target, D(x, .) a logit per patch of the pair, and s the sigmoid. Every mean is over images and
patches:

    D minimises Dis = 1/2 (-mean log s(D(x, y)) - mean log(1 - s(D(x, G(x)))))
    Gen = -mean log s(D(x, G(x)))
    L1  = mean |y - G(x)|
    G minimises Gen + 100 L1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data.kinds import PAIRS
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, logit_cross_entropy
from .reference import Reference, Training
from .translators import UnetGenerator as UnetGenerator
from .translators import discriminator_sizes, patch_gan, resnet_sizes, translator, unet_sizes

Pair = tuple[Tensor, Tensor]


def generate(generator: nn.Module, batch: Pair) -> Tensor:
    """Returns G(x) for `batch` = (x, y)."""
    return generator(batch[0])


def generator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
) -> Terms:
    """Returns {"gen": -mean log s(D(x, fake)), "l1": mean |y - fake|}."""
    source, target = batch
    return {
        "gen": logit_cross_entropy(discriminator(source, fake), 1.0, reduce),
        "l1": reduce((target - fake).abs()),
    }


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
) -> Terms:
    """Returns {"dis": 1/2 (-mean log s(D(x, y)) - mean log(1 - s(D(x, fake))))}."""
    source, target = batch
    on_real = logit_cross_entropy(discriminator(source, target), 1.0, reduce)
    return {"dis": 0.5 * (on_real + logit_cross_entropy(discriminator(source, fake), 0.0, reduce))}


def views(fake: Tensor, batch: Pair) -> dict[str, View]:
    """Returns one view: the input, the output and the target."""
    return {"output": View(batch[0], fake, batch[1], paired=True)}


objective = Objective(
    generator_terms,
    discriminator_terms,
    generate,
    {"l1": 100.0},
    distances=("l1",),
    views=views,
    own=lambda fake, batch: (batch[0], fake),
)


def build(
    *,
    width: int,
    in_channels: int = 3,
    out_channels: int = 3,
    generator: str = "unet",
    downs: int = 8,
    blocks: int = 9,
    norm: str = "batch",
    dropout: bool = True,
    discriminator_width: int | None = None,
    discriminator_layers: int = 3,
) -> tuple[nn.Module, nn.Module]:
    """Returns untrained networks (generator, discriminator).

    `width`: the public ngf. `discriminator_width`: the public ndf, `width` by default. `discriminator_layers`: 0 gives
    the public "pixel" discriminator.
    """
    ndf = width if discriminator_width is None else discriminator_width
    return (
        translator(generator, in_channels, out_channels, width, downs, blocks, norm, dropout),
        patch_gan(in_channels + out_channels, ndf, discriminator_layers, norm),
    )


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns arguments of `build` that may fit a generator's state_dict: a U-Net's, then a ResNet's."""
    return [unet_sizes(state), resnet_sizes(state)]


reference = Reference(
    name="pix2pix",
    text="an image from an image, learnt from pairs",
    build=build,
    objective=lambda network: objective,
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    example=lambda network, count, size: (torch.rand(count, network.get("in_channels", 3), size, size) * 2 - 1,),
    samples=PAIRS,
    network={"width": 32, "downs": 6, "in_channels": 3, "out_channels": 3},
    training=Training(data="openmoji", size=64, batch=8, steps=6000, lr=2e-4, discriminator_lr=2e-4, decay=True),
)
