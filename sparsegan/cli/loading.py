"""The data and the trained GANs that options name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import data
from ..data.registry import SETS
from ..gans import GANS, Objective, Reference, store
from ..gans.reference import Way

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


def load_data(
    arguments: argparse.Namespace, reference: Reference, size: int, channels: int | None, split: str
) -> data.Samples:
    """The samples that the options of `add_data_options` name. A GAN that starts from noise learns from all of them."""
    return data.load(
        reference.samples,
        arguments.data,
        size,
        "all" if reference.from_noise else split,
        direction=arguments.direction,
        attributes=arguments.attributes,
        domains=arguments.domains,
        channels=arguments.channels or channels or 3,
        quiet=arguments.quiet,
    )


def test_data(
    arguments: argparse.Namespace, reference: Reference, size: int, channels: int | None
) -> tuple[data.Samples, str]:
    """(samples that were not trained on, "test"); the training ones, "train", where there are none, which is said."""
    try:
        samples = load_data(arguments, reference, size, channels, "test")
    except (FileNotFoundError, ValueError) as error:
        print(f"no test data ({error}): training data instead", file=sys.stderr)
        return load_data(arguments, reference, size, channels, "train"), "train"
    return samples, "train" if reference.from_noise else "test"


# Trained GANs


def placed(gan: store.Gan, device: torch.device) -> store.Gan:
    """The GAN with both networks on `device`."""
    gan.generator.to(device)
    gan.discriminator.to(device)
    return gan


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


def reference_of_data(arguments: argparse.Namespace, gan: store.Gan) -> Reference:
    """The reference GAN whose kind of samples the command reads: the GAN's own, or for a Python function --task's."""
    reference = gan.reference or GANS.get(arguments.task)
    if reference is None:
        raise ValueError(f"--task is missing; it says how --data is read: one of {', '.join(GANS)}")
    return reference


def chosen_ways(gan: store.Gan, arguments: argparse.Namespace, options: Sequence[str]) -> dict[str, Way]:
    """The images that a GAN makes of an image, by name: all, or those that one of `options` names.

    Raises ValueError for an option that is not the GAN's, and for a name or number that it does not know.
    """
    ways = gan.ways
    names, choice = list(ways), "" if gan.reference is None or "" in ways else gan.reference.choice
    for option in options:
        if getattr(arguments, option) is not None and option != choice:
            raise ValueError(f"--{option} is given; this GAN has none")
    given = getattr(arguments, choice, None) or names
    chosen = {}
    for name in [given] if isinstance(given, str) else given:
        index = names.index(name) if name in names else int(name) if name.isdecimal() else -1
        if not 0 <= index < len(names):
            raise ValueError(f"--{choice} has {name!r}; this GAN knows {', '.join(names)}")
        chosen[names[index]] = ways[names[index]]
    return chosen


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
    """The GAN's objective, with the feature network of --content where that is given."""
    if arguments.content is None:
        return gan.objective
    if gan.reference is None or gan.reference.objective_with is None:
        have = ", ".join(name for name, reference in GANS.items() if reference.objective_with is not None)
        raise ValueError(f"--content is {arguments.content}; only {have} has a content loss")
    features = call_entry("--content", arguments.content)
    if isinstance(features, nn.Module):
        features.to(next(gan.generator.parameters()).device)
    return gan.reference.objective_with(features)


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


def inputs_of(network: nn.Module, run: Callable[[], Any]) -> tuple[Any, ...]:
    """The arguments that `network` is called with first while `run()` runs, without a graph."""
    seen: list[tuple[Any, ...]] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad():
        run()
    hook.remove()
    return seen[0]
