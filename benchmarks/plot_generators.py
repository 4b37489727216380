"""Draws docs/generators.svg from benchmarks/results/generators.json: where the time of whole generators goes.

    python benchmarks/plot_generators.py [--json benchmarks/results/generators.json] [--out docs/generators.svg]

The figures are those of `sparsegan bench generators --json ...`. Each generator has three bars: the best dense engine,
the drop-in layers and the inference engine, at 90 % element sparsity on one thread. The same figures give the same
bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from sparsegan.atomic_files import write_whole
from sparsegan.benchmark.generators import DENSE, MULTIPLYING, PACKING, POINTWISE, REST

ROOT = Path(__file__).resolve().parent.parent

WHOLE = "a dense engine, all of it"
COLOURS = {WHOLE: "0.8", MULTIPLYING: "C0", PACKING: "C9", DENSE: "C4", POINTWISE: "C1", REST: "0.45"}
BAR, GROUP = 0.9, 4.0  # heights of one bar, and of three bars with the gap below them

Report = dict[str, Any]


def draw(report: Report, out: Path, sparsity: float = 0.9) -> None:
    """Writes the figure. Raises ``ValueError`` if no row has this sparsity, single elements and one thread."""
    wanted = {"threads": 1, "granularity": "element", "sparsity": sparsity}
    rows = [row for row in report["rows"] if all(row[name] == value for name, value in wanted.items())]
    if not rows:
        raise ValueError(f"the report has no row of one thread, single elements and a sparsity of {sparsity:g}")
    plt.rcParams.update({"svg.hashsalt": "sparsegan", "font.size": 9})
    size = (8.8, 0.9 + 0.72 * len(rows))
    figure, panel = plt.subplots(figsize=size)
    places, names = [], []
    for index, row in enumerate(rows):
        top = index * GROUP
        for slot, (name, ms, parts) in enumerate(_bars(row)):
            _bar(panel, top + slot, ms, parts, row["dense_ms"][row["best_dense"]])
            places.append(top + slot)
            names.append(name)
        panel.text(-0.24, top + 1, row["generator"].replace(" batch", "\nbatch"), ha="right", va="center")
    panel.set_yticks(places, names, fontsize=7.5)
    panel.invert_yaxis()
    panel.set_xlabel("time of a call, of the best dense engine's")
    panel.xaxis.set_major_formatter(lambda fraction, _: f"{fraction:.0%}")
    panel.grid(axis="x", color="0.92", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, list(COLOURS), loc="upper center", ncols=len(COLOURS), frameon=False, fontsize=8.5)
    machine = f"{report['machine']}, {report['isa']}, 1 thread, {sparsity:.0%} of the weights dropped one by one"
    figure.text(0.995, 0.006, machine, ha="right", fontsize=7.5)
    figure.tight_layout(rect=(0, 0.012, 1, 1 - 0.35 / size[1]))
    write_whole(out, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    plt.close(figure)


def _bars(row: Report) -> list[tuple[str, float, dict[str, float]]]:
    """Name, milliseconds, and the milliseconds of each kind of work, for each of the three bars."""
    dense = row["dense_ms"][row["best_dense"]]
    return [
        (row["best_dense"], dense, {WHOLE: dense}),
        ("drop-in layers", row["layers_ms"], row["profile"]["layers"]),
        ("engine", row["sparse_ms"], row["profile"]["engine"]),
    ]


def _bar(panel: Any, place: float, ms: float, parts: dict[str, float], dense: float) -> None:
    """One stacked bar of length ``ms / dense``, divided in the ratios of ``parts``."""
    left, total = 0.0, sum(parts.values())
    for kind, colour in COLOURS.items():
        length = ms / dense * parts.get(kind, 0.0) / total
        panel.barh(place, length, BAR, left=left, color=colour)
        left += length
    panel.text(left + 0.008, place, f"{ms:.3g} ms", va="center", fontsize=7.5)


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of whole generators goes.")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "generators.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "generators.svg")
    parser.add_argument("--sparsity", type=float, default=0.9, help="sparsity of the rows to draw (default: 0.9)")
    options = parser.parse_args()
    draw(json.loads(options.json.read_text(encoding="utf-8")), options.out, options.sparsity)


if __name__ == "__main__":
    main()
