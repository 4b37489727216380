"""What several commands share: options, threads, the device, pictures."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data
from ..data.registry import SETS
from ..gans import GANS, Objective, srgan, store
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


def placed(gan: store.Gan, device: torch.device) -> store.Gan:
    """The GAN with both networks on `device`."""
    gan.generator.to(device)
    gan.discriminator.to(device)
    return gan


def need(*packages: str) -> None:
    """Raise ModuleNotFoundError now, and not after hours of training, where one is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed; pip install sparsegan[demo]")


def grid(images: Tensor, columns: int = 8) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] -> one picture uint8 [rows*(H+2)+2, columns*(W+2)+2, C], missing cells black."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    picture = torch.full((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), 64, dtype=torch.uint8)
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    for index in range(rows * columns):
        top, left = index // columns * (height + 2) + 2, index % columns * (width + 2) + 2
        picture[top : top + height, left : left + width] = pixels[index] if index < count else 0
    return picture


def write_png(path: Path, picture: Tensor) -> None:
    """Write a picture uint8 [H, W, 1 or 3] as PNG, whole or not at all. Needs pillow."""
    from PIL import Image

    from ..atomic_files import write_whole

    array = picture.numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))


# Data


def add_data_options(parser: argparse.ArgumentParser, default: str) -> None:
    """--data and what chooses from it."""
    names = ", ".join(SETS)
    parser.add_argument(
        "--data", help=f"a file or folder in a layout of the task, or a set of sparsegan data: {names} ({default})"
    )
    parser.add_argument("--size", type=int, help=f"height and width of the images, in pixels ({default})")
    parser.add_argument(
        "--direction", choices=["AtoB", "BtoA"], default="AtoB", help="of pairs or sides (default: AtoB)"
    )
    parser.add_argument("--attributes", type=Path, help="stargan's attribute file; without it, a folder a domain")
    parser.add_argument("--domains", nargs="+", default=[], help="stargan's attributes or folders (default: all)")
    parser.add_argument(
        "--channels", type=int, choices=[1, 3], help="of an image (default: as the data or network has)"
    )


def load_data(arguments: argparse.Namespace, task: str, size: int, channels: int | None, split: str) -> data.Samples:
    """The samples that the options of `add_data_options` name. An unconditional GAN learns from all of them."""
    return data.load(
        task,
        arguments.data,
        size,
        "all" if task == "dcgan" else split,
        direction=arguments.direction,
        attributes=arguments.attributes,
        domains=arguments.domains,
        channels=arguments.channels or channels or 3,
        quiet=arguments.quiet,
    )


def test_data(arguments: argparse.Namespace, task: str, size: int, channels: int | None) -> tuple[data.Samples, str]:
    """(samples that were not trained on, "test"); the training ones, "train", where there are none, which is said."""
    try:
        samples = load_data(arguments, task, size, channels, "test")
    except (FileNotFoundError, ValueError) as error:
        print(f"no test data ({error}): training data instead", file=sys.stderr)
        return load_data(arguments, task, size, channels, "train"), "train"
    return samples, "train" if task == "dcgan" else "test"


# Trained GANs


def add_content(parser: argparse.ArgumentParser) -> None:
    """--content."""
    parser.add_argument(
        "--content",
        metavar="MODULE:FUNCTION",
        help="srgan: a function that gives the feature network of the content loss, images [N, 3, S, S] in [-1, 1] -> "
        "features (default: pixels)",
    )


def add_gan_options(parser: argparse.ArgumentParser) -> None:
    """A folder that this package wrote, or files of the public repositories, or a Python function."""
    parser.add_argument("folder", type=Path, nargs="?", help="a trained GAN: a folder that train or compress wrote")
    parser.add_argument("--task", choices=list(GANS), help="the GAN, where a file fits several (default: recognised)")
    parser.add_argument(
        "--generator",
        nargs="+",
        metavar="FILE",
        help="instead of the folder: a state_dict (.pth, .pt, .safetensors) of a public repository, CycleGAN's netG_A "
        "and netG_B for both directions; or package.module:build, a function that gives (generator, discriminator, "
        "objective)",
    )
    parser.add_argument("--discriminator", nargs="+", metavar="FILE", help="its state_dict; CycleGAN's netD_A, netD_B")
    parser.add_argument(
        "--key", help="where in the generator's file the state_dict is (g_ema, models.G; default: found)"
    )
    parser.add_argument("--discriminator-key", metavar="KEY", help="the same of the discriminator's file")


