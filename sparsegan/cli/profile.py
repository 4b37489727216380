"""Show every layer of a compressed generator: MACs, which kernel runs and why, dense and sparse time."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..gans import store
from .common import add_threads, load_trained, set_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan profile`."""
    parser.add_argument("folder", type=Path, help="a folder that compress wrote")
    parser.add_argument("--batch", type=int, default=64, help="images a call (default: 64)")
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from ..profiling import profile

    if arguments.batch < 1:
        raise ValueError(f"--batch is {arguments.batch}; it must be at least 1")
    set_threads(arguments.threads)
    gan = load_trained(arguments.folder)
    print(profile(gan.generator, store.example(gan, arguments.batch)))
