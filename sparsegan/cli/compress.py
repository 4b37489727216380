"""Compress a trained GAN's generator: prune it while fine-tuning it, then write the compressed file and report.html.

The GAN is a folder that train wrote, or files of the public repositories (--generator and --discriminator), recognised
by their names and shapes, or a Python function. Without a trained discriminator, an untrained discriminator is trained
first, on images of the dense generator against real images (--warm-up).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_files import write_text
from ..checkpoint import save
from ..compress import RECIPES, BlankBatches, GeneratedBatches, RunConfig, baseline, gap, of_size
from ..data import Samples
from ..gans import GANS, Objective, Training, store
from ..metrics.distances import TaskEvaluator, load_features
from ..nn.layer import SparseConv
from ..placement import device_of, moved
from ..profiling.info import info, peak_bytes
from ..profiling.layers import profile
from ..profiling.macs import count_macs
from ..progress import announce
from ..pruning.allocation import sensitivity
from ..training import Run, endless, ranks
from ..training.adversarial import teach
from .common import need, set_threads, use_device
from .compress_options import LR_FACTOR, OF_THE_GAN, OPTIONS, SENSITIVITY_BATCHES, read_settings
from .compress_options import add_arguments as add_arguments
from .loading import (
    content_objective,
    inputs_of,
    load_data,
    load_gan,
    placed,
    reference_of_data,
    test_data,
)
from .pictures import comparison, some, write_png
from .report import facts_table, layer_table, page, picture_uri, table, term_curves


def run(arguments: argparse.Namespace) -> None:
    """Write generator.safetensors (compressed), samples.png and report.html into the run directory."""
    need("PIL", "matplotlib", *(["torchmetrics"] if arguments.features else []))
    set_threads(arguments.threads)
    device = use_device(arguments)
    settings = read_settings(arguments)
    gan, trained_discriminator = load_gan(arguments)
    placed(gan, device)
    objective = content_objective(arguments, gan)
    reference = reference_of_data(arguments, gan)
    _fill_in(arguments, gan, reference.training)
    network, channels = gan.config["network"], gan.channels
    # With --data-free, a generator that starts from an image needs input images. A generator from noise needs no data.
    samples = None
    if not (arguments.data_free and reference.from_noise):
        samples = load_data(arguments, reference, arguments.size, channels, "train")
        _check_fit(network, samples, arguments.size, trained_discriminator)
    blank = BlankBatches(arguments.batch, channels or 3, arguments.size)
    loader: Any = blank if samples is None else samples.batches(arguments.batch)
    if arguments.data_free:
        loader = GeneratedBatches(gan.generator, objective, loader)
    domains = [] if samples is None else samples.domains

    discriminator = gan.discriminator
    recipe = RECIPES[arguments.recipe]
    if arguments.warm_up is None:
        unused = recipe.fresh_discriminator or recipe.discriminator_mode == "none"
        arguments.warm_up = 0 if trained_discriminator or unused else 300
    judged = trained_discriminator or arguments.warm_up > 0
    if arguments.warm_up > 0:
        torch.manual_seed(arguments.seed)
        discriminator = _fresh_discriminator(network, arguments.size).to(device)
        _warm_up(arguments, gan, discriminator, reference.training, loader)

    settings |= {name: getattr(arguments, OPTIONS[name]) for name in OF_THE_GAN}
    settings.setdefault("betas", reference.training.betas)
    settings["allocation"] = _allocation(arguments, settings, gan, discriminator, objective, loader, judged)
    written = dict(network)  # the network that generator.safetensors will fit
    named = ("data", "size", "recipe", "batch", "warm_up", "direction", "domains", "content", "data_free")
    compressor = baseline(
        arguments.recipe,
        gan.generator,
        discriminator,
        objective,
        steps=arguments.steps,
        sparsity=arguments.sparsity,
        fresh=lambda: _fresh_discriminator(network, arguments.size).to(device),
        fresh_generator=lambda: _fresh_generator(network).to(device),
        small=lambda parameters: _small_generator(written, parameters).to(device),
        run=RunConfig(
            arguments.out,
            resume=arguments.resume,
            checkpoint_every=arguments.checkpoint_every,
            settings={"command": "compress", "compressed": True, "network": written}
            | {name: getattr(arguments, name) for name in named}
            | ({"domain_names": domains} if domains else {}),
            quiet=arguments.quiet,
        ),
        **settings,
    )
    result = compressor.fit(loader)
    if ranks.rank() == 0:  # only rank 0 writes
        save(result.generator, arguments.out / "generator.safetensors", values=arguments.values)

    generators = {"dense": gan.generator, "compressed": result.generator}
    scores: dict[str, dict[str, float]] = {name: {} for name in generators}
    if samples is None and not arguments.features:
        batch, few, split = next(iter(BlankBatches(32, channels or 3, arguments.size))), next(iter(blank))[:4], "no"
    else:
        unseen, split = test_data(arguments, reference, arguments.size, channels)
        batch, few = some(unseen, 32 if reference.from_noise else 16), some(unseen, 4)
    if arguments.features:
        features = load_features(arguments.features, device)
        evaluator = TaskEvaluator(unseen, gan.objective, features, quiet=arguments.quiet)
        for name, generator in generators.items():
            for view, score in evaluator.scores(generator).items():
                scores[name] |= {f"{view}: {label}": value for label, value in score.labelled().items()}
    if ranks.rank() > 0:
        return
    picture = comparison(generators, gan.objective, batch, arguments.seed, domains)
    write_png(arguments.out / "samples.png", picture)
    _report(arguments, reference.name, generators, gan.objective, few, scores, picture, split, result.history)
    memory = f"peak memory {peak_bytes(device) / 1e6:,.0f} MB"
    print(f"wrote {arguments.out / 'generator.safetensors'}, samples.png and report.html; {memory}")


def _fill_in(arguments: argparse.Namespace, gan: store.Gan, training: Training) -> None:
    """Set the options that were not given, from the GAN's configuration or else from `training`."""
    if arguments.data is None:
        arguments.data = gan.config.get("data", training.data)
    if arguments.size is None:
        arguments.size = gan.size or training.size
    every = RECIPES[arguments.recipe].generator_every(training.generator_every)
    if arguments.generator_every is None and every != training.generator_every:
        announce(
            f"recipe {arguments.recipe} does not update the discriminator: the generator is updated at every step "
            f"(--generator-every 1, where the task's training has {training.generator_every})",
            arguments.quiet,
        )
    for name, value in (
        ("batch", training.batch),
        ("generator_every", every),
        ("discriminator_lr", training.discriminator_lr),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.lr is None:
        arguments.lr = LR_FACTOR * arguments.discriminator_lr


def _check_fit(network: dict[str, Any], samples: Samples, size: int, trained_discriminator: bool) -> None:
    """Raise ValueError where a network was made for another number of domains or another image size."""
    known = network.get("domains")
    if known is not None and len(samples.domains) != known:
        raise ValueError(
            f"the data have {len(samples.domains)} domains ({', '.join(samples.domains)}); the generator has {known}"
        )
    made_for = network.get("image_size", size)
    if trained_discriminator and made_for != size:
        raise ValueError(f"--size is {size}; it must be {made_for}, which the discriminator was made for")


def _allocation(
    arguments: argparse.Namespace,
    settings: Mapping[str, Any],
    gan: store.Gan,
    discriminator: nn.Module,
    objective: Objective,
    loader: Any,
    judged: bool,
) -> str | Mapping[str, float]:
    """The field `allocation` of `CompressionConfig`.

    Sensitivities are measured only once: a resumed run reads them from its config.json.
    """
    if arguments.allocation != "sensitivity":
        return arguments.allocation
    if not judged:
        raise ValueError(
            "--allocation is sensitivity, which needs a trained discriminator; give --discriminator or --warm-up"
        )
    file = arguments.out / "config.json"
    if arguments.resume and file.is_file():
        found = store.read_config(arguments.out).get("allocation")
        if isinstance(found, dict):
            return found
    batches = list(islice(endless(loader, arguments.seed), SENSITIVITY_BATCHES))
    measure = gap(gan.generator, discriminator, objective, batches, seed=arguments.seed)
    announce("measuring the sensitivity of each layer before the first step", arguments.quiet)
    return sensitivity(gan.generator, measure, arguments.sparsity, settings["granularity"], settings["exclude"])


def _fresh_generator(network: dict[str, Any]) -> nn.Module:
    if network["gan"] is None:
        raise ValueError("only a reference GAN has a known untrained generator; --generator is a Python function")
    return store.build({"network": network}).generator


def _small_generator(network: dict[str, Any], parameters: int) -> nn.Module:
    """A narrower untrained generator of about `parameters` parameters. Its width is stored in `network`."""

    def make(width: int) -> nn.Module:
        network["width"] = width  # `of_size` makes the network that it returns last
        return _fresh_generator(network)

    return of_size(make, parameters, network["width"])


def _fresh_discriminator(network: dict[str, Any], size: int) -> nn.Module:
    if network["gan"] is None:
        raise ValueError("only a reference GAN has a known untrained discriminator; --generator is a Python function")
    return store.build({"network": GANS[network["gan"]].for_size(network, size)}).discriminator


def _warm_up(
    arguments: argparse.Namespace, gan: store.Gan, discriminator: nn.Module, training: Training, loader: Any
) -> None:
    """Train `discriminator` on images of the dense generator. OUT/discriminator holds the checkpoints of this run."""
    announce(
        f"there is no trained discriminator: an untrained discriminator first learns from the dense generator's "
        f"images, {arguments.warm_up} steps (--warm-up); then the compression begins",
        arguments.quiet,
    )
    named = ("data", "size", "batch", "warm_up", "discriminator_lr", "seed", "direction", "domains", "data_free")
    teach(
        discriminator,
        gan.generator,
        gan.objective,
        loader,
        arguments.warm_up,
        lr=arguments.discriminator_lr,
        betas=training.betas,
        run=Run(
            arguments.out / "discriminator",
            {"network": gan.config["network"]} | {name: getattr(arguments, name) for name in named},
            resume=arguments.resume,
        ),
        checkpoint_every=arguments.checkpoint_every,
        seed=arguments.seed,
        title="training a discriminator",
        quiet=arguments.quiet,
    )


def _report(
    arguments: argparse.Namespace,
    task: str,
    generators: dict[str, nn.Module],
    objective: Objective,
    batch: Any,
    scores: dict[str, dict[str, float]],
    picture: Tensor,
    split: str,
    history: list[dict[str, float]],
) -> None:
    """Write report.html: sizes and scores of both generators, pictures, curves, layers, settings and machine."""
    compressed = generators["compressed"]
    batch = moved(batch, device_of(generator=compressed))
    inputs = inputs_of(compressed, lambda: objective.generate(compressed, batch))
    one = tuple(x[:1] for x in inputs)
    lines = []
    for name, generator in generators.items():
        weights, kept = (sum(numbers) for numbers in zip(*_weights(generator), strict=True))
        size = (
            (arguments.out / "generator.safetensors").stat().st_size
            if name == "compressed"
            else sum(tensor.numel() * tensor.element_size() for tensor in generator.state_dict().values())
        )
        macs = count_macs(generator, one).executed / 1e6
        lines.append([name, f"{1 - kept / weights:.1%}", f"{kept:,}", f"{macs:,.1f} M", f"{size / 1e6:.2f} MB"])
        lines[-1] += [f"{value:.4g}" for value in scores[name].values()]
    layers = [asdict(row) for row in profile(generators["compressed"], inputs, seconds=0.05).rows]
    settings = ("data", "size", "recipe", "granularity", "allocation", "sparsity", "steps", "batch", "lr")
    facts = {name: getattr(arguments, name) for name in (*settings, "discriminator_lr", "warm_up", "seed")}
    device = device_of(generator=generators["dense"])
    running = {"device": device, "threads": torch.get_num_threads()}
    running |= {"peak memory": f"{peak_bytes(device) / 1e6:,.0f} MB"}
    curves = f'<img class="plot" alt="curves" src="{term_curves(history)}">' if history else "<p>not fine-tuned</p>"
    head = ["generator", "sparsity", "weights", "MACs per image", "file", *scores["dense"]]
    body = f"""<div class="wide">{table(head, lines)}</div>
<p>Sparsity and weights are those of the convolutions. The size of the dense file is that of its float32 tensors.</p>
<h2>Dense and compressed, from the same inputs ({split} data)</h2>
<img alt="samples" src="{picture_uri(picture)}">
<h2>Terms over the fine-tuning</h2>
{curves}
<p>Solid: the terms of the compressed generator. Dotted: the terms of the original generator, by the same discriminator.
Smoothed over 10 steps.</p>
<h2>Layers of the compressed generator (batch of {len(inputs[0])}, forward)</h2>
<div class="wide">{layer_table(layers)}</div>
<h2>Settings</h2>
{facts_table(facts)}
<h2>Machine</h2>
{facts_table({**info(), **running})}"""
    title = f"{task} at {arguments.sparsity:.0%} sparsity on {arguments.data}"
    write_text(arguments.out / "report.html", page(title, body))


def _weights(generator: nn.Module) -> Iterator[tuple[int, int]]:
    """The pair (number of weights, number of kept weights) of every convolution."""
    for module in generator.modules():
        if isinstance(module, SparseConv):
            yield math.prod(module.weight_shape), module.nnz
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield module.weight.numel(), module.weight.numel()
