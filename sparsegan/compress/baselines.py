"""Every way of pruning a generator that is compared here, by name: options of the one loop in `compressor`.

The letters are the rows of the table in the paper (arXiv 2007.01491) whose recipe it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..gans.objective import Objective
from ..schedule import GradualPruning, OneShot, Schedule
from .compressor import Compressor
from .loss import GeneratorLoss, PlainLoss, SelfSupervisedLoss


@dataclass(frozen=True)
class Recipe:
    """`gradual`: prune along the run, or all at once at its start. `fine_tune`: train at all. `matched`: equations 7-9,
    or the GAN's own generator loss. `features`: L_F in place of equation 9 (see `loss`), batch norms on their stored
    statistics, contrast matched at the end. `fresh_discriminator`: untrained, or the trained one.
    `discriminator_mode`: "updated" or "frozen".
    """

    text: str
    gradual: bool = True
    fine_tune: bool = True
    matched: bool = False
    features: bool = False
    fresh_discriminator: bool = False
    discriminator_mode: str = "updated"


RECIPES = {
    "self-supervised": Recipe("b: the method; gradual, equations 7-9, pretrained D updated", matched=True),
    "self-supervised-frozen": Recipe(
        "the method with D frozen; gradual, equations 7-9", matched=True, discriminator_mode="frozen"
    ),
    "self-supervised-features": Recipe(
        "an extension of equations 7-9: gradual, D frozen, its activations matched image by image, then contrast",
        matched=True,
        features=True,
        discriminator_mode="frozen",
    ),
    "one-shot": Recipe("pruned, not fine-tuned", gradual=False, fine_tune=False),
    "one-shot-gan-loss": Recipe("d: pruned at once, then the GAN's own loss, pretrained D updated", gradual=False),
    "gan-loss": Recipe("gradual, the GAN's own loss, pretrained D updated"),
    "gan-loss-fresh": Recipe("e: gradual, the GAN's own loss, D from scratch", fresh_discriminator=True),
}


def baseline(
    name: str,
    generator: nn.Module,
    discriminator: nn.Module,
    objective: Objective,
    *,
    steps: int,
    sparsity: float = 0.9,
    fresh: Callable[[], nn.Module] | None = None,
    loss: SelfSupervisedLoss | None = None,
    every: int = 10,
    **options: Any,
) -> Compressor:
    """The compressor of a recipe of `RECIPES`.

    `steps`: fine-tuning steps. `fresh`: makes an untrained discriminator, for the recipes that start from one.
    `loss`: settings of equations 7-9, for the recipes that match. `every`: steps between two prunings.
    `options`: passed to `Compressor`, the same for every recipe under comparison.
    Raises ValueError for an unknown name, or when a fresh discriminator is needed and `fresh` is None.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is not known; it must be one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if recipe.fresh_discriminator:
        if fresh is None:
            raise ValueError(f"recipe {name!r} needs fresh=, a function that makes an untrained discriminator")
        discriminator = fresh()
    minimised: GeneratorLoss = PlainLoss()
    if recipe.matched:
        settings = loss or SelfSupervisedLoss()
        minimised = replace(settings, terms=0.0, features=1.0) if recipe.features else settings
    schedule: Schedule
    if recipe.gradual:
        schedule = GradualPruning(steps, sparsity, every=every)
    else:
        schedule = OneShot(steps if recipe.fine_tune else 0, sparsity)
    return Compressor(
        generator,
        discriminator,
        objective,
        schedule,
        loss=minimised,
        discriminator_mode=recipe.discriminator_mode,
        stored_statistics=recipe.features,
        contrast=recipe.features,
        **{"title": name, **options},
    )
