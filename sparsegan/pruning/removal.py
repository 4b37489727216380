"""Removal of zero filters: a model that is pruned by filter becomes a smaller dense model.

The output of a zero filter is a constant, its bias. Norms and activations turn this constant into other constants. The
channel is removed from the layer, from the norms behind the layer, and from the input of every layer that reads it. The
contribution of the constant to such a reading layer is kept exactly:

- Without padding, or with a padding that repeats elements, the contribution is the same everywhere. It is added to the
  bias.
- With zero padding or in a transposed convolution, the contribution depends on the place. One constant channel of value
  ``r != 0`` then stays, and its weights take over those of the removed channels i with constants ``c_i``:
  ``w_r + sum over i of (c_i / r) w_i``.

Channels that are added to each other are removed together, and only if their sum is constant. The ``r^2`` channels from
which a PixelShuffle with factor r makes one channel are removed together, and only if they hold the same constant. A
channel stays if its removal is not known to be safe; a warning then names the layer and the reason.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from .channels import ADDED, NORMS, Channels, Layer, replace, rewritten, rows, zero_filters

Model = TypeVar("Model", bound=nn.Module)

_CARRIER = "one constant channel stays for all"


def remove_filters(model: Model, example: Any) -> Model:
    """Returns a smaller dense copy of a model, without its zero filters.

    Args:
        model: any module that ``torch.fx`` can trace, with sparse or dense convolutions; not changed. The copy has
            dense layers. ``sparsify(copy)`` makes them sparse again, for the zeros that remain.
        example: an input, as a tensor or a tuple of arguments, for runs in evaluation mode.

    Returns:
        A copy with the same results in evaluation mode, within rounding. Channels are followed through convolutions
        without groups, batch and instance norms, activations, dropout, padding, pooling and resizing modules,
        PixelShuffle, sums, products with numbers, and concatenations of channels. A warning names zero filters that
        must stay.

    Raises:
        ValueError: the model cannot be traced, or the results of the copy differ because the forward does something
            that torch.fx does not see.
    """
    left: list[str] = []

    def rewrite(channels: Channels) -> None:
        removal = _Removal(channels)
        removal.decide()
        removal.cut()
        left.extend(removal.left())

    small = rewritten(model, example, rewrite)
    if left:
        warnings.warn("filters of zeros stay where they are: " + "; ".join(left), stacklevel=2)
    return small


class _Removal:
    """Decides which channels are removed, and removes them."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.kept, self.layers = channels.kept, channels.layers
        self.root, self.keep = channels.root, channels.keep

    def _stays(self, ids: Sequence[int]) -> list[int]:
        """The indices of the channels that stay."""
        return [index for index, one in enumerate(ids) if self.root(one) in self.kept]

    def decide(self) -> None:
        """Keeps one constant channel for each layer that needs it, and at least one filter per layer."""
        for layer in self.layers.values():
            if layer.alike:
                continue
            stays, sizes = set(self._stays(layer.reads.ids)), layer.reads.value.abs().nan_to_num(0.0)
            gone = [index for index in range(len(sizes)) if index not in stays]
            most = max((float(sizes[index]) for index in gone), default=0.0)
            # A kept constant that is much smaller would need huge weights.
            if most > 0 and not any(sizes[index] >= 0.01 * most for index in stays):
                self.keep(layer.reads.ids[max(gone, key=lambda index: float(sizes[index]))], _CARRIER)
        for layer in self.layers.values():
            if not self._stays(layer.ids):
                self.keep(layer.ids[0], "a layer must keep at least one filter")

    def left(self) -> list[str]:
        """Phrases for a warning about the zero filters that stay, with the reasons."""
        found = []
        for name, layer in self.layers.items():
            zero = layer.zero.nonzero().flatten().cpu().tolist()
            stuck = [self.kept.get(self.root(layer.ids[index]), _CARRIER) or ADDED for index in zero]
            for why, count in Counter(stuck).items():
                if why != _CARRIER:
                    found.append(f"{count} of {name}, because {why}")
        for name, why in self.channels.refused.items():
            if count := int(zero_filters(self.channels.modules[name]).sum()):
                found.append(f"{count} of {name}, because {why}")
        return found

    def cut(self) -> None:
        """Removes every channel that does not stay from the modules."""
        for layer in self.layers.values():
            self._cut_layer(layer)
        for module, ids in self.channels.followers:
            stays = self._stays(ids)
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor) and tensor.shape == (len(ids),) and len(stays) < len(ids):
                    replace(module, name, tensor.detach()[stays])
            if isinstance(module, NORMS):
                module.num_features = len(stays)
            elif module.num_parameters > 1:
                module.num_parameters = len(stays)

    def _cut_layer(self, layer: Layer) -> None:
        module, value = layer.module, layer.reads.value
        stays, outputs = self._stays(layer.reads.ids), self._stays(layer.ids)
        if len(stays) == len(value) and len(outputs) == module.out_channels:
            return
        gone = sorted(set(range(len(value))) - set(stays))
        weight = rows(module).double()
        bias = weight.new_zeros(module.out_channels) if module.bias is None else module.bias.detach().double()
        seen = weight[:, gone] * value[gone].view(-1, *[1] * (weight.dim() - 2))
        if layer.alike:
            bias = bias + seen.flatten(1).sum(1)
        elif bool(seen.any()):
            carrier = max(stays, key=lambda index: float(value[index].abs().nan_to_num(0.0)))
            weight[:, carrier] += seen.sum(1) / value[carrier]
        weight, bias = weight[outputs][:, stays], bias[outputs]
        if module.transposed:
            weight = weight.transpose(0, 1)
        if module.bias is not None or bool(bias.any()):
            replace(module, "bias", bias.to(module.weight.dtype))
        replace(module, "weight", weight.contiguous().to(module.weight.dtype))
        module.in_channels, module.out_channels = len(stays), len(outputs)
