"""The recipes: all ways of compressing a generator that are compared here, as configurations of `Compressor`.

A recipe's letter is its row in the table of the paper (arXiv 2007.01491). Recipe c2 and the recipes without a letter
answer the paper's reviewers. The paper leaves some rows open, and some techniques were not made for pruning. The
choices here:

- g, h, i, m, n: the distance of two images is their mean absolute difference. k: the mean squared difference, as in
  its authors' method.
- j: the discriminator learns to take both the real images and the original's images for real. It thereby learns to
  tell the original's images from the student's (Wang, Xu, Xu and Tao, "Adversarial Learning of Portable Student
  Networks", AAAI 2018). The student is an untrained network of the original's shape, pruned gradually.
- l: the discriminator is never called, as in its authors' method. The text of `losses` states the remaining difference.
- m: QGAN (Wang et al., arXiv 1901.08263) alternates expectation and maximization to quantize. Here `Rounds` alternates
  between choosing the weights to drop, in both networks, and training the kept weights.
- n: both networks follow the same gradual schedule (after Liu et al., arXiv 1802.09153, who keep the two in balance).
- f: the generator is an untrained network of the original's shape. c and c2: the generator is a dense network that is
  narrower throughout and has as many parameters as the pruned network keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..copying import copy_model
from ..gans.objective import Objective
from ..pruning.allocation import Targets
from ..pruning.schedule import GradualPruning, OneShot, Rounds, Schedule
from ..pruning.surgery import sparsify
from ..randomness import seeded, undisturbed
from ..renamed import warn_at_caller
from .compressor import Compressor
from .config import (
    CompressionConfig,
    DiscriminatorMode,
    OriginalImages,
    RunConfig,
    from_old_keywords,
    present_settings,
    with_original_as_real,
)
from .losses import DistillationLoss, GeneratorLoss, PlainLoss, SelfSupervisedLoss
from .validation import Validation

#: The weight of the distance between images, beside the GAN's own loss. CycleGAN gives its cycle loss the same weight.
DISTILLATION = 10.0


@with_original_as_real
@dataclass(frozen=True)
class Recipe:
    """One way of compressing a generator. `text` describes it; `row` is its letter, "" where it has none.

    `start`: "dense" starts from a copy of the trained generator, "fresh" from an untrained generator of the same shape,
    "small" from an untrained smaller dense generator.
    `pruning`: "gradual" over the run, "one-shot" at its start, "rounds" as in `Rounds`, or "none".
    `fine_tune`: False trains nothing.

    The loss:
    `matched`: equations 7-9. `stop_gradient` and `discriminator_gradient` are as in `SelfSupervisedLoss`.
    `features`: L_F. With `matched`, L_F and the GAN's distances take the place of equations 7-9.
    `own`: the GAN's own generator loss.
    `outputs`: the distance of the images to the original's images, "l1", "mse" or "scales"; "" for none.
    `sharpness`: the weight of the difference of the edges' strengths, beside the weight 1 of the images' distance.
    `intermediate`: the distance of the generators' activations, "mse" or "relative"; "" for none.
    `ramp`: the fraction of the run after which gradual pruning reaches its target. `initial`: the sparsity at its first
    step.

    `settings`: defaults of further fields of `CompressionConfig`.

    `fresh_discriminator`: start from an untrained discriminator, and not from the trained one.
    `discriminator_mode`, `prune_discriminator`, `original_images`: as in `CompressionConfig`. A setting may take the
    place of `original_images` where it is "unused".
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
    sharpness: float = 0.0
    intermediate: str = ""
    ramp: float = 0.5
    initial: float = 0.05
    settings: Mapping[str, Any] = field(default_factory=dict)
    fresh_discriminator: bool = False
    discriminator_mode: DiscriminatorMode = "updated"
    prune_discriminator: bool = False
    original_images: OriginalImages = "unused"

    def config(
        self, loss: GeneratorLoss | None = None, loss_fields: Mapping[str, Any] | None = None, **settings: Any
    ) -> CompressionConfig:
        """The recipe's configuration.

        `loss`: a `SelfSupervisedLoss` with the settings of equations 7-9, for a recipe with `matched`. Other recipes
        accept only the loss that they define. `loss_fields`: fields of the recipe's loss, by name, that take the place
        of the recipe's own. `settings`: more fields of `CompressionConfig`. A recipe that prunes nothing replaces the
        settings granularity, exclude and allocation by its own. Raises ValueError for a setting that contradicts the
        recipe, and where `CompressionConfig` does.
        """
        settings = present_settings(settings)
        matched = loss if isinstance(loss, SelfSupervisedLoss) else SelfSupervisedLoss()
        decided: dict[str, Any] = {name: getattr(self, name) for name in _DISCRIMINATOR}
        if self.original_images == "unused":
            del decided["original_images"]
        decided["loss"] = replace(self._loss(matched), **(loss_fields or {}))
        given = settings if loss is None or loss is matched else {**settings, "loss": loss}
        for name, value in decided.items():
            if given.get(name, value) != value:
                raise ValueError(f"{name} is {given[name]!r}; the recipe has {value!r} ({self.text})")
        dense = {"exclude": ("*",), "granularity": "element", "allocation": "uniform"} if self.pruning == "none" else {}
        return CompressionConfig(**(dict(self.settings) | settings | dense | decided))

    def generator_every(self, usual: int) -> int:
        """Discriminator steps per generator step: `usual`, or 1 where the recipe updates no discriminator."""
        return usual if self.discriminator_mode == "updated" else 1

    def schedule(self, steps: int, sparsity: float, every: int) -> Schedule:
        """The recipe's schedule. `every`: steps between two prunings of a gradual schedule."""
        if self.pruning == "gradual":
            return GradualPruning(steps, sparsity, self.initial, self.ramp, every)
        if self.pruning == "rounds":
            return Rounds(steps, sparsity)
        return OneShot(steps if self.fine_tune else 0, 0.0 if self.pruning == "none" else sparsity)

    def _loss(self, matched: SelfSupervisedLoss) -> SelfSupervisedLoss | DistillationLoss | PlainLoss:
        if self.matched and self.features:
            return replace(matched, terms=0.0, features=1.0)
        if self.matched:
            switched = ("stop_gradient", "discriminator_gradient")
            return replace(matched, **{name: getattr(self, name) and getattr(matched, name) for name in switched})
        if self.outputs or self.intermediate:
            return DistillationLoss(
                own=float(self.own),
                outputs=(1.0 if self.intermediate else DISTILLATION) if self.outputs else 0.0,
                distance=self.outputs or "l1",
                sharpness=self.sharpness,
                intermediate=float(bool(self.intermediate)),
                activations=self.intermediate or "mse",
                features=float(self.features),
            )
        return PlainLoss()


