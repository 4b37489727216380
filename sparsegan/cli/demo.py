"""Compress the DCGAN of this repository to 90 % element sparsity on real digits, and compare with the usual methods.

The demo ends with a table and OUT/report.html. It can be stopped at any moment; the same command continues it.
`--sweep` finds the learning rates of the table's rows instead (see demo_sweep.py).
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

from ..atomic_files import write_json, write_text
from ..checkpoint import save
from ..clock import Clock
from ..compress import RECIPES
from ..gans import dcgan, store
from ..metrics import distances as metrics
from ..nn.layer import SparseConvTranspose2d
from ..nn.replace import densify
from ..profiling.layers import interleaved_ms, profile
from ..profiling.macs import count_macs, training_bytes
from ..randomness import CPU
from ..training import Run
from . import demo_sweep
from .common import add_device, add_seed, add_threads, at_least_one, find_checkpoints, set_threads, use_device
from .demo_report import report, show_tables, where
from .demo_rows import LAST_LAYER, MAIN, REPORTED_NOISE, ROWS, DemoRow, Setting, Stage, slug

#: The row of real digits that no generator made.
FLOOR = "other real digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan demo`."""
    usual = Setting()
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run directory (default: runs/demo)")
    parser.add_argument(
        "--checkpoints", type=Path, help="the folder with the trained networks (default: the repository's)"
    )
    parser.add_argument(
        "--sparsity", type=float, default=usual.sparsity, help=f"target, from 0 to below 1 (default: {usual.sparsity})"
    )
    parser.add_argument("--steps", type=int, default=usual.steps, help=f"fine-tuning steps (default: {usual.steps})")
    parser.add_argument("--batch", type=int, default=usual.batch, help=f"images per step (default: {usual.batch})")
    parser.add_argument(
        "--samples",
        type=at_least_one,
        default=usual.samples,
        help=f"images per measurement of a distance (default: {usual.samples})",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="an hour or two: choose each row's learning rates by digits that the table does not use, into OUT/sweep",
    )
    add_seed(parser, "all random numbers")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    add_threads(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Make every row, then print the table and write results.json and report.html."""
    set_threads(arguments.threads)
    device = use_device(arguments)
    started = time.perf_counter()
    setting = Setting(arguments.sparsity, arguments.steps, arguments.batch, arguments.samples)
    config: dict[str, Any] = {"command": "demo", **asdict(setting), "seed": arguments.seed}
    config |= {} if device == CPU else {"device": str(device)}  # a table must not mix times of two devices
    checkpoints = arguments.checkpoints or find_checkpoints()
    if arguments.sweep:
        folder = arguments.out / "sweep"
        Run(folder, config, resume=True)  # refuses a folder of a run with other settings
        stage = Stage(checkpoints, setting, device, arguments.quiet)
        facts = {"command": "sparsegan demo --sweep", "machine": machine(device)}
        demo_sweep.report(stage, folder, arguments.seed, facts)
        return
    rates = {title: [row.generator_lr, row.discriminator_lr] for title, row in ROWS.items() if row.generator_lr}
    Run(arguments.out, config | {"learning_rates": rates}, resume=True)
    stage = Stage(checkpoints, setting, device, arguments.quiet)
    evaluator = stage.evaluator(stage.digits.reported)
    generators: dict[str, nn.Module] = {"dense": stage.gan.generator}
    rows = {FLOOR: _floor(stage, evaluator)}
    rows["dense"] = _row(arguments, "dense", stage.gan.generator, stage, evaluator, arguments.out / "dense.safetensors")
    for title, row in ROWS.items():
        folder = arguments.out / slug(title)
        generators[title] = stage.fine_tuned(row, folder, title, arguments.seed)
        rows[title] = _row(arguments, title, generators[title], stage, evaluator, folder / "generator.safetensors")
    example = dcgan.noise(stage.gan.generator, 64, REPORTED_NOISE[0])
    layers = [asdict(row) for row in profile(generators[MAIN], example, seconds=0.1).rows]
    comparable = setting == Setting()  # the bands are those of the usual setting
    results: dict[str, Any] = {
        "settings": config,
        "network": evaluator.network,
        "digits": len(stage.digits.reported),
        "last_layer": LAST_LAYER,
        "main": MAIN,
        "made": {title: _made(row, comparable) for title, row in ROWS.items()},
        "rows": rows,
        "times": _times(generators[MAIN], example),
        "layers": layers,
        "machine": machine(device),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(arguments.out / "results.json", results)
    with torch.no_grad():
        samples = {title: generator(example[:40]).cpu() for title, generator in generators.items()}
    histories = {title: _history(arguments.out / slug(title)) for title in ROWS}
    write_text(arguments.out / "report.html", report(results, samples, histories))
    show_tables(results)
    print(
        f"{results['seconds']:.0f} s on {where(results)}. Pictures and curves: "
        f"{arguments.out / 'report.html'}; figures: {arguments.out / 'results.json'}"
    )


def _made(row: DemoRow, comparable: bool) -> dict[str, Any]:
    """How a row was made, for results.json. `comparable`: whether the band of the row holds for this run."""
    made = asdict(row) | {"text": RECIPES[row.recipe].text}
    return made if comparable else made | {"band": None}


def _floor(stage: Stage, evaluator: metrics.Evaluator) -> dict[str, Any]:
    """The row of real digits: the distance of the remaining digits to the reported ones. Nothing is drawn at random."""
    rest = stage.digits.rest[: stage.setting.samples]
    fid, kid = evaluator.compare(rest)
    return {"fid": fid, "fid_spread": None, "kid": kid, "kid_spread": None, "samples": len(rest)}


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
    stage: Stage,
    evaluator: metrics.Evaluator,
    file: Path,
) -> dict[str, Any]:
    """One row of the table. It is stored on disk, so that a continued demo does not measure it again.

    `file`: the generator's file; it is written here for the dense generator.
    """
    kept = arguments.out / "rows" / f"{slug(title)}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    if not arguments.quiet:
        print(f"measuring: {title}")
    trained = file.parent / "seconds.json"
    if title == "dense":
        save(generator, file)
    noise = dcgan.noise(stage.gan.generator, 64, REPORTED_NOISE[0])
    distances = stage.distances(generator, evaluator, REPORTED_NOISE)
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
        "seconds": json.loads(trained.read_text(encoding="utf-8")) if title in ROWS else None,
    }
    write_json(kept, row)
    return row


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


def _times(generator: nn.Module, noise: Tensor) -> dict[str, dict[str, float]]:
    """The times of a batch in a forward pass, and in a forward with a backward pass, in milliseconds.

    "sparse": of the generator. "dense": of its dense twin, in the faster of torch's two layouts.
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
    training = interleaved_ms(clock, [partial(_forward_backward, network, noise) for network in networks], seconds=2.0)
    return {
        "sparse": {"forward": forward[0], "training": training[0]},
        "dense": {"forward": min(forward[1:]), "training": min(training[1:])},
    }


def _forward_backward(generator: nn.Module, noise: Tensor) -> None:
    generator(noise).sum().backward()
