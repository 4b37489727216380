"""Show every layer of a compressed generator: MACs, which backend runs and why, dense and sparse time."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..gans import store
from .common import add_device, add_threads, set_threads, use_device
from .loading import check_entry, load_trained, placed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan profile`."""
    parser.add_argument("folder", type=Path, help="a folder that compress wrote")
    parser.add_argument("--batch", type=int, default=64, help="images a call (default: 64)")
    parser.add_argument(
        "--generator",
        nargs=1,
        metavar="MODULE:FUNCTION",
        help="the Python function that makes the folder's GAN, where it is one of your own",
    )
    add_threads(parser)
    add_device(parser)
    parser.add_argument("--quiet", action="store_true", help="say nothing of the device")


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    from ..profiling.layers import profile

    if arguments.batch < 1:
        raise ValueError(f"--batch is {arguments.batch}; it must be at least 1")
    set_threads(arguments.threads)
    check_entry(arguments)
    gan = placed(load_trained(arguments.folder), use_device(arguments))
    print(profile(gan.generator, store.example(gan, arguments.batch)))
