"""The tasks, the techniques and the rows of each study, as data.

A row is a task, a technique, a sparsity, a granularity and a seed. A row that belongs to several studies runs once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from ..compress import RECIPES


@dataclass(frozen=True)
class Task:
    """A dense GAN to compress, and the budget that every technique gets.

    `checkpoint`: the GAN's folder under checkpoints/. `steps`, `batch`: steps and images per step of the fine-tuning.
    `dense`: steps of the dense GAN's training. `lr`, `discriminator_lr`: for Adam; both fall to 0 over the second half.
    `exclude`: layers that stay dense. `images`: number of images for a distance; 0 for the whole test set.
    `probability`: how the discriminator's output becomes the probability of being real: "output", "sigmoid", or "" if
    the output is no probability. `held_out`: whether the test images are kept out of the training.
    `classifier`: the data set of the classifier (`sparsegan.metrics.classifier`) that assigns classes to the images.
    For a DCGAN, this classifier also gives the features of the distances. `asked`: view -> the class that its images
    should have, for a GAN that does not tell this class.
    """

    title: str
    checkpoint: str
    gan: str
    steps: int
    batch: int
    dense: int
    lr: float = 1e-3
    discriminator_lr: float = 2e-4
    generator_every: int = 1
    exclude: tuple[str, ...] = ()
    images: int = 0
    probability: str = ""
    held_out: bool = True
    classifier: str = ""
    asked: Mapping[str, int] = field(default_factory=dict)


GOOGLE, TWITTER = 0, 3  # classes of the style classifier: the folders of emoji-styles in sorted order

#: Steps are at most a tenth of the dense training's. The learning rate of G_C, the compressed generator, is five times
#: the discriminator's. DCGAN's last layer stays dense, because it has only 512 of 1,098,240 weights.
TASKS = {
    "dcgan-mnist": Task(
        "DCGAN, MNIST",
        "dcgan-mnist",
        "dcgan",
        steps=240,
        batch=16,
        dense=2496,
        exclude=("main.12",),
        images=5000,
        probability="output",
        held_out=False,
        classifier="mnist",
    ),
    "dcgan-fashion": Task(
        "DCGAN, Fashion-MNIST",
        "dcgan-fashion",
        "dcgan",
        steps=480,
        batch=16,
        dense=4800,
        exclude=("main.12",),
        images=5000,
        probability="output",
        classifier="fashion-mnist",
    ),
    "pix2pix": Task(
        "pix2pix, line art to colour",
        "pix2pix-openmoji",
        "pix2pix",
        steps=600,
        batch=8,
        dense=6000,
        probability="sigmoid",
    ),
    "cyclegan": Task(
        "CycleGAN, two emoji styles",
        "cyclegan-emoji",
        "cyclegan",
        steps=300,
        batch=1,
        dense=3000,
        classifier="emoji-styles",
        asked={"a_to_b": TWITTER, "b_to_a": GOOGLE},
    ),
    "stargan": Task(
        "StarGAN, four emoji styles",
        "stargan-emoji",
        "stargan",
        steps=250,
        batch=8,
        dense=2500,
        generator_every=2,
        classifier="emoji-styles",
    ),
    "srgan": Task(
        "SRGAN, photographs",
        "srgan-photos",
        "srgan",
        steps=250,
        batch=8,
        dense=2500,
        lr=5e-4,
        discriminator_lr=1e-4,
        probability="output",
    ),
}


@dataclass(frozen=True)
class Technique:
    """A recipe of `sparsegan.compress.RECIPES` with changes.

    `loss`: settings of `SelfSupervisedLoss`. `allocation`: as in `CompressionConfig`, or "sensitivity": the sparsities
    that raise L_F evenly, measured on `SENSITIVITY_BATCHES` batches. `average`: decay of the average of the weights
    over the second half of the run; the result is this average. 0 for no average.
    `untrained`: patterns of the discriminator's modules that become untrained again. `noise`: standard deviation of the
    noise that is added to the discriminator's weights, in units of each layer's own standard deviation.
    `lr`, `batch`: factors on the task's learning rate of the generator and images per step.
    `warm_up`: if not 0, a fresh discriminator is first trained on the dense generator's images for this many steps.
    `data_free`: images of the dense generator replace real images. `regrow`, `rewind`: as in `CompressionConfig`; with
    `rewind`, pruning is in rounds.
    """

    text: str
    recipe: str
    loss: Mapping[str, Any] = field(default_factory=dict)
    allocation: str = "uniform"
    average: float = 0.0
    untrained: tuple[str, ...] = ()
    noise: float = 0.0
    lr: float = 1.0
    batch: int = 1
    warm_up: int = 0
    data_free: bool = False
    regrow: float = 0.0
    rewind: bool = False


SENSITIVITY_BATCHES = 4
WARM_UP = 300
_FEATURES, _METHOD = "self-supervised-features", "self-supervised"

#: name -> technique: every recipe under its own name, then changed recipes.
TECHNIQUES = {name: Technique(recipe.text, name) for name, recipe in RECIPES.items()} | {
    "one-sided": Technique("equations 7-9, no gradient where G_C scores better", _METHOD, {"one_sided": True}),
    "running": Technique("equations 7-9, divided by running averages", _METHOD, {"denominator": "running"}),
    "equations-and-features": Technique("equations 7-9 plus L_F, D updated", _METHOD, {"features": 1.0}),
    "frozen-and-features": Technique("equations 7-9 plus L_F, D frozen", "self-supervised-frozen", {"features": 1.0}),
    "equations-sensitivity": Technique(
        "equations 7-9, layers' sparsities by sensitivity", _METHOD, allocation="sensitivity"
    ),
    "features-global": Technique("L_F, one threshold for all layers", _FEATURES, allocation="global-normalized"),
    "features-sensitivity": Technique("L_F, layers' sparsities by sensitivity", _FEATURES, allocation="sensitivity"),
    "features-average": Technique("L_F, weights averaged", _FEATURES, average=0.97),
    "features-sensitivity-average": Technique(
        "L_F, layers' sparsities by sensitivity, weights averaged", _FEATURES, allocation="sensitivity", average=0.97
    ),
    "features-fast": Technique("L_F, four times the learning rate", _FEATURES, lr=4.0),
    "features-regrow": Technique("L_F, dropped weights may come back", _FEATURES, regrow=0.2),
    "features-rewind": Technique("L_F, pruned in rounds, learning rates rewound", _FEATURES, rewind=True),
    "features-batch": Technique("L_F, four times the batch", _FEATURES, batch=4),
    "features-large": Technique("L_F, four times the batch, six times the learning rate", _FEATURES, lr=6.0, batch=4),
    "features-larger": Technique("L_F, eight times the batch, six times the learning rate", _FEATURES, lr=6.0, batch=8),
    "equations-batch": Technique("equations 7-9, four times the batch", _METHOD, batch=4),
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
        allocation="sensitivity",
    ),
    "fresh-and-features": Technique(
        "equations 7-9 plus L_F, D from scratch", "self-supervised-fresh", {"features": 1.0}
    ),
    "distillation-sensitivity": Technique(
        "h with layers' sparsities by sensitivity", "gan-loss-distillation", allocation="sensitivity"
    ),
    "lambda-0": Technique("equations 7 alone, lambda 0", _METHOD, {"lam": 0.0}),
    "lambda-1": Technique("equations 7-9, lambda 1", _METHOD, {"lam": 1.0}),
    "floor-low": Technique("equations 7-9, denominators floored at 0.01", _METHOD, {"floor": 0.01}),
    "floor-high": Technique("equations 7-9, denominators floored at 0.5", _METHOD, {"floor": 0.5}),
    "features-warm": Technique("L_F, a fresh D taught on the dense generator's images", _FEATURES, warm_up=WARM_UP),
    "features-data-free": Technique("L_F, the dense generator's images for real ones", _FEATURES, data_free=True),
    "features-warm-data-free": Technique("L_F, both missing", _FEATURES, warm_up=WARM_UP, data_free=True),
    "features-untrained": Technique("L_F of an untrained D", _FEATURES, untrained=("*",)),
    "features-untrained-first": Technique(
        "L_F, the first half of D's layers untrained", _FEATURES, untrained=("main.0", "main.2", "main.3")
    ),
    "features-untrained-last": Technique(
        "L_F, the second half of D's layers untrained", _FEATURES, untrained=("main.5", "main.6", "main.8", "main.9")
    ),
    "features-noise": Technique("L_F, noise as large as D's weights added to them", _FEATURES, noise=1.0),
    "equations-untrained-last": Technique(
        "equations 7-9, the second half of D's layers untrained",
        _METHOD,
        untrained=("main.5", "main.6", "main.8", "main.9", "main.11"),
    ),
    "equations-untrained-first": Technique(
        "equations 7-9, the first half of D's layers untrained", _METHOD, untrained=("main.0", "main.2", "main.3")
    ),
}

DENSE = "dense"


@dataclass(frozen=True)
class Row:
    """One run. `technique` "dense" is the dense generator, at sparsity 0 and seed 0."""

    task: str
    technique: str = DENSE
    sparsity: float = 0.0
    granularity: str = "element"
    seed: int = 0

    @property
    def key(self) -> str:
        """The name of the row: its five fields, with slashes between them."""
        return f"{self.task}/{self.technique}/{self.sparsity:g}/{self.granularity}/{self.seed}"

    @property
    def run(self) -> Task:
        """The task, with the technique's learning rate and batch."""
        task = TASKS[self.task]
        if self.technique == DENSE:
            return task
        technique = TECHNIQUES[self.technique]
        return replace(task, lr=task.lr * technique.lr, batch=task.batch * technique.batch)

    def settings(self) -> dict[str, Any]:
        """Returns everything that decides the row's result, as plain values."""
        settings = asdict(self.run)
        for name in ("title", "dense"):
            del settings[name]
        if self.technique != DENSE:
            technique = asdict(TECHNIQUES[self.technique])
            settings |= {name: value for name, value in technique.items() if name not in ("text", "lr", "batch")}
        return settings | {"sparsity": self.sparsity, "granularity": self.granularity, "seed": self.seed}

    def obstacle(self) -> str:
        """Returns the reason why the row cannot run, or "" if it can."""
        if self.granularity == "2:4" and self.sparsity != 0.5:
            return "2:4 is 50 %"
        return ""


