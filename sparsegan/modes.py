"""Which parameters are trained, which modules are in training mode, and buffers: all stay as the user set them.

A network whose root is in evaluation mode goes into training mode as a whole. Where the root is in training mode, a
module in evaluation mode is taken to be so on purpose (a norm on its stored statistics, say) and stays so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def train_as_set(network: nn.Module) -> nn.Module:
    """Puts a network that is in evaluation mode into training mode. Other networks keep all modes as they are."""
    return network if network.training else network.train()


def in_modes_of(network: nn.Module, other: nn.Module) -> nn.Module:
    """Puts each module of `network` into the mode of the module of `other` that has the same name.

    A module without a counterpart is treated as in `train_as_set`.
    """
    modes = {name: module.training for name, module in other.named_modules()}
    train_as_set(network)
    for name, module in network.named_modules():
        module.training = modes.get(name, module.training)
    return network


def trainable(network: nn.Module, role: str, way_out: str = "") -> list[nn.Parameter]:
    """The parameters that require a gradient.

    Raises ValueError where there are none. The text calls the network ``role`` and ends with ``way_out``.
    """
    found = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError(
            f"no parameter of the {role} requires a gradient, so nothing of it can be trained; call "
            f"{role}.requires_grad_(True), or do so for the modules that are to be trained{way_out}"
        )
    return found


@contextmanager
def held(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within it these parameters, which require gradients, get none. The generator's step holds the discriminator's."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Within it the whole network is in training or evaluation mode. Afterwards each module has its own mode again."""
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, own in before:
            module.training = own


class Buffers:
    """A copy of a model's buffers, which norms in training mode and some forwards change."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (f"{name}.{key}" if name else key, module, key, buffer, buffer.detach().clone())
            for name, module in model.named_modules()
            for key, buffer in module._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def put_back(self) -> list[str]:
        """Restores them; returns the names of those that had changed."""
        changed = []
        for name, module, key, buffer, copied in self._kept:
            if module._buffers.get(key) is not buffer or not torch.equal(_bits(buffer), _bits(copied)):
                changed.append(name)
                buffer.copy_(copied)
                module._buffers[key] = buffer
        return changed


def _bits(buffer: Tensor) -> Tensor:
    """A buffer's bytes: NaN is equal to itself there."""
    return buffer.detach().reshape(-1).view(torch.uint8)
