"""The tables of sparsities, sizes and granularities. Each function turns the rows that have run into Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import paper
from .cell import Cell, change, markdown, percent
from .columns import (
    COST,
    FIGURE,
    SEEN,
    SHORT,
    VIEWS,
    cost,
    first_view,
    how,
    judged,
    kernel,
    label,
    published,
    reference_rows,
    seen,
    title,
    two_digits,
)
from .grids import DCGAN, GRANULARITIES, SPARSITIES, STUDIES, Row
from .results import Results
from .speed import best_and_dense
from .tasks import TASKS
from .techniques import DEFAULT, FEATURES, LONGER, METHOD, TECHNIQUES

DIVERSITY = "Diversity: mean distance between the features of two images, divided by that of real images."


def by_sparsity(results: Results) -> str:
    """Returns the table of every task at every sparsity, with the paper's figures below each view."""
    names = {**SHORT, "one-shot": TECHNIQUES["one-shot"].text}
    planned = {(row.task, row.technique, row.sparsity) for row in STUDIES["paper-table2"]}
    lines = []
    for task, views in VIEWS.items():
        for view in views:
            for row in reference_rows(task):
                shown = [judged(results, row, view), *["none"] * len(SPARSITIES)]
                lines.append([title(task, view), label(row.technique), *shown, *cost(Cell.of(results, row), task)])
            for technique in names:
                rows = {sparsity: Row(task, technique, sparsity) for sparsity in SPARSITIES}
                have = [sparsity for sparsity in SPARSITIES if (task, technique, sparsity) in planned]
                if have:
                    shown = [judged(results, rows[s], view) if s in have else "none" for s in SPARSITIES]
                    spent = cost(Cell.of(results, rows[0.9 if 0.9 in have else have[-1]]), task)
                    lines.append([title(task, view), names[technique], "none", *shown, *spent])
            if (task, view) in paper.SPARSITIES:
                name, known = paper.SPARSITIES[task, view]
                changes = [published(known, sparsity) for sparsity in SPARSITIES]
                lines.append([f"the paper's {name}", "equations 7-9", f"[{known[0.0]:.1f}]", *changes, "none", "none"])
    head = ["task", "technique", "0 %", *(percent(sparsity) for sparsity in SPARSITIES)]
    head += [f"{name}, at 90 %" for name in COST]
    accuracy = "Domain: the fraction of images that the style classifier assigns to the requested style. "
    return markdown(head, lines, accuracy + how(results, TASKS))


def changes(results: Results, technique: str, sparsity: float) -> dict[str, str]:
    """Returns the description of each task's first view -> the change of its kernel distance against dense."""
    found = {}
    for task, views in VIEWS.items():
        view = first_view(task)
        dense = Cell.of(results, Row(task)).mean("scores", view, "kid")
        mean = Cell.of(results, Row(task, technique, sparsity)).mean("scores", view, "kid")
        if dense and mean:
            found[views[view]] = change(mean / dense)
    return found


def in_short(results: Results) -> str:
    """Returns the README's table: every task at 90 %, beside the paper's change."""
    rows = []
    for task, views in VIEWS.items():
        for view in views:
            known = paper.SPARSITIES.get((task, view), ("", {}))[1]
            fixed = [
                Cell.of(results, row).show("scores", view, "kid", form=kernel(task))
                for row in (Row(task, "real"), Row(task), Row(task, LONGER))
            ]
            shown = [judged(results, Row(task, name, 0.9), view) for name in ("one-shot", METHOD, FEATURES, DEFAULT)]
            name = f"{TASKS[task].title.split(',')[0]}: {views[view]}"
            rows.append([name, *fixed, *shown, _first_timed(results, task, 0.9)])
            rows[-1].append(change(known[0.9] / known[0.0]) if known else "none")
    head = ["90 %", "real against real", "dense", "dense, trained on", TECHNIQUES["one-shot"].text, "equations 7-9"]
    head += ["L_F", "distillation", "forward", "the paper's 7-9, Fréchet"]
    below = f"{FIGURE}; each task's own features and images, kernel distances x 1000 for all but the DCGANs. "
    below += f"Forward: {FORWARD}. Measured by `sparsegan study "
    return markdown(head, rows, f"{below}paper-table2`; [study.md](study.md) has the rest.")


def classes(task: str) -> Callable[[Results], str]:
    """Returns the function for the table of the classes that the classifier assigns to a DCGAN's images."""

    def table(results: Results) -> str:
        rows = [[label(row.technique), "0 %", *seen(Cell.of(results, row))] for row in reference_rows(task)]
        planned = dict.fromkeys(replace(row, seed=0) for row in STUDIES["paper-table2"] if row.task == task)
        chosen = [row for row in planned if row.technique in SHORT]
        for row in sorted(chosen, key=lambda row: ([*SHORT].index(row.technique), row.sparsity)):
            rows.append([SHORT[row.technique], percent(row.sparsity), *seen(Cell.of(results, row))])
        below = "Classes: the number of classes to which the classifier assigns at least 2 % of the images each. "
        below += "Entropy: that of the classes' fractions, in bits; an even mix has 3.32. Confidence: mean probability "
        return markdown(["technique", "sparsity", *SEEN], rows, f"{below}of the likeliest class. {DIVERSITY}")

    return table


