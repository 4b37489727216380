"""The rows of each study, as data.

A row is a task, a technique, a sparsity, a granularity, a seed and a split. A row of several studies runs once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ..compress import RECIPES
from .tasks import FLOORS, TASKS, Task
from .techniques import DEFAULT, DEFAULT_CHANGES, EQUATION_CHANGES, FEATURES, LONGER, METHOD, TECHNIQUES

DENSE = "dense"
SEEDS = (0, 1, 2)
#: The split on which results are reported, and the split on which candidates are compared before one is chosen.
TEST, VALIDATION = "test", "validation"
#: The version of the definitions of all figures. With another version, stored rows do not count.
DEFINITION = 2


@dataclass(frozen=True)
class Row:
    """One run. `technique`: a name of `TECHNIQUES`, "dense" for the dense generator, or a name of `FLOORS`. The dense
    generator and the floors have sparsity 0 and seed 0.

    `split`: what the row is scored on. A row of `VALIDATION` never sees the test images, and no row is trained on the
    images of `VALIDATION`.
    """

    task: str
    technique: str = DENSE
    sparsity: float = 0.0
    granularity: str = "element"
    seed: int = 0
    split: str = TEST

    @property
    def key(self) -> str:
        """The name of the row: its fields, with slashes between them. The split is left out where it is `TEST`."""
        name = f"{self.task}/{self.technique}/{self.sparsity:g}/{self.granularity}/{self.seed}"
        return name if self.split == TEST else f"{name}/{self.split}"

    @property
    def run(self) -> Task:
        """The task, with the technique's learning rate, images per step and steps."""
        task = TASKS[self.task]
        return TECHNIQUES[self.technique].apply(task) if self.technique in TECHNIQUES else task

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the row's configuration: one where no seed has an effect."""
        technique = TECHNIQUES.get(self.technique)
        return SEEDS if technique is not None and RECIPES[technique.recipe].fine_tune else SEEDS[:1]

    def settings(self) -> dict[str, Any]:
        """Returns everything that decides the row's result, as plain values."""
        settings = asdict(self.run)
        for name in ("title", "dense_steps", "dense_batch", "dense_lr", "floors"):
            del settings[name]
        if self.technique in TECHNIQUES:
            technique = asdict(TECHNIQUES[self.technique])
            applied = ("text", "lr", "dense_lr", "batch", "steps")
            settings["technique"] = {name: value for name, value in technique.items() if name not in applied}
        own = {name: getattr(self, name) for name in ("sparsity", "granularity", "seed", "split")}
        return settings | own | {"definition": DEFINITION}

    def obstacle(self) -> str:
        """Returns the reason why the row cannot run, or "" if it can."""
        if self.granularity == "2:4" and self.sparsity != 0.5:
            return "2:4 is 50 %"
        if self.technique in FLOORS and self.technique not in TASKS[self.task].floors:
            return "this task has no such images"
        return ""


SPARSITIES = (0.5, 0.75, 0.9, 0.95)
GRANULARITIES = ("element", "vector:4", "vector:16", "input:2", "input:4", "kernel", "filter")
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
MISSING = (DEFAULT, "distillation-data-free", "features-data-free")
#: The default recipe, changed in one setting at a time, and the recipes beside which it was chosen.
CANDIDATES = (DEFAULT, *(f"{DEFAULT}-{name}" for name in DEFAULT_CHANGES), f"{DEFAULT}-and-features")
JUDGED = (f"{DEFAULT}-and-more-features", FEATURES, "features-by-magnitude")
ADVERSARIAL = (f"{DEFAULT}-and-gan-loss", f"{DEFAULT}-and-some-gan-loss")
#: The candidates that are compared on every task.
RATES = (DEFAULT, f"{DEFAULT}-1e-3", f"{DEFAULT}-and-features")


def grid(
    tasks: Iterable[str],
    techniques: Iterable[str],
    sparsities: Iterable[float],
    granularities: Iterable[str] = ("element",),
    split: str = TEST,
    seeds: Iterable[int] = SEEDS,
) -> list[Row]:
    """Returns the rows of every combination, with all their seeds. All rows of the first seed come first."""
    axes = product(seeds, tasks, techniques, sparsities, granularities)
    rows = [Row(task, technique, sparsity, unit, seed, split) for seed, task, technique, sparsity, unit in axes]
    return [row for row in rows if row.seed in row.seeds]


def references(task: str, split: str = TEST) -> list[Row]:
    """Returns the rows that every table of a task needs: the dense generator, the floors, and the dense generator with
    the budget of the compression."""
    fixed = [Row(task, technique, split=split) for technique in (DENSE, *TASKS[task].floors)]
    return fixed + grid([task], [LONGER], [0.0], split=split)


DCGAN, SECOND = "dcgan-mnist", "pix2pix"
#: study -> its rows, in the order in which they run.
STUDIES: dict[str, list[Row]] = {
    "recipe": [
        *grid(TASKS, (*RATES, *ADVERSARIAL, *JUDGED), [0.9], split=VALIDATION, seeds=[0]),
        *grid(["dcgan-fashion", SECOND], CANDIDATES, [0.9], split=VALIDATION, seeds=[0]),
    ],
    "paper-table2": [
        *grid(TASKS, [DEFAULT, METHOD], [0.9]),
        *grid(TASKS, ["one-shot"], [0.75, 0.9]),
        *grid(TASKS, [DEFAULT], [0.75]),
        *grid(TASKS, [FEATURES], [0.9]),
        *grid(TASKS, [METHOD], [0.5, 0.75], seeds=[0]),
        *grid(TASKS, [DEFAULT], [0.5, 0.95], seeds=[0]),
    ],
    "equations": grid([DCGAN, SECOND], [METHOD, *EQUATION_CHANGES], [0.9]),
    "baselines": [
        *grid([DCGAN], BASELINES, [0.9]),
        *grid([SECOND], BASELINES, [0.5], seeds=[0]),
    ],
    "granularity": grid([DCGAN], [DEFAULT], [0.75, 0.9], GRANULARITIES),
    "reviewers": grid([DCGAN], [*ABLATIONS, "small-dense", "small-dense-pretrained", "gan-loss-fresh"], [0.9])
    + grid([DCGAN], [*DISCRIMINATORS, *OPEN_POINTS], [0.9]),
    "missing": grid(TASKS, MISSING, [0.9], seeds=[0]),
}


def rows_of(study: str) -> list[Row]:
    """Returns the rows of a study, the references of its tasks first. Raises ValueError for an unknown name."""
    if study not in STUDIES:
        raise ValueError(f"study {study!r} is not known; it must be one of {', '.join(STUDIES)}")
    rows = STUDIES[study]
    judged = dict.fromkeys((row.task, row.split) for row in rows)
    known = [row for task, split in judged for row in references(task, split)]
    return list(dict.fromkeys(known + rows))
