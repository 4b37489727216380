"""The tables that compare techniques: the paper's baselines, the reviewers' questions, and candidates for a recipe."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from ..compress import RECIPES
from . import paper
from .cell import Cell, markdown, percent
from .columns import (
    COST,
    SEEN,
    SHORT,
    VIEWS,
    cost,
    how,
    judged,
    label,
    reference_rows,
    seen,
    technique_rows,
    title,
)
from .grids import (
    ABLATIONS,
    BASELINES,
    CANDIDATES,
    DCGAN,
    DISCRIMINATORS,
    MISSING,
    OPEN_POINTS,
    SECOND,
    STUDIES,
    VALIDATION,
    Row,
)
from .results import Results
from .tasks import TASKS
from .techniques import DEFAULT, EQUATION_CHANGES, FEATURES, METHOD, TECHNIQUES


def baselines(task: str, sparsity: float) -> Callable[[Results], str]:
    """Returns the function for the paper's table of techniques, for one task and sparsity."""

    def table(results: Results) -> str:
        digits = "samples" in VIEWS[task]
        planned = {(row.task, row.sparsity, row.technique) for rows in STUDIES.values() for row in rows}
        names = sorted(BASELINES, key=lambda name: (RECIPES[name].row or "~", name))
        ours = [name for name in (FEATURES, DEFAULT) if (task, sparsity, name) in planned]
        rows = [(f"{RECIPES[name].row or '-'} {name}", Row(task, name, sparsity)) for name in (*names, *ours)]
        lines = technique_rows(results, task, rows, lambda cell: seen(cell)[:2] if digits else ())
        published = [paper.BASELINES.get(RECIPES[name].row) for name in names]
        known = ["none"] * len(reference_rows(task)) + [f"[{one:.1f}]" if one else "none" for one in published]
        head = ["technique", f"{TASKS[task].title}, {percent(sparsity)}", *(SEEN[:2] if digits else ())]
        head += [*COST, f"the paper's StarGAN, 50 % (dense: {paper.DENSE_STARGAN})"]
        filled = [[*line, said] for line, said in zip(lines, [*known, *["none"] * len(ours)], strict=True)]
        return markdown(head, filled, how(results, [task], against=METHOD))

    return table


#: The reviewers' rows at 90 % on DCGAN, in the table's order.
QUESTIONS = (
    *ABLATIONS,
    "gan-loss",
    "gan-loss-fresh",
    "small-dense",
    "small-dense-pretrained",
)


def discriminators(results: Results) -> str:
    """Returns the table of the discriminator's outputs at the end of each run, beside the distance."""
    said = ("real", "compressed", "original", "entropy_real", "entropy_compressed")

    def beside(cell: Cell) -> list[str]:
        return [seen(cell)[0], *(_said(cell, name) for name in said)]

    rows = [(f"{name}: {TECHNIQUES[name].text}", Row(DCGAN, name, 0.9)) for name in QUESTIONS]
    head = ["technique", "90 %", "classes", "D(real)", "D(compressed)", "D(dense)", "entropy on real"]
    head += ["entropy on compressed", *COST]
    below = "D's mean output and the mean entropy of its output in bits, at the end. "
    return markdown(head, technique_rows(results, DCGAN, rows, beside), below + how(results, [DCGAN], against=METHOD))


def _said(cell: Cell, name: str) -> str:
    """Returns a figure of the last look at the discriminator: the mean over the seeds."""
    watched = [report["watched"] for report in cell.done if "watched" in report]
    values = [looks[-1][name] for looks in watched if name in looks[-1]]
    if not values:
        return "; ".join(dict.fromkeys(cell.why_not)) or ("not a probability" if watched else "none")
    return f"{statistics.mean(values):.2f}"


def what_of_d(results: Results) -> str:
    """Returns the table that shows which part of the trained discriminator helps."""
    names = (FEATURES, METHOD, "self-supervised-fresh", *DISCRIMINATORS)
    rows = [(TECHNIQUES[name].text, Row(DCGAN, name, 0.9)) for name in names]
    lines = technique_rows(results, DCGAN, rows, seen, against=FEATURES)
    return markdown(["technique", "90 %", *SEEN, *COST], lines, how(results, [DCGAN], against=FEATURES))


def open_points(results: Results) -> str:
    """Returns the table of the settings of equations 7-9 that the paper leaves open."""
    rows = [(TECHNIQUES[name].text, Row(DCGAN, name, 0.9)) for name in (METHOD, *OPEN_POINTS)]
    lines = technique_rows(results, DCGAN, rows, lambda cell: seen(cell)[:2])
    return markdown(["technique", "90 %", *SEEN[:2], *COST], lines, how(results, [DCGAN], against=METHOD))


def missing(results: Results) -> str:
    """Returns the table of runs without the discriminator, without the data, and without both."""
    lines = []
    for task, views in VIEWS.items():
        for view in views:
            rows = reference_rows(task) + [Row(task, technique, 0.9) for technique in MISSING]
            for row in rows:
                name = SHORT.get(row.technique, label(row.technique))
                shown = judged(results, row, view, against=FEATURES)
                lines.append([title(task, view), name, shown, *cost(Cell.of(results, row), task)])
    return markdown(["task", "technique", "90 %", *COST], lines, how(results, TASKS, against=FEATURES))


def drift(results: Results) -> str:
    """Returns the table of the terms of equations 7-9: means over the first sixth and the second half of the run."""
    shown = {"dis": "Dis on compressed", "gen": "Gen of the compressed", "gen_original": "Gen of the original"}
    rows = []
    for task in TASKS:
        for sparsity in (0.5, 0.9):
            cell = Cell.of(results, Row(task, METHOD, sparsity))
            row = [f"{TASKS[task].title}, {percent(sparsity)}"]
            for term in shown:
                curves = [report["curves"][term] for report in cell.done if term in report["curves"]]
                parts = [(curve[: max(1, len(curve) // 6)], curve[len(curve) // 2 :]) for curve in curves]
                means = [statistics.mean(map(statistics.mean, part)) for part in zip(*parts, strict=True)]
                row.append(
                    " to ".join(f"{mean:.2f}" for mean in means) or "; ".join(dict.fromkeys(cell.why_not)) or "none"
                )
            rows.append(row)
    below = "Means over the seeds: over the first sixth of the run, then over its second half."
    return markdown(["task, equations 7-9", *shown.values()], rows, below)


def equations(results: Results) -> str:
    """Returns the table of equations 7-9 with one setting changed at a time, on two tasks."""
    lines = []
    for task in (DCGAN, SECOND):
        rows = [(TECHNIQUES[name].text, Row(task, name, 0.9)) for name in (METHOD, *EQUATION_CHANGES)]
        lines += [[TASKS[task].title, *line] for line in technique_rows(results, task, rows)]
    return markdown(["task", "technique", "90 %", *COST], lines, how(results, [DCGAN, SECOND], against=METHOD))


def recipes(results: Results) -> str:
    """Returns the table of the candidates for the default recipe, on the validation split."""
    lines = []
    planned = dict.fromkeys((row.task, row.technique) for row in STUDIES["recipe"])
    for task in TASKS:
        names = [name for name in CANDIDATES if (task, name) in planned]
        rows = [(f"{name}: {TECHNIQUES[name].text}", Row(task, name, 0.9, split=VALIDATION)) for name in names]
        found = technique_rows(results, task, rows, split=VALIDATION, against=DEFAULT)
        lines += [[TASKS[task].title, *line] for line in found]
    return markdown(["task", "technique", "90 %", *COST], lines, how(results, TASKS, VALIDATION, DEFAULT))