#: A sparsity so small that the row shows the effect of fine-tuning alone.
CONTROL = 0.05
SPARSITIES = (CONTROL, 0.25, 0.5, 0.75, 0.9, 0.95)
SEEDS = (0, 1, 2)
GRANULARITIES = ("element", "vector:8", "vector:16", "kernel", "filter", "2:4")
BASELINES = tuple(name for name in RECIPES if RECIPES[name].row or name in ("one-shot", "gan-loss"))
ABLATIONS = tuple(name for name in RECIPES if name.startswith("self-supervised"))
DISCRIMINATORS = (
    "features-untrained",
    "features-untrained-first",
    "features-untrained-last",
    "features-noise",
    "equations-untrained-first",
    "equations-untrained-last",
)
#: The settings of equations 7-9 that the paper leaves open.
OPEN_POINTS = ("one-sided", "running", "lambda-0", "lambda-1", "floor-low", "floor-high")
MISSING = (_FEATURES, "features-warm", "features-data-free", "features-warm-data-free")
CANDIDATES = (
    _METHOD,
    "one-sided",
    "running",
    "self-supervised-frozen",
    "self-supervised-fresh",
    "fresh-sensitivity",
    "fresh-and-features",
    "equations-sensitivity",
    "equations-and-features",
    "frozen-and-features",
    _FEATURES,
    "features-global",
    "features-sensitivity",
    "features-average",
    "features-sensitivity-average",
    "features-regrow",
    "features-rewind",
    "features-fast",
    "features-large",
    "features-larger",
    "fresh-large",
    "gan-loss",
    "gan-loss-large",
    "gan-loss-distillation",
    "distillation-sensitivity",
)


