"""Every way of compressing a generator that is compared here, by name: options of the one loop in `compressor`.

The letters are the rows of the table in the paper (arXiv 2007.01491) whose recipe it is; c2 and what has no letter
answer its reviewers. Where the paper leaves a row open, or a technique was made for something other than pruning, the
reading is this one:

- g, h, i, m, n compare images by their mean absolute difference, k, as its authors do, by the mean squared one.
- j: the discriminator takes the original's images for real beside the real ones, and so learns to tell the original's
  from the student's (Wang, Xu, Xu and Tao, "Adversarial Learning of Portable Student Networks", AAAI 2018). The student
  is an untrained network of the original's shape, pruned gradually.
- l: the discriminator is never asked, as in its authors' method; see `loss` for what differs from that.
- m: QGAN (Wang et al., arXiv 1901.08263) alternates expectation and maximization to quantize; here `Rounds` alternates
  between the choice of what is dropped, in both networks, and training what is kept.
- n: both networks along the same gradual schedule (after Liu et al., arXiv 1802.09153, who keep the two in balance).
- f: an untrained network of the original's shape; c and c2: one that is narrower throughout, with as many parameters as
  the pruned one keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..copying import copy_model
from ..gans.objective import Objective
from ..pruning.allocation import Targets
from ..pruning.schedule import GradualPruning, OneShot, Rounds, Schedule
from ..pruning.surgery import sparsify
from ..randomness import seeded, undisturbed
from .compressor import Compressor
from .losses import DistillationLoss, GeneratorLoss, PlainLoss, SelfSupervisedLoss

#: The weight of the distance between images beside the GAN's own loss: CycleGAN's for its cycle.
DISTILLATION = 10.0


@dataclass(frozen=True)
class Recipe:
    """One row. `row`: its letter.

    `start`: the generator is a copy of the "dense" one, or an untrained ("fresh") one of its shape, or an untrained
    "small" dense one. `pruning`: "gradual" along the run, "one-shot" at its start, in "rounds", or "none". `fine_tune`:
    train at all.
    What is minimised: `matched`, equations 7-9, with `stop_gradient` and `discriminator_gradient` as `loss` has them;
    `features`, L_F and the GAN's distances in their place, batch norms on their stored statistics, contrast matched at
    the end; `own`, the
    GAN's own generator loss; `outputs`, the images' distance to the original's, "l1" or "mse"; `intermediate`, that of
    the generators' activations.
    `fresh_discriminator`: untrained, or the trained one. `discriminator_mode`, `prune_discriminator`,
    `original_as_real`: as in `Compressor`.
    """

    text: str
    row: str = ""
    start: str = "dense"
    pruning: str = "gradual"
    fine_tune: bool = True
    matched: bool = False
    stop_gradient: bool = True
    discriminator_gradient: bool = True
    features: bool = False
    own: bool = False
    outputs: str = ""
    intermediate: bool = False
    fresh_discriminator: bool = False
    discriminator_mode: str = "updated"
    prune_discriminator: bool = False
    original_as_real: bool = False


RECIPES = {
    "self-supervised": Recipe("b: the method; gradual, equations 7-9, pretrained D updated", "b", matched=True),
    "self-supervised-frozen": Recipe(
        "the method with D frozen; gradual, equations 7-9", matched=True, discriminator_mode="frozen"
    ),
    "self-supervised-fresh": Recipe(
        "the method with D from scratch; gradual, equations 7-9", matched=True, fresh_discriminator=True
    ),
    "self-supervised-attached": Recipe(
        "the method without a stop-gradient on the original's terms", matched=True, stop_gradient=False
    ),
    "self-supervised-no-discriminator-gradient": Recipe(
        "the method with L_DC detached from the generator", matched=True, discriminator_gradient=False
    ),
    "self-supervised-features": Recipe(
        "an extension of equations 7-9: gradual, D frozen, its activations matched image by image in the place of its "
        "terms, then contrast",
        matched=True,
        features=True,
        discriminator_mode="frozen",
    ),
    "small-dense": Recipe(
        "c: a small dense network of as many parameters, trained from scratch, D from scratch",
        "c",
        start="small",
        pruning="none",
        own=True,
        fresh_discriminator=True,
    ),
    "small-dense-pretrained": Recipe(
        "c2: a small dense network of as many parameters, trained from scratch with the pretrained D, updated",
        "c2",
        start="small",
        pruning="none",
        own=True,
    ),
    "one-shot": Recipe("pruned, not fine-tuned", pruning="one-shot", fine_tune=False, own=True),
    "one-shot-gan-loss": Recipe(
        "d: pruned at once, then the GAN's own loss, pretrained D updated", "d", pruning="one-shot", own=True
    ),
    "gan-loss": Recipe("gradual, the GAN's own loss, pretrained D updated", own=True),
    "gan-loss-fresh": Recipe("e: gradual, the GAN's own loss, D from scratch", "e", own=True, fresh_discriminator=True),
    "gan-loss-scratch": Recipe(
        "f: gradual while training from scratch, the GAN's own loss, D from scratch",
        "f",
        start="fresh",
        own=True,
        fresh_discriminator=True,
    ),
    "one-shot-distillation": Recipe(
        "g: pruned at once, then the images' distance to the original's, no D",
        "g",
        pruning="one-shot",
        outputs="l1",
        discriminator_mode="none",
    ),
    "gan-loss-distillation": Recipe(
        "h: gradual, the GAN's own loss and the images' distance, pretrained D updated", "h", own=True, outputs="l1"
    ),
    "one-shot-distillation-frozen": Recipe(
        "i: pruned at once, then the images' distance and the GAN's own loss, pretrained D frozen",
        "i",
        pruning="one-shot",
        own=True,
        outputs="l1",
        discriminator_mode="frozen",
    ),
    "adversarial-distillation": Recipe(
        "j: a new student from scratch, gradual; D from scratch tells it from the original",
        "j",
        start="fresh",
        own=True,
        outputs="l1",
        fresh_discriminator=True,
        original_as_real=True,
    ),
    "knowledge-distillation": Recipe(
        "k: gradual, the GAN's own loss and the images' squared distance, D from scratch",
        "k",
        own=True,
        outputs="mse",
        fresh_discriminator=True,
    ),
    "intermediate-distillation": Recipe(
        "l: gradual, the generators' activations matched, D pretrained, frozen and not asked",
        "l",
        intermediate=True,
        discriminator_mode="frozen",
    ),
    "em-pruning": Recipe(
        "m: both networks pruned in rounds, the GAN's own loss and the images' distance, pretrained D updated",
        "m",
        pruning="rounds",
        own=True,
        outputs="l1",
        prune_discriminator=True,
    ),
    "prune-both": Recipe(
        "n: both networks pruned gradually, the GAN's own loss and the images' distance, pretrained D updated",
        "n",
        own=True,
        outputs="l1",
        prune_discriminator=True,
    ),
}

#: A row's letter to the recipe's name.
ROWS = {recipe.row: name for name, recipe in RECIPES.items() if recipe.row}


def baseline(
    name: str,
    generator: nn.Module,
    discriminator: nn.Module,
    objective: Objective,
    *,
    steps: int,
    sparsity: float = 0.9,
    fresh: Callable[[], nn.Module] | None = None,
    fresh_generator: Callable[[], nn.Module] | None = None,
    small: Callable[[int], nn.Module] | None = None,
    loss: SelfSupervisedLoss | None = None,
    every: int = 10,
    rounds: bool = False,
    **options: Any,
) -> Compressor:
    """The compressor of a recipe of `RECIPES`.

    `steps`: fine-tuning steps. `fresh`, `fresh_generator`: make an untrained discriminator and generator, for the
    recipes that start from one. `small`: makes an untrained dense generator with about as many parameters as its
    argument says (see `of_size`), for the recipes that compare with one. `loss`: settings of equations 7-9, for the
    recipes that match. `every`: steps between two prunings, where they are gradual. `rounds`: prune in `Rounds`
    instead.
    `options`: passed to `Compressor`, the same for every recipe under comparison.
    Raises ValueError for an unknown name, and when what a recipe starts from is None.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is not known; it must be one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    needed = {"fresh": recipe.fresh_discriminator, "fresh_generator": recipe.start == "fresh"}
    makers = {"fresh": fresh, "fresh_generator": fresh_generator, "small": small}
    what = {"fresh": "discriminator", "fresh_generator": "generator", "small": "dense generator of a given size"}
    for argument, asked in {**needed, "small": recipe.start == "small"}.items():
        if asked and makers[argument] is None:
            raise ValueError(f"recipe {name!r} needs {argument}=, a function that makes an untrained {what[argument]}")
    student = None
    with seeded(options.get("seed", 0)):
        if recipe.fresh_discriminator and fresh is not None:
            discriminator = fresh()
        if recipe.start == "fresh" and fresh_generator is not None:
            student = fresh_generator()
        if recipe.start == "small" and small is not None:
            split = {key: options[key] for key in ("granularity", "exclude", "allocation") if key in options}
            student = small(kept_parameters(generator, sparsity, **split))
    if recipe.pruning == "none":
        options |= {"exclude": ("*",), "granularity": "element", "allocation": "uniform"}
    return Compressor(
        generator,
        discriminator,
        objective,
        _schedule(replace(recipe, pruning="rounds") if rounds else recipe, steps, sparsity, every),
        loss=_loss(recipe, loss or SelfSupervisedLoss()),
        student=student,
        discriminator_mode=recipe.discriminator_mode,
        prune_discriminator=recipe.prune_discriminator,
        original_as_real=recipe.original_as_real,
        **{"title": name, "stored_statistics": recipe.features, "contrast": recipe.features, **options},
    )


