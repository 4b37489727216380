"""Batch 1 on a GPU is bound by launches: one generator, called as it is and replayed from a CUDA graph.

python benchmarks/cuda_graph.py [--sparsity 0.9] [--granularity element] [--json FILE]

The way to do it: run the model a few times on a side stream (plans are made then, which waits for the device), capture
one call, and from then on copy each input into the captured one and replay.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.benchmark.gpu import gpu_facts
from sparsegan.training import write_json


def replayed(model: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """``model`` in evaluation mode as a CUDA graph for inputs of ``example``'s shape; the output is overwritten by the
    next call."""
    static = example.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            model(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = model(static)

    def call(x: Tensor) -> Tensor:
        static.copy_(x)
        graph.replay()
        return output

    return call


def latency(call: Callable[[Tensor], Tensor], inputs: list[Tensor], repeats: int = 50) -> list[float]:
    """Milliseconds from input to output on the host's clock: median, 95th percentile."""
    times = []
    for index in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(inputs[index % len(inputs)])
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
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
            graph = replayed(model, inputs[0])
            torch.testing.assert_close(graph(inputs[1]), model(inputs[1]), rtol=1e-3, atol=1e-3)
            rows[name] = {"called_ms": latency(model, inputs), "replayed_ms": latency(graph, inputs)}
    for name, row in rows.items():
        text = ", ".join(f"{way.removesuffix('_ms')} {ms:.3f} ms (95 %: {late:.3f})" for way, (ms, late) in row.items())
        print(f"DCGAN 64x64, batch 1, {name}: {text}")
    if options.json:
        write_json(options.json, {"command": "python benchmarks/cuda_graph.py", **facts, "rows": rows})


if __name__ == "__main__":
    main()
