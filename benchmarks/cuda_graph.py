"""Latency of whole generators at batch 1 on a GPU, called directly and replayed from a CUDA graph.

python benchmarks/cuda_graph.py [--sparsity 0.9] [--granularity element] [--json FILE]

At batch 1 a direct call is bound by kernel launches. `sg.optimize_for_inference` makes the graph.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.benchmark.generators import GENERATORS, GeneratorCase
from sparsegan.benchmark.gpu import gpu_facts
from sparsegan.benchmark.results import Results, Row
from sparsegan.clock import Clock
from sparsegan.nn.granularity import check_channels
from sparsegan.placement import moved


def latency(call: Callable[..., Any], inputs: list[tuple[Tensor, ...]], repeats: int = 50) -> list[float]:
    """Milliseconds from input to output by the host's clock: [median, 95th percentile]."""
    clock = Clock(inputs)
    times = [clock.ms(partial(call, *inputs[index % len(inputs)])) for index in range(repeats)]
    return [statistics.median(times), statistics.quantiles(times, n=20)[-1]]


def measure(case: GeneratorCase, sparsity: float, granularity: str) -> Row:
    """The latency of the dense and of the sparse generator, called and replayed."""
    torch.manual_seed(0)
    dense = case.dense().eval()
    exclude = [] if granularity == "element" else unfitting(dense, granularity)
    sparse = sg.sparsify(copy.deepcopy(dense), sparsity, granularity, exclude=exclude)
    inputs = [moved(case.inputs(case.batch), torch.device("cuda")) for _ in range(8)]
    row: Row = {"dense_layers": exclude}
    with torch.no_grad():
        for name, model in (("dense", dense.cuda()), ("sparse", sparse.cuda())):
            graph = sg.optimize_for_inference(model, inputs[0])
            torch.testing.assert_close(graph(*inputs[1]), model(*inputs[1]), rtol=1e-3, atol=1e-3)
            row[name] = {"called_ms": latency(model, inputs), "replayed_ms": latency(graph, inputs)}
    return row


def unfitting(model: nn.Module, granularity: str) -> list[str]:
    """The names of the convolutions whose channels are no whole units."""
    names = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            try:
                check_channels(granularity, layer.in_channels, layer.out_channels)
            except ValueError:
                names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--granularity", default="element", help="one or several, separated by commas")
    parser.add_argument("--json", type=Path, help="also write the figures to this file; a stopped run continues")
    options = parser.parse_args()
    command = f"python benchmarks/cuda_graph.py --sparsity {options.sparsity:g} --granularity {options.granularity}"
    results = Results(command + (f" --json {options.json}" if options.json else ""), options.json, gpu_facts(), {})
    for granularity in options.granularity.split(","):
        for case in (
            replace(case, batch=1) for case in dict.fromkeys(GENERATORS) if case.batch == 1 or case.size == 64
        ):
            name = {"generator": str(case), "sparsity": options.sparsity, "granularity": granularity}
            row = results.row(name, partial(measure, case, options.sparsity, granularity))
            for kind in ("dense", "sparse"):
                text = ", ".join(
                    f"{way.removesuffix('_ms')} {ms:.3f} ms (95 %: {late:.3f})" for way, (ms, late) in row[kind].items()
                )
                print(f"{case}, {granularity}, {kind}: {text}", flush=True)
    results.finish()


if __name__ == "__main__":
    main()