_DISCRIMINATOR = ("discriminator_mode", "prune_discriminator", "original_images")

_DISTILLATION = {
    "stored_statistics": True,
    "generator_lr": 4e-3,
    "betas": (0.9, 0.99),
    "cosine": True,
    "lr_warm_up": 0.05,
    "saliency": "fisher",
    "allocation": "saliency",
}

_DISTILLED = Recipe(
    "gradual, the original's images at several scales, their edges, and its activations matched, no D",
    outputs="scales",
    sharpness=6.0,
    intermediate="relative",
    ramp=0.7,
    discriminator_mode="none",
    settings=_DISTILLATION,
)

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
    "feature-distillation": Recipe(
        "gradual, D frozen, its activations matched image by image in the place of its terms, then contrast",
        matched=True,
        features=True,
        discriminator_mode="frozen",
        ramp=0.7,
        settings={**_DISTILLATION, "contrast": True},
    ),
    "distillation": _DISTILLED,
    "distillation-and-features": replace(
        _DISTILLED,
        text="distillation, and D's activations matched too, D frozen",
        features=True,
        discriminator_mode="frozen",
    ),
    "distillation-and-gan-loss": replace(
        _DISTILLED,
        text="distillation, and the GAN's own loss, pretrained D updated",
        own=True,
        discriminator_mode="updated",
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
    "reconstruction": Recipe(
        "pruned at once and fitted layer by layer to the original's activations by least squares, no training, no D",
        pruning="one-shot",
        fine_tune=False,
        outputs="l1",
        discriminator_mode="none",
        settings={"reconstruct": 24},
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
        original_images="real",
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
        intermediate="mse",
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

#: The recipe of `sparsegan compress` where none is named.
DEFAULT = "distillation"

#: From the former name of a recipe to its name. The former names go in 0.2.
OLD_NAMES = {"self-supervised-features": "feature-distillation"}

#: From the letter of a row to the name of its recipe.
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
    loss: GeneratorLoss | None = None,
    loss_fields: Mapping[str, Any] | None = None,
    every: int = 10,
    ramp: float | None = None,
    initial: float | None = None,
    rounds: bool = False,
    run: RunConfig | None = None,
    validate: Validation | None = None,
    **settings: Any,
) -> Compressor:
    """A `Compressor` for the recipe `name` of `RECIPES`.

    `steps`: fine-tuning steps.
    `fresh`, `fresh_generator`: functions that make an untrained discriminator and an untrained generator, for the
    recipes that start from them. `small`: a function that makes an untrained dense generator; its argument is the
    wanted number of parameters, to be met approximately (see `of_size`). The recipes that start from "small" need it.
    `every`: steps between two prunings of a gradual schedule. `ramp`: the fraction of the run after which it reaches
    its target; None for the recipe's. `initial`: the sparsity at the first step of a gradual schedule, by default 0.05;
    a high one needs `reconstruct` in the settings to be of use. `rounds`: prune in `Rounds` instead.
    `loss`, `loss_fields`, `settings`: as in `Recipe.config`. All recipes of a comparison should get the same settings.
    `run`, `validate`: as in `Compressor`; the default of the run's title is the recipe's name.
    Raises ValueError for an unknown name, for `initial` where the schedule is not gradual, and where a function that
    the recipe needs is None.
    """
    name = recipe_name(name)
    recipe = RECIPES[name]
    needed = {"fresh": recipe.fresh_discriminator, "fresh_generator": recipe.start == "fresh"}
    makers = {"fresh": fresh, "fresh_generator": fresh_generator, "small": small}
    what = {"fresh": "discriminator", "fresh_generator": "generator", "small": "dense generator of a given size"}
    for argument, asked in {**needed, "small": recipe.start == "small"}.items():
        if asked and makers[argument] is None:
            raise ValueError(f"recipe {name!r} needs {argument}=, a function that makes an untrained {what[argument]}")
    settings = present_settings(settings)
    of_run = {key: settings.pop(key) for key in [*settings] if key not in CompressionConfig.__dataclass_fields__}
    _, run = from_old_keywords("baseline", of_run, None, run)
    config = recipe.config(loss, loss_fields, **settings)
    student = None
    with seeded(config.seed):
        if recipe.fresh_discriminator and fresh is not None:
            discriminator = fresh()
        if recipe.start == "fresh" and fresh_generator is not None:
            student = fresh_generator()
        if recipe.start == "small" and small is not None:
            split = {key: settings[key] for key in ("granularity", "exclude", "allocation") if key in settings}
            if "*" in split.get("exclude", ()):
                raise ValueError(
                    f"exclude has '*', which leaves nothing to prune; recipe {name!r} needs the pruned generator's size"
                )
            student = small(kept_parameters(generator, sparsity, **split))
    pruned = replace(recipe, pruning="rounds") if rounds else recipe
    pruned = pruned if ramp is None else replace(pruned, ramp=ramp)
    if initial is not None:
        if pruned.pruning != "gradual":
            raise ValueError(
                f"initial is {initial}; recipe {name} prunes {pruned.pruning!r} and has no initial sparsity"
            )
        pruned = replace(pruned, initial=initial)
    schedule, run = pruned.schedule(steps, sparsity, every), replace(run, title=run.title or name)
    return Compressor(
        generator, discriminator, objective, schedule, config, run=run, student=student, validate=validate
    )


def recipe_name(name: str) -> str:
    """The name in `RECIPES` that `name` stands for. A former name warns. Raises ValueError for an unknown name."""
    if name in OLD_NAMES:
        warn_at_caller(f"recipe {name!r} is now called {OLD_NAMES[name]!r}; the old name goes in 0.2")
        return OLD_NAMES[name]
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is not known; it must be one of {', '.join(RECIPES)}")
    return name


def kept_parameters(generator: nn.Module, sparsity: float, **how: Any) -> int:
    """The number of parameters of `generator` after pruning to `sparsity`. `how`: granularity, exclude, allocation."""
    targets = Targets.of(generator, sparsity, **how)
    split = {key: how[key] for key in ("granularity", "exclude") if key in how}
    pruned = sparsify(copy_model(generator), targets.layers, **split)
    return sum(parameter.numel() for parameter in pruned.parameters())


def of_size(make: Callable[[int], nn.Module], parameters: int, widest: int) -> nn.Module:
    """The network `make(width)` whose number of parameters comes nearest to `parameters`, for widths 1 to `widest`.

    The number of parameters of `make(width)` must grow with the width, as for `lambda width:
    dcgan.Generator(ngf=width)`. Raises ValueError for `parameters` or `widest` below 1.
    """
    if parameters < 1 or widest < 1:
        raise ValueError(f"parameters is {parameters} and widest is {widest}; both must be at least 1")

    def size(width: int) -> int:
        with undisturbed():
            return sum(parameter.numel() for parameter in make(width).parameters())

    low, high = 1, widest
    while low < high:  # finds the narrowest network with at least `parameters` parameters
        middle = (low + high) // 2
        low, high = (low, middle) if size(middle) >= parameters else (middle + 1, high)
    return make(min((max(1, low - 1), low), key=lambda width: abs(size(width) - parameters)))
