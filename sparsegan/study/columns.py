"""The columns that the tables of the study share: the headline figure, the cost, and the rows of references."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .cell import Cell, change, distance
from .grids import DENSE, SEEDS, TEST, Row, references
from .results import Results
from .tasks import FLOORS, TASKS
from .techniques import DEFAULT, FEATURES, LONGER, METHOD, TECHNIQUES

#: task -> the views that are scored, and their descriptions. Where a table shows one view, it is the first.
VIEWS = {
    "dcgan-mnist": {"samples": "digits"},
    "dcgan-fashion": {"samples": "clothes"},
    "pix2pix": {"output": "line art to colour"},
    "cyclegan": {"a_to_b": "Google's to Twitter's", "b_to_a": "Twitter's to Google's"},
    "stargan": {
        "overall": "to any, mean",
        "to google": "to Google's",
        "to openmoji-black": "to OpenMoji's in black",
        "to openmoji-color": "to OpenMoji's in colour",
        "to twitter": "to Twitter's",
    },
    "srgan": {"output": "four times larger"},
}

#: The techniques of most tables -> the heads of their columns.
SHORT = {DEFAULT: "distillation", METHOD: "equations 7-9", FEATURES: "L_F"}
COST = ("images seen, of the dense training's", "training, GMACs")

#: What the cells of a headline figure hold; `judged` makes them.
FIGURE = "kernel distance ± spread (change against dense, verdict) [Fréchet distance]"


def label(technique: str) -> str:
    """Returns the description of a technique, of a floor or of the dense generator."""
    if technique in TECHNIQUES:
        return TECHNIQUES[technique].text
    return FLOORS.get(technique, "dense")


def title(task: str, view: str) -> str:
    """Returns the name of a task's view."""
    return f"{TASKS[task].title}: {VIEWS[task][view]}"


def first_view(task: str) -> str:
    """Returns the view of a task that stands for the task where a table or a plot shows one."""
    return next(iter(VIEWS[task]))


def scale(task: str) -> int:
    """Returns the factor with which a task's kernel distances are shown: 1 in features of a small classifier, 1000 in
    those of EfficientNet-Lite0, in which the distances are far below 1."""
    return 1 if TASKS[task].images else 1000


def kernel(task: str) -> Callable[[float], str]:
    """Returns the format of a task's kernel distances."""
    return lambda value: distance(scale(task) * value)


def judged(results: Results, row: Row, view: str, against: str = LONGER) -> str:
    """Returns the headline figure of a row's configuration, as `FIGURE` says, and the domain accuracy where there is
    one. The verdict is against the technique `against`, at its own sparsity if it is `LONGER`, else at the row's."""
    cell, task, split = Cell.of(results, row), row.task, row.split
    changed = row.technique in TECHNIQUES
    dense = Cell.of(results, Row(task, split=split)).mean("scores", view, "kid") if changed else None
    other = Cell.of(results, Row(task, against, 0.0 if against == LONGER else row.sparsity, split=split))
    compared = other if row.sparsity and row.technique != against else None
    text = cell.show("scores", view, "kid", form=kernel(task), base=dense, against=compared)
    frechet = cell.mean("scores", view, "fid")
    text += "" if frechet is None else f" [{distance(frechet)}]"
    if cell.values("scores", view, "accuracy"):
        text += f", domain {cell.show('scores', view, 'accuracy', form=two_digits)}"
    return text


def published(known: dict[float, float], sparsity: float) -> str:
    """Returns the Fréchet distance of a published table, and its change against the dense generator's."""
    if sparsity not in known:
        return "none"
    return f"({change(known[sparsity] / known[0.0])}) [{known[sparsity]:.1f}]"


def cost(cell: Cell, task: str) -> list[str]:
    """Returns the columns `COST`: means over the seeds, of the whole run."""
    images, macs = cell.mean("cost", "images"), cell.mean("cost", "macs")
    if images is None or macs is None:
        return ["none", "none"] if cell.done else [cell.show("cost", "macs", form=distance)] * 2
    return [f"{images:,.0f} ({images / TASKS[task].dense_images:.0%})", f"{macs / 1e9:,.0f}"]


def reference_rows(task: str, split: str = TEST) -> list[Row]:
    """Returns a row per reference of a task: the floors, the dense generator, and the dense generator trained on."""
    found = [row for row in references(task, split) if row.seed == 0]
    return sorted(found, key=lambda row: (row.technique == LONGER, row.technique == DENSE))


def technique_rows(
    results: Results,
    task: str,
    rows: Iterable[tuple[str, Row]],
    beside: Callable[[Cell], Sequence[str]] = lambda cell: (),
    split: str = TEST,
    against: str = METHOD,
) -> list[list[str]]:
    """Returns the lines of a table of techniques on the first view of a task: the references, then `rows`, each with
    its name. A line holds the name, the headline figure, the cells that `beside` makes, and the cost."""
    view = first_view(task)
    named = [(label(row.technique), row) for row in reference_rows(task, split)] + list(rows)
    lines = []
    for name, row in named:
        cell = Cell.of(results, row)
        lines.append([name, judged(results, row, view, against), *beside(cell), *cost(cell, task)])
    return lines


def how(results: Results, tasks: Iterable[str], split: str = TEST, against: str = LONGER) -> str:
    """Returns the sentences below a table: how its distances were measured, and the budget of its rows."""
    tasks = list(tasks)
    parts, machines = [], set()
    for name in tasks:
        cell = Cell.of(results, Row(name, split=split))
        for report in cell.done:
            machines.add(report["machine"]["machine"])
            task, one = TASKS[name], next(iter(report["scores"].values()))
            parts.append(
                f"{task.title}: {one['network']}, {one['images']:,} images, by default {task.steps * task.batch:,} "
                f"images seen ({task.steps * task.batch / task.dense_images:.0%} of the dense training's)"
            )
    scaled = any(scale(name) > 1 for name in tasks)
    name = SHORT.get(against, label(against))
    text = f"Cells: {FIGURE}, mean and standard deviation of up to {len(SEEDS)} seeds"
    text += "; kernel distances in features of EfficientNet-Lite0 x 1000. " if scaled else ". "
    text += f'A figure without a spread is of one seed, or has no seed. Verdict: better or worse than "{name}" where '
    text += "the 95 % interval of the difference (Welch) excludes 0, else not apart. "
    text += f"Split: {split}. {'; '.join(parts)}. " if parts else f"Split: {split}. "
    text += f"{', '.join(sorted(machines))}, one thread per row. " if machines else ""
    return text + "GMACs are those of the whole run, D's included."


def two_digits(value: float) -> str:
    """Returns the magnitude of a figure with two digits behind the point."""
    return f"{abs(value):.2f}"


SEEN = ("classes", "entropy", "confidence", "diversity")


def seen(cell: Cell) -> list[str]:
    """Returns the columns `SEEN` of a DCGAN's images."""
    forms = {"modes": "{:.3g}".format, "mode_entropy": two_digits, "confidence": two_digits}
    found = [cell.show("classes", name, form=form) for name, form in forms.items()]
    return [*found, cell.show("scores", "samples", "diversity", form=two_digits)]
