"""Fills the tables of README.md from benchmarks/results/*.json: between `<!-- table: NAME -->` and `<!-- end -->`.

python benchmarks/readme.py           rewrite README.md
python benchmarks/readme.py --check   only say whether that would change it
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsegan.cli.report import columns, note

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Report = dict[str, Any]


def markdown(head: list[str], rows: list[list[str]], below: str) -> str:
    """A table and a line of text below it."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{below}\n"


def measured(command: str, *facts: str) -> str:
    """How a report's figures came to be."""
    return f"Measured by `{command}` ({', '.join(facts)})."


def checkpoint(report: Report) -> str:
    """File sizes: one row a network and sparsity."""

    def size(row: Report, kind: str) -> str:
        return f"{row[kind] / 1e6:.2f} MB ({row['dense'] / row[kind]:.1f}x)"

    head = ["DCGAN generator", "sparsity", "dense float32", "float32 values", "float16 values", "bfloat16 values"]
    rows = [
        [
            f"ngf {row['ngf']}, {row['nc']} channel{'s' * (row['nc'] > 1)}",
            f"{row['sparsity']:.0%}",
            f"{row['dense'] / 1e6:.2f} MB",
            *(size(row, kind) for kind in ("float32", "float16", "bfloat16")),
        ]
        for row in report["rows"]
    ]
    return markdown(head, rows, measured(report["command"], f"torch {report['torch']}"))


def bench_layers(report: Report) -> str:
    """Single layers against the best dense engine."""
    rows = [
        [
            row["layer"],
            f"{row['sparsity']:.0%}",
            str(row["threads"]),
            f"{row['dense_ms'][row['best_dense']]:.2f} ({row['best_dense']})",
            f"{row['sparse_ms']:.2f}",
            f"{row['ratio']:.1f}x" + ("" if row["kernel"] == "sparse" else " (runs dense)"),
            f"{row['gflops']:.0f}",
        ]
        for row in report["rows"]
    ]
    head = ["layer", "sparsity", "threads", "best dense, ms", "sparse, ms", "faster", "GFLOP/s on kept weights"]
    peak = f"FMA peak of a core {report['fma_peak_gflops_a_core']:.0f} GFLOP/s"
    facts = (report["machine"], report["isa"], peak, f"torch {report['torch']}")
    return markdown(head, rows, measured(report["command"], *facts))


def _demo_facts(report: Report) -> str:
    machine = report["machine"]
    facts = (
        machine["machine"],
        machine["cpu isa in use"],
        f"{machine['threads']} threads",
        f"torch {machine['torch']}",
    )
    return measured("make demo", *facts)


def demo(report: Report) -> str:
    """The demo's own table, a generator a column."""
    head, lines = columns(report)
    rows = [list(row) for row in zip(head, *lines, strict=True)]
    return markdown(["", *rows[0][1:]], rows[1:], f"{note(report)} {_demo_facts(report)}")


def layers(report: Report) -> str:
    """The layers of the demo's self-supervised generator."""
    rows = [
        [
            row["geometry"],
            f"{row['sparsity']:.1%}",
            f"{row['dense_macs'] / 1e6:,.1f} M",
            f"{row['executed_macs'] / 1e6:,.1f} M",
            f"{row['dense_ms']:.2f}",
            f"{row['sparse_ms']:.2f}",
            row["kernel"],
        ]
        for row in report["layers"]
    ]
    head = ["layer", "sparsity", "MACs dense", "executed", "dense ms", "sparse ms", "kernel that `auto` takes"]
    return markdown(head, rows, _demo_facts(report))


def equations(report: Report) -> str:
    """The paper's equations as they are, in the demo's setting: one sentence."""
    fid = f"{report['fid']:.0f} ± {report['fid_spread']:.0f}"
    text = f"The paper's equations (7)-(9) as they are, in the demo's setting: FID (digit classifier) {fid}."
    return f"{text} {measured(report['command'])}\n"


# name in README.md -> file under results/, how to show it
TABLES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "checkpoint": ("checkpoint", checkpoint),
    "bench_layers": ("layers", bench_layers),
    "demo": ("demo", demo),
    "layers": ("demo", layers),
    "equations": ("equations", equations),
}


def filled(text: str) -> str:
    """README text with every table made anew."""

    def table(block: re.Match[str]) -> str:
        name, show = TABLES[block[2]]
        file = ROOT / "benchmarks" / "results" / f"{name}.json"
        text = show(json.loads(file.read_text())) if file.exists() else "Not measured yet.\n"
        return f"{block[1]}{text}{block[3]}"

    return BLOCK.sub(table, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when README.md is not up to date")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = filled(old)
    if options.check and new != old:
        sys.exit("README.md does not show benchmarks/results: run python benchmarks/readme.py")
    if new != old:
        readme.write_text(new)


if __name__ == "__main__":
    main()
