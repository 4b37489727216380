"""The study's plots, as small svg files; the same results give the same bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from ..training import write_whole
from . import paper
from .grids import CANDIDATES, DCGAN, GRANULARITIES, SPARSITIES, STUDIES, Row
from .report import Cell, speed_up
from .results import Results

NAMES = {
    "self-supervised": "equations 7-9",
    "self-supervised-features": "L_F",
    "self-supervised-fresh": "equations 7-9, D from scratch",
    "self-supervised-frozen": "equations 7-9, D frozen",
    "gan-loss-fresh": "GAN loss, D from scratch",
    "gan-loss": "GAN loss",
    "prune-both": "n: D pruned too",
}


def draw(study: str, results: Results, folder: Path) -> None:
    """Write the plots of a study whose rows are there, `folder`/study-NAME.svg."""
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


def _fid(cell: Cell) -> list[float]:
    return cell.values("scores", "samples", "fid")


def by_sparsity(results: Results) -> Any:
    """Distance over the dense generator's, against sparsity; every seed a point."""
    dense = _fid(Cell.of(results, Row(DCGAN)))
    if not dense:
        return None
    figure, panel = plt.subplots(figsize=(5.4, 3.4))
    for colour, technique in (("C3", "self-supervised"), ("C0", "self-supervised-features")):
        cells = {s: _fid(Cell.of(results, Row(DCGAN, technique, s))) for s in SPARSITIES}
        found = {s: [value / dense[0] for value in values] for s, values in cells.items() if values}
        medians = [statistics.median(values) for values in found.values()]
        panel.plot([100 * s for s in found], medians, color=colour, label=f"{NAMES[technique]}, median")
        points = [(100 * s, value) for s, values in found.items() for value in values]
        panel.plot(*zip(*points, strict=True), "o", color=colour, markersize=4)
    known = paper.SPARSITIES[DCGAN, "samples"][1]
    ratios = [value / known[0.0] for value in known.values()]
    panel.plot([100 * s for s in known], ratios, "k--", linewidth=1, label="the paper's DCGAN on MNIST")
    panel.axhline(1, color="0.6", linewidth=0.8)
    panel.set(yscale="log", xlabel="sparsity in %", ylabel="Fréchet distance / the dense generator's")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.legend(frameon=False)
    panel.set_title("DCGAN on MNIST, a point a seed")
    return figure


def discriminators(results: Results) -> Any:
    """The discriminator's entropy on the compressed generator's images and on real ones, over the steps."""
    shown = {"entropy_compressed": "on the compressed generator's images", "entropy_real": "on real images"}
    techniques = ("self-supervised", "self-supervised-frozen", "self-supervised-fresh", "gan-loss", "gan-loss-fresh")
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
    """Loss curves beside the distance that the run ended with: the loss says little of the images."""
    techniques = ("self-supervised", "self-supervised-frozen", "gan-loss", "gan-loss-fresh", "prune-both")
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
        panel.set_title(f"{NAMES[technique]}\nFID {done[0]['scores']['samples']['fid']:,.0f}")
        panel.set_xlabel("step")
    panels[0].set_ylabel("loss term")
    if drawn:
        panels[0].legend(frameon=False, fontsize=7.5)
    return figure if drawn else None


def granularity(results: Results) -> Any:
    """Distance against how many times faster than the dense generator, a line a granularity."""
    sparsities = sorted({row.sparsity for row in STUDIES["granularity"]})
    figure, panel = plt.subplots(figsize=(5.4, 3.4))
    drawn = False
    for index, unit in enumerate(GRANULARITIES):
        rows = [Row(DCGAN, "self-supervised-features", sparsity, unit) for sparsity in sparsities]
        points = [(speed_up(results, row), Cell.of(results, row).mean("scores", "samples", "fid")) for row in rows]
        known = [point for point in points if None not in point]
        if known:
            drawn = True
            panel.plot(*zip(*known, strict=True), "o-", color=f"C{index}", markersize=4, label=unit)
    for value in _fid(Cell.of(results, Row(DCGAN))):
        panel.plot(1, value, "k*", label="dense")
    panel.set(yscale="log", xlabel="times faster than dense, batch of 64, one thread", ylabel="Fréchet distance")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.set_title("DCGAN on MNIST, L_F, at 50, 75 and 90 %")
    panel.legend(frameon=False, fontsize=8)
    return figure if drawn else None


def recipes(results: Results) -> Any:
    """Each candidate's distance at 90 % and 95 %, a point a seed."""
    figure, panel = plt.subplots(figsize=(6.4, 0.6 + 0.28 * len(CANDIDATES)))
    drawn = False
    for index, name in enumerate(reversed(CANDIDATES)):
        for sparsity, colour in ((0.9, "C0"), (0.95, "C3")):
            values = _fid(Cell.of(results, Row(DCGAN, name, sparsity)))
            drawn = drawn or bool(values)
            panel.plot(values, [index] * len(values), "o", color=colour, markersize=4)
    for value in _fid(Cell.of(results, Row(DCGAN))):
        panel.axvline(value, color="0.6", linewidth=0.8)
    panel.set_yticks(range(len(CANDIDATES)), list(reversed(CANDIDATES)))
    panel.set(xscale="log", xlabel="Fréchet distance; line: dense; blue: 90 %, red: 95 %")
    return figure if drawn else None


PLOTS: dict[str, dict[str, Callable[[Results], Any]]] = {
    "paper-table2": {"sparsity": by_sparsity},
    "reviewers": {"entropy": discriminators, "losses": curves},
    "granularity": {"granularity": granularity},
    "recipe": {"recipes": recipes},
}
