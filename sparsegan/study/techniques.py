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
FEATURES, METHOD = "self-supervised-features", "self-supervised"
#: The dense generator with the budget of the compression.
LONGER = "dense-longer"

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
    "equations-and-features": Technique("equations 7-9 plus L_F, D updated", METHOD, loss={"features": 1.0}),
    "frozen-and-features": Technique(
        "equations 7-9 plus L_F, D frozen", "self-supervised-frozen", loss={"features": 1.0}
    ),
    "equations-sensitivity": Technique(
        "equations 7-9, layers' sparsities by sensitivity", METHOD, settings={"allocation": "sensitivity"}
    ),
    "features-global": Technique(
        "L_F, one threshold for all layers", FEATURES, settings={"allocation": "global-normalized"}
    ),
    "features-sensitivity": Technique(
        "L_F, layers' sparsities by sensitivity", FEATURES, settings={"allocation": "sensitivity"}
    ),
    "features-average": Technique("L_F, weights averaged", FEATURES, average=0.97),
    "features-sensitivity-average": Technique(
        "L_F, layers' sparsities by sensitivity, weights averaged",
        FEATURES,
        settings={"allocation": "sensitivity"},
        average=0.97,
    ),
    "features-fast": Technique("L_F, four times the learning rate", FEATURES, lr=4.0),
    "features-regrow": Technique("L_F, dropped weights may come back", FEATURES, settings={"regrow": 0.2}),
    "features-rewind": Technique(
        "L_F, pruned in rounds, learning rates rewound", FEATURES, settings={"rewind": True, "rounds": True}
    ),
    "features-batch": Technique("L_F, four times the batch", FEATURES, batch=4),
    "features-large": Technique("L_F, four times the batch, six times the learning rate", FEATURES, lr=6.0, batch=4),
    "features-larger": Technique("L_F, eight times the batch, six times the learning rate", FEATURES, lr=6.0, batch=8),
    "equations-batch": Technique("equations 7-9, four times the batch", METHOD, batch=4),
    "fresh-large": Technique(
        "equations 7-9, D from scratch, four times the batch, twice the learning rate",
        "self-supervised-fresh",
        lr=2.0,
        batch=4,
    ),
    "gan-loss-large": Technique(
        "the GAN's own loss, four times the batch, twice the learning rate", "gan-loss", lr=2.0, batch=4
    ),
    "fresh-sensitivity": Technique(
        "equations 7-9, D from scratch, layers' sparsities by sensitivity",
        "self-supervised-fresh",
        settings={"allocation": "sensitivity"},
    ),
    "fresh-and-features": Technique(
        "equations 7-9 plus L_F, D from scratch", "self-supervised-fresh", loss={"features": 1.0}
    ),
    "distillation-sensitivity": Technique(
        "h with layers' sparsities by sensitivity", "gan-loss-distillation", settings={"allocation": "sensitivity"}
    ),
    "lambda-0": Technique("equations 7 alone, lambda 0", METHOD, loss={"lam": 0.0}),
    "lambda-1": Technique("equations 7-9, lambda 1", METHOD, loss={"lam": 1.0}),
    "floor-low": Technique("equations 7-9, denominators floored at 0.01", METHOD, loss={"floor": 0.01}),
    "floor-high": Technique("equations 7-9, denominators floored at 0.5", METHOD, loss={"floor": 0.5}),
    "features-warm": Technique("L_F, a fresh D taught on the dense generator's images", FEATURES, warm_up=WARM_UP),
    "features-data-free": Technique("L_F, the dense generator's images for real ones", FEATURES, data_free=True),
    "features-warm-data-free": Technique("L_F, both missing", FEATURES, warm_up=WARM_UP, data_free=True),
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
