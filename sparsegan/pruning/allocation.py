"""The allocation of a total sparsity to the layers of a model.

=======================  ============================================================================================
allocation               a layer's sparsity
=======================  ============================================================================================
``"uniform"``            is the same for every layer.
``"global"``             results from one threshold over all layers. The units with the smallest root mean square
                         weight are dropped, in whichever layer they are. Layers with small weights lose most.
``"global-normalized"``  is found like ``"global"``, after each layer's weights are divided by their root mean square.
                         No layer loses more only because the scale of its weights is small.
:func:`sensitivity`      is measured, so that pruning any single layer to its sparsity raises a loss equally.
=======================  ============================================================================================

At least one unit of each layer stays. For all allocations except ``"uniform"``, at least the fraction :data:`LEAST` of
each layer's units stays, and a target that leaves no room for this is refused. The total sparsity, the fraction of all
layers' weights that is dropped, then meets the target within one unit. A layer of granularity ``"2:4"`` always has
sparsity 0.5, and the other layers make up for the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..copying import bake, copy_model, plain_weight
from ..nn.granularity import (
    as_units,
    by_layer,
    check_granularity,
    check_sparsity,
    largest,
    magnitudes,
    mask_of,
    units_of,
)
from ..nn.layer import SparseConv
from ..randomness import devices_of, repeated, states
from ..renamed import renamed_names
from .prunable import prunable_layers

#: Fraction of a layer's units that always stays if the layer's sparsity is chosen here.
LEAST = 0.01

#: Sparsities at which `sensitivity` measures a layer, in addition to the highest sparsity that LEAST allows.
LEVELS = (0.25, 0.5, 0.75, 0.9)

#: The only sparsity of a layer of granularity "2:4".
FIXED = 0.5

#: The names of the allocations.
ALLOCATIONS = ("uniform", "global", "global-normalized")


def check_allocation(allocation: str, more: tuple[str, ...] = ()) -> str:
    """Returns ``allocation``. Raises ``ValueError`` if it is not one of :data:`ALLOCATIONS`, nor one of ``more``."""
    known = (*ALLOCATIONS, *more)
    if allocation not in known:
        raise ValueError(f"allocation is {allocation!r}; it must be one of {', '.join(map(repr, known))}")
    return allocation


@dataclass
class _Units:
    """The units of one layer.

    `split`: granularity, transposed, groups, as ``sparsegan.nn.granularity`` takes them. `size`: the number of weights
    of a unit. `norms`: the L2 norms of the units, ``[count]``. `kept`: bool ``[count]``, false for dropped units.
    `cost`: what a weight counts in the total.
    """

    split: tuple[str, bool, int]
    size: int
    norms: Tensor
    kept: Tensor
    cost: float = 1.0

    @property
    def saved(self) -> float:
        """What a dropped unit saves of the total."""
        return self.size * self.cost

    @property
    def count(self) -> int:
        return len(self.norms)

    @property
    def gone(self) -> int:
        """The number of units that are dropped already."""
        return self.count - int(self.kept.sum())

    @property
    def most(self) -> int:
        """The largest number of units that may be dropped, including :attr:`gone`."""
        return max(self.gone, self.count - max(1, math.ceil(LEAST * self.count)))

    def ranks(self, normalized: bool) -> Tensor:
        """The root mean square weight of each of the smallest units, ascending, ``[most]``; -1 for dropped units.

        `normalized`: divide them by the root mean square of all units.
        """
        values = self.norms / math.sqrt(self.size)
        if normalized:
            values = values / values.square().mean().sqrt().clamp_min(torch.finfo(values.dtype).tiny)
        return torch.where(self.kept, values, -1.0).sort().values[: self.most]

    @contextmanager
    def pruned(self, layer: nn.Module, count: int) -> Iterator[None]:
        """Within this context, the layer's ``count`` smallest units are zero."""
        shape: Sequence[int]
        if isinstance(layer, SparseConv):
            weights, shape = layer.values, layer.weight_shape
        else:
            weights = cast(nn.Parameter, layer.weight)
            shape = weights.shape
        keep = largest(torch.where(self.kept, self.norms, -1.0), self.count - count)
        unit_shape = as_units(torch.empty(shape, device="meta"), *self.split).shape[:-1]
        mask = mask_of(keep.view(unit_shape), shape, *self.split).to(weights.device)
        whole = weights.detach().clone()
        weights.data *= mask.flatten()[layer.positions()] if isinstance(layer, SparseConv) else mask
        yield
        weights.data.copy_(whole)


