"""A moving average of a generator's weights that follows pruning and regrowth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..copying import copy_model
from ..nn.layer import SparseConv
from ..nn.replace import sparse_layers


class Average:
    """An exponential moving average of a model: ``average = d * average + (1 - d) * model`` after each step.

    At update ``n``, ``d`` is ``min(decay, (1 + n) / (10 + n))``, so that the first steps lose their influence soon. The
    model's supports may change between updates, by ``shrink`` or regrowth. A position that stays keeps its average, the
    average of a dropped position is discarded, and a new position starts from the model's value. Floating-point buffers
    (statistics of norms) are averaged like weights. Other buffers are copied.

    >>> average = sparsegan.Average(generator, decay=0.999)
    >>> for batch in loader:                       # doctest: +SKIP
    ...     step(generator, batch)
    ...     sparsegan.shrink(generator, sparsity, optimizer)
    ...     average.update(generator)
    >>> average.model                              # the averaged generator, in evaluation

    Args:
        model: the model to average; not changed. The average starts from the model's values.
        decay: the largest ``d``, in [0, 1).

    Raises:
        ValueError: ``decay`` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        #: The averaged model, in evaluation mode, without gradients.
        self.model = copy_model(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the present values of the model to the average.

        Raises:
            ValueError: the names or shapes of the model's parameters and buffers differ from those at the start.
        """
        ours, theirs = dict(sparse_layers(self.model)), dict(sparse_layers(model))
        if ours.keys() != theirs.keys():
            raise ValueError(
                f"the model has the sparse layers {', '.join(theirs) or 'none'}; the average was made of one with "
                f"{', '.join(ours) or 'none'}"
            )
        own, new = self._tensors(self.model), self._tensors(model)
        for name in own.keys() | new.keys():
            shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (own, new)]
            layer = ours.get(name.rpartition(".")[0])
            if shapes[0] != shapes[1] and not (layer is not None and name.endswith("values") and None not in shapes):
                raise ValueError(f"{name} has shape {shapes[1]} in the model and {shapes[0]} in the average")
        for name, layer in ours.items():
            _follow(layer, theirs[name])
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self._tensors(self.model).items():
            if average.is_floating_point():
                average.lerp_(new[name].to(average), weight)
            else:
                average.copy_(new[name])
        self.updates += 1

    @staticmethod
    def _tensors(model: nn.Module) -> dict[str, Tensor]:
        """The parameters and buffers by name, without supports: `_follow` updates each support with its values."""
        sparse = {id(layer.support) for _, layer in sparse_layers(model)}
        named = (*model.named_parameters(), *model.named_buffers())
        return {name: one for name, one in named if id(one) not in sparse}

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a result of ``state_dict``, whose supports may differ from the present ones."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])


def _follow(average: SparseConv, layer: SparseConv) -> None:
    """Gives the layer of an average the support of the model's layer. New positions get the values of the model."""
    if average.support.shape == layer.support.shape and torch.equal(average.support, layer.support):
        return
    dense = torch.zeros(layer.weight_shape, dtype=average.values.dtype, device=average.values.device).flatten()
    positions = layer.positions()
    dense[positions] = layer.values.detach().to(average.values)
    stays = average.mask().flatten()
    old = torch.zeros_like(dense)
    old[average.positions()] = average.values
    average.set_support(layer.support.detach(), torch.where(stays, old, dense)[positions])
