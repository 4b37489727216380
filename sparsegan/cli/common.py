"""Options of several commands: seed, threads, device; the packages and the folder that several need."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from ..progress import announce
from ..randomness import CPU
from ..training import ranks


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """--out, --resume, --seed, --threads, --device, --quiet."""
    parser.add_argument("--out", type=Path, default=Path(out), help=f"run directory (default: {out})")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its newest checkpoint")
    add_seed(parser, "everything random")
    add_threads(parser)
    add_device(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_seed(parser: argparse.ArgumentParser, of: str) -> None:
    """--seed."""
    parser.add_argument("--seed", type=_seed, default=0, help=f"seed of {of} (default: 0)")


def _seed(text: str) -> int:
    return _between(text, 0, 2**63 - 1)


def at_least_one(text: str) -> int:
    """The type of an option that counts something."""
    return _between(text, 1, 2**31 - 1)


def _between(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be an integer from {least} to {most}")
    return number


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads."""
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's, all cores)")


def set_threads(count: int) -> None:
    """Have torch use `count` threads; 0 leaves it as it is."""
    if count < 0:
        raise ValueError(f"--threads is {count}; it must be at least 1, or 0 for torch's own choice")
    if count:
        torch.set_num_threads(count)


def add_device(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--device."""
    text = default or "the first GPU that torch can use, else the CPU"
    parser.add_argument("--device", default=default, help=f"cpu, cuda, cuda:1, ... (default: {text})")


def device_named(name: str | None) -> torch.device:
    """The device of --device; of several processes (`torchrun`) each has a GPU of its own.

    Raises ValueError for a device that this machine does not have.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = [CPU]
    if accelerator is not None:
        there += [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    if name is None:
        name = "cuda" if torch.device("cuda", 0) in there else "cpu"
    kind, numbered, _ = name.partition(":")
    rank, several = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and numbered and kind != "cpu":
        raise ValueError(f"--device is {name!r} in all processes; --device {kind} gives each one of its own")
    # By its name: torch counts devices in 8 bits, so that another one could answer to a number beyond.
    wanted = "cpu" if name in ("cpu", "cpu:0") else name if numbered else f"{kind}:{rank}"
    found = [one for one in there if str(one) == wanted]
    if not found:
        process = f" in process {rank}" if several else ""
        raise ValueError(f"--device is {name!r}{process}; this machine has {', '.join(map(str, there))}")
    return found[0]


def use_device(arguments: argparse.Namespace) -> torch.device:
    """The device of --device, made the current one; of one that is not the CPU a line says so."""
    device = device_named(arguments.device)
    if device != CPU:
        torch.accelerator.set_device_index(device.index)
        kind = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        announce(f"running on {device}{kind}; --device cpu runs on the CPU", arguments.quiet or ranks.rank() > 0)
    return device


def need(*packages: str) -> None:
    """Raise ModuleNotFoundError now, and not after hours of training, where one is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed; pip install sparsegan[demo]")


def find_checkpoints() -> Path:
    """The repository's checkpoints folder: under the working directory, or beside the package's source."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "checkpoints" / "dcgan-mnist").is_dir():
            return root / "checkpoints"
    raise FileNotFoundError("no folder checkpoints/dcgan-mnist here; run this in a clone of the repository, or name it")
