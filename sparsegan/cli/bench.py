"""Time single layers against the best dense engine that is installed: torch, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan bench`."""
    parser.add_argument("what", choices=["layers"], help="layers: one forward of each reference layer")
    parser.add_argument("--threads", default="1", help="thread counts, for example 1,2 (default: 1)")
    parser.add_argument("--sparsity", default="0.9", help="sparsities, for example 0.5,0.9 (default: 0.9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on a row (default: 1)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> None:
    """Print a row a layer, sparsity and thread count."""
    from ..benchmark import bench_layers
    from ..engine import write_json

    threads = _numbers("--threads", arguments.threads, int, 1, 1024)
    sparsities = _numbers("--sparsity", arguments.sparsity, float, 0, 0.999)
    print(f"{'layer':<44}{'sparsity':>9}{'threads':>8}{'best dense':>22}{'dense ms':>10}{'sparse ms':>10}{'ratio':>7}")

    def row(r: dict[str, Any]) -> None:
        note = "" if r["kernel"] == "sparse" else "  (auto: dense)"
        print(
            f"{r['layer']:<44}{r['sparsity']:>9.0%}{r['threads']:>8}{r['best_dense']:>22}"
            f"{r['dense_ms'][r['best_dense']]:>10.2f}{r['sparse_ms']:>10.2f}{r['ratio']:>6.1f}x{note}",
            flush=True,
        )

    report = bench_layers(sparsities, threads, arguments.seconds, row)
    print(f"{report['machine']}, {report['isa']}, FMA peak {report['fma_peak_gflops_a_core']:.0f} GFLOP/s a core")
    if arguments.json:
        command = f"sparsegan bench layers --threads {arguments.threads} --sparsity {arguments.sparsity}"
        write_json(arguments.json, {"command": f"{command} --json {arguments.json}", **report})


def _numbers(name: str, text: str, kind: Any, least: float, most: float) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(least <= value <= most for value in values):
        raise ValueError(f"{name} is {text!r}; it must be numbers from {least} to {most}, separated by commas")
    return values