def load_gan(arguments: argparse.Namespace) -> tuple[store.Gan, bool]:
    """The dense GAN of `add_gan_options`, and whether its discriminator is a trained one."""
    if (arguments.folder is None) == (arguments.generator is None):
        raise ValueError("give a folder that train wrote, or --generator")
    _check_gan_options(arguments)
    if arguments.folder is not None:
        return store.load(arguments.folder), True
    if _is_entry(arguments.generator):
        return load_entry(arguments.generator[0]), True
    keys = {"key": arguments.key, "discriminator_key": arguments.discriminator_key}
    return store.load_public(arguments.generator, arguments.discriminator, arguments.task, **keys)


def _check_gan_options(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that would have no effect."""
    of_files = ("discriminator", "key", "discriminator_key")
    given = [f"--{name.replace('_', '-')}" for name in (*of_files, "task") if getattr(arguments, name) is not None]
    files = arguments.generator or []
    if arguments.folder is not None and given and not _is_entry(files):
        raise ValueError(f"{', '.join(given)} goes with --generator; a folder holds both networks")
    if _is_entry(files) and set(given) - {"--task"}:
        raise ValueError(f"{', '.join(given)} goes with files; a Python function gives its own networks")
    if arguments.discriminator_key is not None and arguments.discriminator is None:
        raise ValueError("--discriminator-key is given without --discriminator, whose file it is for")


def load_any(arguments: argparse.Namespace) -> store.Gan:
    """The GAN of `add_gan_options`, dense or compressed, its generator ready for evaluation."""
    _check_gan_options(arguments)
    if arguments.folder is not None and (arguments.generator is None or _is_entry(arguments.generator)):
        check_entry(arguments)
        return load_trained(arguments.folder)
    gan = load_gan(arguments)[0]
    gan.generator.eval()
    return gan


def _is_entry(generator: list[str]) -> bool:
    return len(generator) == 1 and ":" in generator[0]


def check_entry(arguments: argparse.Namespace) -> None:
    """Raises ValueError where a folder names a Python function to call and the command line does not: a folder may come
    from anybody, and the function is code."""
    network = store.read_config(arguments.folder).get("network")
    entry = network.get("entry") if isinstance(network, Mapping) else None
    given = arguments.generator[0] if arguments.generator else None
    if entry and given != entry:
        raise ValueError(
            f"the GAN of {arguments.folder} is made by {entry!r}, a Python function; to have it run, add "
            f"--generator {entry}"
        )
    if given and not entry:
        raise ValueError(f"{arguments.folder} names no Python function; --generator {given} does not go with it")


def call_entry(option: str, entry: str) -> Any:
    """What the function `package.module:build` of an option gives."""
    name, _, function = entry.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as python -m has it
    try:
        build = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} is {entry}; it must be package.module:function ({error})") from None
    return build()


def content_objective(arguments: argparse.Namespace, gan: store.Gan) -> Objective:
    """The GAN's objective; srgan's with the feature network of --content."""
    if arguments.content is None:
        return gan.objective
    if gan.config["network"]["gan"] != "srgan":
        raise ValueError("--content is srgan's")
    features = call_entry("--content", arguments.content)
    if isinstance(features, nn.Module):
        features.to(next(gan.generator.parameters()).device)
    return srgan.objective_with(features)


def load_entry(entry: str) -> store.Gan:
    """What a function `package.module:build` gives: (generator, discriminator, objective)."""
    made = call_entry("--generator", entry)
    if not isinstance(made, tuple) or len(made) != 3:
        raise ValueError(f"{entry} gave {made!r:.80}; it must give (generator, discriminator, objective)")
    generator, discriminator, objective = made
    for value, wanted in ((generator, nn.Module), (discriminator, nn.Module), (objective, Objective)):
        if not isinstance(value, wanted):
            kind = type(value).__name__
            raise ValueError(f"{entry} gave a {kind} where a {wanted.__name__} is needed")
    return store.Gan(generator, discriminator, objective, {"network": {"gan": None, "entry": entry}})


def load_trained(folder: Path) -> store.Gan:
    """The GAN of a folder that train or compress wrote; a compressed one's discriminator is an untrained one."""
    config = store.read_config(folder)
    if not config.get("compressed"):
        return store.load(folder)
    from ..checkpoint import load

    network = config.get("network")
    entry = network.get("entry") if isinstance(network, Mapping) else None
    gan = load_entry(entry) if entry else store.build(config)
    generator = load(gan.generator, folder / "generator.safetensors").eval()
    return store.Gan(generator, gan.discriminator, gan.objective, config)


def find_checkpoints() -> Path:
    """The repository's checkpoints folder: under the working directory, or beside the package's source."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "checkpoints" / "dcgan-mnist").is_dir():
            return root / "checkpoints"
    raise FileNotFoundError("no folder checkpoints/dcgan-mnist here; run this in a clone of the repository, or name it")
