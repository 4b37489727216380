"""The command line: one module per command, each with `add_arguments(parser)` and `run(arguments)`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

#: From the name of a command, which is also the name of its module, to its help text.
COMMANDS = {
    "info": "print versions, instruction sets built and in use, threads, CUDA and Triton, and the GANs",
    "demo": "compress the DCGAN of this repository to 90 %% sparsity and compare: a table and report.html",
    "data": "prepare a data set that is installed with a package, or list the data sets",
    "train": "train a dense reference GAN, or a classifier that scores images, on real data",
    "compress": "prune and fine-tune a trained GAN's generator, and write the compressed generator",
    "generate": "make images with a dense or compressed generator",
    "export": "write a generator as a dense ONNX file, checked in ONNX Runtime",
    "evaluate": "score a generator: distances from real images; PSNR and SSIM where images have targets",
    "profile": "print each layer of a compressed generator: MACs, backend, time",
    "study": "run the missing rows of a study, or rebuild its tables and plots from the finished rows",
    "bench": "time layers and generators against the best dense engine that is installed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 130 after an interrupt, or 1 after an error of an expected kind.

    An error of an expected kind is printed as one line on stderr.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = given[0] if given and given[0] in COMMANDS else ""
    form = warnings.formatwarning
    # The sentence of a warning is enough, without the source line that raised it.
    warnings.formatwarning = lambda message, *_: f"sparsegan {command}: {message}\n"
    try:
        parsed = _parser(command).parse_args(given)
        from ..randomness import CPU
        from ..training import ranks

        device = CPU
        if hasattr(parsed, "device"):
            from .common import device_named

            device = device_named(parsed.device)
        with ranks.from_environment(device):
            parsed.run(parsed)
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        print(f"sparsegan {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sparsegan {command}: interrupted; --resume continues a run", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = form
    return 0


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser of all commands. Only the module of the given `command` is imported."""
    parser = argparse.ArgumentParser(prog="sparsegan", description="Compress GANs; train and run them sparse.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        added = commands.add_parser(name, help=text)
        if name == command:
            module = import_module(f".{name}", __name__)
            added.description = module.__doc__
            module.add_arguments(added)
            added.set_defaults(run=module.run)
    return parser
