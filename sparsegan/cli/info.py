"""Print versions, the instruction sets built and in use, threads, CUDA, Triton, and the GANs with their packages."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`sparsegan info` has no options."""


def run(arguments: argparse.Namespace) -> None:
    """Print the information."""
    from ..profiling.info import main

    main()
