"""How sparse each layer is to be, so that all of them together are as sparse as asked.

=======================  ============================================================================================
allocation               a layer's sparsity
=======================  ============================================================================================
``"uniform"``            the same for every layer.
``"global"``             what one threshold over all layers leaves: the units of smallest root mean square weight go,
                         whatever layer they are in. Layers whose weights are small lose most.
``"global-normalized"``  the same, each layer's weights first divided by their own root mean square: no layer loses only
                         because its scale is small.
:func:`sensitivity`      measured: sparsities at which each layer, pruned alone, raises a loss by as much as any other.
=======================  ============================================================================================

No layer is emptied: one unit of each stays, and, where layers differ, :data:`LEAST` of its units; a target that leaves
no room for that is refused. There the total, the fraction of weights dropped among all layers, meets the target within
one unit; a layer of granularity ``"2:4"`` has its 0.5, and the others make up for it.
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
from ..nn.layer import SparseConv, SparseConvTranspose2d
from ..randomness import devices_of, repeated, states
from ..renamed import renamed_names
from .prunable import prunable_layers

#: Fraction of a layer's units that always stays where each layer's sparsity is chosen here.
LEAST = 0.01

#: Sparsities at which `sensitivity` measures a layer, beside the highest one that LEAST allows.
LEVELS = (0.25, 0.5, 0.75, 0.9)

#: The sparsity of a layer whose granularity, "2:4", allows no other.
FIXED = 0.5

#: Names of the ways to allocate a sparsity.
ALLOCATIONS = ("uniform", "global", "global-normalized")


def check_allocation(allocation: str) -> str:
    """Returns it; raises ``ValueError`` for a name that is none."""
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation is {allocation!r}; it must be one of {', '.join(map(repr, ALLOCATIONS))}")
    return allocation


@dataclass
class _Units:
    """One layer's units: weights of each, L2 norms, and which are kept still, both ``[count]``.

    `split`: granularity, transposed, groups, as ``sparsegan.nn.granularity`` takes them.
    """

    split: tuple[str, bool, int]
    size: int
    norms: Tensor
    kept: Tensor

    @property
    def count(self) -> int:
        return len(self.norms)

    @property
    def gone(self) -> int:
        """Units that are dropped already."""
        return self.count - int(self.kept.sum())

    @property
    def most(self) -> int:
        """Units that may be dropped."""
        return max(self.gone, self.count - max(1, math.ceil(LEAST * self.count)))

    def ranks(self, normalized: bool) -> Tensor:
        """float64, ascending: root mean squares of the units that may be dropped; -1 of those that are."""
        values = self.norms / math.sqrt(self.size)
        if normalized:
            values = values / values.square().mean().sqrt().clamp_min(torch.finfo(values.dtype).tiny)
        return torch.where(self.kept, values, -1.0).sort().values[: self.most]

    @contextmanager
    def pruned(self, layer: nn.Module, count: int) -> Iterator[None]:
        """Within it the layer's ``count`` smallest units are zero."""
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
    layers: Mapping[str, nn.Module], sparsity: float, granularity: str | Mapping[str, str]
) -> tuple[dict[str, _Units], float]:
    """The units of every layer whose sparsity is to be found, and how many weights they are to drop together."""
    for value in granularity.values() if isinstance(granularity, Mapping) else [granularity]:
        check_granularity(value)
    granularities, found, budget, room = by_layer(layers, granularity, "granularity"), {}, 0.0, 0
    for name, layer in layers.items():
        own = layer.granularity if isinstance(layer, SparseConv) else granularities[name]
        weight = layer.dense_weight() if isinstance(layer, SparseConv) else plain_weight(layer)
        budget += check_sparsity(sparsity) * weight.numel()
        if units_of(own).sparsity is not None:
            budget -= FIXED * weight.numel()
            continue
        split = (own, isinstance(layer, SparseConvTranspose2d | nn.ConvTranspose2d), cast(int, layer.groups))
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
        found[name] = _Units(split, units.shape[-1], norms, kept)
        room += found[name].most * units.shape[-1]
    least = max((one.size for one in found.values()), default=0) / 2
    if budget > room + least or budget < -least:
        raise ValueError(
            f"sparsity is {sparsity}, for which the layers would have to drop {budget:.0f} weights beside those of "
            f"granularity '2:4', and they can drop {room} at most: {LEAST:.0%} of each layer's units stay"
        )
    return found, budget


