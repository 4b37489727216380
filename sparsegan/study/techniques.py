"""The techniques of the study: the recipes of this package, and recipes with changed settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..compress import RECIPES
from .tasks import Task


@dataclass(frozen=True)
class Technique:
    """A recipe of `sparsegan.compress.RECIPES` with changes.

    `settings`: arguments of `sparsegan.compress.baseline`, by name: fields of `CompressionConfig` and the arguments of
    the schedule. They come before the task's settings. The allocation "sensitivity" stands for the sparsities by layer
    that raise L_F evenly, measured on `SENSITIVITY_BATCHES` batches, at as many MACs as uniform sparsities leave.
    `loss`: fields of the recipe's loss, by name.
    `lr`, `batch`, `steps`: factors on the task's learning rate of the generator, images per step and steps. `dense_lr`:
    the learning rate is `lr` times that of the dense GAN's training.
    `average`: decay of the average of the weights over the second half of the run; the result is this average. 0 for no
    average.
    `untrained`: patterns of the discriminator's modules that become untrained again. `noise`: standard deviation of the
    noise that is added to the discriminator's weights, in units of each layer's own standard deviation.
    `warm_up`: if not 0, a fresh discriminator is first trained on the dense generator's images for this many steps.
    `data_free`: images of the dense generator replace real images.
    """

    text: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 1.0
    dense_lr: bool = False
    batch: int = 1
    steps: float = 1.0
    average: float = 0.0
    untrained: tuple[str, ...] = ()
    noise: float = 0.0
    warm_up: int = 0
    data_free: bool = False

    def apply(self, task: Task) -> Task:
        """Returns the task with the technique's learning rate, images per step and steps."""
        lr = self.lr * (task.dense_lr if self.dense_lr else task.lr)
        return replace(task, lr=lr, batch=task.batch * self.batch, steps=round(task.steps * self.steps))


SENSITIVITY_BATCHES = 4
WARM_UP = 300
FEATURES, METHOD, DEFAULT = "feature-distillation", "self-supervised", "distillation"
#: The dense generator with the budget of the compression.
LONGER = "dense-longer"

#: name -> (description, changes) of equations 7-9.
EQUATION_CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "equations-original-in-evaluation": (
        "the original in evaluation mode",
        {"settings": {"original_mode": "evaluation"}},
    ),
    "equations-per-sample": ("term by term per sample", {"loss": {"match": "sample"}}),
    "equations-per-patch": ("term by term per patch", {"loss": {"match": "patch"}}),
    "equations-dense-rate": ("the dense training's rate for G", {"dense_lr": True}),
    "equations-slow": ("a fifth of the rate for G", {"lr": 0.2}),
    "equations-slow-d": ("a quarter of the rate for D", {"settings": {"discriminator_lr": 5e-5}}),
    "equations-fast-d": ("four times the rate for D", {"settings": {"discriminator_lr": 8e-4}}),
    "equations-relative-floor": ("denominators floored at half of the term's size", {"loss": {"relative_floor": 0.5}}),
    "equations-d-waits": ("D frozen during the ramp", {"settings": {"discriminator_from": "target"}}),
    "equations-original-as-fake": (
        "D also learns the original's images as fake",
        {"settings": {"original_images": "fake"}},
    ),
    "equations-original-as-real": (
        "D also learns the original's images as real",
        {"settings": {"original_images": "real"}},
    ),
    "equations-together": (
        "per sample, D frozen during the ramp, the original's images as fake",
        {
            "loss": {"match": "sample"},
            "settings": {"discriminator_from": "target", "original_images": "fake"},
        },
    ),
    "equations-long": ("five times the steps", {"steps": 5.0}),
}