def _units(
    layers: Mapping[str, nn.Module],
    sparsity: float,
    granularity: str | Mapping[str, str],
    costs: Mapping[str, float] | None = None,
) -> tuple[dict[str, _Units], float]:
    """The units of every layer whose sparsity is not fixed, and the number of weights that these layers must drop
    together. With `costs`, each weight counts as often as its layer's cost says."""
    unknown = sorted(layers.keys() - (layers if costs is None else costs).keys())
    if unknown:
        raise ValueError(f"costs lacks {unknown[0]!r}; it must hold the cost of a weight of every layer to prune")
    for value in granularity.values() if isinstance(granularity, Mapping) else [granularity]:
        check_granularity(value)
    granularities, found, budget, room = by_layer(layers, granularity, "granularity"), {}, 0.0, 0.0
    for name, layer in layers.items():
        own = layer.granularity if isinstance(layer, SparseConv) else granularities[name]
        weight = layer.dense_weight() if isinstance(layer, SparseConv) else plain_weight(layer)
        cost = 1.0 if costs is None else costs[name]
        budget += check_sparsity(sparsity) * weight.numel() * cost
        if units_of(own).sparsity is not None:
            budget -= FIXED * weight.numel() * cost
            continue
        split = (own, cast(bool, layer.transposed), cast(int, layer.groups))
        try:
            units = as_units(weight.detach().cpu(), *split)
        except ValueError as error:
            raise ValueError(f"{name or type(layer).__name__}: {error}") from error
        norms = magnitudes(units).flatten().double()
        if bool(norms.isnan().any()):
            raise ValueError(f"{name or type(layer).__name__}: the weights to prune contain NaN")
        kept = torch.ones_like(norms, dtype=torch.bool)
        if isinstance(layer, SparseConv):
            kept = as_units(layer.mask().cpu(), *split)[..., 0].flatten()
        found[name] = _Units(split, units.shape[-1], norms, kept, cost)
        room += found[name].most * found[name].saved
    least = max((one.saved for one in found.values()), default=0.0) / 2
    if budget < -least:
        raise ValueError(
            f"sparsity is {sparsity}, which is too low: layers of granularity '2:4' always drop half of their weights, "
            f"{-budget:.0f} weights too many"
        )
    if budget > room + least:
        raise ValueError(
            f"sparsity is {sparsity}; for this the layers that are not of granularity '2:4' would have to drop "
            f"{budget:.0f} weights, and they can drop {room:.0f} at most: {LEAST:.0%} of each layer's units stay"
        )
    return found, budget


