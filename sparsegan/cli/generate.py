"""Make images with a dense or compressed generator and write them as one PNG grid."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..gans import store
from .common import add_threads, grid, load_generator, set_threads, write_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan generate`."""
    parser.add_argument("folder", type=Path, help="a folder that train or compress wrote")
    parser.add_argument("--count", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--columns", type=int, default=8, help="images a row (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="file to write (default: samples.png)")
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the grid."""
    for name in ("count", "columns"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    set_threads(arguments.threads)
    generator = load_generator(arguments.folder)
    with torch.no_grad():
        images = torch.cat([generator(z) for z in store.noise(generator, arguments.count, arguments.seed).split(64)])
    write_png(arguments.out, grid(images, arguments.columns))
    print(f"wrote {arguments.out}")