#: name -> (description, changes) of the default recipe.
DEFAULT_CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "1e-3": ("rate 1e-3", {"settings": {"generator_lr": 1e-3}}),
    "2e-3": ("rate 2e-3", {"settings": {"generator_lr": 2e-3}}),
    "8e-3": ("rate 8e-3", {"settings": {"generator_lr": 8e-3}}),
    "magnitude": ("weights dropped by magnitude", {"settings": {"saliency": "magnitude", "allocation": "uniform"}}),
    "uniform": ("one sparsity for all layers", {"settings": {"allocation": "uniform"}}),
    "no-sharpness": ("without sharpness", {"loss": {"sharpness": 0.0}}),
    "images-alone": ("without activations", {"loss": {"intermediate": 0.0}}),
    "activations-alone": ("without images and sharpness", {"loss": {"outputs": 0.0, "sharpness": 0.0}}),
    "half-ramp": ("the target after half of the run", {"settings": {"ramp": 0.5}}),
    "average": ("the weights' moving average, decay 0.98", {"settings": {"ema": 0.98}}),
    "regrow": ("dropped weights may come back", {"settings": {"regrow": 0.2}}),
    "batch-statistics": ("batch norms in training mode", {"settings": {"stored_statistics": False}}),
    "contrast": ("contrast matched at the end", {"settings": {"contrast": True}}),
}

#: name -> technique: every recipe under its own name, then changed recipes.
TECHNIQUES = {name: Technique(recipe.text, name) for name, recipe in RECIPES.items()} | {
    # Nothing is pruned, in rounds: a gradual schedule would begin at 5 %.
    LONGER: Technique(
        "dense, trained on by the GAN's own loss for as many steps",
        "gan-loss",
        settings={"exclude": ("*",), "rounds": True},
        dense_lr=True,
    ),
    "one-sided": Technique("equations 7-9, no gradient where G_C scores better", METHOD, loss={"one_sided": True}),
    "running": Technique("equations 7-9, divided by running averages", METHOD, loss={"denominator": "running"}),
    "lambda-0": Technique("equations 7 alone, lambda 0", METHOD, loss={"lam": 0.0}),
    "lambda-1": Technique("equations 7-9, lambda 1", METHOD, loss={"lam": 1.0}),
    "floor-low": Technique("equations 7-9, denominators floored at 0.01", METHOD, loss={"floor": 0.01}),
    "floor-high": Technique("equations 7-9, denominators floored at 0.5", METHOD, loss={"floor": 0.5}),
    "distillation-and-some-gan-loss": Technique(
        "distillation, and a tenth of the GAN's own loss", "distillation-and-gan-loss", loss={"own": 0.1}
    ),
    "distillation-and-more-features": Technique(
        "distillation, and five times the weight of D's activations",
        "distillation-and-features",
        loss={"features": 5.0},
    ),
    "features-by-magnitude": Technique(
        "L_F, pruned by magnitude, one sparsity for all layers, rate 1e-3",
        FEATURES,
        settings={
            "saliency": "magnitude",
            "allocation": "uniform",
            "generator_lr": 1e-3,
            "betas": (0.5, 0.999),
            "lr_warm_up": 0.0,
            "cosine": False,
            "decay": True,
            "ramp": 0.5,
        },
    ),
    "features-data-free": Technique("L_F, the dense generator's images for real ones", FEATURES, data_free=True),
    "distillation-data-free": Technique(
        "distillation, the dense generator's images for real ones", DEFAULT, data_free=True
    ),
    "features-untrained": Technique("L_F of an untrained D", FEATURES, untrained=("*",)),
    "features-untrained-first": Technique(
        "L_F, the first half of D's layers untrained", FEATURES, untrained=("main.0", "main.2", "main.3")
    ),
    "features-untrained-last": Technique(
        "L_F, the second half of D's layers untrained", FEATURES, untrained=("main.5", "main.6", "main.8", "main.9")
    ),
    "features-noise": Technique("L_F, noise as large as D's weights added to them", FEATURES, noise=1.0),
    "equations-untrained-last": Technique(
        "equations 7-9, the second half of D's layers untrained",
        METHOD,
        untrained=("main.5", "main.6", "main.8", "main.9", "main.11"),
    ),
    "equations-untrained-first": Technique(
        "equations 7-9, the first half of D's layers untrained", METHOD, untrained=("main.0", "main.2", "main.3")
    ),
}

# Equations 7-9, given every chance: one setting is changed at a time.
TECHNIQUES |= {
    name: Technique(f"equations 7-9, {text}", METHOD, **changes) for name, (text, changes) in EQUATION_CHANGES.items()
}
# The default recipe with one setting changed at a time.
TECHNIQUES |= {
    f"distillation-{name}": Technique(f"distillation, {text}", DEFAULT, **changes)
    for name, (text, changes) in DEFAULT_CHANGES.items()
}
