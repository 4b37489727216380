"""Pruning of a model: dense layers become sparse layers, and supports shrink or move during training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import overload

from torch import Tensor, nn

from ..copying import computed, plain_class
from ..nn.granularity import (
    by_layer,
    check_granularity,
    check_sparsity,
    kept,
    largest,
    units_of,
)
from ..nn.layer import (
    SPARSE_CLASSES,
    SparseConv,
    SparseConv1d,
    SparseConv2d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
)
from ..nn.replace import Model, move_hooks, replaced, sparse_layers
from .allocation import layer_sparsities
from .optimizer_state import Optimizers, check_held, check_movable, move_state, optimizers_of
from .prunable import left_dense, prunable_layers
from .saliency import check_saliency, ranked

#: One sparsity for all layers, or ``{pattern: sparsity}``. None keeps the present zeros.
Sparsities = float | Mapping[str, float] | None
Granularities = str | Mapping[str, str]


@overload
def sparsify(
    model: nn.Conv1d,
    sparsity: Sparsities = None,
    granularity: Granularities = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> SparseConv1d: ...
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
    model: nn.ConvTranspose1d,
    sparsity: Sparsities = None,
    granularity: Granularities = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> SparseConvTranspose1d: ...
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
    """Makes every ``Conv1d``, ``Conv2d``, ``ConvTranspose1d`` and ``ConvTranspose2d`` of a model sparse, in place.

    Args:
        model: any module. For a single convolution, the sparse layer is returned.
        sparsity: the fraction of units to drop per layer, smallest L2 norm first, in [0, 1); or by layer,
            ``{pattern: fraction}``, where the first pattern that matches a layer's name applies. ``None`` keeps each
            layer's nonzero weights.
        granularity: the unit that is kept or dropped: ``"element"``, ``"vector:V"``, ``"input:D"``, ``"kernel"``,
            ``"filter"`` or ``"2:4"`` (see ``sparsegan.nn.granularity``); or by layer, ``{pattern: granularity}``.
        exclude: names (as in ``named_modules``) or glob patterns of layers that stay dense.
        allocation: how a total sparsity is allocated to the layers: ``"uniform"``, ``"global"`` or
            ``"global-normalized"``. See ``sparsegan.pruning.allocation``, which also has a measured allocation.

    Returns:
        The model. Hooks, training flags and ``requires_grad`` move to the new layers. Layers that are sparse already
        are pruned further, each by its own granularity; dropped weights never return. Masks of ``torch.nn.utils.prune``
        become supports. Weights that are computed in another way (spectral or weight normalisation, a parametrization)
        are folded: their values in evaluation mode take their place, and one warning says so. For a weight
        normalisation, as vocoders have it, ``g * v / norm(v)`` replaces ``g`` and ``v``, and training goes on with the
        kept weights themselves. Another warning lists the modules that resemble a convolution and stay dense:
        subclasses, other dimensions, scripted modules, weights outside layers.

    Raises:
        ValueError: no layer can be pruned (the text names the modules that resemble a convolution), an argument is out
            of range, a pattern matches nothing, a layer matches no pattern, two layers use the same weight, or a layer
            does not consist of whole units (the text names the layer). The model is then unchanged.
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
    """Gives one warning for all layers whose computed parameters became plain, and one for all that stay dense."""
    if folded:
        found = "; ".join(f"{name}: {by}" for name, by in folded.items())
        text = "computed parameters are plain from now on, with their values in evaluation mode"
        warnings.warn(f"{text}: {found}", stacklevel=3)
    if left:
        found = "; ".join(f"{name} {why}" for name, why in left.items())
        warnings.warn(f"these stay dense; name them in exclude to turn this warning off: {found}", stacklevel=3)