def _schedule(recipe: Recipe, steps: int, sparsity: float, every: int) -> Schedule:
    if recipe.pruning == "gradual":
        return GradualPruning(steps, sparsity, every=every)
    if recipe.pruning == "rounds":
        return Rounds(steps, sparsity)
    return OneShot(steps if recipe.fine_tune else 0, 0.0 if recipe.pruning == "none" else sparsity)


def _loss(recipe: Recipe, settings: SelfSupervisedLoss) -> GeneratorLoss:
    if recipe.features:
        return replace(settings, terms=0.0, features=1.0)
    if recipe.matched:
        switched = ("stop_gradient", "discriminator_gradient")
        return replace(settings, **{name: getattr(recipe, name) and getattr(settings, name) for name in switched})
    if recipe.outputs or recipe.intermediate:
        return DistillationLoss(
            own=float(recipe.own),
            outputs=DISTILLATION if recipe.outputs else 0.0,
            distance=recipe.outputs or "l1",
            intermediate=float(recipe.intermediate),
        )
    return PlainLoss()


def kept_parameters(generator: nn.Module, sparsity: float, **how: Any) -> int:
    """Parameters of a generator pruned to `sparsity`; `how` has granularity, exclude and allocation of `Compressor`."""
    targets = Targets.of(generator, sparsity, **how)
    split = {key: how[key] for key in ("granularity", "exclude") if key in how}
    pruned = sparsify(copy_model(generator), targets.layers, **split)
    return sum(parameter.numel() for parameter in pruned.parameters())


def of_size(make: Callable[[int], nn.Module], parameters: int, widest: int) -> nn.Module:
    """`make(width)` for the width from 1 to `widest` at which the network's parameters come nearest to `parameters`.

    `make` gives a network that has the more parameters the wider it is, for example
    `lambda width: dcgan.Generator(ngf=width)`. Raises ValueError for numbers below 1.
    """
    if parameters < 1 or widest < 1:
        raise ValueError(f"parameters is {parameters} and widest is {widest}; both must be at least 1")

    def size(width: int) -> int:
        with undisturbed():
            return sum(parameter.numel() for parameter in make(width).parameters())

    low, high = 1, widest
    while low < high:  # the narrowest with at least as many
        middle = (low + high) // 2
        low, high = (low, middle) if size(middle) >= parameters else (middle + 1, high)
    return make(min((max(1, low - 1), low), key=lambda width: abs(size(width) - parameters)))
