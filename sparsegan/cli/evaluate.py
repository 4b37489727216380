"""Fréchet and kernel distance of a dense or compressed generator from its data set."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from .. import data, metrics
from ..gans import store
from .common import add_threads, load_generator, set_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan evaluate`."""
    parser.add_argument("folder", type=Path, help="a folder that train or compress wrote")
    parser.add_argument("--data", default="mnist", choices=sorted(data.DATASETS), help="real images (default: mnist)")
    parser.add_argument(
        "--classifier",
        type=Path,
        default=Path("checkpoints/digit-classifier/classifier.safetensors"),
        help="the digit classifier whose features are compared (default: the one of this repository)",
    )
    parser.add_argument("--samples", type=int, default=2500, help="generated images a seed (default: 2500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="sample seeds (default: 0 1 2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the distances, mean and spread over the seeds."""
    set_threads(arguments.threads)
    generator = load_generator(arguments.folder)
    classifier = metrics.load_digit_classifier(arguments.classifier)
    evaluator = metrics.Evaluator(data.load(arguments.data)[0], classifier.features, "digit classifier")
    result = evaluator.distances(lambda n: generator(store.noise(generator, n)), arguments.samples, arguments.seeds)
    if arguments.json:
        print(json.dumps(asdict(result)))
        return
    print(f"FID ({result.network}): {result.fid:.3f} +- {result.fid_spread:.3f}")
    print(f"KID ({result.network}): {result.kid:.3f} +- {result.kid_spread:.3f}")
    print(f"{result.samples} samples, seeds {', '.join(map(str, result.seeds))}")
