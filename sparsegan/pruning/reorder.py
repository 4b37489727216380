"""Output channels in another order, so that vectors of neighbours lose less.

A vector keeps or drops V consecutive output channels as one. Which channels are consecutive is an accident of the
training: with the channels that keep weights at the same places side by side, more of the weights' norm survives at the
same sparsity. The order is undone where the channels are read, by the norms behind a layer and the input channels of
the next: nothing is computed in addition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..nn.granularity import by_layer, check_sparsity, kept, vector_length
from .channels import CONVOLUTIONS, Channels, replace, rewritten, rows

Model = TypeVar("Model", bound=nn.Module)


def reorder_channels(model: Model, example: Any, granularity: str | Mapping[str, str], sparsity: float) -> Model:
    """A dense copy of a model that puts out the same, its channels in the order that suits vectors best.

    Args:
        model: any module that ``torch.fx`` can trace; unchanged.
        example: its input, a tensor or a tuple of arguments; run in evaluation mode.
        granularity: as for :func:`sparsegan.sparsify`, which is to follow; layers of other granularities than
            ``"vector:V"`` stay as they are.
        sparsity: at which the vectors are to be pruned, in [0, 1).

    Layers stay in their order where their channels are added to another layer's (a residual sum), reach the output or
    anything that ``torch.fx`` does not see through, or have groups.

    Raises:
        ValueError: an argument is out of range, or the model cannot be traced.
    """
    check_sparsity(sparsity)

    def rewrite(channels: Channels) -> None:
        names = [name for name, module in channels.modules.items() if isinstance(module, CONVOLUTIONS)]
        lengths = {name: vector_length(one) for name, one in by_layer(names, granularity, "granularity").items()}
        _reorder(channels, lengths, sparsity)

    return rewritten(model, example, rewrite)


def _reorder(channels: Channels, vectors: dict[str, int], sparsity: float) -> None:
    fixed = {channels.root(one) for one in channels.fixed}
    owners = Counter(channels.root(one) for layer in channels.layers.values() for one in layer.ids)
    moved: dict[int, int] = {}  # id -> how many places further the channel lies that takes its place
    orders: dict[str, list[int]] = {}
    for name, layer in channels.layers.items():
        vector, roots = vectors[name], [channels.root(one) for one in layer.ids]
        if vector == 1 or len(roots) % vector or any(owners[one] > 1 or one in fixed for one in roots):
            continue
        orders[name] = similar_order(rows(layer.module).flatten(1), vector, sparsity)
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


def similar_order(weight: Tensor, vector: int, sparsity: float) -> list[int]:
    """Channels in groups of ``vector`` that keep weights at the same places.

    Greedy: a group begins with the channel that keeps most, and takes those that share most places with it.

    Args:
        weight: ``[channels, weights of one]``; channels are a multiple of ``vector``.
        vector: channels a group.
        sparsity: share of weights, smallest first, that count as dropped.
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
