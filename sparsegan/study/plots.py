"""The plots of the study, as small svg files. The same results give the same bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

from ..atomic_files import write_whole
from ..compress import RECIPES
from . import paper
from .cell import Cell, percent
from .columns import SHORT, VIEWS, first_view, kernel, scale
from .grids import (
    BASELINES,
    CANDIDATES,
    DCGAN,
    DISCRIMINATORS,
    GRANULARITIES,
    SECOND,
    SPARSITIES,
    STUDIES,
    TEST,
    VALIDATION,
    Row,
)
from .results import Results
from .speed import best_and_dense
from .tasks import TASKS
from .techniques import DEFAULT, FEATURES, METHOD, TECHNIQUES

NAMES = {
    **SHORT,
    "self-supervised-fresh": "equations 7-9, D from scratch",
    "self-supervised-frozen": "equations 7-9, D frozen",
    "gan-loss-fresh": "GAN loss, D from scratch",
    "gan-loss": "GAN loss",
    "prune-both": "n: D pruned too",
}


def draw(study: str, results: Results, folder: Path) -> None:
    """Writes the plots of a study to `folder`/study-NAME.svg. A plot without any result is not written."""
    plt.rcParams.update({"svg.hashsalt": "sparsegan", "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9.5})
    for name, plot in PLOTS.get(study, {}).items():
        figure = plot(results)
        if figure is not None:
            figure.tight_layout()
            write_whole(
                folder / f"study-{name}.svg",
                lambda file, figure=figure: figure.savefig(file, format="svg", metadata={"Date": None}),  # type: ignore[misc]
            )
            plt.close(figure)


def _distances(results: Results, row: Row) -> list[float]:
    """Returns the kernel distance of the task's first view, scaled as in the tables, for every seed."""
    found = Cell.of(results, row).values("scores", first_view(row.task), "kid")
    return [scale(row.task) * value for value in found]


