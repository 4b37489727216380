"""CycleGAN (Zhu, Park, Isola and Efros, arXiv 1703.10593): two ResNet generators, two PatchGAN discriminators.

Layer names and shapes are those of the public pytorch-CycleGAN-and-pix2pix, so its checkpoints load key for key.
G: A -> B and F: B -> A are the generators. D_B and D_A give a score per patch of an image of B and of A. The images a
and b are unpaired. The terms are:

    Dis   = 1/2 (mean (D_B(b) - 1)^2 + mean D_B(G(a))^2) + 1/2 (mean (D_A(a) - 1)^2 + mean D_A(F(b))^2)
    Gen   = mean (D_B(G(a)) - 1)^2 + mean (D_A(F(b)) - 1)^2
    Cycle = mean |F(G(a)) - a| + mean |G(F(b)) - b|
    Idt   = mean |G(b) - b| + mean |F(a) - a|                 where A and B have the same number of channels
    G and F minimise Gen + 10 Cycle + 5 Idt

The step of the discriminators uses G(a) and F(b) drawn from the last 50 of each (`Objective.pool`).

A GAN of one direction, as the public pretrained models are, has Gen, Idt and Dis of that direction, and no Cycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.kinds import UNPAIRED
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, least_squares
from .pix2pix import Pair
from .reference import Reference, Training, Way
from .translators import ResnetGenerator as ResnetGenerator
from .translators import discriminator_sizes, patch_gan, resnet_sizes, translator, unet_sizes


class Generators(nn.Module):
    """The generators of both directions: `a_to_b` (the public netG_A) and `b_to_a` (netG_B)."""

    def __init__(self, a_to_b: nn.Module, b_to_a: nn.Module) -> None:
        super().__init__()
        self.a_to_b, self.b_to_a = a_to_b, b_to_a

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """{"a_to_b": G(a), "b_to_a": F(b)}."""
        return {"a_to_b": self.a_to_b(a), "b_to_a": self.b_to_a(b)}


class Discriminators(nn.Module):
    """Both discriminators. `b` judges images of B (the public netD_A, trained with netG_A), `a` those of A (netD_B)."""

    def __init__(self, b: nn.Module, a: nn.Module) -> None:
        super().__init__()
        self.b, self.a = b, a

    def forward(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """(D_B(b), D_A(a))."""
        return self.b(b), self.a(a)


Fakes = dict[str, Tensor]


def generate(generator: nn.Module, batch: Pair) -> Fakes:
    """Returns {"a_to_b": G(a), "b_to_a": F(b)} for `batch` = (a, b)."""
    return generator(*batch)


def generator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Fakes, batch: Pair, reduce: Reduce = mean
) -> Terms:
    """Returns "gen", "cycle" and, if A and B have equally many channels, "idt"; each is summed over both directions."""
    both = cast(Generators, generator)
    a, b = batch
    on_b, on_a = discriminator(fake["a_to_b"], fake["b_to_a"])
    back_a, back_b = both.b_to_a(fake["a_to_b"]), both.a_to_b(fake["b_to_a"])
    terms = {
        "gen": least_squares(on_b, 1.0, reduce) + least_squares(on_a, 1.0, reduce),
        "cycle": _distance(back_a, a, reduce) + _distance(back_b, b, reduce),
    }
    if a.shape[1] == b.shape[1]:
        terms["idt"] = _distance(both.a_to_b(b), b, reduce) + _distance(both.b_to_a(a), a, reduce)
    return terms


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Fakes, batch: Pair, reduce: Reduce = mean
) -> Terms:
    """Returns "dis", summed over both discriminators."""
    a, b = batch
    real = discriminator(b, a)
    made = discriminator(fake["a_to_b"], fake["b_to_a"])
    return {"dis": 0.5 * (_judged(real[0], made[0], reduce) + _judged(real[1], made[1], reduce))}


def views(fake: Fakes, batch: Pair) -> dict[str, View]:
    """Returns a view per direction: input, translation and real images of the other domain."""
    a, b = batch
    return {"a_to_b": View(a, fake["a_to_b"], b), "b_to_a": View(b, fake["b_to_a"], a)}


WEIGHTS = {"cycle": 10.0, "idt": 5.0}
objective = Objective(
    generator_terms,
    discriminator_terms,
    generate,
    WEIGHTS,
    distances=("cycle", "idt"),
    pool=50,
    views=views,
    own=lambda fake, batch: (fake["b_to_a"], fake["a_to_b"]),
)


# One direction alone


def _one_way_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
) -> Terms:
    a, b = batch
    terms = {"gen": least_squares(discriminator(fake), 1.0, reduce)}
    if a.shape[1] == b.shape[1]:
        terms["idt"] = _distance(generator(b), b, reduce)
    return terms


def _one_way_discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
) -> Terms:
    return {"dis": 0.5 * _judged(discriminator(batch[1]), discriminator(fake), reduce)}


one_way = Objective(
    _one_way_terms,
    _one_way_discriminator_terms,
    lambda generator, batch: generator(batch[0]),
    WEIGHTS,
    distances=("idt",),
    pool=50,
    views=lambda fake, batch: {"a_to_b": View(batch[0], fake, batch[1])},
    own=lambda fake, batch: (batch[0], fake),
)


def _distance(image: Tensor, wanted: Tensor, reduce: Reduce) -> Tensor:
    return reduce((image - wanted).abs())


def _judged(on_real: Tensor, on_fake: Tensor, reduce: Reduce) -> Tensor:
    return least_squares(on_real, 1.0, reduce) + least_squares(on_fake, 0.0, reduce)


def build(
    *,
    width: int,
    in_channels: int = 3,
    out_channels: int = 3,
    generator: str = "resnet",
    downs: int = 8,
    blocks: int = 9,
    norm: str = "instance",
    dropout: bool = False,
    one_way: bool = False,
    discriminator_width: int | None = None,
    discriminator_layers: int = 3,
) -> tuple[nn.Module, nn.Module]:
    """Returns untrained networks (generator, discriminator): of both directions, or of A to B alone if `one_way`.

    `width`: the public ngf. `discriminator_width`: the public ndf, `width` by default. `discriminator_layers`: 0 gives
    the public "pixel" discriminator.
    """
    ndf = width if discriminator_width is None else discriminator_width

    def direction(source: int, target: int) -> tuple[nn.Module, nn.Module]:
        return (
            translator(generator, source, target, width, downs, blocks, norm, dropout),
            patch_gan(target, ndf, discriminator_layers, norm),
        )

    g, judge_b = direction(in_channels, out_channels)
    if one_way:
        return g, judge_b
    f, judge_a = direction(out_channels, in_channels)
    return Generators(g, f), Discriminators(judge_b, judge_a)


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns arguments of `build` that may fit a generator's state_dict: a ResNet's, then a U-Net's.

    In the state_dict of both directions, each name begins with "a_to_b." or "b_to_a.".
    """
    first = "a_to_b."
    a_to_b = {key.removeprefix(first): value for key, value in state.items() if key.startswith(first)}
    return [sizes(a_to_b or state) | {"one_way": not a_to_b} for sizes in (resnet_sizes, unet_sizes)]


