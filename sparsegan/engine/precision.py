"""Short precisions of an engine's sparse convolutions: which layers take them, and their numbers.

A layer takes a short precision if its units have whole lanes of source channels: granularity ``"input:2"`` for int16
and bf16, ``"input:4"`` for int8 too. Weights get one scale per output channel. The inputs of a layer get one scale,
from the inputs that the layer has in the calibration. Inputs beyond the range of the calibration are limited to it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..nn.granularity import by_layer
from ..ops.precisions import PRECISIONS, Precision

#: What `precision` may be, per layer.
NAMES = ("float32", *PRECISIONS)
#: If the machine has no instructions for a precision, the layer runs in the first one of these that it has.
_INSTEAD = {"int8": ("int16",), "bf16": ("int16",), "int16": ()}
#: int16 has bits to spare: its range is twice the largest input of the calibration.
_HEADROOM = 2.0
#: How many inputs of a layer are looked at per batch of the calibration, for the range of int8.
_SAMPLES = 1 << 16


@dataclass(frozen=True)
class Short:
    """The numbers of a convolution in a short precision.

    `values`: in the dtype of the precision, in the order of the taps of `plan`, a direct plan. `sum_scale`: float32
    ``[out_channels]``, None for bf16. `to_integer`: the factor of the inputs.
    """

    precision: Precision
    values: Tensor
    plan: Tensor
    sum_scale: Tensor | None
    to_integer: float


def shortened(
    values: Tensor, plan: Tensor, channels: Tensor, count: int, precision: Precision, limit: float
) -> Short | None:
    """The numbers of a layer; None where integer weights would have fewer than four levels.

    No sum can overflow. For each output channel, the sum of ``|weight|`` times the largest input stays below ``2**31``.

    Args:
        values: float32 ``[taps, source channels per unit]``, in the order of the taps of `plan`.
        channels: int64 ``[taps]``, the output channel of each tap. `count`: the number of output channels.
        limit: the range of the inputs.
    """
    if not precision.most:
        return Short(precision, values.to(precision.dtype).flatten(), plan, None, 1.0)
    exact = values.double().abs()
    largest, total, entries = (torch.zeros(count, dtype=torch.float64) for _ in range(3))
    largest.scatter_reduce_(0, channels, exact.amax(1), "amax")
    total.index_add_(0, channels, exact.sum(1))
    entries.index_add_(0, channels, torch.full((len(channels),), float(exact.shape[1]), dtype=torch.float64))
    largest[largest == 0] = 1.0
    most_of_sum = (2**31 - 1) // (precision.most + 2 * precision.offset)
    # Rounding moves each weight by at most 1/2.
    levels = (most_of_sum - entries / 2) / (total / largest).clamp(min=1.0)
    levels = levels.clamp(max=float(torch.iinfo(precision.dtype).max)).floor()
    if bool((levels < 4).any()):
        return None
    step = largest / levels
    integers = (values.double() / step[channels, None]).round().to(precision.dtype).flatten()
    limit = limit if limit > 0 else 1.0
    return Short(precision, integers, plan, (step * (limit / precision.most)).float(), precision.most / limit)


@dataclass
class Ranges:
    """The inputs of each layer in the calibration: the largest without sign, and samples."""

    largest: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[Tensor]] = field(default_factory=dict)

    def see(self, name: str, x: Tensor) -> None:
        """Adds inputs of a layer. Raises ValueError where they are not finite."""
        flat = x.flatten()
        largest = float(flat.abs().max()) if flat.numel() else 0.0
        if not math.isfinite(largest):
            raise ValueError(
                f"calibration: the inputs of layer {name} are not finite; a short precision needs finite ones"
            )
        self.largest[name] = max(largest, self.largest.get(name, 0.0))
        self.samples.setdefault(name, []).append(flat[:: max(1, flat.numel() // _SAMPLES)].clone())

    def of(self, name: str, precision: Precision) -> float:
        """The range of a layer's inputs: for int8 the one with the smallest mean square error of the samples."""
        largest = self.largest[name]
        if precision.name != "int8":
            return _HEADROOM * largest
        x = torch.cat(self.samples[name])

        def error(limit: float) -> float:
            step = limit / precision.most
            return float((x - (x / step).round().clamp(-precision.most, precision.most) * step).square().mean())

        return min((largest * part / 32 for part in range(4, 33)), key=error) if largest else 0.0


@dataclass
class Precisions:
    """The precision of each sparse convolution of an engine.

    `chosen`: layer -> the name of its precision. `ranges`: layer -> range of its inputs. `notes`: layer -> why its
    precision is not the one that was asked for. `decibels`: the ratio of the results to their difference from float32,
    in dB, the smallest over the calibration.
    """

    chosen: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    decibels: float = math.inf

    def of(self, name: str) -> Precision | None:
        """The short precision of a layer; None for float32."""
        return PRECISIONS.get(self.chosen.get(name, "float32"))

    def note(self, name: str) -> str:
        """What a step says of its precision; "" where none was asked for."""
        return self.notes.get(name) or self.chosen.get(name, "")


