"""Runs one row of a study: compresses a generator, observes the run, and has the result scored."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import save
from ..compress import RECIPES, GeneratedBatches, RunConfig, SelfSupervisedLoss, baseline, gap, match_contrast, of_size
from ..data import Samples
from ..gans import store
from ..nn.layer import DENSE_CLASSES, SparseConv
from ..placement import device_of, moved
from ..profiling.info import info, peak_bytes
from ..profiling.macs import count_macs
from ..pruning.allocation import sensitivity, total_sparsity
from ..pruning.prunable import prunable_layers
from ..randomness import CPU, seeded
from ..training import Diverged
from ..training.adversarial import teach
from .grids import DENSE, Row
from .results import Report
from .scoring import samples_of, score
from .tasks import FLOORS, Task
from .techniques import SENSITIVITY_BATCHES, TECHNIQUES, Technique
from .watch import Operations, Watched, thinned


def run_row(row: Row, checkpoints: Path, out: Path, command: str, device: torch.device = CPU) -> Report:
    """Runs a row on one thread and returns its report, as plain values. The numbers repeat, except for seconds.

    `checkpoints`: the folder with the dense GANs. `out`: the generator is saved there, in a folder of the row's name.
    `command`: the command that repeats the row, for the report. `device`: where networks are trained and scored.
    The report of a run that diverged has "failed" instead of figures.
    Raises ValueError for a row that cannot run, FileNotFoundError for a missing GAN or missing data.
    """
    if row.obstacle():
        raise ValueError(f"{row.key} cannot be run: {row.obstacle()}")
    torch.set_num_threads(1)
    task = row.run
    gan = store.load(checkpoints / task.checkpoint)
    gan.generator.to(device)
    gan.discriminator.to(device)
    machine = {name: value for name, value in info().items() if "built" not in name and "triton" not in name}
    report: Report = {"row": row.key, "command": command, "settings": row.settings(), "machine": machine}
    generator: nn.Module = gan.generator
    if row.technique in FLOORS:
        return report | score(row, gan, generator, checkpoints, out)
    if row.technique != DENSE:
        begun = time.perf_counter()
        try:
            generator, training = _compress(row, task, TECHNIQUES[row.technique], gan)
        except Diverged as error:
            return report | {"failed": str(error).split(";")[0]}
        training["cost"]["seconds"] = round(time.perf_counter() - begun, 1)
        report |= training
    file = out / row.key / "generator.safetensors"
    save(generator, file)
    example = store.example(gan, 1)
    weights, kept = _weights(generator), _kept(generator)
    report["size"] = {
        "macs": count_macs(generator, example).executed,
        "file_bytes": file.stat().st_size,
        "weights": weights,
        "kept": kept,
    }
    return report | score(row, gan, generator, checkpoints, out)


def _some(samples: Samples, count: int) -> Any:
    """Returns a batch of `count` random samples without augmentation, the same batch each time."""
    with seeded(0):
        return samples.batch(samples.order()[:count], None)


def _compress(row: Row, task: Task, technique: Technique, gan: store.Gan) -> tuple[nn.Module, Report]:
    """Returns the compressed generator, and the part of the report that describes its training."""
    samples = samples_of(gan, task, "fit")
    loader: Any = samples.batches(task.batch)
    if technique.data_free:
        loader = GeneratedBatches(gan.generator, gan.objective, loader)
    device = device_of(generator=gan.generator)
    discriminator = _changed(gan, technique, row.seed)
    before = Operations()  # the work before the first step
    with before:
        if technique.warm_up:
            discriminator = _warmed_up(gan, technique.warm_up, loader, task, row.seed)
    recipe = RECIPES[technique.recipe]
    settings = {
        "granularity": row.granularity,
        "allocation": "uniform",
        "exclude": task.exclude,
        "generator_every": recipe.generator_every(task.generator_every),
        "generator_lr": task.lr,
        "discriminator_lr": task.discriminator_lr,
        "decay": not recipe.settings.get("cosine"),
        **recipe.settings,
        **technique.settings,
    }
    sparsity, images = row.sparsity, technique.warm_up * task.batch
    if settings["allocation"] == "sensitivity":
        images += SENSITIVITY_BATCHES * task.batch
        with before:
            settings["allocation"] = _by_sensitivity(row, gan, discriminator, samples, task, settings)
        sparsity = total_sparsity(gan.generator, settings["allocation"], settings["exclude"])
    compressor = baseline(
        technique.recipe,
        gan.generator,
        discriminator,
        gan.objective,
        steps=task.steps,
        sparsity=sparsity,
        fresh=lambda: store.build(gan.config).discriminator.to(device),
        fresh_generator=lambda: store.build(gan.config).generator.to(device),
        small=lambda parameters: _narrower(gan, parameters).to(device),
        loss_fields=technique.loss,
        seed=row.seed,
        run=RunConfig(quiet=True),
        **settings,
    )
    looked_at = moved(_some(samples, max(4, 2 * task.batch)), device)
    watched = Watched(loader, compressor, gan.generator, task, looked_at, technique.average)
    result = compressor.fit(watched)
    watched.finish()
    generator = result.generator
    if technique.average:
        watched.keep_average()
        _match_contrast_again(generator, gan)
    report: Report = {
        "watched": watched.looks,
        "curves": thinned(result.history),
        "cost": {
            "steps": compressor.schedule.steps,
            "images": images + compressor.schedule.steps * task.batch,
            "macs": before.flops // 2 + watched.macs,
            "peak_bytes": peak_bytes(device),
        },
    }
    if isinstance(settings["allocation"], dict):
        report["allocation"] = {name: round(sparsity, 4) for name, sparsity in settings["allocation"].items()}
    return generator, report


def _by_sensitivity(
    row: Row, gan: store.Gan, discriminator: nn.Module, samples: Samples, task: Task, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Returns the sparsities by layer that raise L_F evenly, at as many MACs as uniform sparsities leave."""
    batches = [_some(samples, SENSITIVITY_BATCHES * task.batch)]
    rise = gap(gan.generator, discriminator, gan.objective, batches, SelfSupervisedLoss(terms=0.0, features=1.0))
    macs = dict.fromkeys(prunable_layers(gan.generator, settings["exclude"]), 0)
    for layer in count_macs(gan.generator, store.example(gan, 1)).rows:
        if layer.name in macs:
            macs[layer.name] += layer.dense  # a layer that runs twice has two rows
    costs = {name: count / gan.generator.get_submodule(name).weight.numel() for name, count in macs.items()}
    return sensitivity(gan.generator, rise, row.sparsity, row.granularity, settings["exclude"], costs=costs)


