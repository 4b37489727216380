"""Granularities: which weights form a unit (are kept or dropped together), and which units pruning keeps.

==============  =======================================================================================================
granularity     unit
==============  =======================================================================================================
``"element"``   0-D: one weight.
``"vector:V"``  1-D: V consecutive output channels at one input channel and kernel position, V from 2 to 64.
``"input:D"``   1-D: D consecutive input channels at one output channel and kernel position, D from 2 to 64. With
                groups, the channels of a vector or of an input unit are consecutive within a group.
``"kernel"``    2-D: all weights between one output and one input channel.
``"filter"``    3-D: all weights of one output channel. ``sparsegan.remove_filters`` removes dropped filters.
``"2:4"``       Four consecutive weights along the reduction dimension of the matrix ``[out_channels, in_channels /
                groups * kernel_h * kernel_w]``, of which two are kept: the semi-structured pattern of torch and
                NVIDIA. The sparsity is always 0.5.
==============  =======================================================================================================

Supports of vectors and of input units list units. All other supports list weights, and so run on the kernels for single
weights. Vectors have kernels of their own on CPUs and GPUs, input units on CPUs; on a GPU input units run as single
weights (``sparsegan/nn/base.py``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor

#: The most channels of one vector or of one input unit.
MAX_CHANNELS = 64

Setting = TypeVar("Setting")


def _filters(weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """A weight with the output channels first, ``[out, in / groups, ...]``.

    A transposed layer's ``[in, out / groups, ...]`` is rearranged. The rearrangement is its own inverse.
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1) if transposed else weight


def _consecutive(length: int, inputs: bool = False) -> Callable[[Tensor, bool, int], Tensor]:
    """A weight in units of ``length`` consecutive output channels, or input channels."""

    def split(weight: Tensor, transposed: bool, groups: int) -> Tensor:
        dim = int(transposed != inputs)
        return weight.unflatten(dim, (-1, length)).movedim(dim + 1, -1)

    return split


def _out_channels(shape: Sequence[int], transposed: bool, groups: int) -> int:
    return shape[1] * groups if transposed else shape[0]


def _in_channels(shape: Sequence[int], transposed: bool, groups: int) -> int:
    return shape[0] if transposed else shape[1] * groups


@dataclass(frozen=True)
class Units:
    """The units of a granularity.

    `name`: the word for a unit in error texts. `rule`: the condition on a mask, for error texts.
    `split(weight, transposed, groups)`: the dense weight unit by unit, ``[*unit shape, size]``.
    `size(shape, out_channels)`: weights per unit; 1 for ``"2:4"``. `listed`: whether a support lists units; a support
    that does not, lists the kept weights. `outputs`, `inputs`: output and input channels of one entry of a support; at
    least one of the two is 1. `stay`: how many of each `per` consecutive weights of an output channel are kept;
    ``None`` where units are kept or dropped whole.
    """

    name: str
    rule: str
    split: Callable[[Tensor, bool, int], Tensor]
    size: Callable[[Sequence[int], int], int]
    listed: bool = False
    outputs: int = 1
    inputs: int = 1
    stay: int | None = None
    per: int = 1

    @property
    def entry(self) -> int:
        """Weights of one entry of a support."""
        return self.outputs * self.inputs

    @property
    def sparsity(self) -> float | None:
        """The sparsity, where the granularity allows only one; else ``None``."""
        return None if self.stay is None else 1 - self.stay / self.per


_UNITS = {
    "element": Units(
        "weight",
        "each is kept or dropped",
        lambda weight, transposed, groups: weight.unsqueeze(-1),
        lambda shape, out_channels: 1,
        listed=True,
    ),
    "kernel": Units(
        "kernel",
        "all weights between one output and one input channel must be kept or dropped as one",
        lambda weight, transposed, groups: weight.flatten(2),
        lambda shape, out_channels: math.prod(shape[2:]),
    ),
    "filter": Units(
        "filter",
        "all weights of one output channel must be kept or dropped as one",
        lambda weight, transposed, groups: _filters(weight, transposed, groups).flatten(1),
        lambda shape, out_channels: math.prod(shape) // out_channels,
    ),
    "2:4": Units(
        "quadruple",
        "two of each 4 consecutive weights of an output channel must be kept",
        lambda weight, transposed, groups: _filters(weight, transposed, groups).flatten(1).unflatten(1, (-1, 4)),
        lambda shape, out_channels: 1,
        stay=2,
        per=4,
    ),
}