def shrink(
    model: nn.Module,
    sparsity: float | Mapping[str, float],
    optimizer: Optimizers = None,
    saliency: str = "magnitude",
) -> None:
    """Drops the least salient units of every sparse layer until the layer has the given sparsity. No unit ever returns.

    Args:
        model: its sparse layers are changed in place. A layer that already has this sparsity or more is not changed.
        sparsity: the fraction of each layer's units that is dropped afterwards, least salient first, in [0, 1); or
            by layer, as in ``sparsify``.
        optimizer: an optimizer, an object that holds one as ``.optimizer`` (a learning-rate schedule), or a list of
            these. Its state for each ``values`` (moments of Adam, momentum of SGD) and any gradient are cut to the
            surviving values. The Parameter objects stay the same, so the optimizer's parameter groups stay valid.
        saliency: ``"magnitude"`` or ``"fisher"``, which needs an optimizer such as Adam; see
            ``sparsegan.pruning.saliency``.

    ``DistributedDataParallel`` sets the sizes of its buckets when it wraps a model. Shrink the model inside, on every
    rank, then wrap it again.

    Raises:
        TypeError: ``optimizer`` is not an optimizer.
        ValueError: an argument is out of range, or above 0.5 for a layer of granularity ``"2:4"``; ``saliency`` is
            not known, or is ``"fisher"`` and the optimizer has no average of squared gradients; optimizers are given,
            and none of them holds the trained values of some layer, or the state for the values has tensors of another
            shape; the model is a ``DistributedDataParallel``. The model is then unchanged.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"{name or 'model'} is a DistributedDataParallel, whose buckets keep their present sizes; shrink its "
                "`.module` on every rank, then wrap that module again"
            )
    layers = dict(sparse_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no sparse layer to shrink; call sparsegan.sparsify first")
    for value in sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]:
        check_sparsity(value)
    sparsities = by_layer(layers, sparsity, "sparsity")
    check_saliency(saliency)
    _shrink({name: (layer, sparsities[name]) for name, layer in layers.items()}, optimizer, saliency)


def _shrink(
    layers: Mapping[str, tuple[SparseConv, float | None]],
    optimizer: Optimizers = None,
    saliency: str = "magnitude",
) -> None:
    optimizers = optimizers_of(optimizer)
    check_held({name or type(layer).__name__: layer.values for name, (layer, _) in layers.items()}, optimizers)
    survivors = {}
    for name, (layer, sparsity) in layers.items():  # all checks come before the first change
        try:
            ranks = partial(ranked, layer, saliency, optimizers)
            survivors[layer] = None if sparsity is None else _survivors(layer, sparsity, ranks)
        except ValueError as error:
            raise ValueError(f"{name or type(layer).__name__}: {error}") from error
        if survivors[layer] is not None:
            check_movable(name or type(layer).__name__, layer.values, optimizers)
    for layer, weights in survivors.items():
        if weights is not None:
            _cut(layer, weights, optimizers)


def shrink_layer(layer: SparseConv, sparsity: float, ranks: Callable[[], Tensor], optimizer: Optimizers = None) -> None:
    """Drops the units of one layer that rank lowest, until the layer has the given sparsity.

    Args:
        layer: changed in place.
        sparsity: as in ``shrink``. A layer that has this sparsity already is not changed, and ``ranks`` is not called.
        ranks: returns one number per unit, in the order of ``saliency.ranked``.
        optimizer: as in ``shrink``.

    Raises:
        ValueError: the sparsity is out of range, or above 0.5 for a layer of granularity ``"2:4"``, or a rank is NaN.
    """
    weights = _survivors(layer, check_sparsity(sparsity), ranks)
    if weights is not None:
        _cut(layer, weights, optimizer)


def _survivors(layer: SparseConv, sparsity: float, ranks: Callable[[], Tensor]) -> Tensor | None:
    """The indices of a layer's values that stay at a sparsity, int64, sorted; None if all values stay."""
    if (only := units_of(layer.granularity).sparsity) is not None:
        if sparsity > only:
            raise ValueError(f"sparsity is {sparsity}; with granularity {layer.granularity!r} it is {only}, always")
        return None
    keep = kept(math.prod(layer.weight_shape) // layer.unit_size, sparsity)
    if keep * layer.unit_size >= layer.nnz:
        return None
    chosen = largest(ranks(), keep)
    if units_of(layer.granularity).listed:
        vector = layer.geometry.vector
        return chosen.unsqueeze(1).expand(-1, vector).flatten().nonzero().flatten()
    return layer.unit_rows()[chosen].flatten().sort().values


def _cut(layer: SparseConv, survivors: Tensor, optimizers: Optimizers) -> None:
    vector = layer.geometry.vector
    move_support(layer, layer.support[survivors[::vector] // vector], survivors, optimizers)


def move_support(layer: SparseConv, support: Tensor, source: Tensor, optimizer: Optimizers = None) -> None:
    """Gives a layer another support. Its values, their gradient and their optimizer state move along.

    Args:
        layer: changed in place.
        support: int32, as in ``SparseConv.set_support``.
        source: int64, one index per weight of the new support: the index of the old value, or -1 for a new weight. A
            new weight and its optimizer state start at 0.
        optimizer: as in ``shrink``. Every tensor of its state that has the shape of ``values`` moves along. The
            Parameter object stays the same.

    Raises:
        TypeError: ``optimizer`` is not an optimizer.
        ValueError: the support is not valid, or the optimizer's state has tensors of another shape. Nothing is changed
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
