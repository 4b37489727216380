"""Times a whole compression step at 90 %, with compressed weights and with masks over dense weights, by kind of work.

python benchmarks/compression_step.py [--threads 2] [--json benchmarks/results/compression_step.json]
python benchmarks/compression_step.py --device cuda --json benchmarks/results/compression_step_gpu.json

The step runs equations 7-9 as `sparsegan compress` does: prune, make fakes, step the discriminator, compute the terms
of the dense and of the compressed generator, step the compressed generator. Masks are those of torch.nn.utils.prune.
The networks are random, of the published sizes, and so are the images: random values cost the same time.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile

from sparsegan.benchmark.engines import Timing, timed
from sparsegan.benchmark.gpu import gpu_facts
from sparsegan.benchmark.results import Results
from sparsegan.compress import CompressionConfig
from sparsegan.compress.step import CompressionTask
from sparsegan.gans import store
from sparsegan.nn.granularity import magnitude_mask
from sparsegan.ops import native
from sparsegan.placement import moved
from sparsegan.profiling.info import cpu_name
from sparsegan.pruning.allocation import Targets
from sparsegan.pruning.schedule import OneShot
from sparsegan.pruning.surgery import sparsify

SPARSITY, TARGET = 0.9, 1.5


def images(batch: int, size: int) -> torch.Tensor:
    """Random images in [-1, 1]."""
    return torch.rand(batch, 3, size, size) * 2 - 1


#: Name -> the network and a function that makes a batch.
CASES: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "StarGAN 128x128, batch 4": (
        {"gan": "stargan", "width": 64, "domains": 5, "blocks": 6, "image_size": 128, "discriminator_layers": 6},
        lambda: (images(4, 128), torch.tensor([0, 3, 1, 4])),
    ),
    "CycleGAN 256x256, batch 1": (
        {"gan": "cyclegan", "width": 64, "blocks": 9, "in_channels": 3, "out_channels": 3},
        lambda: (images(1, 256), images(1, 256)),
    ),
}


def masked(generator: nn.Module) -> nn.Module:
    """The generator with the smallest weights of every convolution masked, as pruning code usually does."""
    for module in list(generator.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            prune.custom_from_mask(module, "weight", magnitude_mask(module.weight, SPARSITY))
    return generator


def task(gan: store.Gan, student: nn.Module) -> CompressionTask:
    """The step of `sparsegan compress` for one student."""
    judge = copy.deepcopy(gan.discriminator)
    ours, theirs = (torch.optim.Adam(network.parameters(), 1e-5, fused=True) for network in (student, judge))
    original = copy.deepcopy(gan.generator).requires_grad_(False).eval()
    settings = OneShot(10, SPARSITY), CompressionConfig(), Targets.of(original, SPARSITY)
    return CompressionTask(original, student, judge, gan.objective, *settings, ours, theirs)


def shares(step: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """The fractions of a step's time by kind of work: torch's profiler, time inside operators only."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]) as seen:
        step()
    kinds = {"sparse convolutions": 0.0, "dense convolutions": 0.0, "norms": 0.0, "the rest": 0.0}
    for event in seen.key_averages():
        name = event.key
        if name.startswith("sparsegan::"):
            kind = "sparse convolutions"
        elif "conv" in name:
            kind = "dense convolutions"
        elif "norm" in name:
            kind = "norms"
        else:
            kind = "the rest"
        kinds[kind] += event.self_device_time_total if gpu else event.self_cpu_time_total
    total = sum(kinds.values()) or 1.0
    return {kind: value / total for kind, value in kinds.items()}


def row(name: str, seconds: float, device: torch.device) -> dict[str, Any]:
    """One row: both ways to run a case, timed in turns."""
    network, batch = CASES[name]
    torch.manual_seed(0)
    gan = store.build({"network": network})
    gan.generator.to(device)
    gan.discriminator.to(device)
    one = moved(batch(), device)
    steps: list[Callable[[], Any]] = []
    makers: list[Callable[[nn.Module], nn.Module]] = [partial(sparsify, sparsity=SPARSITY), masked]
    for make in makers:
        student = make(copy.deepcopy(gan.generator)).train()
        steps.append(partial(task(gan, student).step, 0, one))
    sparse, dense = timed(steps, seconds, gan.generator)

    def fields(kind: str, timing: Timing) -> dict[str, Any]:
        return {f"{kind}_ms": timing.median, f"{kind}_quartiles_ms": timing.quartiles}

    return {
        **fields("sparse", sparse),
        **fields("masked", dense),
        "ratio": dense.median / sparse.median,
        "target": TARGET,
        "holds": dense.median / sparse.median >= TARGET,
        "shares": shares(steps[0], device),
        "shares_masked": shares(steps[1], device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="time spent per case (default: 60)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gpu = options.device.type == "cuda"
    command = "python benchmarks/compression_step.py" + (f" --device {options.device}" if gpu else "")
    command += f" --threads {options.threads} --seconds {options.seconds:g}"
    command += f" --json {options.json}" if options.json else ""
    same = gpu_facts() if gpu else {"machine": cpu_name(), "isa": native.isa(), "torch": torch.__version__}
    results = Results(command, options.json, same, {})
    for name in CASES:
        fields = {"case": name, "threads": options.threads}
        one = results.row(fields, partial(row, name, options.seconds, options.device))
        parts = ", ".join(f"{kind} {share:.0%}" for kind, share in one["shares"].items())
        print(
            f"{name}, {options.device}, {options.threads} threads: masked {one['masked_ms']:.0f} ms, "
            f"sparse {one['sparse_ms']:.0f} ms: {one['ratio']:.2f}x (asked {TARGET}x); of the sparse step: {parts}",
            flush=True,
        )
    results.finish()


if __name__ == "__main__":
    main()