def units_of(granularity: str) -> Units:
    """The units of a granularity. Raises ``ValueError`` for an unknown granularity."""
    if isinstance(granularity, str):
        if granularity in _UNITS:
            return _UNITS[granularity]
        match = re.fullmatch(r"(vector|input):([1-9][0-9]?)", granularity)
        if match is not None and 2 <= (length := int(match[2])) <= MAX_CHANNELS:
            inputs = match[1] == "input"
            return Units(
                "input unit" if inputs else "vector",
                f"each {length} consecutive {'in' if inputs else 'out'}put channels must be kept or dropped as one",
                _consecutive(length, inputs),
                lambda shape, out_channels: length,
                listed=True,
                outputs=1 if inputs else length,
                inputs=length if inputs else 1,
            )
    names = "', '".join(name for name in _UNITS if name != "element")
    raise ValueError(
        f"granularity is {granularity!r}; accepted: 'element', 'vector:V' with V from 2 to {MAX_CHANNELS}, 'input:D' "
        f"with D from 2 to {MAX_CHANNELS}, '{names}'"
    )


def check_granularity(granularity: str) -> str:
    """Returns ``granularity``. Raises ``ValueError`` for an unknown granularity."""
    units_of(granularity)
    return granularity


def check_channels(granularity: str, in_channels: int, out_channels: int, groups: int = 1) -> None:
    """Raises ``ValueError`` unless the channels of each group are whole vectors or whole input units."""
    kind, where = units_of(granularity), f" in each of its {groups} groups" if groups > 1 else ""
    for side, total, size in (("output", out_channels, kind.outputs), ("input", in_channels, kind.inputs)):
        channels = total // groups
        what = f"{channels} {side} channel{'s' if channels != 1 else ''}{where}"
        _check_multiple(granularity, channels, size, what)


def check_shape(shape: Sequence[int], granularity: str, transposed: bool = False, groups: int = 1) -> None:
    """Raises ``ValueError`` unless a dense weight of ``shape`` consists of whole units."""
    out_channels = _out_channels(shape, transposed, groups)
    check_channels(granularity, _in_channels(shape, transposed, groups), out_channels, groups)
    weights = math.prod(shape) // out_channels
    _check_multiple(granularity, weights, units_of(granularity).per, f"{weights} weights per output channel")


def _check_multiple(granularity: str, number: int, of: int, what: str) -> None:
    if number % of:
        raise ValueError(
            f"granularity is {granularity!r} and the layer has {what}, which is no multiple of {of}; "
            "leave the layer dense with exclude=, or use another granularity"
        )


