"""A folder with a trained dense GAN: config.json, generator.safetensors, discriminator.safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..engine.files import write_tensors
from . import dcgan
from .objective import Objective

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Gan:
    """A GAN's two networks and its objective; `config` is the folder's config.json."""

    generator: dcgan.Generator
    discriminator: nn.Module
    objective: Objective
    config: dict[str, Any]


def build(config: dict[str, Any]) -> Gan:
    """Untrained networks for `config["network"]`: {"gan": "dcgan", "nz": .., "width": .., "channels": ..}."""
    network = config.get("network")
    if not isinstance(network, dict) or network.get("gan") != "dcgan":
        raise ValueError(f'the configuration\'s "network" is {network!r}; its "gan" must be "dcgan"')
    try:
        nz, width, channels = (int(network[key]) for key in ("nz", "width", "channels"))
    except KeyError as error:
        raise ValueError(f'the configuration\'s "network" has no {error}; it needs nz, width and channels') from None
    generator, discriminator = dcgan.Generator(nz, width, channels), dcgan.Discriminator(channels, width)
    return Gan(channels_last(generator), channels_last(discriminator), dcgan.objective, config)


def channels_last(network: Network) -> Network:
    """Convolution weights in channels_last, in which torch's CPU convolutions often train 1.5 to 2 times faster."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a folder; FileNotFoundError with a hint when there is none."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; it must be a folder that train or compress wrote")
    return json.loads(file.read_text(encoding="utf-8"))


def load(folder: str | Path) -> Gan:
    """Read a dense GAN: float32 networks, ready for evaluation. Raises when a file is missing or does not fit."""
    from safetensors.torch import load_file

    gan = build(read_config(folder))
    for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        file = Path(folder) / f"{name}.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
        network.load_state_dict(load_file(file))  # half-precision values become float32 here
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
    """Noise float32 [count, nz, 1, 1]; from torch's generator, or the same every time for a `seed`."""
    source = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(count, generator.nz, 1, 1, generator=source)
