"""A reference GAN: networks built from sizes, sizes read from files, and everything else that is its own.

Commands and studies ask a `Reference` and never for a GAN's name, so that a new GAN is one file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..data.kinds import Kind
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
class Way:
    """One of the images that a generator makes of each image: `network(*inputs(images))`.

    `inputs(images)`: what the network takes, from images float32 [N, C, H, W] in [-1, 1].
    """

    network: nn.Module
    inputs: Callable[[Tensor], tuple[Tensor, ...]] = lambda images: (images,)


@dataclass(frozen=True)
class Reference:
    """One reference GAN.

    `build(**network) -> (generator, discriminator)`: untrained networks; its keyword arguments are the network's sizes.
    `objective(network)`: the named terms. `objective_with(features)`: the same with the content loss in a feature
        network, images [N, 3, S, S] in [-1, 1] -> features; None where the GAN has no such loss.
    `generator_sizes(state_dict)`: arguments of `build` that may fit a generator's state_dict, the likeliest first.
    `discriminator_sizes(state_dict)`: the arguments that a discriminator's state_dict decides.
    `files`: where public repositories write a network as several files, the parts of the generator and of the
        discriminator that the files are, in their order.
    `example(network, count, size)`: random inputs of a generator, as its forward takes them, for images of `size`.
    `from_noise`: `example` gives all that the generator ever starts from. Such a GAN learns from all images, and draws
        as many as are asked for; distances alone score them.
    `ways(generator, config)`: the images that it makes of an image, by name; "" for an only one.
    `choice`: the option of a command that chooses among them, "direction" for one of them or "domains" for several;
        of domains a classifier can say whether images came to them.
    `samples`: the kind of samples that it learns from.
    `size`: pixels of the images that its networks are made for, None for any. `for_size(network, size)`: the sizes of
        networks that are made anew for images of `size`.
    `network`, `training`: the defaults of `sparsegan train`.
    """

    name: str
    text: str
    build: Callable[..., tuple[nn.Module, nn.Module]]
    objective: Callable[[Mapping[str, Any]], Objective]
    generator_sizes: Callable[[State], list[Network]]
    discriminator_sizes: Callable[[State], Network]
    example: Callable[[Mapping[str, Any], int, int], tuple[Tensor, ...]]
    samples: Kind
    network: Network
    training: Training
    objective_with: Callable[[Callable[[Tensor], Tensor]], Objective] | None = None
    files: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    from_noise: bool = False
    ways: Callable[[Any, Mapping[str, Any]], dict[str, Way]] = lambda generator, config: {"": Way(generator)}
    choice: str = ""
    size: int | None = None
    for_size: Callable[[Network, int], Network] = lambda network, size: network

    @property
    def sizes(self) -> Mapping[str, inspect.Parameter]:
        """What decides the networks: the arguments of `build`."""
        return inspect.signature(self.build).parameters
