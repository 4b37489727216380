"""Latency of a generator at batch 1 on a GPU, called directly and replayed from a CUDA graph.

python benchmarks/cuda_graph.py [--sparsity 0.9] [--granularity element] [--json FILE]

At batch 1 a direct call is bound by kernel launches. `sg.optimize_for_inference` makes the graph.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparsegan as sg
from sparsegan.atomic_files import write_json
from sparsegan.benchmark.gpu import gpu_facts
from sparsegan.clock import Clock


def latency(call: Callable[[Tensor], Tensor], inputs: list[Tensor], repeats: int = 50) -> list[float]:
    """Milliseconds from input to output by the host's clock: [median, 95th percentile]."""
    clock = Clock(inputs)
    times = [clock.ms(partial(call, inputs[index % len(inputs)])) for index in range(repeats)]
    return [statistics.median(times), statistics.quantiles(times, n=20)[-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--granularity", default="element")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    facts = gpu_facts()
    torch.manual_seed(0)
    dense, pruned = (sg.gans.dcgan.Generator(nz=100, ngf=64, nc=3).eval() for _ in range(2))
    sparse = sg.sparsify(pruned, options.sparsity, options.granularity, exclude="main.12")  # 3 channels: no vectors
    inputs = [torch.randn(1, 100, 1, 1, device="cuda") for _ in range(8)]
    rows: dict[str, Any] = {}
    with torch.no_grad():
        for name, model in (("dense", dense.cuda()), ("sparse", sparse.cuda())):
            graph = sg.optimize_for_inference(model, inputs[0])
            torch.testing.assert_close(graph(inputs[1]), model(inputs[1]), rtol=1e-3, atol=1e-3)
            rows[name] = {"called_ms": latency(model, inputs), "replayed_ms": latency(graph, inputs)}
    for name, row in rows.items():
        text = ", ".join(f"{way.removesuffix('_ms')} {ms:.3f} ms (95 %: {late:.3f})" for way, (ms, late) in row.items())
        print(f"DCGAN 64x64, batch 1, {name}: {text}")
    if options.json:
        write_json(options.json, {"command": "python benchmarks/cuda_graph.py", **facts, "rows": rows})


if __name__ == "__main__":
    main()
