"""Trained dense GANs on disk: this package's folders, and the files of the public repositories.

A folder holds config.json, generator.safetensors and discriminator.safetensors. A public file holds a state_dict, as
.pth, .pt or .safetensors. `recognition.py` finds the GAN and its sizes from the names and shapes in the state_dict.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..atomic_files import write_tensors
from ..placement import device_of
from ..randomness import seeded
from ..renamed import warn_of_old_name
from ..state_dicts import modules_in, names_of, read_state
from . import GANS, Reference, dcgan
from .objective import Objective
from .parts import State
from .recognition import fewest_misfits, fit, judge_misfits, recognise, reference_of, shapes_of
from .reference import Way

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Gan:
    """The two networks of a GAN and its objective. `config`: the content of the folder's config.json."""

    generator: Any
    discriminator: nn.Module
    objective: Objective
    config: dict[str, Any]

    @property
    def reference(self) -> Reference | None:
        """The reference GAN that `config` names; None for a GAN that the user's Python function builds."""
        return GANS.get(self.config["network"]["gan"])

    @property
    def from_noise(self) -> bool:
        """Whether the generator is known to start from noise: False where there is no reference GAN."""
        return self.reference is not None and self.reference.from_noise

    @property
    def ways(self) -> dict[str, Way]:
        """The ways in which the generator turns images into images, by name; see `Reference.ways`."""
        if self.reference is None:
            return {"": Way(self.generator)}
        return self.reference.ways(self.generator, self.config)

    @property
    def channels(self) -> int | None:
        """Channels of the images that the GAN learns from or takes; None where `config` does not say."""
        network = self.config["network"]
        return network.get("channels", network.get("in_channels"))

    @property
    def size(self) -> int | None:
        """Pixels of a side of the training images: those in `config`, else the reference GAN's default, else None."""
        known = self.config["network"].get("image_size") or self.config.get("size")
        return known or (self.reference.training.size if self.reference else None)


def build(config: dict[str, Any]) -> Gan:
    """Returns a GAN with untrained networks, as `config["network"]` describes them.

    `config["network"]`: {"gan": name, ...}; the other entries are arguments of that GAN's `build`.
    """
    reference = reference_of(config)
    sizes = {name: value for name, value in config["network"].items() if name != "gan"}
    generator, discriminator = reference.build(**sizes)
    return Gan(channels_last(generator), channels_last(discriminator), reference.objective(sizes), config)


def example(gan: Gan, count: int, size: int | None = None, seed: int | None = 0) -> tuple[Tensor, ...]:
    """Returns `count` random inputs of a reference GAN's generator, on the generator's device.

    The inputs are drawn on the CPU and are the same every time for a `seed`; None draws from torch's default generator.
    `size`: height and width of the images, in pixels; by default `gan.size`.
    """
    reference = reference_of(gan.config)
    with nullcontext() if seed is None else seeded(seed):
        inputs = reference.example(gan.config["network"], count, size or gan.size or reference.training.size)
    device = device_of(generator=gan.generator)
    return tuple(tensor.to(device) for tensor in inputs)


def channels_last(network: Module) -> Module:
    """Returns `network` with its convolution weights in channels_last.

    In this layout, torch's CPU convolutions often train 1.5 to 2 times faster.
    """
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# Folders