def grid(
    tasks: Iterable[str],
    techniques: Iterable[str],
    sparsities: Iterable[float],
    granularities: Iterable[str] = ("element",),
    seeds: Iterable[int] = SEEDS,
) -> list[Row]:
    """Returns the rows of every combination. All rows of the first seed come first."""
    axes = product(seeds, tasks, techniques, sparsities, granularities)
    return [Row(task, technique, sparsity, unit, seed) for seed, task, technique, sparsity, unit in axes]


DCGAN, SECOND = "dcgan-mnist", "pix2pix"
#: study -> its rows, in the order in which they run.
STUDIES: dict[str, list[Row]] = {
    "paper-table2": [
        *grid([DCGAN, SECOND], [_METHOD, _FEATURES], [CONTROL]),
        *grid(TASKS, [_METHOD, _FEATURES, "features-fast"], SPARSITIES[1:]),
        *grid([DCGAN], ["features-large"], SPARSITIES[1:]),
        *grid([DCGAN, "dcgan-fashion"], ["features-larger"], [0.75, 0.9, 0.95]),
        *grid([SECOND, "cyclegan", "srgan"], ["features-batch"], [0.9]),
        *grid([DCGAN, SECOND, "cyclegan"], ["equations-batch"], [0.9]),
        *grid(["srgan", SECOND], ["features-large"], [0.9]),
        *grid(TASKS, ["one-shot"], SPARSITIES[1:], seeds=SEEDS[:1]),
    ],
    "baselines": [
        *grid([DCGAN], BASELINES, [0.9]),
        *grid([DCGAN], BASELINES, [0.5]),
        *grid([SECOND], BASELINES, [0.5]),
    ],
    "granularity": grid([DCGAN], [_FEATURES], [0.5, 0.75, 0.9], GRANULARITIES),
    "reviewers": grid([DCGAN], [*ABLATIONS, "small-dense", "small-dense-pretrained", "gan-loss-fresh"], [0.9])
    + grid([DCGAN], [*DISCRIMINATORS, *OPEN_POINTS], [0.9]),
    "missing": grid(TASKS, MISSING, [0.9]),
    "recipe": grid([DCGAN, SECOND], CANDIDATES, [0.9, 0.95]),
}


def rows_of(study: str) -> list[Row]:
    """Returns the rows of a study, the dense generators first. Raises ValueError for an unknown name."""
    if study not in STUDIES:
        raise ValueError(f"study {study!r} is not known; it must be one of {', '.join(STUDIES)}")
    rows = STUDIES[study]
    return list(dict.fromkeys([Row(task) for task in dict.fromkeys(row.task for row in rows)] + rows))
