"""Options that name data and trained GANs, and the functions that load them."""

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
from ..data import dead_leaves, tones
from ..data.registry import SETS
from ..gans import GANS, Objective, Reference, store
from ..gans.reference import Way
from ..progress import announce

# Data

#: The data set, in a run's settings, of a generator whose data are not known.
NO_DATA = "none"


def add_data_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --data and the options that select samples from it. `default`: the help text of the default."""
    names = ", ".join(SETS)
    parser.add_argument(
        "--data",
        help=f"a file or folder in a layout of the task; or a data set of sparsegan data: {names}; or "
        f"{dead_leaves.NAME}, synthetic images for a GAN that starts from an image, or {tones.NAME}, synthetic sounds "
        f"({default})",
    )
    parser.add_argument(
        "--size",
        type=int,
        help=f"height and width of the images, in pixels; of sounds, samples of a window ({default})",
    )
    parser.add_argument(
        "--direction",
        choices=["AtoB", "BtoA"],
        default="AtoB",
        help="direction of image pairs, or of the two folders of images (default: AtoB)",
    )
    parser.add_argument(
        "--attributes", type=Path, help="stargan: the attribute file (default: none; the data has a folder per domain)"
    )
    parser.add_argument("--domains", nargs="+", default=[], help="stargan: attributes or folders (default: all)")
    parser.add_argument(
        "--channels", type=int, choices=[1, 3], help="channels of an image (default: those of the data or the network)"
    )


def load_data(
    arguments: argparse.Namespace, reference: Reference, size: int, channels: int | None, split: str
) -> data.Samples:
    """The samples of a split that the options of `add_data_options` name, as `data.load` takes it.

    The split "train" of a GAN that starts from noise has all samples.
    `channels`: those of the GAN's images, where they are known. Raises ValueError for data of other channels.
    """
    if reference.samples.signals and arguments.channels not in (None, 1):
        raise ValueError(f"--channels is {arguments.channels}; sounds have 1 channel, the mean of a file's channels")
    samples = data.load(
        reference.samples,
        arguments.data,
        size,
        "all" if reference.from_noise and split == "train" else split,
        direction=arguments.direction,
        attributes=arguments.attributes,
        domains=arguments.domains,
        channels=arguments.channels or channels or 3,
        quiet=arguments.quiet,
    )
    if channels is not None and samples.channels != channels:
        raise ValueError(
            f"--data {arguments.data} has images of {samples.channels} channel(s) here; the GAN needs {channels}"
        )
    return samples


def known_data(arguments: argparse.Namespace, gan: store.Gan) -> str:
    """The value of --data, or else the data set of the GAN's training. Raises ValueError where neither is known."""
    found: str = arguments.data or gan.config.get("data", NO_DATA)
    if found == NO_DATA:
        if getattr(arguments, "data_free", False):
            if gan.from_noise:
                raise ValueError("--data is missing; with --data-free it still names the real images of --features")
            sounds = gan.reference is not None and gan.reference.samples.signals
            what, name = ("sounds", tones.NAME) if sounds else ("images", dead_leaves.NAME)
            announce(
                f"--data is missing: the input {what} are synthetic ({name}); --data with real input {what} brings the "
                "generator nearer to its original",
                arguments.quiet,
            )
            return name
        alone = ", or --data-free" if hasattr(arguments, "data_free") else ""
        raise ValueError(f"--data is missing; nothing here says what this GAN was trained on: give --data{alone}")
    return found


def test_data(
    arguments: argparse.Namespace, reference: Reference, size: int, channels: int | None
) -> tuple[data.Samples, str]:
    """The test samples and "test". Where there are none, the training samples and "train", with a message on stderr.

    A GAN that starts from noise gets all samples and "train".
    """
    if not reference.from_noise:
        try:
            return load_data(arguments, reference, size, channels, "test"), "test"
        except (FileNotFoundError, ValueError) as error:
            print(f"there is no test data ({error}); training data is used instead", file=sys.stderr)
    return load_data(arguments, reference, size, channels, "train"), "train"


# Trained GANs


def placed(gan: store.Gan, device: torch.device) -> store.Gan:
    """The same GAN, with both networks moved to `device`."""
    gan.generator.to(device)
    gan.discriminator.to(device)
    return gan


def add_content(parser: argparse.ArgumentParser) -> None:
    """Add --content."""
    parser.add_argument(
        "--content",
        metavar="MODULE:FUNCTION",
        help="srgan, esrgan: a Python function that returns the feature network of the content loss, from images "
        "[N, 3, S, S] in [-1, 1] to features (default: pixels are compared); esrgan compares pixels too",
    )


