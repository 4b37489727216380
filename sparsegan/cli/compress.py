"""Compress a trained GAN's generator: prune it while fine-tuning it, then write the compressed file and report.html.

The last line says how near the compressed generator is to the original; result.json holds all figures.

The GAN is a folder that train wrote, or files of the public repositories (--generator and --discriminator), recognised
by their names and shapes, or a Python function. Without a trained discriminator, an untrained discriminator is trained
first, on images of the dense generator against real images (--warm-up).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..checkpoint import save
from ..compress import (
    RECIPES,
    BlankBatches,
    Compressor,
    GeneratedBatches,
    RunConfig,
    Validation,
    baseline,
    gap,
    of_size,
)
from ..data import Samples
from ..gans import GANS, Objective, Training, store
from ..placement import device_of, moved
from ..progress import announce
from ..pruning.allocation import sensitivity
from ..randomness import seeded
from ..training import Run, endless, ranks
from ..training.adversarial import teach
from .bound import MOST
from .common import need, set_threads, use_device
from .compress_job import Job
from .compress_options import (
    LR_FACTOR,
    OF_THE_GAN,
    OPTIONS,
    SENSITIVITY_BATCHES,
    read_search,
    read_settings,
    read_weights,
)
from .compress_options import add_arguments as add_arguments
from .compress_report import finish
from .loading import (
    NO_DATA,
    content_objective,
    known_data,
    load_data,
    load_gan,
    placed,
    reference_of_data,
)
from .preview import show_preview
from .search import Search
from .sounds import check_rate
from .validation import Scorer, Watch


def run(arguments: argparse.Namespace) -> None:
    """Write generator.safetensors (compressed), samples.png, report.html and result.json into the run directory.

    The last line on stdout is the verdict: how near the compressed generator is to the original.
    """
    need("PIL", "matplotlib", *(["torchmetrics"] if arguments.features else []))
    set_threads(arguments.threads)
    previewed = not arguments.quiet
    arguments.quiet |= ranks.rank() > 0  # rank 0 speaks for all
    device = use_device(arguments)
    settings, bound = read_settings(arguments), read_search(arguments)
    gan, trained_discriminator = load_gan(arguments)
    placed(gan, device)
    objective = content_objective(arguments, gan)
    reference = reference_of_data(arguments, gan)
    # With --data-free, a generator that starts from an image needs input images. A generator from noise needs no data.
    without_data = arguments.data_free and reference.from_noise
    if reference.samples.signals and arguments.features is not None:
        raise ValueError(
            f"--features is {arguments.features}; it compares images, and the sounds of {reference.name} have scores "
            "without it"
        )
    _fill_in(arguments, gan, reference.training, without_data)
    network, channels = gan.config["network"], gan.channels
    samples, validated = None, arguments.validate is not None or bound is not None
    if not without_data:
        samples = load_data(arguments, reference, arguments.size, channels, "fit" if validated else "train")
        _check_domains(network, samples)
        check_rate(gan, samples, arguments.data)
    _check_size(gan, arguments.size, trained_discriminator)
    blank = BlankBatches(arguments.batch, channels or 3, arguments.size)
    inputs: Any = blank if samples is None else samples.batches(arguments.batch)
    loader = GeneratedBatches(gan.generator, objective, inputs) if arguments.data_free else inputs
    job = Job(arguments, gan, reference, device, samples, inputs, validated)
    scorer = Scorer(job, bound is not None and bound.decibels) if validated else None
    if bound is not None and scorer is not None and scorer.higher != bound.decibels:
        raise ValueError(
            f"--within is {arguments.within}, which bounds a kernel distance, and here is none; give --features, or a "
            "bound in decibels such as 25dB"
        )

    discriminator = gan.discriminator
    recipe = RECIPES[arguments.recipe]
    if arguments.discriminator and recipe.discriminator_mode == "none":
        announce(
            f"recipe {arguments.recipe} uses no discriminator, so that --discriminator has no effect; "
            "--recipe feature-distillation is one that uses it",
            arguments.quiet,
        )
    if arguments.warm_up is None:
        unused = recipe.fresh_discriminator or recipe.discriminator_mode == "none"
        arguments.warm_up = 0 if trained_discriminator or unused else 300
    judged = trained_discriminator or arguments.warm_up > 0
    if arguments.warm_up > 0:
        torch.manual_seed(arguments.seed)
        discriminator = _fresh_discriminator(network, arguments.size).to(device)
    settings |= {name: getattr(arguments, OPTIONS[name]) for name in OF_THE_GAN}
    written = dict(network)  # the network that generator.safetensors will fit

    def make(sparsity: float, run: RunConfig, validate: Validation | None = None, **changed: Any) -> Compressor:
        return baseline(
            arguments.recipe,
            gan.generator,
            discriminator,
            objective,
            steps=arguments.steps,
            sparsity=sparsity,
            **({"every": arguments.prune_every} if arguments.prune_every else {}),
            ramp=arguments.ramp,
            initial=arguments.initial_sparsity,
            fresh=lambda: _fresh_discriminator(network, arguments.size).to(device),
            fresh_generator=lambda: _fresh_generator(network).to(device),
            small=lambda parameters: _small_generator(written, parameters).to(device),
            run=run,
            validate=validate,
            **(settings | changed),
        )

    if previewed:
        # Sensitivities are measured later, and the time of a step does not depend on them.
        known: dict[str, Any] = {"allocation": "uniform"} if arguments.allocation == "sensitivity" else {}
        trial = make(arguments.sparsity, RunConfig(quiet=True), **known)
        show_preview(job, trial, loader, scorer, 1 if bound is None else MOST)
    if arguments.warm_up > 0:
        _warm_up(arguments, gan, discriminator, reference.training, loader)

    weights = read_weights(arguments)
    if weights:
        objective = _weighted(objective, weights, gan, discriminator, loader, arguments.seed)
    settings["allocation"] = _allocation(arguments, settings, gan, discriminator, objective, loader, judged)
    named = ("data", "size", "recipe", "batch", "warm_up", "direction", "domains", "content", "data_free")
    recorded = {"command": "compress", "compressed": True, "network": written}
    recorded |= {name: getattr(arguments, name) for name in named}
    recorded |= {"domain_names": job.domains} if job.domains else {}
    recorded |= {"weights": weights} if weights else {}

    run_config = RunConfig(
        arguments.out,
        resume=arguments.resume,
        checkpoint_every=arguments.checkpoint_every,
        settings=recorded,
        quiet=arguments.quiet,
    )
    search = None
    if bound is not None and scorer is not None:
        search = Search(job, scorer, bound, make, run_config, loader)
        result = search.run()
        arguments.sparsity = search.chosen
    else:
        validate = None
        if scorer is not None:
            watch = Watch(job, scorer, arguments.out / "validation")
            validate = watch.validation(arguments.validate, arguments.patience)
        result = make(arguments.sparsity, run_config, validate).fit(loader)
    if ranks.rank() == 0:  # only rank 0 writes
        save(result.generator, arguments.out / "generator.safetensors", values=arguments.values)
    finish(job, result, settings["granularity"], scorer, search)


def _fill_in(arguments: argparse.Namespace, gan: store.Gan, training: Training, without_data: bool) -> None:
    """Set the options that were not given, from the GAN's configuration or else from `training`.

    Raises ValueError where --data is missing, and where it is given and would have no effect.
    """
    scored = arguments.features is not None
    if without_data and not scored:
        if arguments.data is not None:
            raise ValueError(
                f"--data is {arguments.data} and --data-free is set; this GAN needs no data then, so --data is for "
                "scores by --features only"
            )
        arguments.data = gan.config.get("data", NO_DATA)
    else:
        arguments.data = known_data(arguments, gan)
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
        ("betas", training.betas),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.lr is None:
        arguments.lr = LR_FACTOR * arguments.discriminator_lr


def _weighted(
    objective: Objective,
    weights: Mapping[str, float],
    gan: store.Gan,
    discriminator: nn.Module,
    loader: Any,
    seed: int,
) -> Objective:
    """The objective with other weights of its terms. Raises ValueError for a term that the objective does not have."""
    with seeded(seed):
        batch = moved(next(iter(loader)), device_of(generator=gan.generator))
        fake = objective.generate(gan.generator, batch)
        both = (objective.generator_terms, objective.discriminator_terms)
        names = [name for terms in both for name in terms(gan.generator, discriminator, fake, batch)]
    for name in weights:
        if name not in names:
            raise ValueError(f"--weight has the term {name!r}; this GAN has the terms {', '.join(names)}")
    return replace(objective, weights={**objective.weights, **weights})


def _check_domains(network: dict[str, Any], samples: Samples) -> None:
    """Raise ValueError where the generator was made for another number of domains."""
    known = network.get("domains")
    if known is not None and len(samples.domains) != known:
        raise ValueError(
            f"the data have {len(samples.domains)} domains ({', '.join(samples.domains)}); the generator has {known}"
        )


def _check_size(gan: store.Gan, size: int, trained_discriminator: bool) -> None:
    """Raise ValueError where one of the networks was made for images of another size."""
    network = gan.config["network"]
    if gan.reference is not None and gan.from_noise and "image_size" in gan.reference.sizes:
        made = network.get("image_size", gan.reference.sizes["image_size"].default)
        if made != size:
            raise ValueError(f"--size is {size}; it must be {made}, the size of the generator's images")
    made = network.get("image_size", size)
    if trained_discriminator and made != size:
        raise ValueError(f"--size is {size}; it must be {made}, which the discriminator was made for")


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
