"""Parameters that are trained, modules in training mode, and buffers: each stays as the user set it.

A network that is in evaluation as a whole was evaluated before, and is put into training mode as a whole. In a network
that is in training mode, a module in evaluation is there on purpose (a norm on its stored statistics, say) and stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def train_as_set(network: nn.Module) -> nn.Module:
    """Training mode for a network that is in evaluation; one that is in training keeps every module's own mode."""
    return network if network.training else network.train()


def trainable(network: nn.Module, role: str, way_out: str = "") -> list[nn.Parameter]:
    """The parameters that require a gradient.

    Raises ValueError where there are none; ``role`` is the network's name in the text, ``way_out`` ends it.
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
    """Within it these parameters, which require gradients, get none: the generator's step needs none of the
    discriminator's."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Within it the whole network is in training or in evaluation; afterwards each module is in the mode it had."""
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, own in before:
            module.training = own


class Buffers:
    """The buffers of a model as they were when this was made: norms in training change them, and some forwards."""

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
