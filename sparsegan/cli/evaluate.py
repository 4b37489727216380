"""Score a dense or compressed generator: distances from real images; PSNR and SSIM where its images have targets.

Sounds have the L1 distance of their mel spectrograms and a multi-resolution STFT distance.

KID, the kernel distance, is the figure to judge by. FID, the Fréchet distance, stands beside it. From fewer than 10
images per feature it is biased, and its name says "too few". A GAN between domains has a score per target domain, and
the mean of them as "overall".
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..data import Samples
from ..gans import GANS, Reference, store
from ..metrics import distances as metrics
from ..metrics.classifier import CLASSIFIERS, find_classifier, load_classifier
from ..metrics.measures import measured
from ..training import ranks
from .common import add_device, add_seed, add_threads, at_least_one, find_checkpoints, set_threads, use_device
from .loading import add_data_options, add_gan_options, known_data, load_any, placed, reference_of_data, test_data
from .sounds import check_rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan evaluate`."""
    add_gan_options(parser)
    add_data_options(parser, "default: that of the GAN's training")
    parser.add_argument(
        "--features",
        help="the network whose features are compared: efficientnet-lite0, a classifier's .safetensors, a TorchScript "
        "file, package.module:build, or none (default: efficientnet-lite0; for dcgan on mnist or fashion-mnist, this "
        "repository's classifier)",
    )
    parser.add_argument(
        "--classifier",
        type=Path,
        metavar="FILE",
        help="stargan: a classifier's .safetensors, which finds the fraction of images in the domain that was asked "
        "for (default: for emoji-styles, this repository's)",
    )
    parser.add_argument("--samples", type=at_least_one, default=2500, help="dcgan: images per seed (default: 2500)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="dcgan: seeds of the samples (default: 0 1 2)"
    )
    add_seed(parser, "the random numbers of all other GANs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    add_threads(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the scores. For images from noise, they are mean and spread over the seeds."""
    set_threads(arguments.threads)
    device = use_device(arguments)
    gan = placed(load_any(arguments), device)
    reference = reference_of_data(arguments, gan)
    arguments.data = known_data(arguments, gan)
    classifier = arguments.classifier
    if classifier is not None and reference.choice != "domains":
        asked = ", ".join(name for name, one in GANS.working().items() if one.choice == "domains")
        raise ValueError(
            f"--classifier is {classifier}; only {asked} is asked for a domain, and the task is {reference.name}"
        )
    if reference.samples.signals and arguments.features not in (None, "none"):
        raise ValueError(f"--features is {arguments.features}; it compares images, and {reference.name} makes sounds")
    size = arguments.size or gan.size or reference.training.size
    samples, split = test_data(arguments, reference, size, gan.channels)
    check_rate(gan, samples, arguments.data)
    if gan.objective.measures is not None:
        _own(arguments, gan, samples, split)
        return
    features = _features(arguments.features, reference, arguments.data, device)
    if gan.from_noise:
        _from_noise(arguments, gan, samples, features)
        return
    if classifier is None and reference.choice == "domains" and arguments.data in CLASSIFIERS:
        classifier = find_classifier(arguments.data, find_checkpoints())
    evaluator = metrics.TaskEvaluator(
        samples,
        gan.objective,
        features,
        seed=arguments.seed,
        quiet=arguments.quiet,
        classifier=load_classifier(classifier).to(device) if classifier else None,
    )
    scores = evaluator.scores(gan.generator)
    if len(scores) > 1:
        scores["overall"] = metrics.overall(scores)
    if ranks.rank() > 0:  # only rank 0 prints
        return
    if arguments.json:
        print(json.dumps({"split": split, **{name: asdict(score) for name, score in scores.items()}}))
        return
    for name, score in scores.items():
        for label, value in score.labelled().items():
            print(f"{name}: {label} {value:.4g}")
    print(f"{split} data")


def _own(arguments: argparse.Namespace, gan: store.Gan, samples: Samples, split: str) -> None:
    """Print the GAN's own figures (`Objective.measures`)."""
    figures = measured(gan.generator, gan.objective, samples, seed=arguments.seed, quiet=arguments.quiet)
    if ranks.rank() > 0:
        return
    if arguments.json:
        print(json.dumps({"split": split, **figures}))
        return
    for name, value in figures.items():
        print(f"{name} {value:.4g}")
    print(f"{split} data")


def _features(which: str | None, reference: Reference, source: str, device: torch.device) -> metrics.Features | None:
    if which is None and reference.from_noise and source in CLASSIFIERS:
        return metrics.load_features(find_classifier(source, find_checkpoints()), device)
    return None if which == "none" else metrics.load_features(which or "efficientnet-lite0", device)


def _from_noise(
    arguments: argparse.Namespace, gan: store.Gan, samples: Samples, features: metrics.Features | None
) -> None:
    if features is None:
        raise ValueError("--features is none; images from noise have no targets, so their scores need features")
    real = torch.cat(list(samples.in_order(250)))
    evaluator = metrics.Evaluator(real, features, features.network)

    def sample(count: int) -> Tensor:
        return gan.generator(*store.example(gan, count, seed=None))

    with ranks.divided(gan.generator, padded=True):
        result = evaluator.distances(sample, arguments.samples, arguments.seeds)
    if ranks.rank() > 0:
        return
    if arguments.json:
        print(json.dumps(asdict(result)))
        return
    print(f"KID ({result.network}): {result.kid:.3f} +- {result.kid_spread:.3f}")
    print(f"FID ({result.network}): {result.fid:.3f} +- {result.fid_spread:.3f}")
    print(f"{result.samples} samples, seeds {', '.join(map(str, result.seeds))}")
