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
from .techniques import FEATURES, LONGER, METHOD, TECHNIQUES

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


#: A sparsity so small that the row shows the effect of fine-tuning alone.
CONTROL = 0.05
SPARSITIES = (CONTROL, 0.25, 0.5, 0.75, 0.9, 0.95)
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
MISSING = (FEATURES, "features-warm", "features-data-free", "features-warm-data-free")
CANDIDATES = (
    METHOD,
    "one-sided",
    "running",
    "self-supervised-frozen",
    "self-supervised-fresh",
    "fresh-sensitivity",
    "fresh-and-features",
    "equations-sensitivity",
    "equations-and-features",
    "frozen-and-features",
    FEATURES,
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
    split: str = TEST,
) -> list[Row]:
    """Returns the rows of every combination, with all their seeds. All rows of the first seed come first."""
    axes = product(SEEDS, tasks, techniques, sparsities, granularities)
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
    "paper-table2": [
        *grid([DCGAN, SECOND], [METHOD, FEATURES], [CONTROL]),
        *grid(TASKS, [METHOD, FEATURES, "features-fast"], SPARSITIES[1:]),
        *grid([DCGAN], ["features-large"], SPARSITIES[1:]),
        *grid([DCGAN, "dcgan-fashion"], ["features-larger"], [0.75, 0.9, 0.95]),
        *grid([SECOND, "cyclegan", "srgan"], ["features-batch"], [0.9]),
        *grid([DCGAN, SECOND, "cyclegan"], ["equations-batch"], [0.9]),
        *grid(["srgan", SECOND], ["features-large"], [0.9]),
        *grid(TASKS, ["one-shot"], SPARSITIES[1:]),
    ],
    "baselines": [
        *grid([DCGAN], BASELINES, [0.9]),
        *grid([DCGAN], BASELINES, [0.5]),
        *grid([SECOND], BASELINES, [0.5]),
    ],
    "granularity": grid([DCGAN], [FEATURES], [0.5, 0.75, 0.9], GRANULARITIES),
    "reviewers": grid([DCGAN], [*ABLATIONS, "small-dense", "small-dense-pretrained", "gan-loss-fresh"], [0.9])
    + grid([DCGAN], [*DISCRIMINATORS, *OPEN_POINTS], [0.9]),
    "missing": grid(TASKS, MISSING, [0.9]),
    "recipe": grid([DCGAN, SECOND], CANDIDATES, [0.9, 0.95], split=VALIDATION),
}


def rows_of(study: str) -> list[Row]:
    """Returns the rows of a study, the references of its tasks first. Raises ValueError for an unknown name."""
    if study not in STUDIES:
        raise ValueError(f"study {study!r} is not known; it must be one of {', '.join(STUDIES)}")
    rows = STUDIES[study]
    judged = dict.fromkeys((row.task, row.split) for row in rows)
    known = [row for task, split in judged for row in references(task, split)]
    return list(dict.fromkeys(known + rows))