def example(network: Mapping[str, Any], count: int, size: int) -> tuple[Tensor, ...]:
    """Returns random images of A and, for both directions, of B."""
    a, b = (torch.rand(count, network.get(side, 3), size, size) * 2 - 1 for side in ("in_channels", "out_channels"))
    return (a,) if network.get("one_way") else (a, b)


def ways(generator: Any, config: Mapping[str, Any]) -> dict[str, Way]:
    """Returns a way per direction, by its name."""
    if config["network"].get("one_way"):
        return {"": Way(generator)}
    return {"a_to_b": Way(generator.a_to_b), "b_to_a": Way(generator.b_to_a)}


reference = Reference(
    name="cyclegan",
    text="images of one domain from another's, without pairs",
    build=build,
    objective=lambda network: one_way if network.get("one_way") else objective,
    generator_sizes=generator_sizes,
    discriminator_sizes=lambda state: discriminator_sizes(
        state, "b." if any(key.startswith("b.") for key in state) else ""
    ),
    files=(("a_to_b", "b_to_a"), ("b", "a")),
    example=example,
    ways=ways,
    choice="direction",
    samples=UNPAIRED,
    network={"width": 32, "blocks": 6, "in_channels": 3, "out_channels": 3},
    training=Training(data="emoji", size=64, batch=1, steps=8000, lr=2e-4, discriminator_lr=2e-4, decay=True),
)