def allocate(
    model: nn.Module,
    sparsity: float | Mapping[str, float],
    granularity: str | Mapping[str, str] = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> dict[str, float]:
    """Returns the sparsity of each layer by name, in [0, 1), in the form of the argument ``sparsity`` of ``sparsify``.

    Args:
        model, granularity, exclude: as in ``sparsify``. A layer that is sparse already keeps its granularity.
        sparsity: the sparsity of all layers together, or ``{pattern: sparsity}``.
        allocation: one of :data:`ALLOCATIONS`.

    Raises:
        ValueError: an argument is out of range or does not fit the layers.
    """
    return layer_sparsities(prunable_layers(model, exclude), sparsity, granularity, allocation)


def layer_sparsities(
    layers: Mapping[str, nn.Module],
    sparsity: float | Mapping[str, float],
    granularity: str | Mapping[str, str],
    allocation: str,
) -> dict[str, float]:
    """Does the work of :func:`allocate` for a dict of layers by name."""
    check_allocation(allocation)
    for value in sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]:
        check_sparsity(value)
    if isinstance(sparsity, Mapping):
        if allocation != "uniform":
            raise ValueError(f"allocation is {allocation!r} and sparsity is given by layer; give one of them")
        return by_layer(layers, sparsity, "sparsity")
    if allocation == "uniform":
        return dict.fromkeys(layers, sparsity)
    units, budget = _units(layers, sparsity, granularity)
    if not units:
        return dict.fromkeys(layers, FIXED)
    ranks = [one.ranks(normalized=allocation == "global-normalized").cpu() for one in units.values()]
    sizes = torch.cat([torch.full((len(rank),), one.size) for rank, one in zip(ranks, units.values(), strict=True)])
    order = torch.cat(ranks).argsort(stable=True)
    dropped = torch.cat([torch.zeros(1), sizes[order].cumsum(0)])
    last = int((dropped - budget).abs().argmin())
    gone = torch.zeros(len(sizes), dtype=torch.bool).index_fill_(0, order[:last], True)
    parts = gone.split([len(rank) for rank in ranks])
    found = {name: int(part.sum()) / one.count for (name, one), part in zip(units.items(), parts, strict=True)}
    return {name: found.get(name, FIXED) for name in layers}


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    loss: Callable[[nn.Module], float | Tensor],
    sparsity: float,
    granularity: str | Mapping[str, str] = "element",
    exclude: Iterable[str] = (),
    levels: Sequence[float] = LEVELS,
    costs: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Returns sparsities by layer that raise a loss evenly, in the form of the argument ``sparsity`` of ``sparsify``.

    Each layer is pruned alone by magnitude, at each level. The rise of the loss over the loss of the unpruned model is
    measured; a fall counts as no rise. Between levels, the rise is interpolated linearly. At the returned sparsities
    the rise is the same for every layer, except for layers that reach their limit, and the total is ``sparsity``. The
    cost is one evaluation of the loss per layer and level, and one more.

    Args:
        model: not changed; ``loss`` gets a copy in evaluation mode.
        loss: a function of a model that evaluates it on fixed batches. Lower is better. Random numbers that the
            function draws are the same in every evaluation. It is called without gradients, and may enable them.
        sparsity, granularity, exclude: as in ``allocate``.
        levels: the sparsities to measure, in addition to the highest sparsity that :data:`LEAST` allows.
        costs: the cost of a weight by layer, for example its multiply-accumulates per image. With costs, all layers
            together drop the fraction ``sparsity`` of the cost of all weights, as with uniform sparsities. The fraction
            of the weights that they drop is then another one; :func:`total_sparsity` returns it.

    Raises:
        ValueError: an argument is out of range, or a loss is not finite.
    """
    for level in levels:
        check_sparsity(level)
    model = bake(copy_model(model)).eval()
    layers = prunable_layers(model, exclude)
    units, budget = _units(layers, sparsity, granularity, costs)
    if not units:
        return dict.fromkeys(layers, FIXED)
    random = states(devices_of(model))

    def measure(what: str) -> float:
        with repeated(random):
            value = float(loss(model))
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} {what}; it must be finite")
        return value

    dense = measure("of the unpruned model")
    curves = {}
    for name, one in units.items():
        wanted = (round(level * one.count) for level in levels)
        counts = sorted({one.gone, one.most, *(count for count in wanted if one.gone < count < one.most)})
        rises = [0.0]
        for count in counts[1:]:
            with one.pruned(layers[name], count):
                rises.append(max(rises[-1], measure(f"with {count} of {one.count} units of {name} dropped") - dense))
        curves[name] = (counts, rises)
    drop = _level(curves, units, budget)
    return {name: drop[name] / units[name].count if name in drop else FIXED for name in layers}


def _level(
    curves: Mapping[str, tuple[list[int], list[float]]], units: Mapping[str, _Units], budget: float
) -> dict[str, int]:
    """The number of units to drop per layer so that the rise of the loss is the same for every layer and all layers
    together drop ``budget`` weights, counted by their cost.

    `curves`: for each layer, ascending numbers of dropped units, and the rise at each number.
    """

    def allowed(rise: float) -> dict[str, float]:
        drop = {}
        for name, (counts, rises) in curves.items():
            last = max((i for i, value in enumerate(rises) if value <= rise), default=0)
            drop[name] = float(counts[last])
            if last + 1 < len(counts) and rise > rises[last]:
                part = (rise - rises[last]) / (rises[last + 1] - rises[last])
                drop[name] += part * (counts[last + 1] - counts[last])
        return drop

    def weights(drop: Mapping[str, float]) -> float:
        return sum(count * units[name].saved for name, count in drop.items())

    low, high = -1.0, max(rises[-1] for _, rises in curves.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(allowed(middle)) < budget else (low, middle)
    # A layer whose loss does not rise makes `allowed` jump at one rise: the values on both sides are blended.
    below, above = allowed(low), allowed(high)
    span = weights(above) - weights(below)
    part = (budget - weights(below)) / span if span > 0 else 1.0
    exact = {name: below[name] + min(max(part, 0.0), 1.0) * (above[name] - below[name]) for name in curves}
    drop = {name: math.floor(count) for name, count in exact.items()}
    missing = budget - weights(drop)
    for name in sorted(exact, key=lambda name: drop[name] - exact[name]):
        if missing >= units[name].saved / 2 and drop[name] < units[name].most:
            drop[name] += 1
            missing -= units[name].saved
    return drop


def total_sparsity(model: nn.Module, sparsities: Mapping[str, float], exclude: Iterable[str] = ()) -> float:
    """Returns the sparsity of all layers together. ``sparsities``: by layer, as :func:`sensitivity` returns them."""
    return _total(prunable_layers(model, exclude), sparsities)


def _total(layers: Mapping[str, nn.Module], sparsities: Mapping[str, float]) -> float:
    sizes = {name: _weights(layer) for name, layer in layers.items()}
    return sum(sizes[name] * own for name, own in sparsities.items()) / max(1, sum(sizes.values()))


@dataclass(frozen=True)
class Targets:
    """The sparsity of each layer when all layers together reach ``total``, and on the way to it.

    `layers`: the final sparsities by name. `fixed`: the names of the layers of granularity ``"2:4"``.
    """

    total: float
    layers: Mapping[str, float]
    fixed: frozenset[str]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        total: float,
        granularity: str | Mapping[str, str] = "element",
        exclude: Iterable[str] = (),
        allocation: str | Mapping[str, float] = "uniform",
    ) -> Targets:
        """The targets for a model before it is pruned.

        `allocation`: one of :data:`ALLOCATIONS`, or sparsities by layer. Raises ``ValueError`` as ``allocate`` does,
        and if the sparsities by layer make a total that differs from ``total`` by more than 1 % of all weights.
        """
        layers = prunable_layers(model, exclude)
        if isinstance(allocation, str):
            found = layer_sparsities(layers, total, granularity, allocation)
        else:
            found = layer_sparsities(layers, allocation, granularity, "uniform")
            sum_of = _total(layers, found)
            if abs(sum_of - total) > 0.01:
                raise ValueError(
                    f"allocation gives all layers together a sparsity of {sum_of:.4f}; the target is {total}"
                )
        granularities = by_layer(layers, granularity, "granularity")
        fixed = {
            name
            for name, layer in layers.items()
            if units_of(layer.granularity if isinstance(layer, SparseConv) else granularities[name]).sparsity
            is not None
        }
        for name in fixed:
            if found[name] != FIXED:
                raise ValueError(f"{name}: sparsity is {found[name]}; with granularity '2:4' it must be {FIXED}")
        return cls(total, found, frozenset(fixed))

    def at(self, sparsity: float) -> dict[str, float]:
        """Each layer's sparsity when the sparsity of all layers together is ``sparsity``, from 0 to ``total``.

        Every layer has then reached the same fraction of its final sparsity. Layers of granularity ``"2:4"`` have their
        final sparsity from the start.
        """
        return {
            name: FIXED if name in self.fixed else sparsity * (own / self.total if self.total else 1.0)
            for name, own in self.layers.items()
        }


def _weights(layer: nn.Module) -> int:
    return math.prod(layer.weight_shape) if isinstance(layer, SparseConv) else plain_weight(layer).numel()


__getattr__ = renamed_names(__name__, shares="layer_sparsities")
