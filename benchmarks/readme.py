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

#: what of sparsegan.info a table names; figures that the machine has no part in name less
FACTS = ("machine", "cpu isa in use", "threads", "torch")


def markdown(head: list[str], rows: list[list[str]], below: str) -> str:
    """A table and a line of text below it."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{below}\n"


def measured(report: Report, command: str) -> str:
    """How a report's figures came to be."""
    facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if key in FACTS)
    return f"Measured by `{command}` ({facts})."


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
    return markdown(head, rows, measured(report, report["command"]))


def demo(report: Report) -> str:
    """The demo's own table, a generator a column."""
    head, lines = columns(report)
    rows = [list(row) for row in zip(head, *lines, strict=True)]
    return markdown(["", *rows[0][1:]], rows[1:], f"{note(report)} {measured(report, 'make demo')}")


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
    return markdown(head, rows, measured(report, "make demo"))


# name in README.md -> file under results/, how to show it
TABLES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "checkpoint": ("checkpoint", checkpoint),
    "demo": ("demo", demo),
    "layers": ("demo", layers),
}


def filled(text: str) -> str:
    """README text with every table made anew."""

    def table(block: re.Match[str]) -> str:
        file, show = TABLES[block[2]]
        report = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
        return f"{block[1]}{show(report)}{block[3]}"

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
