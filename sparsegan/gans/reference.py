"""The description of a reference GAN: how networks are built from sizes, how sizes are read from files, and the rest.

Commands and studies read a `Reference` and never compare a GAN's name. A new GAN is therefore one file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data.kinds import Kind
from .objective import Objective
from .parts import State

Network = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """The defaults of `sparsegan train` for a GAN, chosen for two CPU cores.

    `data`: the name of a data set, or a source. `size`: height and width of the images, in pixels; for sounds, the
    samples of a window. `lr`, `discriminator_lr`, `betas`: for Adam. `generator_every`: discriminator steps per
    generator step. `decay`: the learning rates fall linearly to 0 over the second half of the steps.
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
    """One way in which a generator turns images into images: `network(*inputs(images))`.

    `inputs(images)`: the arguments of `network` for images float32 [N, C, H, W] in [-1, 1].
    """

    network: nn.Module
    inputs: Callable[[Tensor], tuple[Tensor, ...]] = lambda images: (images,)


@dataclass(frozen=True)
class Reference:
    """One reference GAN.

    `build(**network) -> (generator, discriminator)`: untrained networks. Its keyword arguments are the sizes.
    `objective(network)`: the `Objective` for networks of these sizes. `objective_with(features)`: an objective whose
        content loss, or a part of it, is measured in a feature network, images [N, 3, S, S] in [-1, 1] -> features;
        None where the GAN has no content loss.
    `generator_sizes(state_dict)`: arguments of `build` that may fit a generator's state_dict, the likeliest first.
    `discriminator_sizes(state_dict)`: the arguments of `build` that a discriminator's state_dict decides.
    `renamed(state_dict)`: a generator's state_dict with the names of the layers that `build` makes, for GANs whose
        public files have several layouts. `generator_sizes` gets the result. By default the state_dict as it is.
    `assumed(state_dict)`: a sentence on what a generator's state_dict does not tell and `build` takes for granted. It
        becomes a warning. "" where there is nothing to say.
    `files`: for GANs whose public repositories write a network as several files, or as several state_dicts in a file,
        the module that each holds: those of the generator, then those of the discriminator, in the order of the files.
        In one file, the modules' names are the keys of the state_dicts.
    `beside(file)`: sizes that the state_dict in a public generator's file does not show, from other files in its
        folder; {} where there are none.
    `example(network, count, size)`: random arguments of the generator's forward, for images of `size`.
    `from_noise`: the generator starts from noise, which `example` draws. Such a GAN is trained on all images and can
        generate any number of them. Distances alone score the generated images.
    `ways(generator, config)`: the ways in which the generator turns images into images, by name; "" for the only way.
    `choice`: the command option that chooses among the ways: "direction" for one way, "domains" for several. For
        domains, a classifier can say whether an image is in the domain that was asked for.
    `samples`: the kind of samples that the GAN learns from.
    `size`: pixels of a side of the images that the networks need, None for any size. Of sounds, sizes are samples.
    `for_size(network, size)`: the sizes for new networks for images of `size`.
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
    renamed: Callable[[State], State] = lambda state: state
    assumed: Callable[[State], str] = lambda state: ""
    beside: Callable[[Path], Network] = lambda file: {}
    files: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    from_noise: bool = False
    ways: Callable[[Any, Mapping[str, Any]], dict[str, Way]] = lambda generator, config: {"": Way(generator)}
    choice: str = ""
    size: int | None = None
    for_size: Callable[[Network, int], Network] = lambda network, size: network

    @property
    def sizes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of `build`, by name."""
        return inspect.signature(self.build).parameters