def check_precision(asked: str | Mapping[str, str], least_db: float | None) -> None:
    """Raises ValueError for unknown names, and where a bound is given without ``"auto"`` or the other way round."""
    for one in asked.values() if isinstance(asked, Mapping) else () if asked == "auto" else (asked,):
        if one not in NAMES:
            raise ValueError(
                f"precision is {one!r}; it must be one of {', '.join(map(repr, NAMES))}, or 'auto' for the whole model"
            )
    if (asked == "auto") != (least_db is not None):
        raise ValueError(
            f"least_db is {least_db} and precision is {asked!r}; precision='auto' needs least_db, the bound in dB, and "
            "no other precision takes it"
        )


def wanted(
    asked: str | Mapping[str, str], units: Mapping[str, tuple[int, int]], ends: bool = True
) -> tuple[dict[str, str], dict[str, str]]:
    """The precision of each layer and the notes, as in :class:`Precisions`.

    Args:
        asked: a precision, or one per pattern of layer names.
        units: layer -> source and target channels of a unit, in the order of the program.
        ends: int8 as the precision of the whole model leaves the first and the last of these layers in float32.
    """
    chosen, notes = {}, {}
    settings = by_layer(units, asked, "precision")
    outer = {next(iter(units), ""), next(reversed(list(units)), "")} if ends and asked == "int8" else set()
    for name, (sources, targets) in units.items():
        found = settings[name]
        if found == "float32":
            continue
        if name in outer:
            notes[name] = "float32: int8 leaves the first and the last sparse layer wide; ask for it by its name"
            continue
        fitting = [one for one in (found, *_INSTEAD[found]) if sources % PRECISIONS[one].lane == 0 and targets == 1]
        running = next((one for one in fitting if PRECISIONS[one].native), "float32")
        if not fitting:
            lane = PRECISIONS[found].lane
            notes[name] = f"float32: a unit has {sources} x {targets} channels, and {found} takes input:{lane}"
        elif running != found:
            missing = (
                "this machine has no instructions for it" if found in fitting else f"its units are input:{sources}"
            )
            notes[name] = f"{running}, not {found}: {missing}"
        chosen[name] = running
    return {name: one for name, one in chosen.items() if one != "float32"}, notes


def say(asked: str | Mapping[str, str], precisions: Precisions, count: int) -> None:
    """Warns once where layers run in another precision than the one that was asked for, and where the results differ
    much from those of float32."""
    reasons: dict[str, list[str]] = {}
    for name, note in precisions.notes.items():
        reasons.setdefault(note, []).append(name)
    if reasons:
        text = "; ".join(
            f"{note} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})" for note, names in reasons.items()
        )
        warnings.warn(
            f"precision is {asked!r}; {len(precisions.notes)} of {count} sparse layers run in another one: {text}",
            stacklevel=5,
        )
    if not count:
        warnings.warn(
            f"precision is {asked!r}, and no convolution runs on the sparse kernels; print(engine) says why",
            stacklevel=5,
        )
    if precisions.decibels < 30:
        warnings.warn(
            f"precision is {asked!r}; on the calibration the results are only {precisions.decibels:.1f} dB above their "
            "difference from float32",
            stacklevel=5,
        )


def decibels(expected: Any, found: Any) -> float:
    """10 log10 of the energy of `expected` over the energy of its difference from `found`, the smallest over their
    floating-point tensors; infinity where all are equal."""
    smallest = math.inf
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and a.numel():
            wide = a.detach().double()
            noise, power = float((wide - b.detach().double()).square().sum()), float(wide.square().sum())
            smallest = min(smallest, math.inf if noise == 0 else 10 * math.log10(max(power, 1e-300) / noise))
    return smallest


def narrowest(
    units: Mapping[str, tuple[int, int]], least_db: float, measure: Any
) -> tuple[dict[str, str], dict[str, str], float]:
    """precision="auto": the narrowest precisions whose results stay at least `least_db` above their error.

    All layers begin in the narrowest precision that they take and that the machine has. Then the layer with the largest
    error of its own takes its next wider precision, until the bound holds.

    Args:
        measure: of a dict as in :class:`Precisions`, the dB of the results.

    Returns:
        chosen, notes, and the dB.
    """
    order = {}
    for name, (sources, targets) in units.items():
        fitting = [PRECISIONS[one] for one in ("int8", "int16")]
        fitting = [one for one in fitting if one.native and targets == 1 and sources % one.lane == 0]
        order[name] = [*(one.name for one in fitting), "float32"]
    chosen = {name: names[0] for name, names in order.items() if names[0] != "float32"}
    alone: dict[tuple[str, str], float] = {}
    found = measure(chosen)
    while chosen and found < least_db:
        for name, one in chosen.items():
            if (name, one) not in alone:
                alone[name, one] = measure({name: one})
        worst = min(chosen, key=lambda name: alone[name, chosen[name]])
        wider = order[worst][order[worst].index(chosen[worst]) + 1]
        if wider == "float32":
            del chosen[worst]
        else:
            chosen[worst] = wider
        found = measure(chosen)
    notes = {name: "float32 keeps the bound" for name, names in order.items() if len(names) > 1 and name not in chosen}
    return chosen, notes, found


def common(ranges: dict[str, float], groups: Iterable[Sequence[str]]) -> None:
    """Gives the layers of each group one range, the largest, because they share a panel of rounded inputs."""
    for group in groups:
        names = [name for name in group if name in ranges]
        for name in names:
            ranges[name] = max(ranges[one] for one in names)
