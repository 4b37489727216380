"""Draws docs/speedup.svg from benchmarks/results/sparsity.json: speed-up over the best dense engine against sparsity.

    python benchmarks/plot_sparsity.py [--json benchmarks/results/sparsity.json] [--out docs/speedup.svg]

The figures are those of `sparsegan bench layers --sparsity 0,0.25,0.5,0.75,0.9,0.95,0.99 --json ...` on one thread.
The same figures give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from sparsegan.atomic_files import write_whole

ROOT = Path(__file__).resolve().parent.parent

#: Layers to draw, as far as they were timed.
SHOWN = (
    "256->256 3x3 @64x64 batch 1",
    "256->256 3x3 @32x32 batch 16",
    "256->128 transposed 4x4 s2 @32x32 batch 16",
    "64->64 3x3 @96x96 batch 1",
)
ENGINES = {"torch": "C1", "torch channels_last": "C2", "onnxruntime": "C4", "openvino": "C5"}
OURS, LIMIT = "C0", "0.6"

Report = dict[str, Any]


def draw(report: Report, out: Path) -> None:
    """Writes the figure, one panel per layer. Raises ``ValueError`` if the report has no layer of :data:`SHOWN`."""
    rows = [row for row in report["rows"] if row["threads"] == 1 and row["granularity"] == "element"]
    layers = [name for name in SHOWN if any(row["layer"] == name for row in rows)]
    if not layers:
        raise ValueError(f"the report has no row of one thread and single elements for any of: {'; '.join(SHOWN)}")
    plt.rcParams.update({"svg.hashsalt": "sparsegan", "font.size": 9, "axes.titlesize": 9.5})
    columns = 2 if len(layers) == 4 else len(layers)
    lines = -(-len(layers) // columns)
    size = (4.4 * columns, 0.9 + 2.8 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    panels = [panel for line in grid for panel in line]
    for panel, layer in zip(panels, layers, strict=True):
        _panel(panel, layer, sorted((row for row in rows if row["layer"] == layer), key=lambda row: row["sparsity"]))
    ratios = [ratio for row in rows if row["layer"] in layers for ratio in (row["ratio"], *_dense_ratios(row).values())]
    panels[0].set_ylim(0.8 * min(ratios), 1.5 * max(ratios))
    for line in grid:
        line[0].set_ylabel("times faster than the best dense engine")
    for panel in grid[-1]:
        panel.set_xlabel("sparsity in %, spaced by the weights left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, frameon=False, fontsize=8.5)
    figure.text(0.995, 0.004, f"{report['machine']}, {report['isa']}, 1 thread, forward", ha="right", fontsize=7.5)
    figure.tight_layout(rect=(0, 0.012, 1, 1 - 0.55 / size[1]))
    write_whole(out, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    plt.close(figure)


def _panel(panel: Any, layer: str, rows: list[Report]) -> None:
    """Draws one layer. The x axis is 1 / (1 - sparsity): on logarithmic axes the limit is then a straight line."""
    left = [1 / (1 - row["sparsity"]) for row in rows]
    panel.plot(left, left, color=LIMIT, linestyle="--", linewidth=1, label="1 / (1 - sparsity)")
    panel.axhline(1, color="0.3", linewidth=0.8, label="break-even")
    dense = [_dense_ratios(row) for row in rows]
    for slot, (engine, colour) in enumerate(ENGINES.items()):  # side by side, because most ratios are close to 1
        times = [ratios[engine] for ratios in dense if engine in ratios]
        if times:
            start = 0.54 + 0.115 * slot
            label = f"{engine}, dense"
            panel.axhline(statistics.median(times), start, start + 0.09, color=colour, linewidth=3, label=label)
    panel.plot(left, [row["ratio"] for row in rows], color=OURS, marker="o", markersize=4, label="sparsegan")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.minorticks_off()
    panel.set_xticks(left, [f"{100 * row['sparsity']:g}" for row in rows])
    marks = [0.2, 0.5, 1, 2, 5, 10, 20, 50]
    panel.set_yticks(marks, [f"{mark:g}x" for mark in marks])
    panel.grid(color="0.92", linewidth=0.6)
    panel.set_title(layer)


def _dense_ratios(row: Report) -> dict[str, float]:
    """The speed of each dense engine relative to the fastest dense engine: 1 or below."""
    best = row["dense_ms"][row["best_dense"]]
    return {engine: best / ms for engine, ms in row["dense_ms"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed-up over the best dense engine against sparsity.")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "sparsity.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "speedup.svg")
    options = parser.parse_args()
    draw(json.loads(options.json.read_text(encoding="utf-8")), options.out)


if __name__ == "__main__":
    main()
