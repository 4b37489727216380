"""Trained dense GANs on disk: this package's folders, and the files of the public repositories.

A folder holds config.json, generator.safetensors and discriminator.safetensors. A public file is a state_dict, as
.pth, .pt or .safetensors; which GAN it is, and of what size, is read from its names and shapes (`recognise`).
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..atomic_files import write_tensors
from ..placement import device_of
from ..randomness import seeded
from ..state_dicts import read_state
from . import GANS, Reference, dcgan
from .objective import Objective
from .parts import State

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Gan:
    """A GAN's two networks and its objective; `config` is the folder's config.json."""

    generator: Any
    discriminator: nn.Module
    objective: Objective
    config: dict[str, Any]


def reference_of(config: Mapping[str, Any]) -> Reference:
    """The reference GAN that `config["network"]` names. Raises ValueError for none, and for sizes it does not have."""
    network = config.get("network")
    names = ", ".join(GANS)
    if not isinstance(network, dict) or network.get("gan") not in GANS:
        raise ValueError(f'the configuration\'s "network" is {network!r}; its "gan" must be one of {names}')
    reference = GANS[network["gan"]]
    known = sizes_of(reference.name)
    needed = [name for name, parameter in known.items() if parameter.default is parameter.empty]
    for name in network:
        if name != "gan" and name not in known:
            raise ValueError(f'the configuration\'s "network" has {name!r}; {reference.name} has {", ".join(known)}')
    for name in needed:
        if name not in network:
            raise ValueError(f'the configuration\'s "network" has no {name!r}; it needs {", ".join(needed)}')
    return reference


def sizes_of(gan: str) -> Mapping[str, inspect.Parameter]:
    """What decides a reference GAN's networks: the arguments of its `build`."""
    return inspect.signature(GANS[gan].build).parameters


def build(config: dict[str, Any]) -> Gan:
    """Untrained networks for `config["network"]`: {"gan": name, ...}, the rest as that GAN's `build` names it."""
    reference = reference_of(config)
    sizes = {name: value for name, value in config["network"].items() if name != "gan"}
    generator, discriminator = reference.build(**sizes)
    return Gan(channels_last(generator), channels_last(discriminator), reference.objective(sizes), config)


