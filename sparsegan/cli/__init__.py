"""The command line: one file a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

#: command -> module of this package holding `add_arguments(parser)` and `run(arguments)`
COMMANDS = {"train": "train"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. An expected error is one line on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="sparsegan", description="Compress GANs; train and run them sparse.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name in COMMANDS.items():
        module = import_module(f".{module_name}", __name__)
        text = (module.__doc__ or name).strip()
        command = commands.add_parser(name, help=text.splitlines()[0].rstrip("."), description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    try:
        parsed.run(parsed)
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        print(f"sparsegan {parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sparsegan {parsed.command}: interrupted; --resume continues it", file=sys.stderr)
        return 130
    return 0
