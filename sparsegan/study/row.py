"""Runs one row of a study: compresses a generator, observes the run, and measures the result."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import data
from ..atomic_files import write_tensors
from ..checkpoint import save
from ..compress import RECIPES, GeneratedBatches, RunConfig, SelfSupervisedLoss, baseline, gap, match_contrast, of_size
from ..data import Samples
from ..gans import GANS, store
from ..metrics import distances as metrics
from ..metrics.classifier import Classifier, find_classifier, load_classifier
from ..nn.layer import SparseConv
from ..placement import device_of, moved
from ..profiling.info import info, peak_bytes
from ..profiling.macs import count_macs
from ..pruning.allocation import sensitivity
from ..randomness import CPU, seeded
from ..training import Diverged
from ..training.adversarial import teach
from .grids import DENSE, SENSITIVITY_BATCHES, TECHNIQUES, Row, Task, Technique
from .results import Report
from .watch import Watched, thinned

NOISE = 20_000  # seed of the noise for the scored images of every row; no training uses this seed


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
    classifier = None
    if task.classifier:
        classifier = load_classifier(find_classifier(task.classifier, checkpoints)).to(device)
    if gan.from_noise and classifier is not None:
        return report | _score_classes(gan, generator, task, classifier)
    return report | _score(gan, generator, task, classifier, out)


def samples_of(gan: store.Gan, task: Task, split: str) -> Samples:
    """Returns the images of a task. Where the task holds no images out, each split is all images."""
    split = split if task.held_out else "all"
    return data.load(GANS[task.gan].samples, gan.config["data"], gan.size or 64, split, channels=gan.channels or 3)


def _some(samples: Samples, count: int) -> Any:
    """Returns a batch of `count` random samples without augmentation, the same batch each time."""
    with seeded(0):
        return samples.batch(samples.order()[:count], None)


def _compress(row: Row, task: Task, technique: Technique, gan: store.Gan) -> tuple[nn.Module, Report]:
    """Returns the compressed generator, and the part of the report that describes its training."""
    samples = samples_of(gan, task, "train")
    loader: Any = samples.batches(task.batch)
    if technique.data_free:
        loader = GeneratedBatches(gan.generator, gan.objective, loader)
    device = device_of(generator=gan.generator)
    discriminator = _changed(gan, technique, row.seed)
    if technique.warm_up:
        discriminator = _warmed_up(gan, technique.warm_up, loader, task, row.seed)
    loss = SelfSupervisedLoss(**technique.loss)
    granularity = row.granularity
    allocation: str | Mapping[str, float] = technique.allocation
    if allocation == "sensitivity":
        batches = [_some(samples, SENSITIVITY_BATCHES * task.batch)]
        rise = gap(gan.generator, discriminator, gan.objective, batches, SelfSupervisedLoss(terms=0.0, features=1.0))
        allocation = sensitivity(gan.generator, rise, row.sparsity, granularity, task.exclude)
    compressor = baseline(
        technique.recipe,
        gan.generator,
        discriminator,
        gan.objective,
        steps=task.steps,
        sparsity=row.sparsity,
        fresh=lambda: store.build(gan.config).discriminator.to(device),
        fresh_generator=lambda: store.build(gan.config).generator.to(device),
        small=lambda parameters: _narrower(gan, parameters).to(device),
        loss=loss,
        granularity=granularity,
        allocation=allocation,
        exclude=task.exclude,
        generator_every=RECIPES[technique.recipe].generator_every(task.generator_every),
        generator_lr=task.lr,
        discriminator_lr=task.discriminator_lr,
        decay=True,
        seed=row.seed,
        rounds=technique.rewind,
        rewind=technique.rewind,
        regrow=technique.regrow,
        run=RunConfig(quiet=True),
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
            "images": compressor.schedule.steps * task.batch,
            "macs": watched.macs,
            "peak_bytes": peak_bytes(device),
        },
    }
    if isinstance(allocation, dict):
        report["allocation"] = {name: round(sparsity, 4) for name, sparsity in allocation.items()}
    return generator, report


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
    dense = [module for module in generator.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    return sum(module.weight.numel() for module in dense)


# Scores


def _score(gan: store.Gan, generator: nn.Module, task: Task, classifier: Classifier | None, out: Path) -> Report:
    """Returns the scores on the whole test set, in features of ImageNet.

    The features of the real images are saved in `out`, so that the next row need not compute them.
    """
    samples = samples_of(gan, task, "test")
    device = device_of(generator=generator)
    features = metrics.load_features(device=device)
    evaluator = metrics.TaskEvaluator(samples, gan.objective, features, classifier=classifier, asked=task.asked)
    pixels = b"".join(image.numpy().tobytes() for image in samples.images)
    by = torch.__version__ + ("" if device == CPU else device.type)
    kept = out / "real" / f"{sha256(pixels + by.encode()).hexdigest()[:16]}.safetensors"
    if kept.is_file():
        evaluator.real |= load_file(kept)
    scores = evaluator.scores(generator)
    if not kept.is_file():
        write_tensors(kept, evaluator.real)
    return {"scores": {name: asdict(score) for name, score in scores.items()}}


@torch.no_grad()
def _score_classes(gan: store.Gan, generator: nn.Module, task: Task, classifier: Classifier) -> Report:
    """Returns the distances from all real images in the classifier's features, and the classes of generated images.

    "modes": the number of classes that at least 2 % of the images belong to, a fifth of an even distribution over ten.
    "mode_entropy": entropy of the classes' fractions in bits, at most log2 10 = 3.32. "confidence": mean probability of
    the likeliest class. "answer_entropy": mean entropy of the classifier's probabilities, in bits.
    """
    device = device_of(generator=generator)
    reals = samples_of(gan, task, "test").in_order(250)
    real = torch.cat([classifier.features(images.to(device)) for images in reals])
    (noise,) = store.example(gan, task.images, seed=NOISE)
    fake = torch.cat([classifier.features(generator(part)) for part in noise.split(250)])
    fid, kid = metrics.distances_between(real.cpu(), fake.cpu())
    probabilities = classifier.head(fake).softmax(1)
    fractions = probabilities.argmax(1).bincount(minlength=10) / len(fake)
    classes = {
        "modes": int((fractions >= 0.02).sum()),
        "mode_entropy": -(fractions * fractions.clamp_min(1e-12).log2()).sum().item(),
        "confidence": probabilities.amax(1).mean().item(),
        "answer_entropy": entropy_of(probabilities),
    }
    score = metrics.Score(classifier.name, len(fake), fid, kid, diversity=metrics.diversity(fake, real))
    return {"scores": {"samples": asdict(score)}, "classes": classes}


def entropy_of(probabilities: Tensor) -> float:
    """Returns the mean entropy, in bits, of the distributions [N, K]."""
    return -(probabilities * probabilities.clamp_min(1e-12).log2()).sum(1).mean().item()