def by_sparsity(results: Results) -> Any:
    """Plots the distance, divided by the dense generator's, against sparsity.

    There is a panel per view and a point per seed. The paper's figures are dashed.
    """
    colours = {METHOD: "C3", FEATURES: "C0", DEFAULT: "C1"}
    views = [(task, view, text) for task, views in VIEWS.items() for view, text in views.items()]
    figure, axes = plt.subplots(2, -(-len(views) // 2), figsize=(11.5, 5.4), sharex=True)
    drawn = False
    for panel, (task, view, text) in zip(axes.flat, views, strict=False):
        dense = Cell.of(results, Row(task)).mean("scores", view, "kid")
        for technique, colour in colours.items():
            cells = {s: Cell.of(results, Row(task, technique, s)).values("scores", view, "kid") for s in SPARSITIES}
            found = {s: [value / dense for value in values] for s, values in cells.items() if values and dense}
            medians = [statistics.median(values) for values in found.values()]
            panel.plot([100 * s for s in found], medians, color=colour, label=SHORT[technique], linewidth=1)
            points = [(100 * s, value) for s, values in found.items() for value in values]
            panel.plot(*zip(*points, strict=True), "o", color=colour, markersize=3) if points else None
            drawn = drawn or bool(points)
        if (task, view) in paper.SPARSITIES:
            known = paper.SPARSITIES[task, view][1]
            ratios = [value / known[0.0] for value in known.values()]
            panel.plot([100 * s for s in known], ratios, "k--", linewidth=1, label="the paper's Fréchet, its own data")
        panel.axhline(1, color="0.6", linewidth=0.8)
        panel.set(yscale="log", title=f"{TASKS[task].title.split(',')[0]}: {text}")
        _plain_ticks(panel.yaxis)
    for panel in axes[-1]:
        panel.set_xlabel("sparsity in %")
    for panel in axes[:, 0]:
        panel.set_ylabel("kernel distance over dense")
    for panel in axes.flat[len(views) :]:
        panel.axis("off")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower right", frameon=False)
    return figure if drawn else None


def discriminators(results: Results) -> Any:
    """Plots the discriminator's entropy over the steps, on the compressed generator's images and on real images."""
    shown = {"entropy_compressed": "on the compressed generator's images", "entropy_real": "on real images"}
    techniques = (METHOD, "self-supervised-frozen", "self-supervised-fresh", "gan-loss", "gan-loss-fresh")
    figure, panels = plt.subplots(1, 2, figsize=(8.8, 3.2), sharey=True)
    drawn = False
    for panel, (key, title) in zip(panels, shown.items(), strict=True):
        for index, technique in enumerate(techniques):
            done = Cell.of(results, Row(DCGAN, technique, 0.9)).done
            for number, report in enumerate(done):
                looks = report["watched"]
                name = None if number else NAMES[technique]
                steps = [look["step"] for look in looks]
                panel.plot(steps, [look[key] for look in looks], color=f"C{index}", linewidth=1.1, label=name)
                drawn = True
        panel.set(title=title, xlabel="step")
    panels[0].set_ylabel("entropy of D's answer, bits")
    if drawn:
        panels[-1].legend(frameon=False, fontsize=7.5)
    return figure if drawn else None


def curves(results: Results) -> Any:
    """Plots loss curves, each with the distance at the end of its run. The loss tells little about the images."""
    techniques = (METHOD, "self-supervised-frozen", "gan-loss", "gan-loss-fresh", "prune-both")
    figure, panels = plt.subplots(1, len(techniques), figsize=(2.4 * len(techniques), 2.9), sharey=True)
    drawn = False
    for panel, technique in zip(panels, techniques, strict=True):
        done = Cell.of(results, Row(DCGAN, technique, 0.9)).done
        if not done:
            panel.set_title(f"{NAMES[technique]}\nnot run")
            continue
        drawn = True
        found = done[0]["curves"]
        for key, colour, label in (
            ("gen", "C0", "Gen of the compressed"),
            ("gen_original", "C1", "Gen of the dense"),
            ("dis", "C2", "Dis"),
        ):
            if key in found:
                panel.plot(found["step"], found[key], color=colour, label=label)
        panel.set_title(f"{NAMES[technique]}\nkernel distance {kernel(DCGAN)(done[0]['scores']['samples']['kid'])}")
        panel.set_xlabel("step")
    panels[0].set_ylabel("loss term")
    if drawn:
        panels[0].legend(frameon=False, fontsize=7.5)
    return figure if drawn else None


def loss_and_distance(results: Results) -> Any:
    """Plots the generator's loss term at the end of each run against the distance, for all rows that have run.

    There is a panel per task, with Spearman's rank correlation: 1 if the curves order the runs as the distances do.
    """
    rows = dict.fromkeys(row for planned in STUDIES.values() for row in planned if row.split == TEST)
    figure, axes = plt.subplots(2, -(-len(TASKS) // 2), figsize=(9.6, 5.4))
    drawn = False
    for panel, (task, settings) in zip(axes.flat, TASKS.items(), strict=False):
        reports = [report for row in rows if row.task == task and (report := results.of(row)) is not None]
        ends = [(report["curves"]["gen"][-1], report) for report in reports if report.get("curves", {}).get("gen")]
        points = [(end, scale(task) * report["scores"][first_view(task)]["kid"]) for end, report in ends]
        panel.set(title=settings.title, xlabel="Gen of the compressed at the end", ylabel=_named(task))
        if len(points) > 1:
            drawn = True
            panel.plot(*zip(*points, strict=True), "o", markersize=3, alpha=0.6)
            panel.set(title=f"{settings.title}\nrank correlation {rank_correlation(points):.2f}, {len(points)} rows")
            panel.set(yscale="log")
            _plain_ticks(panel.yaxis)
    return figure if drawn else None


def rank_correlation(points: Sequence[tuple[float, float]]) -> float:
    """Returns Spearman's rank correlation of pairs: the correlation of their ranks. Equal values share a mean rank.

    Returns nan where one side has equal values only.
    """
    sides = []
    for values in (np.array(side) for side in zip(*points, strict=True)):
        ranks = (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2
        sides.append(ranks - ranks.mean())
    size = float(np.sqrt((sides[0] ** 2).sum() * (sides[1] ** 2).sum()))
    return float((sides[0] * sides[1]).sum()) / size if size else math.nan


def granularity(results: Results) -> Any:
    """Plots the distance against the speed-up over the dense generator, with a line per granularity."""
    sparsities = sorted({row.sparsity for row in STUDIES["granularity"]})
    figure, panel = plt.subplots(figsize=(5.4, 3.4))
    drawn = False
    for index, unit in enumerate(GRANULARITIES):
        rows = [Row(DCGAN, DEFAULT, sparsity, unit) for sparsity in sparsities]
        timed = [(best_and_dense(results, row), Cell.of(results, row).mean("scores", "samples", "kid")) for row in rows]
        known = [(time[1] / time[0], fid) for time, fid in timed if time and fid]
        if known:
            drawn = True
            panel.plot(*zip(*known, strict=True), "o-", color=f"C{index}", markersize=4, label=unit)
    for value in _distances(results, Row(DCGAN)):
        panel.plot(1, value, "k*", label="dense")
    panel.set(yscale="log", xlabel="times faster than dense, batch of 64, one thread", ylabel="kernel distance")
    _plain_ticks(panel.yaxis)
    panel.set_title(f"DCGAN on MNIST, distillation, at {', '.join(percent(s) for s in sparsities)}")
    if drawn:
        panel.legend(frameon=False, fontsize=8)
    return figure if drawn else None


def _named(task: str) -> str:
    return "kernel distance" if scale(task) == 1 else f"kernel distance x {scale(task)}"


def _dots(
    results: Results,
    techniques: Mapping[str, str],
    panels: Sequence[tuple[str, Mapping[float, str]]],
    split: str = TEST,
) -> Any:
    """Plots the distances of `techniques` (name -> label), with a point per seed and a line at the dense generator's.

    `panels`: (task, sparsity -> colour) per panel.
    """
    size = (2.6 + 3.2 * len(panels), 0.9 + 0.24 * len(techniques))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    drawn = False
    for panel, (task, colours) in zip(axes[0], panels, strict=True):
        for index, name in enumerate(techniques):
            for sparsity, colour in colours.items():
                values = _distances(results, Row(task, name, sparsity, split=split))
                drawn = drawn or bool(values)
                panel.plot(values, [index] * len(values), "o", color=colour, markersize=4)
        for value in _distances(results, Row(task, split=split)):
            panel.axvline(value, color="0.6", linewidth=0.8)
        shown = ", ".join(f"{WORDS[colour]}: {percent(sparsity)}" for sparsity, colour in colours.items())
        panel.set(xscale="log", xlabel=f"{_named(task)}; line: dense\n{shown}", title=TASKS[task].title)
        _plain_ticks(panel.xaxis)
    axes[0][0].set_yticks(range(len(techniques)), list(techniques.values()))
    axes[0][0].set_ylim(len(techniques) - 0.5, -0.5)
    return figure if drawn else None


class _Plain(LogFormatter):
    """Plain numbers on a logarithmic axis. Numbers between powers of ten are shown where there is room."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def _plain_ticks(axis: Any) -> None:
    for setting in (axis.set_major_formatter, axis.set_minor_formatter):
        setting(_Plain(minor_thresholds=(1.3, 0.4)))


WORDS = {"C0": "blue", "C3": "red", "C2": "green"}


def recipes(results: Results) -> Any:
    """Plots the candidates for the default recipe at 90 %, on the validation split."""
    tasks = [
        task for task in TASKS if (task, CANDIDATES[-2]) in {(row.task, row.technique) for row in STUDIES["recipe"]}
    ]
    return _dots(results, {name: name for name in CANDIDATES}, [(task, {0.9: "C0"}) for task in tasks], VALIDATION)


def baselines(results: Results) -> Any:
    """Plots the paper's techniques."""
    names = sorted(BASELINES, key=lambda name: (RECIPES[name].row or "~", name))
    labels = {name: f"{RECIPES[name].row or '-'} {name}" for name in names}
    return _dots(results, labels, [(DCGAN, {0.9: "C0"}), (SECOND, {0.5: "C2"})])


def what_of_d(results: Results) -> Any:
    """Plots runs in which parts of the discriminator are untrained, beside the trained and the fresh discriminator."""
    names = (METHOD, "self-supervised-fresh", FEATURES, *DISCRIMINATORS)
    labels = {name: NAMES.get(name, TECHNIQUES[name].text) for name in names}
    return _dots(results, labels, [(DCGAN, {0.9: "C0"})])


def small(results: Results) -> Any:
    """Plots the method beside small dense networks, with the trained discriminator and with a fresh one."""
    names = (METHOD, "small-dense-pretrained", "small-dense", "gan-loss-scratch")
    labels = {name: f"{RECIPES[name].row} {name}" for name in names}
    return _dots(results, labels, [(DCGAN, {0.9: "C0"}), (SECOND, {0.5: "C2"})])


PLOTS: dict[str, dict[str, Callable[[Results], Any]]] = {
    "paper-table2": {"sparsity": by_sparsity},
    "baselines": {"baselines": baselines, "small": small},
    "reviewers": {
        "entropy": discriminators,
        "losses": curves,
        "loss-and-distance": loss_and_distance,
        "what-of-d": what_of_d,
    },
    "granularity": {"granularity": granularity},
    "recipe": {"recipes": recipes},
}