#: A further figure in the score of a view -> its name, and its format.
BESIDE: dict[str, tuple[str, Callable[[float], str]]] = {
    "psnr": ("PSNR, dB", "{:.1f}".format),
    "ssim": ("SSIM", "{:.3f}".format),
    "perceptual": ("perceptual distance", "{:.3f}".format),
    "diversity": ("diversity", two_digits),
    "accuracy": ("domain accuracy", two_digits),
}


def translations(results: Results) -> str:
    """Returns the table of the fidelity, diversity and domain accuracy of images that are made from images."""
    rows = []
    for task, views in VIEWS.items():
        for view in views:
            floor = next((name for name in TASKS[task].floors if name != "real"), "")
            fixed = [Row(task, "real"), Row(task, floor or "identity"), Row(task), Row(task, LONGER)]
            cells = [Cell.of(results, row) for row in fixed]
            pruned = [Cell.of(results, Row(task, technique, 0.9)) for technique in SHORT]
            for figure, (name, form) in BESIDE.items():
                if view != "samples" and cells[2].values("scores", view, figure):
                    shown = [cell.show("scores", view, figure, form=form) for cell in cells + pruned]
                    rows.append([title(task, view), name, *shown])
    below = f"{DIVERSITY} Perceptual distance: mean distance between the features of an image and of its target, each "
    below += "scaled to length 1. Domain accuracy: the fraction of images that a classifier of the four styles assigns "
    below += "to the requested style; of StarGAN's images only those count whose requested style is not the input's."
    head = ["task", "", "real", "input or bicubic", "dense", "dense, trained on"]
    return markdown([*head, *(f"{text}, 90 %" for text in SHORT.values())], rows, below)


def sizes(results: Results) -> str:
    """Returns the table of MACs per image, file sizes and milliseconds per forward pass."""
    rows = []
    for task in TASKS:
        cells = [Cell.of(results, Row(task))]
        cells += [_first_done(results, task, sparsity) for sparsity in SPARSITIES]
        macs = [cell.show("size", "macs", form=lambda value: f"{value / 1e6:,.1f} M") for cell in cells]
        files = [cell.show("size", "file_bytes", form=lambda value: f"{value / 1e6:.2f} MB") for cell in cells]
        forward = ["", *(_first_timed(results, task, sparsity) for sparsity in SPARSITIES)]
        rows += [[TASKS[task].title, "MACs per image", *macs], ["", "file", *files], ["", "forward", *forward]]
    below = f"Forward: {FORWARD}."
    return markdown(["task", "", "dense", *(percent(sparsity) for sparsity in SPARSITIES)], rows, below)


#: What `speed.py` measures.
FORWARD = "milliseconds per batch (64 images for DCGAN, else one) on one thread; in brackets: times as fast as dense"


def _first_timed(results: Results, task: str, sparsity: float) -> str:
    """Returns the milliseconds of the first of the main techniques that was timed."""
    shown = [_times(results, Row(task, name, sparsity)) for name in (DEFAULT, METHOD, FEATURES)]
    return next((one for one in shown if one.endswith(")")), shown[0])


def _first_done(results: Results, task: str, sparsity: float) -> Cell:
    """Returns one seed of the first of the main techniques that has run. Their generators have the same size."""
    for technique in (DEFAULT, METHOD, FEATURES):
        cell = Cell.of(results, Row(task, technique, sparsity))
        if cell.done:
            return Cell(cell.done[:1], [])
    return Cell([], ["not run"])


def granularity(results: Results) -> str:
    """Returns the table of distance, MACs and time by granularity and sparsity."""
    view = first_view(DCGAN)
    sparsities = sorted({row.sparsity for row in STUDIES["granularity"]})
    blank = ["none"] * (3 * len(sparsities) - 1)
    rows = []
    for row in reference_rows(DCGAN):
        rows.append([label(row.technique), judged(results, row, view), *blank, *cost(Cell.of(results, row), DCGAN)])
    for unit in GRANULARITIES:
        all_of = [Row(DCGAN, DEFAULT, sparsity, unit) for sparsity in sparsities]
        cells = [Cell.of(results, row) for row in all_of]
        macs = [cell.show("size", "macs", form=lambda value: f"{value / 1e6:.1f}") for cell in cells]
        shown = [judged(results, row, view) for row in all_of]
        done = next((cell for cell in cells if cell.done), cells[-1])
        rows.append([unit, *shown, *macs, *(_times(results, row) for row in all_of), *cost(done, DCGAN)])
    for unit, known in paper.GRANULARITIES.items():
        published_ones = [published(known, sparsity) for sparsity in sparsities]
        rows.append([f"the paper's {unit}, CycleGAN", *published_ones, *["none"] * (2 * len(sparsities) + 2)])
    head = ["granularity", *(percent(s) for s in sparsities), *(f"MACs at {percent(s)}, M" for s in sparsities)]
    head += [f"forward at {percent(s)}" for s in sparsities] + list(COST)
    below = (
        f"Distillation; the first rows have sparsity 0. {how(results, [DCGAN])} Forward: {FORWARD}. Each time is of "
        "the generator's fastest form: drop-in layers, the engine or, for filters, smaller dense layers."
    )
    return markdown(head, rows, below)


def _times(results: Results, row: Row) -> str:
    """Returns the milliseconds of a row's generator, and its speed-up over the dense generator."""
    found = None if row.obstacle() else best_and_dense(results, row)
    if found is None:
        return row.obstacle() or "not timed"
    best, dense = found
    return f"{best:.1f} ms ({dense / best:.1f}x)"
