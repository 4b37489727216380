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

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Report = dict[str, Any]


def markdown(columns: list[str], rows: list[list[str]], note: str) -> str:
    """A table and a line of text below it."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{note}\n"


def measured(report: Report) -> str:
    """How a report's figures came to be."""
    facts = [f"{key} {report[key]}" for key in ("machine", "threads", "torch") if key in report]
    return f"Measured by `{report['command']}`" + (f" ({', '.join(facts)})." if facts else ".")


def checkpoint(report: Report) -> str:
    """File sizes: one row a network and sparsity."""

    def size(row: Report, kind: str) -> str:
        return f"{row[kind] / 1e6:.2f} MB ({row['dense'] / row[kind]:.1f}x)"

    columns = ["DCGAN generator", "sparsity", "dense float32", "float32 values", "float16 values", "bfloat16 values"]
    rows = [
        [
            f"ngf {row['ngf']}, {row['nc']} channel{'s' * (row['nc'] > 1)}",
            f"{row['sparsity']:.0%}",
            f"{row['dense'] / 1e6:.2f} MB",
            *(size(row, kind) for kind in ("float32", "float16", "bfloat16")),
        ]
        for row in report["rows"]
    ]
    return markdown(columns, rows, measured(report))


TABLES: dict[str, Callable[[Report], str]] = {"checkpoint": checkpoint}


def filled(text: str) -> str:
    """README text with every table made anew."""

    def table(block: re.Match[str]) -> str:
        report = json.loads((ROOT / "benchmarks" / "results" / f"{block[2]}.json").read_text())
        return f"{block[1]}{TABLES[block[2]](report)}{block[3]}"

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
