"""Pruning of a model: dense layers become sparse ones, and a support shrinks or moves during training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import overload

from torch import Tensor, nn

from ..copying import computed, plain_class
from ..nn.granularity import (
    by_layer,
    check_granularity,
    check_sparsity,
    kept,
    largest,
    magnitudes,
    units_of,
)
from ..nn.layer import SPARSE_CLASSES, SparseConv, SparseConv2d, SparseConvTranspose2d
from ..nn.replace import Model, move_hooks, replaced, sparse_layers
from .allocation import layer_sparsities
from .optimizer_state import Optimizers, check_held, check_movable, move_state, optimizers_of
from .prunable import left_dense, prunable_layers

#: One value for all layers, or ``{pattern: value}``; no sparsity keeps the zeros that are there.
Sparsities = float | Mapping[str, float] | None
Granularities = str | Mapping[str, str]


@overload
def sparsify(
    model: nn.Conv2d,
    sparsity: Sparsities = None,
    granularity: Granularities = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> SparseConv2d: ...
@overload
def sparsify(
    model: nn.ConvTranspose2d,
    sparsity: Sparsities = None,
    granularity: Granularities = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> SparseConvTranspose2d: ...
@overload
def sparsify(
    model: Model,
    sparsity: Sparsities = None,
    granularity: Granularities = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> Model: ...
def sparsify(
    model: nn.Module,
    sparsity: Sparsities = None,
    granularity: Granularities = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> nn.Module:
    """Makes every ``Conv2d`` and ``ConvTranspose2d`` of a model sparse, in place.

    Args:
        model: any module; a bare layer too (then the sparse layer is returned).
        sparsity: share of units to drop a layer, smallest L2 norm first, in [0, 1); or by layer,
            ``{pattern: share}``, where a layer takes the first pattern that matches its name. ``None`` keeps each
            layer's nonzeros as they are.
        granularity: what is dropped as one: ``"element"``, ``"vector:V"``, ``"kernel"``, ``"filter"`` or ``"2:4"`` (see
            ``sparsegan.nn.granularity``); or by layer, ``{pattern: granularity}``.
        exclude: names (as in ``named_modules``) or glob patterns of layers to leave dense.
        allocation: how a sparsity is shared out among the layers, ``"uniform"``, ``"global"`` or
            ``"global-normalized"``; see ``sparsegan.pruning.allocation``, which measures layers too.

    Returns:
        The model. Hooks, training flags and ``requires_grad`` move to the new layers. Layers that are sparse already
        are pruned further, each by its own granularity, never revived. Masks of ``torch.nn.utils.prune`` become
        supports; weights that are otherwise computed (spectral or weight normalisation, a parametrization) are folded
        in as they are in evaluation, which one warning says. Another one lists what looks like a convolution and stays
        dense: subclasses, other dimensions, scripted modules, weights outside layers.

    Raises:
        ValueError: no layer can be pruned (the text names what looks like a convolution), an argument is out of range,
            a pattern matches nothing, a layer matches none, two layers share one weight, or a layer is not whole units
            (the text names the layer). The model is unchanged then.
    """
    for value in granularity.values() if isinstance(granularity, Mapping) else [granularity]:
        check_granularity(value)
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    layers = prunable_layers(model, exclude)
    granularities = by_layer(layers, granularity, "granularity")
    sparsities: Mapping[str, float | None] = dict.fromkeys(layers)
    if sparsity is not None:
        sparsities = layer_sparsities(layers, sparsity, granularity, allocation)
    elif allocation != "uniform":
        raise ValueError(f"allocation is {allocation!r} and sparsity is None; give a sparsity to allocate")
    owners: dict[int, str] = {}
    folded: dict[str, str] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in layers.items():
        if isinstance(module, SparseConv):
            continue
        for own, parameter in module.named_parameters():
            if own.startswith(("weight", "parametrizations.weight")):
                other = owners.setdefault(id(parameter), name)
                if other != name:
                    raise ValueError(f"{name} and {other} share one weight; exclude both, or give each its own")
        by = [f"{kind} of {what}" for what, kind in computed(module).items() if (what, kind) != ("weight", "mask")]
        if by:
            folded[name or type(module).__name__] = ", ".join(by)
        try:
            sparse = SPARSE_CLASSES[plain_class(module)].from_dense(module, sparsities[name], granularities[name])
        except ValueError as error:
            raise ValueError(f"{name or type(module).__name__}: {error}") from error
        move_hooks(module, sparse)
        replacements[module] = sparse
    _shrink({name: (layer, sparsities[name]) for name, layer in layers.items() if isinstance(layer, SparseConv)})
    _say(folded, left_dense(model, exclude))
    return replaced(model, replacements)


def _say(folded: Mapping[str, str], left: Mapping[str, str]) -> None:
    """One warning each for all layers whose computed parameters became plain, and for all that stay dense."""
    if folded:
        found = "; ".join(f"{name}: {by}" for name, by in folded.items())
        text = "parameters that were computed are plain from now on, with their values in evaluation"
        warnings.warn(f"{text}: {found}", stacklevel=3)
    if left:
        found = "; ".join(f"{name} {why}" for name, why in left.items())
        warnings.warn(f"these stay dense, name them in exclude to say that this is meant: {found}", stacklevel=3)


def shrink(model: nn.Module, sparsity: float | Mapping[str, float], optimizer: Optimizers = None) -> None:
    """Drops the smallest units of every sparse layer until it is as sparse as asked; nothing is ever revived.

    Args:
        model: its sparse layers are changed in place; a layer that is at least so sparse already stays as it is.
        sparsity: share of units to drop a layer, smallest L2 norm first, in [0, 1); or by layer, as in ``sparsify``.
        optimizer: an optimizer, what holds one as ``.optimizer`` (a learning-rate schedule), or a list of these. Its
            state for each ``values`` (moments of Adam, momentum of SGD) and any gradient are cut to the surviving
            values. The Parameter objects stay, so its parameter groups stay valid.

    ``DistributedDataParallel`` cuts its buckets to the sizes that it finds when it wraps a model: shrink the model
    inside, on every rank, then wrap that again.

    Raises:
        TypeError: ``optimizer`` is no optimizer.
        ValueError: an argument is out of range, or more than 0.5 for a layer of granularity ``"2:4"``; an optimizer is
            given and none holds a layer's trained values, or its state for them has tensors of another shape; the model
            is a ``DistributedDataParallel``. The model is unchanged then.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"{name or 'model'} is a DistributedDataParallel, whose buckets have the sizes of now; shrink its "
                "`.module`, on every rank, and wrap that again"
            )
    layers = dict(sparse_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no sparse layer to shrink; call sparsegan.sparsify first")
    for value in sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]:
        check_sparsity(value)
    sparsities = by_layer(layers, sparsity, "sparsity")
    _shrink({name: (layer, sparsities[name]) for name, layer in layers.items()}, optimizer)