def check_sparsity(sparsity: float, granularity: str = "element") -> float:
    """Returns ``sparsity``. Raises ``ValueError`` outside [0, 1), or where the granularity needs another sparsity."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must be at least 0 and below 1")
    only = units_of(granularity).sparsity
    if only is not None and sparsity != only:
        raise ValueError(f"sparsity is {sparsity}; with granularity {granularity!r} it must be {only}")
    return sparsity


def by_layer(names: Iterable[str], settings: Setting | Mapping[str, Setting], argument: str) -> dict[str, Setting]:
    """Layer name -> setting (a granularity, a sparsity, ...). A mapping gives the setting per pattern of names.

    A layer takes the first pattern that matches its name. Raises ``ValueError``, with the argument's name, where a
    layer matches no pattern, and for a pattern other than ``"*"`` that no layer takes.
    """
    if not isinstance(settings, Mapping):
        return dict.fromkeys(names, settings)
    taken = {}
    for name in names:
        pattern = next((pattern for pattern in settings if fnmatchcase(name, pattern)), None)
        if pattern is None:
            raise ValueError(
                f"{argument} has no pattern that matches layer {name}; its patterns are "
                f"{', '.join(map(repr, settings))}. '*' matches the rest, and exclude= leaves a layer dense"
            )
        taken[name] = pattern
    if unused := set(settings) - {"*", *taken.values()}:
        raise ValueError(
            f"{argument} has the patterns {sorted(unused)}, which no layer takes; a layer takes the first pattern that "
            "matches its name"
        )
    return {name: settings[pattern] for name, pattern in taken.items()}


def parse_granularity(text: str) -> str | dict[str, str]:
    """The granularity of a command line: ``"filter"``, or by layer as in ``"model.1*=filter,head=2:4,element"``.

    A granularity without a pattern is for the layers that match no pattern. Raises ``ValueError`` for an unknown
    granularity and for a repeated pattern.
    """
    settings: dict[str, str] = {}
    for part in text.split(","):
        pattern, equals, granularity = part.rpartition("=")
        pattern = pattern if equals else "*"
        if pattern in settings:
            raise ValueError(f"granularity {text!r} has the pattern {pattern!r} twice")
        settings[pattern] = check_granularity(granularity)
    if "*" in settings:  # moved to the end, because layers take the first pattern that matches
        settings["*"] = settings.pop("*")
    return settings["*"] if list(settings) == ["*"] else settings


def kept(size: int, sparsity: float) -> int:
    """How many of ``size`` units are kept at a sparsity: at least one. The number of dropped units is rounded."""
    return max(size - round(size * check_sparsity(sparsity)), min(size, 1))


def largest(scores: Tensor, keep: int) -> Tensor:
    """bool, shape of ``scores``: True at the ``keep`` largest entries, and of equal entries at the first.

    Raises ``ValueError`` on NaN.
    """
    if bool(scores.isnan().any()):
        raise ValueError("the weights to prune contain NaN; NaN cannot be ranked by magnitude")
    flat = scores.flatten()
    if keep >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if keep > 0:
        threshold = flat.kthvalue(flat.numel() - keep + 1).values
        chosen = flat > threshold
        ties = (flat == threshold).nonzero().flatten()
        chosen[ties[: keep - int(chosen.sum())]] = True
    return chosen.view(scores.shape)


def as_units(weight: Tensor, granularity: str, transposed: bool = False, groups: int = 1) -> Tensor:
    """A dense weight, or a tensor of its shape such as a mask, arranged unit by unit.

    Args:
        weight: ``[out, in / groups, ...]``, or ``[in, out / groups, ...]`` when ``transposed``; for ``"element"`` any
            shape.

    Returns:
        ``[*unit shape, size]``. Where a support lists units, the unit shape is the weight's shape with the output
        channels divided by V, or the input channels divided by D. A support lists flat positions in this shape.

    Raises:
        ValueError: the weight does not consist of whole units.
    """
    if granularity != "element":
        check_shape(weight.shape, granularity, transposed, groups)
    return units_of(granularity).split(weight, transposed, groups)


def unit_size(shape: Sequence[int], granularity: str, transposed: bool = False, groups: int = 1) -> int:
    """The number of weights per unit, for a dense weight of ``shape``; 1 for ``"2:4"``."""
    return units_of(granularity).size(
        shape, 1 if granularity == "element" else _out_channels(shape, transposed, groups)
    )


def magnitudes(units: Tensor) -> Tensor:
    """The L2 norm of each unit, ``[..., size]`` to ``[...]``. Pruning ranks units by this norm.

    The norm is float64, so that no square of a float32 overflows or vanishes. For units of one weight it is the
    magnitude, in the weight's dtype.
    """
    if units.shape[-1] == 1:
        return units.abs().squeeze(-1)
    return torch.linalg.vector_norm(units, dim=-1, dtype=torch.float64)


def mask_of(keep: Tensor, shape: Sequence[int], granularity: str, transposed: bool = False, groups: int = 1) -> Tensor:
    """The mask, bool of a dense weight's ``shape``.

    ``keep``: bool, per unit ``[*unit shape]`` or per weight of each unit ``[*unit shape, size]``; True is kept.
    """
    mask = torch.zeros(tuple(shape), dtype=torch.bool, device=keep.device)
    where = as_units(torch.arange(mask.numel(), device=keep.device).view(mask.shape), granularity, transposed, groups)
    mask.view(-1)[where[keep].flatten()] = True
    return mask


def keep_largest(weight: Tensor, keep: int, granularity: str, transposed: bool = False, groups: int = 1) -> Tensor:
    """The mask that keeps the ``keep`` units of largest norm. For ``"2:4"``: the two largest weights of each four."""
    units, stay = as_units(weight.detach(), granularity, transposed, groups), units_of(granularity).stay
    if stay is None:
        chosen = largest(magnitudes(units), keep)
    else:
        if bool(units.isnan().any()):
            raise ValueError("the weights to prune contain NaN; NaN cannot be ranked by magnitude")
        order = units.abs().sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.zeros_like(units, dtype=torch.bool).scatter_(-1, order[..., :stay], True)
    return mask_of(chosen, weight.shape, granularity, transposed, groups)


def magnitude_mask(
    weight: Tensor, sparsity: float, granularity: str = "element", transposed: bool = False, groups: int = 1
) -> Tensor:
    """The mask that keeps the units of largest L2 norm. For single weights the norm is the magnitude.

    Args:
        weight: the dense weight; for ``"element"`` of any shape.
        sparsity: fraction of units to drop, in [0, 1); 0.5 for ``"2:4"``.
        granularity: the unit; see the module's table.
        transposed: True for the weight of a ``ConvTranspose2d``, whose output channels are dimension 1.
        groups: the groups of the layer.

    Returns:
        bool, shape of ``weight``: True where kept.

    Raises:
        ValueError: an argument is out of range, the weight does not consist of whole units, or a weight is NaN.
    """
    check_sparsity(sparsity, granularity)
    units = weight.numel() // unit_size(weight.shape, granularity, transposed, groups)
    return keep_largest(weight, kept(units, sparsity), granularity, transposed, groups)


def nonzero_mask(weight: Tensor, granularity: str = "element", transposed: bool = False, groups: int = 1) -> Tensor:
    """The mask, bool of the weight's shape, that keeps each unit with a nonzero weight: the result of a pruning tool.

    With ``"2:4"``, each quadruple keeps two weights, even if fewer are nonzero. Raises ``ValueError`` where more than
    two are.
    """
    units, stay = as_units(weight.detach() != 0, granularity, transposed, groups), units_of(granularity).stay
    if stay is None:
        return mask_of(units.any(-1), weight.shape, granularity, transposed, groups)
    if more := int((units.sum(-1) > stay).sum()):
        raise ValueError(
            f"{more} of the weight's {units[..., 0].numel()} quadruples have more than {stay} nonzeros, which "
            f"granularity {granularity!r} does not allow; give sparsity=0.5 to drop the smallest weights of each"
        )
    return keep_largest(weight, 0, granularity, transposed, groups)


def check_mask(mask: Tensor, granularity: str, transposed: bool = False, groups: int = 1) -> None:
    """Raises ``ValueError`` unless a mask, bool of the weight's shape, keeps whole units or fits the 2:4 pattern."""
    units, kind = as_units(mask, granularity, transposed, groups), units_of(granularity)
    wrong = units.sum(-1) != kind.stay if kind.stay is not None else units.any(-1) != units.all(-1)
    if cut := int(wrong.sum()):
        raise ValueError(
            f"mask cuts {cut} of {wrong.numel()} {kind.name}s; with granularity {granularity!r} {kind.rule}"
        )