def add_gan_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a trained GAN: a folder, files of public repositories, or a Python function."""
    parser.add_argument("folder", type=Path, nargs="?", help="a trained GAN: a folder that train or compress wrote")
    parser.add_argument(
        "--task", choices=list(GANS), help="the GAN, where a file fits several GANs (default: recognised)"
    )
    parser.add_argument(
        "--generator",
        nargs="+",
        metavar="FILE",
        help="in place of the folder: a state_dict (.pth, .pt, .safetensors) of a public repository (for CycleGAN "
        "netG_A and netG_B, for both directions), or package.module:build, a Python function that returns (generator, "
        "discriminator, objective)",
    )
    parser.add_argument(
        "--discriminator",
        nargs="+",
        metavar="FILE",
        help="the discriminator's state_dict (for CycleGAN netD_A and netD_B)",
    )
    parser.add_argument(
        "--key",
        help="the place of the state_dict in the generator's file, for example g_ema or models.G (default: found)",
    )
    parser.add_argument(
        "--discriminator-key", metavar="KEY", help="the place of the state_dict in the discriminator's file"
    )


def reference_of_data(arguments: argparse.Namespace, gan: store.Gan) -> Reference:
    """The reference GAN that decides how --data is read: that of `gan`, or of --task for a Python function's GAN."""
    reference = gan.reference or GANS.get(arguments.task)
    if reference is None:
        raise ValueError(f"--task is missing; it says how --data is read: one of {', '.join(GANS)}")
    return reference


def chosen_ways(gan: store.Gan, arguments: argparse.Namespace, options: Sequence[str]) -> dict[str, Way]:
    """The ways of a GAN from an image to images, by name: all ways, or those that one of `options` names.

    Raises ValueError for an option that the GAN does not have, and for an unknown name or number.
    """
    ways = gan.ways
    names, choice = list(ways), "" if gan.reference is None or "" in ways else gan.reference.choice
    for option in options:
        if getattr(arguments, option) is not None and option != choice:
            raise ValueError(f"--{option} is given; this GAN has no {option}")
    given = getattr(arguments, choice, None) or names
    chosen = {}
    for name in [given] if isinstance(given, str) else given:
        index = names.index(name) if name in names else int(name) if name.isdecimal() else -1
        if not 0 <= index < len(names):
            raise ValueError(f"--{choice} has {name!r}; this GAN knows {', '.join(names)}")
        chosen[names[index]] = ways[names[index]]
    return chosen


def load_gan(arguments: argparse.Namespace) -> tuple[store.Gan, bool]:
    """The dense GAN that the options of `add_gan_options` name, and whether its discriminator is trained."""
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
    """Raise ValueError for options that would have no effect."""
    of_files = ("discriminator", "key", "discriminator_key")
    given = [f"--{name.replace('_', '-')}" for name in (*of_files, "task") if getattr(arguments, name) is not None]
    files = arguments.generator or []
    if arguments.folder is not None and given and not _is_entry(files):
        raise ValueError(f"{', '.join(given)} needs --generator; a folder holds both networks")
    if _is_entry(files) and set(given) - {"--task"}:
        raise ValueError(f"{', '.join(given)} needs files; a Python function returns both networks")
    if arguments.discriminator_key is not None and arguments.discriminator is None:
        raise ValueError("--discriminator-key is given without --discriminator; it needs the discriminator's file")


def load_any(arguments: argparse.Namespace) -> store.Gan:
    """The dense or compressed GAN that the options of `add_gan_options` name, its generator in evaluation mode."""
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
    """Raise ValueError where a folder names a Python function and the command line does not name the same function.

    A folder may come from anybody, and calling the function runs code.
    """
    network = store.read_config(arguments.folder).get("network")
    entry = network.get("entry") if isinstance(network, Mapping) else None
    given = arguments.generator[0] if arguments.generator else None
    if entry and given != entry:
        raise ValueError(
            f"the GAN of {arguments.folder} is made by {entry!r}, a Python function; to allow this function to run, "
            f"add --generator {entry}"
        )
    if given and not entry:
        raise ValueError(
            f"--generator is {given} and {arguments.folder} names no Python function; leave --generator out"
        )


def call_entry(option: str, entry: str) -> Any:
    """The return value of the function that `entry`, the value of an option, names as `package.module:build`."""
    name, _, function = entry.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        build = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} is {entry}; it must be package.module:function ({error})") from None
    return build()


def content_objective(arguments: argparse.Namespace, gan: store.Gan) -> Objective:
    """The GAN's objective, with the feature network of --content where this option is given."""
    if arguments.content is None:
        return gan.objective
    if gan.reference is None or gan.reference.objective_with is None:
        have = ", ".join(name for name, one in GANS.working().items() if one.objective_with is not None)
        raise ValueError(f"--content is {arguments.content}; the GANs with a content loss are {have}")
    features = call_entry("--content", arguments.content)
    if isinstance(features, nn.Module):
        features.to(next(gan.generator.parameters()).device)
    return gan.reference.objective_with(features)


def load_entry(entry: str) -> store.Gan:
    """The GAN whose generator, discriminator and objective the function `package.module:build` returns."""
    made = call_entry("--generator", entry)
    if not isinstance(made, tuple) or len(made) != 3:
        raise ValueError(f"{entry} returned {made!r:.80}; it must return (generator, discriminator, objective)")
    generator, discriminator, objective = made
    for value, wanted in ((generator, nn.Module), (discriminator, nn.Module), (objective, Objective)):
        if not isinstance(value, wanted):
            kind = type(value).__name__
            raise ValueError(f"{entry} returned a {kind} where it must return a {wanted.__name__}")
    return store.Gan(generator, discriminator, objective, {"network": {"gan": None, "entry": entry}})


def load_trained(folder: Path) -> store.Gan:
    """The GAN of a folder that train or compress wrote. A compressed GAN's discriminator is untrained."""
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
    """The arguments of the first call of `network` while `run()` runs without a graph."""
    seen: list[tuple[Any, ...]] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad():
        run()
    hook.remove()
    return seen[0]