def _shrink(layers: Mapping[str, tuple[SparseConv, float | None]], optimizer: Optimizers = None) -> None:
    optimizers = optimizers_of(optimizer)
    check_held({name or type(layer).__name__: layer.values for name, (layer, _) in layers.items()}, optimizers)
    survivors = {}
    for name, (layer, sparsity) in layers.items():  # all of them before the first change: one may be refused
        try:
            survivors[layer] = None if sparsity is None else _survivors(layer, sparsity)
        except ValueError as error:
            raise ValueError(f"{name or type(layer).__name__}: {error}") from error
        if survivors[layer] is not None:
            check_movable(name or type(layer).__name__, layer.values, optimizers)
    for layer, weights in survivors.items():
        if weights is not None:
            _cut(layer, weights, optimizers)


def _survivors(layer: SparseConv, sparsity: float) -> Tensor | None:
    """int64, sorted: which of a layer's values stay at a sparsity; None where all do."""
    if (only := units_of(layer.granularity).sparsity) is not None:
        if sparsity > only:
            raise ValueError(f"sparsity is {sparsity}; with granularity {layer.granularity!r} it is {only}, always")
        return None
    keep, values = kept(math.prod(layer.weight_shape) // layer.unit_size, sparsity), layer.values.detach()
    if keep * layer.unit_size >= layer.nnz:
        return None
    if units_of(layer.granularity).listed:
        vector = layer.geometry.vector
        chosen = largest(magnitudes(values.view(-1, vector)), keep)
        return chosen.unsqueeze(1).expand(-1, vector).flatten().nonzero().flatten()
    rows = layer.unit_rows()
    return rows[largest(magnitudes(values[rows]), keep)].flatten().sort().values


def _cut(layer: SparseConv, survivors: Tensor, optimizers: Optimizers) -> None:
    vector = layer.geometry.vector
    move_support(layer, layer.support[survivors[::vector] // vector], survivors, optimizers)


def move_support(layer: SparseConv, support: Tensor, source: Tensor, optimizer: Optimizers = None) -> None:
    """Gives a layer another support; its values, their gradient and their optimizer state move along.

    Args:
        support: int32, as ``SparseConv.set_support`` takes it.
        source: int64, one a weight of the new support: which of the old values it was, or -1 for one that is new and
            starts at 0, with a state of 0.
        optimizer: as ``shrink`` takes it: its state for ``values``, tensor by tensor of that shape. The Parameter
            object stays.

    Raises:
        TypeError: ``optimizer`` is no optimizer.
        ValueError: the support is not valid, or the optimizer's state has tensors of another shape; nothing has changed
            then.
    """
    optimizers = optimizers_of(optimizer)
    check_movable(type(layer).__name__, layer.values, optimizers)

    def moved(tensor: Tensor) -> Tensor:
        return tensor[source].masked_fill(source < 0, 0)

    values = layer.values
    shape, grad = values.shape, values.grad
    layer.set_support(support, moved(values.detach()))
    move_state(values, shape, optimizers, moved)
    if grad is not None:
        values.grad = moved(grad)