def support_of(mask: Tensor, granularity: str, transposed: bool = False) -> Tensor:
    """The support of a mask that passes ``check_mask``: int32, sorted positions of kept units or weights."""
    kind = units_of(granularity)
    entries = kind.split(mask, transposed, 1)[..., 0] if kind.listed else mask
    return entries.flatten().nonzero().flatten().int()


def positions_of(support: Tensor, shape: Sequence[int], granularity: str, transposed: bool = False) -> Tensor:
    """The position of each kept value in the flattened dense weight, int64 ``[nnz]``. `shape`: of the weight."""
    units, kind = support.long(), units_of(granularity)
    if kind.entry == 1:
        return units
    # A row of `inner` units is V rows of `inner` weights, so the channels of a unit are `inner` weights apart.
    inner = math.prod(shape[2 if transposed == (kind.outputs > 1) else 1 :])
    first = units + (units // inner) * (inner * (kind.entry - 1))
    channels = torch.arange(0, inner * kind.entry, inner, device=units.device)
    return (first.unsqueeze(1) + channels).flatten()


def units_of_support(
    support: Tensor, shape: Sequence[int], granularity: str, transposed: bool = False, groups: int = 1
) -> Tensor:
    """The units that a support keeps, int32, sorted. For ``"2:4"``, which keeps parts of units, the support itself."""
    kind = units_of(granularity)
    if kind.listed or kind.stay is not None:
        return support
    mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=support.device)
    mask[support.long()] = True
    keep = as_units(mask.view(*shape), granularity, transposed, groups)[..., 0]
    return keep.flatten().nonzero().flatten().int()


def support_of_units(
    units: Tensor, shape: Sequence[int], granularity: str, transposed: bool = False, groups: int = 1
) -> Tensor:
    """The inverse of ``units_of_support``. Raises ``ValueError`` where weights do not fit the 2:4 pattern."""
    kind = units_of(granularity)
    if kind.listed:
        return units
    if kind.stay is not None:
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[units.long()] = True
        check_mask(mask.view(*shape), granularity, transposed, groups)
        return units
    weights = as_units(torch.arange(math.prod(shape)).view(*shape), granularity, transposed, groups)
    return weights.flatten(0, -2)[units.long()].flatten().sort().values.int()