def read_config(folder: str | Path) -> dict[str, Any]:
    """Returns the content of a folder's config.json. Raises FileNotFoundError if it is missing, ValueError for a value
    that is not an object."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; it must be a folder that train or compress wrote")
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}; it must hold an object")
    return config


def load(folder: str | Path) -> Gan:
    """Returns the dense GAN in a folder: float32 networks in evaluation mode.

    Raises FileNotFoundError for a missing file and ValueError for a file that does not fit.
    """
    gan = build(read_config(folder))
    for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        file = Path(folder) / f"{name}.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
        fit(network, read_state(file, wanted=names_of(network)[0]), str(file))
        network.eval()
    return gan


def save(folder: str | Path, generator: nn.Module, discriminator: nn.Module, half: bool = False) -> None:
    """Writes both networks to a folder. `half`: convolution weights are stored in float16 and all else in float32."""
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        state = network.state_dict()
        if half:
            state = {key: value.half() if value.dim() in (3, 4) else value for key, value in state.items()}
        write_tensors(Path(folder) / f"{name}.safetensors", state)


def noise(generator: dcgan.Generator, count: int, seed: int | None = None) -> Tensor:
    """The former name of `sparsegan.gans.dcgan.noise`. It goes in 0.2."""
    warn_of_old_name("store.noise", "dcgan.noise")
    return dcgan.noise(generator, count, seed)


def sizes_of(gan: str) -> Mapping[str, inspect.Parameter]:
    """The former name of `Reference.sizes`, for the GAN with the given name. It goes in 0.2."""
    warn_of_old_name("store.sizes_of", "Reference.sizes")
    return GANS[gan].sizes


# Public files


def load_public(
    generator: str | Path | State | Sequence[str | Path | State],
    discriminator: str | Path | State | Sequence[str | Path | State] | None = None,
    gan: str | None = None,
    key: str | None = None,
    discriminator_key: str | None = None,
    **sizes: Any,
) -> tuple[Gan, bool]:
    """Returns (a GAN from public files or state_dicts, whether a discriminator was given).

    The architecture is recognised from the state_dicts, and the networks are in evaluation mode.

    `generator`, `discriminator`: a file or state_dict each. For CycleGAN each may be a sequence of two, in the order
        netG_A, netG_B (netD_A, netD_B) of the public files. A single generator is that of A to B alone. For HiFi-GAN,
        sizes that the generator's file does not show are read from the public config.json in its folder.
    `gan`: the name of the GAN, needed where a file fits several.
    `key`, `discriminator_key`: where in a file the state_dict is; see :func:`sparsegan.state_dicts.read_state`.
    `sizes`: sizes that the files do not tell: StarGAN's image_size and, without a discriminator's file, those of the
        fresh discriminator.

    Raises ValueError for a file that holds no state_dict or fits no reference GAN.
    """
    first = _joined(generator, 0, gan, key, lambda state: fewest_misfits(state, gan, sizes))
    sizes = _beside(generator, recognise(first, None, gan, **sizes)["gan"]) | sizes
    second = None
    if discriminator is not None:
        found = recognise(first, None, gan, **sizes)
        misfits = partial(judge_misfits, found, sizes=sizes)
        second = _joined(discriminator, 1, found["gan"], discriminator_key, misfits, names_of(shapes_of(found)[1])[0])
    network = recognise(first, second, gan, **sizes)
    reference = GANS[network["gan"]]
    if assumption := reference.assumed(first):
        warnings.warn(assumption, stacklevel=2)
    built = build({"network": network})
    fit(built.generator, reference.renamed(first), "the generator's state_dict")
    if second is not None:
        fit(built.discriminator, second, "the discriminator's state_dict")
    built.generator.eval()
    built.discriminator.eval()
    return built, second is not None


def _beside(generator: Any, gan: str) -> dict[str, Any]:
    """Returns the sizes that files beside the generator's file tell, {} for a state_dict and for several files."""
    if isinstance(generator, list | tuple) and len(generator) == 1:
        (generator,) = generator
    return GANS[gan].beside(Path(generator)) if isinstance(generator, str | Path) else {}


def _joined(
    given: Any,
    side: int,
    gan: str | None,
    key: str | None,
    misfits: Callable[[State], int],
    wanted: Collection[str] = (),
) -> State:
    """Returns the state_dict of the generator (side 0) or the discriminator (1), from one file or one file per part.

    `wanted`: the names in the network, where they are known. A spectral norm that the network has then stays.
    """
    name = ("generator", "discriminator")[side]
    several = list(given) if isinstance(given, list | tuple) else [given]
    parts = {one.name: one.files[side] for one in GANS.working().values() if one.files[side]}
    if len(several) == 1 and gan in parts and key is None:
        if modules := modules_in(several[0], parts[gan]):
            states = [
                read_state(one, name, wanted=[known.removeprefix(f"{part}.") for known in wanted])
                for part, one in zip(parts[gan], modules, strict=True)
            ]
            return _prefixed(parts[gan], states)
    states = [read_state(one, name, key, misfits if len(several) == 1 else None, wanted) for one in several]
    if len(states) == 1:
        return states[0]
    fitting = [names for one, names in parts.items() if gan in (None, one) and len(names) == len(states)]
    if not fitting:
        accepted = " or ".join(f"{one}'s {len(names)}" for one, names in parts.items())
        raise ValueError(f"{name} is {len(states)} files; it must be one, or {accepted}")
    return min((_prefixed(names, states) for names in fitting), key=misfits)


def _prefixed(names: Sequence[str], states: Sequence[State]) -> State:
    """Returns one state_dict of several modules, whose names come before those of their tensors."""
    return {f"{part}.{key}": value for part, state in zip(names, states, strict=True) for key, value in state.items()}
