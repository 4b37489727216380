"""Write the dense twin of a generator as an ONNX file, checked in ONNX Runtime, for those who serve from elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..gans import store
from .common import add_threads, set_threads
from .loading import add_gan_options, chosen_ways, inputs_of, load_any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan export`."""
    add_gan_options(parser)
    parser.add_argument("--onnx", type=Path, required=True, metavar="OUT", help="the file to write")
    parser.add_argument("--direction", help="a_to_b or b_to_a, of CycleGAN (default: both in one file)")
    parser.add_argument("--size", type=int, help="of the images it is tried on, in pixels (default: as trained)")
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the file, and say what it takes and how close ONNX Runtime comes."""
    from ..engine.export import export_onnx

    if arguments.size is not None and arguments.size < 1:
        raise ValueError(f"--size is {arguments.size}; it must be at least 1")
    set_threads(arguments.threads)
    gan = load_any(arguments)
    if gan.config["network"]["gan"] is None:
        raise ValueError("--generator is a Python function, whose inputs are not known; use sparsegan.export_onnx")
    generator, example = gan.generator, store.example(gan, 1, arguments.size)
    ways = chosen_ways(gan, arguments, ["direction"])
    if arguments.direction is not None:
        (generator,) = (way.network for way in ways.values())
        example = inputs_of(generator, lambda: gan.generator(*example))
    print(export_onnx(generator, example, arguments.onnx))