def allocate(
    model: nn.Module,
    sparsity: float | Mapping[str, float],
    granularity: str | Mapping[str, str] = "element",
    exclude: Iterable[str] = (),
    allocation: str = "uniform",
) -> dict[str, float]:
    """Each layer's fraction of units to drop, in [0, 1), by name: what ``sparsify`` takes as ``sparsity``.

    Args:
        model, granularity, exclude: as in ``sparsify``; a layer that is sparse already has its own granularity.
        sparsity: of all layers together, or already ``{pattern: sparsity}``.
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
    """:func:`allocate` for layers by name."""
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
) -> dict[str, float]:
    """Sparsities by layer that raise a loss evenly: what ``sparsify`` takes as ``sparsity``.

    Each layer is pruned alone at each level, by magnitude, and the rise of the loss over the unpruned model's is taken
    (a fall counts as no rise), in between linearly. The result is where every layer's rise is the same, as far as
    layers can go, and all together are as sparse as asked. Costs one evaluation per layer and level, and one more.

    Args:
        model: unchanged; ``loss`` gets a copy in evaluation mode.
        loss: of a model, on whatever batches it holds; lower is better. Random numbers that it draws are the same at
            every evaluation. Called without gradients; it may enable them.
        sparsity, granularity, exclude: as in ``allocate``.
        levels: sparsities to measure at, beside the highest one that :data:`LEAST` allows.

    Raises:
        ValueError: an argument is out of range, or a loss is not finite.
    """
    for level in levels:
        check_sparsity(level)
    model = bake(copy_model(model)).eval()
    layers = prunable_layers(model, exclude)
    units, budget = _units(layers, sparsity, granularity)
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
    """Units to drop per layer: as many as the same rise of the loss allows each, all together ``budget`` weights."""

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
        return sum(count * units[name].size for name, count in drop.items())

    low, high = -1.0, max(rises[-1] for _, rises in curves.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(allowed(middle)) < budget else (low, middle)
    # A layer whose loss does not rise jumps at one level: the two sides are blended.
    below, above = allowed(low), allowed(high)
    span = weights(above) - weights(below)
    part = (budget - weights(below)) / span if span > 0 else 1.0
    exact = {name: below[name] + min(max(part, 0.0), 1.0) * (above[name] - below[name]) for name in curves}
    drop = {name: math.floor(count) for name, count in exact.items()}
    missing = budget - weights(drop)
    for name in sorted(exact, key=lambda name: drop[name] - exact[name]):
        if missing >= units[name].size / 2 and drop[name] < units[name].most:
            drop[name] += 1
            missing -= units[name].size
    return drop


@dataclass(frozen=True)
class Targets:
    """What each layer's sparsity is to become when all together reach ``total``, and on the way there.

    `layers`: by name. `fixed`: names of layers of granularity ``"2:4"``.
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
        """Of a model before it is pruned; ``allocation`` is a name, or sparsities by layer that make up ``total``.

        Raises ``ValueError`` where they do not, within 1 % of all weights, and as ``allocate`` does.
        """
        layers = prunable_layers(model, exclude)
        if isinstance(allocation, str):
            found = layer_sparsities(layers, total, granularity, allocation)
        else:
            found = layer_sparsities(layers, allocation, granularity, "uniform")
            sizes = {name: _weights(layer) for name, layer in layers.items()}
            sum_of = sum(sizes[name] * own for name, own in found.items()) / max(1, sum(sizes.values()))
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
        """Each layer's sparsity while all together have one from 0 to ``total``: every layer is as far on its way.

        Layers of granularity ``"2:4"`` have theirs from the start.
        """
        return {
            name: FIXED if name in self.fixed else sparsity * (own / self.total if self.total else 1.0)
            for name, own in self.layers.items()
        }


def _weights(layer: nn.Module) -> int:
    return math.prod(layer.weight_shape) if isinstance(layer, SparseConv) else plain_weight(layer).numel()


__getattr__ = renamed_names(__name__, shares="layer_sparsities")
