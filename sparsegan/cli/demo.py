"""Compress the DCGAN of this repository to 90 % element sparsity on real digits, and compare with the usual methods.

The demo ends with a table and OUT/report.html. It can be stopped at any moment; the same command continues it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data
from ..atomic_files import write_json, write_text
from ..checkpoint import load, save
from ..clock import Clock
from ..compress import RECIPES, RunConfig, baseline
from ..gans import dcgan, store
from ..metrics import distances as metrics
from ..metrics.classifier import find_classifier
from ..nn.layer import SparseConvTranspose2d
from ..nn.replace import densify
from ..profiling.layers import interleaved_ms, profile
from ..profiling.macs import count_macs, training_bytes
from ..randomness import CPU
from ..training import Run
from .common import add_device, add_seed, add_threads, at_least_one, find_checkpoints, set_threads, use_device
from .loading import placed
from .report import report, show_table, where

#: From the name of a row to its recipe, in the order of the table. The method comes last.
ROWS = {
    "pruned, not fine-tuned": "one-shot",
    "pruned, plain GAN loss": "gan-loss",
    "self-supervised": "feature-distillation",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan demo`."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run directory (default: runs/demo)")
    parser.add_argument(
        "--checkpoints", type=Path, help="the folder with the trained networks (default: the repository's)"
    )
    parser.add_argument("--sparsity", type=float, default=0.9, help="target, from 0 to below 1 (default: 0.9)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"fine-tuning steps (default: {STEPS})")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images per step (default: {BATCH})")
    parser.add_argument(
        "--samples", type=at_least_one, default=2000, help="images per measurement of a distance (default: 2000)"
    )
    add_seed(parser, "all random numbers")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    add_threads(parser)
    add_device(parser)


STEPS, BATCH = 900, 16
#: The last layer stays dense. A tenth of its 512 weights is too few for an image, and of the generator's 1,098,240
#: weights, pruning this layer would save almost nothing.
LAST_LAYER = "main.12"
#: The learning rates of every row. The discriminator's is the learning rate of its training.
GENERATOR_LR, DISCRIMINATOR_LR = 2e-3, 2e-4


def run(arguments: argparse.Namespace) -> None:
    """Make every row, then print the table and write results.json and report.html."""
    set_threads(arguments.threads)
    device = use_device(arguments)
    started = time.perf_counter()
    checkpoints = arguments.checkpoints or find_checkpoints()
    settings = ("sparsity", "steps", "batch", "samples", "seed")
    config = {"command": "demo"} | {name: getattr(arguments, name) for name in settings}
    config |= {} if device == CPU else {"device": str(device)}  # a table must not mix times of two devices
    Run(arguments.out, config, resume=True)  # refuses a folder of a run with other settings
    gan = placed(store.load(checkpoints / "dcgan-mnist"), device)
    features = metrics.load_features(find_classifier("mnist", checkpoints), device)
    images, _ = data.labelled("mnist")
    evaluator = metrics.Evaluator(images, features, features.network)

    rows = {"dense": _row(arguments, "dense", gan.generator, evaluator)}
    generators: dict[str, nn.Module] = {"dense": gan.generator}
    for title, recipe in ROWS.items():
        folder = arguments.out / recipe
        compressor = baseline(
            recipe,
            gan.generator,
            gan.discriminator,
            gan.objective,
            steps=arguments.steps,
            sparsity=_target(gan.generator, arguments.sparsity),
            exclude=(LAST_LAYER,),
            generator_lr=GENERATOR_LR,
            discriminator_lr=DISCRIMINATOR_LR,
            decay=True,
            every=5,
            seed=arguments.seed,
            run=RunConfig(
                folder,
                resume=True,
                checkpoint_every=50,
                settings={"batch": arguments.batch},
                title=f"{title:<24}",
                quiet=arguments.quiet,
            ),
        )
        file = folder / "generator.safetensors"
        if file.exists():
            generator = load(copy.deepcopy(gan.generator), file).eval()
        else:
            begun = time.perf_counter()
            generator = compressor.fit(data.Batches(images, arguments.batch)).generator
            save(generator, file)
            write_json(folder / "seconds.json", round(time.perf_counter() - begun, 1))
        generators[title] = generator
        rows[title] = _row(arguments, title, generator, evaluator, file)
    example = dcgan.noise(gan.generator, 64, 0)
    layers = [asdict(row) for row in profile(generators["self-supervised"], example, seconds=0.1).rows]
    results: dict[str, Any] = {
        "settings": config,
        "network": evaluator.network,
        "last_layer": LAST_LAYER,
        "rows_made": {title: RECIPES[recipe].text for title, recipe in ROWS.items()},
        "rows": rows,
        "layers": layers,
        "machine": machine(device),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(arguments.out / "results.json", results)
    with torch.no_grad():
        samples = {title: generator(example[:40]).cpu() for title, generator in generators.items()}
    histories = {title: _history(arguments.out / recipe) for title, recipe in ROWS.items()}
    write_text(arguments.out / "report.html", report(results, samples, histories))
    show_table(results)
    print(
        f"{results['seconds']:.0f} s on {where(results)}. Pictures and curves: "
        f"{arguments.out / 'report.html'}; figures: {arguments.out / 'results.json'}"
    )


def _history(folder: Path) -> list[dict[str, float]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def machine(device: torch.device) -> dict[str, Any]:
    """The processor, device, number of threads and versions that the figures depend on."""
    from ..profiling.info import info

    return {**info(), "device": str(device), "threads": torch.get_num_threads()}


def _row(
    arguments: argparse.Namespace,
    title: str,
    generator: nn.Module,
    evaluator: metrics.Evaluator,
    file: Path | None = None,
) -> dict[str, Any]:
    """One row of the table. It is stored on disk, so that a continued demo does not measure it again."""
    kept = arguments.out / "rows" / f"{title.replace(', ', ' ').replace(' ', '-')}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    if not arguments.quiet:
        print(f"measuring: {title}")
    if file is None:
        file = arguments.out / "dense.safetensors"
        save(generator, file)
    noise = dcgan.noise(generator, 64, 0)  # type: ignore[arg-type]
    distances = evaluator.distances(lambda n: generator(dcgan.noise(generator, n)), arguments.samples)  # type: ignore[arg-type]
    macs = count_macs(generator, noise[:1])
    row = {
        "fid": distances.fid,
        "fid_spread": distances.fid_spread,
        "kid": distances.kid,
        "kid_spread": distances.kid_spread,
        "samples": distances.samples,
        "sample_seeds": list(distances.seeds),
        "sparsity": _sparsity(generator),
        "macs": macs.executed,
        "file_bytes": file.stat().st_size,
        "training_bytes": _training_bytes(generator, noise[:2]),
        "seconds": json.loads((file.parent / "seconds.json").read_text()) if title != "dense" else None,
        **_milliseconds(generator, noise),
    }
    write_json(kept, row)
    return row


def _target(generator: nn.Module, sparsity: float) -> float:
    """The sparsity of the pruned layers that gives the whole generator `sparsity` while its last layer is dense."""
    weights = {name: m.weight.numel() for name, m in generator.named_modules() if isinstance(m, nn.ConvTranspose2d)}
    total = sum(weights.values())
    return sparsity * total / (total - weights[LAST_LAYER])


def _sparsity(generator: nn.Module) -> float:
    """The fraction of all convolution weights that were dropped."""
    total = kept = 0
    for module in generator.modules():
        if isinstance(module, SparseConvTranspose2d):
            total, kept = total + math.prod(module.weight_shape), kept + module.nnz
        elif isinstance(module, nn.ConvTranspose2d):
            total, kept = total + module.weight.numel(), kept + module.weight.numel()
    return 1 - kept / total


def _training_bytes(generator: nn.Module, noise: Tensor) -> int:
    """The bytes of parameters, gradients, Adam's moments, support and plans of a generator in training."""
    trained = copy.deepcopy(generator).requires_grad_(True).train()
    optimizer = torch.optim.Adam(trained.parameters())
    trained(noise).sum().backward()
    optimizer.step()
    return sum(training_bytes(trained, optimizer).values())


def _milliseconds(generator: nn.Module, noise: Tensor) -> dict[str, float]:
    """The times of a batch in a forward pass, and in a forward with a backward pass, in milliseconds.

    Both are measured for the generator and for its dense twin, in the faster of torch's two layouts.
    """
    plain, last = densify(copy.deepcopy(generator)), store.channels_last(densify(copy.deepcopy(generator)))
    for module in plain.modules():
        if isinstance(module, nn.ConvTranspose2d):
            module.weight.data = module.weight.data.contiguous()
    networks, clock = [copy.deepcopy(generator), plain, last], Clock(noise)
    with torch.no_grad():
        forward = interleaved_ms(clock, [partial(network, noise) for network in networks], seconds=1.0)
    for network in networks:
        network.requires_grad_(True).train()
    both = interleaved_ms(clock, [partial(_forward_backward, network, noise) for network in networks], seconds=2.0)
    return {
        "forward_ms": forward[0],
        "forward_ms_dense": min(forward[1:]),
        "train_ms": both[0],
        "train_ms_dense": min(both[1:]),
    }


def _forward_backward(generator: nn.Module, noise: Tensor) -> None:
    generator(noise).sum().backward()