def example(gan: Gan, count: int, size: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """`count` random inputs of a reference GAN's generator, where that is, the same every time, to profile it with.

    `size`: of the images, in pixels; by default what `gan.config` says that it was trained on, or is by default.
    """
    reference = reference_of(gan.config)
    network = gan.config["network"]
    size = size or network.get("image_size") or gan.config.get("size") or reference.training.size
    device = device_of(generator=gan.generator)
    with seeded(seed):
        return tuple(tensor.to(device) for tensor in reference.example(network, count, size))


def channels_last(network: Module) -> Module:
    """Convolution weights in channels_last, in which torch's CPU convolutions often train 1.5 to 2 times faster."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# Folders


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a folder; FileNotFoundError with a hint when there is none."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; it must be a folder that train or compress wrote")
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}; it must hold an object")
    return config


def load(folder: str | Path) -> Gan:
    """Read a dense GAN: float32 networks, ready for evaluation. Raises when a file is missing or does not fit."""
    gan = build(read_config(folder))
    for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        file = Path(folder) / f"{name}.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
        fit(network, read_state(file), str(file))
        network.eval()
    return gan


def save(folder: str | Path, generator: nn.Module, discriminator: nn.Module, half: bool = False) -> None:
    """Write both networks; `half` stores convolution weights in float16 (batch norms stay float32)."""
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        state = network.state_dict()
        if half:
            state = {key: value.half() if value.dim() == 4 else value for key, value in state.items()}
        write_tensors(Path(folder) / f"{name}.safetensors", state)


def noise(generator: dcgan.Generator, count: int, seed: int | None = None) -> torch.Tensor:
    """Noise float32 [count, nz, 1, 1], where the generator is; the same every time for a `seed`.

    It is drawn on the CPU, from torch's generator without a seed: a seed gives the same noise on every device.
    """
    source = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(count, generator.nz, 1, 1, generator=source).to(device_of(generator=generator))


# Public files


def load_public(
    generator: str | Path | State | Sequence[str | Path | State],
    discriminator: str | Path | State | Sequence[str | Path | State] | None = None,
    gan: str | None = None,
    key: str | None = None,
    discriminator_key: str | None = None,
    **sizes: Any,
) -> tuple[Gan, bool]:
    """A GAN from public files or state_dicts, its architecture recognised: (gan, whether a discriminator was given).

    For CycleGAN each may be two, in the order of the public netG_A, netG_B (netD_A, netD_B); one generator is A to B
    alone. `gan`: its name, where the file fits several. `sizes`: of the network, for what a file does not tell (without
    a discriminator's file: that of a fresh discriminator; StarGAN's image_size). `key`, `discriminator_key`: where in a
    file the state_dict is; see :func:`sparsegan.state_dicts.read_state`. Networks are ready for evaluation.
    Raises ValueError where a file is not a state_dict, or fits no reference GAN.
    """
    first = _joined(generator, "generator", ("a_to_b", "b_to_a"), key, lambda state: _fewest_misfits(state, gan, sizes))
    second = None
    if discriminator is not None:
        found = recognise(first, None, gan, **sizes)
        second = _joined(
            discriminator,
            "discriminator",
            ("b", "a"),
            discriminator_key,
            lambda state: _judge_misfits(found, state, sizes),
        )
    network = recognise(first, second, gan, **sizes)
    built = build({"network": network})
    fit(built.generator, first, "the generator's state_dict")
    if second is not None:
        fit(built.discriminator, second, "the discriminator's state_dict")
    built.generator.eval()
    built.discriminator.eval()
    return built, second is not None


def _joined(
    given: Any, side: str, names: tuple[str, str], key: str | None, misfits: Callable[[State], int]
) -> dict[str, Tensor]:
    """One state_dict from one file, or from CycleGAN's two."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    states = [read_state(one, side, key, misfits if len(several) == 1 else None) for one in several]
    if len(states) == 1:
        return states[0]
    if len(states) != 2:
        raise ValueError(f"{side} is {len(states)} files; it must be one, or CycleGAN's two")
    return {f"{name}.{key}": value for name, state in zip(names, states, strict=True) for key, value in state.items()}


# Which GAN, and of what size


def recognise(
    generator: State, discriminator: State | None = None, gan: str | None = None, **sizes: Any
) -> dict[str, Any]:
    """The "network" that a bare state_dict fits, {"gan": name, ...}, for `build`.

    `gan`: only this one. `sizes`: taken as given. Raises ValueError for an unknown `gan`, and where nothing fits: it
    names the nearest architecture and the keys that did not fit.
    """
    if gan is not None and gan not in GANS:
        raise ValueError(f"gan is {gan!r}; it must be one of {', '.join(GANS)}")
    nearest: tuple[list[str], dict[str, Any]] | None = None
    for network in _candidates(generator, gan, sizes):
        misfits = _misfits(network, 0, generator)
        if not misfits:
            return network if discriminator is None else _with_discriminator(network, discriminator, sizes)
        if nearest is None or len(misfits) < len(nearest[0]):
            nearest = misfits, network
    if nearest is None:
        raise ValueError(f"no GAN of {', '.join(GANS)} has all of {', '.join(sizes)}")
    raise ValueError(f"the generator's state_dict fits no known architecture; {_nearest(*nearest)}")


def _candidates(state: State, gan: str | None, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Networks that a generator's state_dict may be of: the ordinary generator of each GAN first."""
    ranked = [
        (rank, {"gan": name, **network, **sizes})
        for name, reference in GANS.items()
        if gan == name or (gan is None and set(sizes) <= set(sizes_of(name)))
        for rank, network in enumerate(reference.generator_sizes(state))
    ]
    return [network for _, network in sorted(ranked, key=lambda one: one[0])]


def _fewest_misfits(state: State, gan: str | None, sizes: Mapping[str, Any]) -> int:
    """Of a generator's state_dict, over all architectures."""
    return min((len(_misfits(network, 0, state)) for network in _candidates(state, gan, sizes)), default=0)


def _judge_misfits(network: dict[str, Any], state: State, sizes: Mapping[str, Any]) -> int:
    """Of a discriminator's state_dict, for a GAN that is known."""
    return len(_misfits(network | GANS[network["gan"]].discriminator_sizes(state) | sizes, 1, state))


def _with_discriminator(network: dict[str, Any], state: State, sizes: Mapping[str, Any]) -> dict[str, Any]:
    network = network | GANS[network["gan"]].discriminator_sizes(state) | sizes
    if misfits := _misfits(network, 1, state):
        raise ValueError(f"the discriminator's state_dict does not fit; {_nearest(misfits, network)}")
    return network


def _nearest(misfits: list[str], network: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in network.items() if name != "gan")
    more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
    return f"the nearest is {network['gan']} ({sizes}), but {'; '.join(misfits[:4])}{more}"


def _misfits(network: dict[str, Any], side: int, state: State) -> list[str]:
    """What keeps `state` from loading into the generator (side 0) or discriminator (1) of these sizes."""
    sizes = {name: value for name, value in network.items() if name != "gan"}
    reference_of({"network": network})
    try:
        with torch.device("meta"):  # shapes only
            module = GANS[network["gan"]].build(**sizes)[side]
    except ValueError as error:
        return [str(error)] * (len(state) + 1)
    return _compared(module, state)[1]


def _compared(module: nn.Module, state: State) -> tuple[dict[str, Tensor], list[str]]:
    """`state` as `module` wants it, and what does not fit.

    Instance norms that keep no statistics get none: files from before PyTorch 0.4 have them. Batch counts, which files
    from before 0.4.1 do not have, and statistics that `module` never uses are filled in.
    """
    wanted = module.state_dict()
    norms = {name: m for name, m in module.named_modules() if isinstance(m, nn.InstanceNorm2d)}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    adapted, misfits = {}, []
    for key, tensor in state.items():
        owner, _, part = key.rpartition(".")
        if key not in wanted:
            if owner not in norms or part not in statistics:
                misfits.append(f"{key} is not part of it")
        elif tensor.shape != wanted[key].shape:
            misfits.append(f"{key} has shape {list(tensor.shape)} where it has {list(wanted[key].shape)}")
        elif wanted[key].is_floating_point() and not tensor.is_floating_point():
            misfits.append(f"{key} has dtype {tensor.dtype} where it has {wanted[key].dtype}")
        else:
            adapted[key] = tensor
    for key, tensor in wanted.items():
        owner, _, part = key.rpartition(".")
        if key not in state:
            if part == "num_batches_tracked" or (owner in norms and part in statistics):
                adapted[key] = tensor
            else:
                misfits.append(f"{key} is missing")
    return adapted, misfits


def fit(module: nn.Module, state: State, name: str) -> None:
    """Load `state` into `module`, values converted to its dtype. Raises ValueError with the keys that do not fit.

    Warns where statistics of instance norms that use none are left out.
    """
    adapted, misfits = _compared(module, state)
    if misfits:
        more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
        raise ValueError(f"{name} does not fit the {type(module).__name__}: {'; '.join(misfits[:4])}{more}")
    if dropped := sorted(state.keys() - adapted.keys()):
        text = f"{name} has statistics of instance norms that use none ({dropped[0]}, ...): {len(dropped)} left out"
        warnings.warn(text, stacklevel=2)
    module.load_state_dict(adapted)
