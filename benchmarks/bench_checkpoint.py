"""File sizes of DCGAN generators: dense float32 safetensors against sparsegan.save.

    python benchmarks/bench_checkpoint.py [--json benchmarks/results/checkpoint.json]

Each size is that of the whole file. A size depends on the places of the kept weights. Here the places are random,
because freshly initialised weights are pruned by magnitude.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import sparsegan as sg
from sparsegan.checkpoint import file_report
from sparsegan.gans import dcgan

SPARSITIES = (0.75, 0.9, 0.95)
#: Granularity and dtype of the values of each file.
FILES = {
    "float32": ("element", "float32"),
    "float16": ("element", "float16"),
    "bfloat16": ("element", "bfloat16"),
    "int8": ("element", "int8"),
    "input:4 int8": ("input:4", "int8"),
}


def measure(ngf: int, nc: int, folder: Path) -> list[dict[str, Any]]:
    """One row per sparsity: bytes of the dense file and of each compressed file."""
    rows = []
    for sparsity in SPARSITIES:
        torch.manual_seed(0)
        dense = dcgan.Generator(ngf=ngf, nc=nc)
        safetensors.torch.save_file(dense.state_dict(), folder / "dense.safetensors")
        row: dict[str, Any] = {"ngf": ngf, "nc": nc, "sparsity": sparsity}
        row["dense"] = (folder / "dense.safetensors").stat().st_size
        for name, (granularity, values) in FILES.items():
            path = folder / "sparse.safetensors"
            sg.save(sg.sparsify(copy.deepcopy(dense), sparsity=sparsity, granularity=granularity), path, values=values)
            row[name] = file_report(path)["bytes"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for ngf, nc in ((32, 1), (64, 3)) for row in measure(ngf, nc, Path(folder))]
    for row in rows:
        sizes = "  ".join(f"{v} {row[v]:>9,} B {row['dense'] / row[v]:5.1f}x" for v in FILES)
        print(f"DCGAN ngf={row['ngf']} nc={row['nc']} {row['sparsity']:.0%}  dense {row['dense']:>10,} B  {sizes}")
    if options.json:
        command = "python benchmarks/bench_checkpoint.py --json benchmarks/results/checkpoint.json"
        report = {"command": command, "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