def _match_contrast_again(generator: nn.Module, gan: store.Gan) -> None:
    """Calls `match_contrast` once more, because averaging has changed the parameters."""
    inputs = store.example(gan, 256)
    match_contrast(generator, gan.generator, lambda network: network(*inputs))


def _narrower(gan: store.Gan, parameters: int) -> nn.Module:
    """Returns an untrained generator of the same architecture, narrower, with about this number of parameters."""
    network = gan.config["network"]

    def make(width: int) -> nn.Module:
        return store.build({"network": network | {"width": width}}).generator

    return of_size(make, parameters, network["width"])


def _warmed_up(gan: store.Gan, steps: int, loader: Any, task: Task, seed: int) -> nn.Module:
    """Returns a fresh discriminator, trained for `steps` to tell the dense generator's images from the loader's."""
    with seeded(seed):
        discriminator = store.build(gan.config).discriminator.to(device_of(generator=gan.generator))
    lr = task.discriminator_lr
    teach(discriminator, gan.generator, gan.objective, loader, steps, lr=lr, seed=seed, quiet=True)
    return discriminator


@torch.no_grad()
def _changed(gan: store.Gan, technique: Technique, seed: int) -> nn.Module:
    """Returns a copy of the trained discriminator with the technique's untrained layers, or noise on its weights."""
    discriminator = copy.deepcopy(gan.discriminator)
    with seeded(seed):
        fresh = dict(store.build(gan.config).discriminator.named_modules())
        found = set()
        for name, module in discriminator.named_modules():
            if next(module.children(), None) is None:
                pattern = next((one for one in technique.untrained if fnmatchcase(name, one)), None)
                if pattern is not None:
                    module.load_state_dict(fresh[name].state_dict())
                    found.add(pattern)
        if missing := set(technique.untrained) - found:
            raise ValueError(f"untrained has {sorted(missing)}; the discriminator has no such modules")
        if technique.noise:
            for parameter in discriminator.parameters():
                if parameter.dim() == 4:
                    parameter.add_(torch.randn_like(parameter) * parameter.std() * technique.noise)
    return discriminator


def _weights(generator: nn.Module) -> int:
    """Returns the number of weights of all convolutions, dropped weights included."""
    sparse = sum(math.prod(module.weight_shape) for module in generator.modules() if isinstance(module, SparseConv))
    return sparse + _dense_weights(generator)


def _kept(generator: nn.Module) -> int:
    sparse = sum(module.nnz for module in generator.modules() if isinstance(module, SparseConv))
    return sparse + _dense_weights(generator)


def _dense_weights(generator: nn.Module) -> int:
    dense = [module for module in generator.modules() if isinstance(module, DENSE_CLASSES)]
    return sum(module.weight.numel() for module in dense)
