"""Reordering of output channels, so that pruning by vectors or by input units loses less.

A vector keeps or drops V consecutive output channels as one, an input unit D consecutive channels that a layer reads.
The order of the channels after training is arbitrary. If channels that keep weights at the same places are neighbours,
more of the weights' norm is kept at the same sparsity.
The norms behind a layer and the input channels of the next layers get the same order, so the model's results stay the
same and nothing is computed in addition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..nn.granularity import Units, by_layer, check_sparsity, kept, units_of
from .channels import CONVOLUTIONS, Channels, Layer, replace, rewritten, rows

Model = TypeVar("Model", bound=nn.Module)


def reorder_channels(model: Model, example: Any, granularity: str | Mapping[str, str], sparsity: float) -> Model:
    """Returns a dense copy of a model with the same results, whose channels are in an order that suits the units.

    Args:
        model: any module that ``torch.fx`` can trace; not changed.
        example: an input, as a tensor or a tuple of arguments, for runs in evaluation mode.
        granularity: the granularity of the :func:`sparsegan.sparsify` that will follow. The output channels of a layer
            of granularity ``"vector:V"`` are ordered by its own weights. Those of another layer are ordered by the
            weights of the layers of granularity ``"input:D"`` that read them, if there are any.
        sparsity: the sparsity to which the units will be pruned, in [0, 1).

    A layer keeps its order if it has groups, or if its channels are added to those of another layer (a residual sum),
    reach the model's output, or are read by an operation that this analysis does not know.

    Raises:
        ValueError: an argument is out of range, the model cannot be traced, or the results of the copy differ.
    """
    check_sparsity(sparsity)

    def rewrite(channels: Channels) -> None:
        names = [name for name, module in channels.modules.items() if isinstance(module, CONVOLUTIONS)]
        units = {name: units_of(one) for name, one in by_layer(names, granularity, "granularity").items()}
        _reorder(channels, units, sparsity)

    return rewritten(model, example, rewrite)


def _reorder(channels: Channels, units: dict[str, Units], sparsity: float) -> None:
    fixed = {channels.root(one) for one in channels.fixed}
    owners = Counter(channels.root(one) for layer in channels.layers.values() for one in layer.ids)
    moved: dict[int, int] = {}  # id -> offset from a channel's place to the old place of its successor
    orders: dict[str, list[int]] = {}
    for name, layer in channels.layers.items():
        roots = [channels.root(one) for one in layer.ids]
        length, weight = units[name].outputs, rows(layer.module).flatten(1)
        if length == 1:
            length, weight = _reading(channels, layer, units)
        if length == 1 or len(roots) % length or any(owners[one] > 1 or one in fixed for one in roots):
            continue
        orders[name] = similar_order(weight, length, sparsity)
        moved |= {one: new - place for place, (one, new) in enumerate(zip(layer.ids, orders[name], strict=True))}

    def order(ids: Sequence[int]) -> list[int]:
        return [place + moved.get(one, 0) for place, one in enumerate(ids)]

    for name, layer in channels.layers.items():
        module, outputs = layer.module, orders.get(name, list(range(len(layer.ids))))
        weight = rows(module)[outputs][:, order(layer.reads.ids)]
        replace(module, "weight", weight.transpose(0, 1).contiguous() if module.transposed else weight.contiguous())
        if module.bias is not None:
            replace(module, "bias", module.bias.detach()[outputs])
    for module, ids in channels.followers:
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and tensor.shape == (len(ids),):
                replace(module, name, tensor.detach()[order(ids)])


def _reading(channels: Channels, layer: Layer, units: dict[str, Units]) -> tuple[int, Tensor]:
    """The longest input unit that reads a layer's output channels, and the weights that read them in such units.

    The weights are ``[channels, weights per channel]``. The length is 1, and there are no weights, if none reads whole
    units of these channels.
    """
    found: dict[int, list[Tensor]] = {}
    for name, reader in channels.layers.items():
        length, places = units[name].inputs, {one: place for place, one in enumerate(reader.reads.ids)}
        at = [places.get(one, -1) for one in layer.ids]
        # The channels may be a part of a concatenation. They are whole units if they begin where a unit begins.
        if length > 1 and at[0] >= 0 and at[0] % length == 0 and at == list(range(at[0], at[0] + len(at))):
            found.setdefault(length, []).append(rows(reader.module)[:, at].transpose(0, 1).flatten(1))
    longest = max(found, default=1)
    return longest, torch.cat(found[longest], 1) if found else torch.empty(len(layer.ids), 0)


def similar_order(weight: Tensor, vector: int, sparsity: float) -> list[int]:
    """The order of channels in which each group of ``vector`` channels keeps weights at similar places.

    The method is greedy. A group begins with the remaining channel that keeps the most weights. Channels that have the
    most kept places in common with the group are then added one by one.

    Args:
        weight: ``[channels, weights per channel]``; channels are a multiple of ``vector``.
        vector: channels per group.
        sparsity: the fraction of weights, smallest first, that count as dropped.
    """
    sizes = weight.detach().abs()
    count = kept(sizes.numel(), sparsity)
    least = sizes.flatten().kthvalue(max(1, sizes.numel() - count + 1)).values if count else torch.inf
    keeps = (sizes >= least).float()
    shared = keeps @ keeps.T
    left = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    order: list[int] = []
    while left.any():
        group = keeps.sum(1)
        for _ in range(vector):
            chosen = int(group.masked_fill(~left, -1).argmax())
            order.append(chosen)
            left[chosen] = False
            group = shared[chosen] if len(order) % vector == 1 else group + shared[chosen]
    return order
