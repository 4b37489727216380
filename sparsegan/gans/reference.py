"""What makes a GAN a reference GAN: networks built from sizes, sizes read from files, and how it is trained here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .objective import Objective
from .parts import State

Network = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """What `sparsegan train` does unless told otherwise, sized for two CPU cores.

    `data`: the data set or source; `size`: of an image, in pixels. `lr`, `discriminator_lr`, `betas`: Adam's.
    `generator_every`: discriminator steps a generator step. `decay`: rates fall linearly to 0 over the second half.
    """

    data: str
    size: int
    batch: int
    steps: int
    lr: float
    discriminator_lr: float
    betas: tuple[float, float] = (0.5, 0.999)
    generator_every: int = 1
    decay: bool = False


@dataclass(frozen=True)
class Reference:
    """One reference GAN.

    `build(**network) -> (generator, discriminator)`: untrained networks; its keyword arguments are the network's sizes.
    `objective(network)`: the named terms.
    `generator_sizes(state_dict)`: arguments of `build` that may fit a generator's state_dict, the likeliest first.
    `discriminator_sizes(state_dict)`: the arguments that a discriminator's state_dict decides.
    `example(network, count, size)`: random inputs of a generator, as its forward takes them, for images of `size`.
    `network`, `training`: the defaults of `sparsegan train`.
    """

    name: str
    text: str
    build: Callable[..., tuple[nn.Module, nn.Module]]
    objective: Callable[[Mapping[str, Any]], Objective]
    generator_sizes: Callable[[State], list[Network]]
    discriminator_sizes: Callable[[State], Network]
    example: Callable[[Mapping[str, Any], int, int], tuple[Tensor, ...]]
    network: Network
    training: Training
