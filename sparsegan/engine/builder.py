"""The builder of a program: it appends the steps one by one. A builder works on values and knows nothing of graphs.

Each method takes values and returns the resulting value. It defers the work if possible, and appends a step otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import dispatch
from ..nn.layer import SparseConv
from ..signals import SIGNAL, rows_and_columns
from .layers import Layers, Weights
from .meanings import Padding
from .steps import (
    Demodulation,
    Dense,
    GroupStatistics,
    Modulation,
    Norm,
    PlaneSum,
    Pointwise,
    ScaledActivation,
    SparseConvStep,
    Statistics,
    Step,
    Torch,
)
from .values import Affine, Slopes, Slot, Value, concatenated


class Builder:
    """Appends to `steps`, the steps so far.

    Args:
        layers: the model's convolutions, in the form that the kernels read.
        dtype: of the activations.
    """

    def __init__(self, layers: Layers, dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.affine_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.steps: list[Step] = []
        #: The name of the module or function that is followed now.
        self.reader = ""
        #: The sparse convolution that writes a slot. Operations that follow may become part of that step.
        self.convolutions: dict[Slot, SparseConvStep] = {}
        #: The parts of each concatenation so far, and the whole.
        self._concatenations: list[tuple[list[Value], Value]] = []

    # ------------------------------------------------------------------ slots

    def slot(self, like: Slot, **changes: Any) -> Slot:
        """A new slot in the arena: a copy of `like` with some fields changed."""
        return replace(like, **{"outside": False, "fresh": False, "parent": None, "offset": 0, "parts": [], **changes})

    def written(self, value: Value) -> Slot:
        """The slot that holds a value after its deferred work.

        Appends the steps that do this work now. `value` then has no deferred work, so no reader repeats it.
        """
        if value.affine is not None or value.slope is not None:
            slot = self.slot(value.slot)
            own = replace(value, padding=None)
            step = Pointwise(name="deferred work", why=f"before {self.reader}", fused=own.deferred, a=own, y=slot)
            self.steps.append(step)
            value.overwrite(Value(slot, padding=value.padding))
        if value.padding is not None:
            slot = self.slot(value.slot, shape=value.shape, outside=True)
            mode = {"zeros": "constant"}.get(value.padding.mode, value.padding.mode)
            why = f"padding runs in torch, because {self.reader} cannot do it while it reads"
            args = (value.slot, value.padding.sizes, mode)  # torch takes four sizes for a signal too: a batch of rows
            self.steps.append(Torch(name=value.padding.name, why=why, function=F.pad, args=args, y=slot))
            value.overwrite(Value(slot))
        return value.slot

    def _unpadded(self, value: Value) -> Value:
        """Appends the steps of a deferred padding. Returns a copy of the value with all other work still deferred."""
        if value.padding is not None:
            self.written(value)
        return value.copy()

    def result(self, value: Value) -> Slot:
        """The slot of a value that the program returns, outside the arena. Each run allocates its tensor."""
        slot = self.written(value)
        if slot.outside:
            return slot
        if slot.parent is not None or slot.parts:  # the caller's tensor must not be a part of another tensor
            slot, copied = replace(slot, parent=None, offset=0, parts=[]), slot
            self.steps.append(Pointwise(name="output", why="part of a concatenation", a=Value(copied), y=slot))
        slot.outside = slot.fresh = True
        return slot

    # ------------------------------------------------------------------ deferred work

    def activated(self, value: Value, slope: Tensor | float) -> Value | None:
        """The value with an activation deferred: numbers at or below 0 are multiplied by the slope.

        None if `slope` is a tensor that has neither one element nor one element per channel.
        """
        channels = value.slot.shape[1]
        if isinstance(slope, Tensor):
            if slope.numel() not in (1, channels):
                return None
            row = self._row(slope, channels)
        else:
            row = self._numbers(channels, slope)
        deferred = value.activated(row)
        if deferred is None:
            self.written(value)
            deferred = value.activated(row)
        return deferred

    def mapped(self, value: Value, scale: Tensor | float, shift: Tensor | float) -> Value | None:
        """The value with ``x * scale + shift`` deferred. `scale`, `shift`: numbers or tensors ``[C]``."""
        rows = [
            one.to(self.affine_dtype) if isinstance(one, Tensor) else self._numbers(value.slot.shape[1], one)
            for one in (scale, shift)
        ]
        if value.slope is not None and value.padding is None and bool((rows[0] > 0).all() and (rows[1] == 0).all()):
            # A positive factor may come before the activation: slope(x) * a = slope(x * a).
            before = self.mapped(replace(value, slope=None), rows[0], 0.0)
            return None if before is None else replace(before, slope=value.slope)
        deferred = value.mapped(*rows)
        if deferred is None and value.slope is None and value.padding is None:  # after a norm of each image
            beside = [1 for _ in value.slot.shape[2:]]
            for operation, row, neutral in (("*", rows[0], 1), ("+", rows[1], 0)):
                if not bool((row == neutral).all()):
                    value = self.modulated(value, operation, row.view(-1, *beside), "scale and shift")
            return value.copy()  # a later operation in place on the result leaves the value as it is
        if deferred is None:
            self.written(value)
            deferred = value.mapped(*rows)
        return deferred

    def modulated(
        self, value: Value, operation: str, other: Slot | Tensor, name: str, of_channels: bool = False
    ) -> Value:
        """The value with ``x + other``, ``x - other``, ``x * other`` or ``x / other`` deferred.

        `other`: one number per channel, of a shape that broadcasts to ``[N, C, 1, 1]``, for signals to ``[N, C, 1]``.
        With `of_channels` its shape is ``[N, C]`` or ``[1, C]``. A tensor is a constant; a slot is read in each run.
        """
        before, rank = value.affine, 2 if of_channels else len(value.slot.shape)
        if operation == "*" and value.padding is None and value.slot.shape[0] == 1 and _turns(value.slope):
            affine, slopes = Affine(1, value.slot.shape[1]), Slopes(value.slot.shape[1])
            self.steps.append(
                ScaledActivation(
                    name=name, factor=other, slope=value.slope, before=before, affine=affine, slopes=slopes
                )
            )
            return replace(value, affine=affine, slope=slopes)
        if value.slope is not None or value.padding is not None:
            self.written(value)
            before = None
        if (
            isinstance(other, Tensor)
            and (before is None or before.constant)
            and (other.dim() < rank or len(other) == 1)
        ):
            row = self._row(other.flatten(), value.slot.shape[1])
            maps: dict[str, tuple[Tensor | float, Tensor | float]]
            maps = {"*": (row, 0.0), "/": (1 / row, 0.0), "+": (1.0, row), "-": (1.0, -row)}
            mapped = self.mapped(value, *maps[operation])
            assert mapped is not None
            return mapped
        affine = Affine(value.slot.shape[0], value.slot.shape[1])
        step = Modulation(name=name, operation=operation, other=other, rank=rank, before=before, affine=affine)
        self.steps.append(step)
        return replace(value, affine=affine)

    def demodulated(self, value: Value, scales: Slot | Tensor, layer: SparseConv, eps: float, name: str) -> Value:
        """The output of a modulated convolution with its demodulation deferred.

        `scales`: ``[N, in_channels]`` or ``[1, in_channels]``, a slot or a constant. `layer`: the convolution.
        """
        affine = Affine(value.slot.shape[0], value.slot.shape[1])
        sums = self.layers.square_sums(layer).to(self.affine_dtype)
        self.steps.append(Demodulation(name=name, scales=scales, sums=sums, eps=eps, affine=affine))
        return replace(value, affine=affine)

    def padded(self, value: Value, padding: Padding) -> Value:
        """The value with a padding deferred. A value can defer one padding: an earlier padding is done now."""
        if value.padding is not None:
            self.written(value)
        return replace(value, padding=padding)

    def image_norm(
        self, value: Value, weight: Tensor | None, bias: Tensor | None, eps: float, groups: int, name: str
    ) -> Value:
        """The value with an instance norm or a group norm deferred; `groups` as in
        :class:`sparsegan.engine.meanings.Norm`.

        The sparse convolution that writes the value, or else a separate step, computes scale and shift from mean and
        variance. The steps that read the value apply scale and shift.
        """
        channels = value.slot.shape[1]
        rows = [None if p is None else self._row(p, channels) for p in (weight, bias)]
        norm = Norm(rows[0], rows[1], eps, Affine(value.slot.shape[0], channels), groups)
        if value.deferred:
            self.written(value)
        step = self.convolutions.get(value.slot)
        if step is None or step.norm is not None or (groups and eps < 1e-12):  # 1 / sqrt(0 + eps) has to be finite
            why = "the step before has another norm" if step else "its input is no sparse convolution's output"
            why = f"mean and variance run in torch: {why}"
            self.steps.append(Statistics(name=name, why=why, x=value.slot, norm=norm))
        elif groups:
            step.norm = Norm(None, None, eps, Affine(value.slot.shape[0], channels))
            step.fused.append(f"mean and variance for {name}")
            self.steps.append(GroupStatistics(name=name, channels=step.norm.affine, norm=norm))
        else:
            step.norm = norm
            step.fused.append(name)
        return Value(value.slot, norm.affine)

    def _row(self, tensor: Tensor, channels: int) -> Tensor:
        """A parameter of one element or ``[C]``, converted to the contiguous ``[C]`` that the kernels read."""
        return tensor.detach().to(self.affine_dtype).expand(channels).contiguous()

    def _numbers(self, channels: int, number: float) -> Tensor:
        return torch.full((channels,), number, dtype=self.affine_dtype)

    # ------------------------------------------------------------------ convolutions

    def convolution(
        self, value: Value, layer: SparseConv, name: str, shape: tuple[int, ...], norm: str | None
    ) -> Value:
        """A convolution, run by the backend that is set on the layer, or by the choice of ``dispatch`` for ``"auto"``.

        `shape`: of the result. `norm`: the name of the batch norm that is folded into the weights.
        """
        weights = self.layers.weights(layer, norm)
        x_size, y_size = (rows_and_columns(size[2:], 1) for size in (value.slot.shape, shape))
        padding = _joined(layer, value.padding)
        if padding is None:
            self.written(value)
            padding = _joined(layer, None)
            assert padding is not None
        mode, before = padding
        coarse = x_size if layer.adjoint else y_size
        geometry = replace(layer.geometry, padding=before if mode == "zeros" else (0, 0))
        geometry = geometry.for_coarse_size(*(1 if size == 1 else 2 for size in coarse))
        units = layer.support.shape[0]
        if layer.backend == "auto":
            call = dispatch.Call(geometry, layer.adjoint, units, shape[0], x_size, y_size, self.dtype)
            choice = dispatch.choose(call)
        else:
            choice = dispatch.Choice(layer.backend, "set on the layer")
        if choice.backend == "dense":
            return self._dense(value, layer, name, shape, weights, choice.why)
        short = self.layers.short(layer, norm, geometry, name)
        taps = self.layers.taps(layer, norm, geometry) if short is None else short
        step = SparseConvStep(
            name=name,
            why="; ".join(part for part in (choice.why, self.layers.precisions.note(name)) if part),
            x=value.copy(),
            y=Slot(shape, self.dtype),
            values=taps.values,
            short=short,
            bias=weights.bias,
            support=layer.support,
            plan=taps.plan,
            geometry=geometry.numbers(),
            adjoint=layer.adjoint,
            padding_mode=mode,
            pad_before=(0, 0) if mode == "zeros" else before,
            fused=[*value.deferred, *([] if norm is None else [norm])],
        )
        self.steps.append(step)
        self.convolutions[step.y] = step
        return Value(step.y)

    def _dense(
        self, value: Value, layer: SparseConv, name: str, shape: tuple[int, ...], weights: Weights, why: str
    ) -> Value:
        x = self.written(value)
        slot = Slot(shape, self.dtype, outside=True)
        function, args = self.layers.dense_call(layer, weights, shape[2:], x.shape)
        self.steps.append(Dense(name=name, why=why, function=function, args=(x, *args), y=slot))
        return Value(slot)

    def shuffled(self, step: SparseConvStep, factor: int, shape: tuple[int, ...], name: str) -> Value | None:
        """A PixelShuffle that a sparse convolution does while it writes its output; None if the kernel cannot do it.

        Nothing else may read the output of the convolution. `shape`: of the result.
        """
        block, vector = factor**2, step.geometry[-2]  # output channels per unit
        if step.shuffle > 1 or step.adjoint or (block % vector and vector % block):
            return None
        del self.convolutions[step.y]
        step.y, step.shuffle = self.slot(step.y, shape=shape), factor
        step.fused.append(name)
        self.convolutions[step.y] = step
        return Value(step.y)

    # ------------------------------------------------------------------ other steps

    def output_activation(self, value: Value, activation: str, name: str) -> Value:
        """An output activation as a separate step."""
        x = self._unpadded(value)
        y = self.slot(value.slot)
        self.steps.append(Pointwise(name=name, a=x, y=y, output_activation=activation, fused=x.deferred))
        return Value(y)

    def sum(self, a: Value, b: Value, name: str) -> Value:
        """The sum ``a + b`` of two values of the same shape."""
        a, b = self._unpadded(a), self._unpadded(b)
        y = self.slot(a.slot)
        self.steps.append(Pointwise(name=name, a=a, b=b, y=y, fused=[*a.deferred, *b.deferred]))
        return Value(y)

    def plane_sum(self, a: Value, plane: Slot | Tensor, name: str) -> Value:
        """The sum of an image and one plane ``[N or 1, 1, H, W]`` for all its channels."""
        if a.slope is not None or a.padding is not None:
            self.written(a)
        y = self.slot(a.slot)
        why = "the sum with one plane for all channels runs in torch"
        self.steps.append(PlaneSum(name=name, why=why, a=a.copy(), plane=plane, y=y, fused=a.deferred))
        return Value(y)

    def upsampled(self, value: Value, scale: Any, shape: tuple[int, ...], name: str) -> Value | None:
        """Nearest upsampling to a shape; None if rows and columns are not repeated by the same whole factor,
        as those of a signal are not: it has one row before and after."""
        if len(shape) == SIGNAL:
            return None
        x = self._unpadded(value)
        height, width = x.slot.shape[2:]
        repeat = shape[2] // height
        wanted = scale if isinstance(scale, list | tuple) else [scale]
        exact = all(one is None or one == repeat for one in wanted)
        if not exact or repeat < 1 or (height * repeat, width * repeat) != shape[2:]:
            return None
        y = self.slot(x.slot, shape=shape)
        self.steps.append(Pointwise(name=name, a=x, y=y, repeat=repeat, fused=x.deferred))
        return Value(y)

    def concatenation(self, values: Sequence[Value], shape: tuple[int, ...], name: str) -> Value:
        """A concatenation along channels. `shape`: of the whole.

        Each part is written directly to its place in the whole, or copied there once. A concatenation that begins with
        all parts of an earlier one, as in a dense block, takes the earlier whole as its first part.
        """
        whole, placed, offset = Slot(shape, self.dtype), [], 0
        key = [one.copy() for one in values]
        for value in self._longer(values):
            if isinstance(value.slope, Slopes):
                self.written(value)
            part = self._unpadded(value)
            slot = part.slot
            if not _free(part):
                step = Pointwise(name=name, why="a part that lies elsewhere", a=part, y=self.slot(slot))
                self.steps.append(step)
                part = Value(step.y)
            whole.adopt(part.slot, offset)
            offset += slot.shape[1]
            placed.append(part)
        affine, slope = concatenated(placed)
        result = Value(whole, affine, slope)
        self._concatenations.append((key, result.copy()))
        return result

    def _longer(self, parts: Sequence[Value]) -> list[Value]:
        """The parts of a concatenation, of which the first may be replaced by the longest earlier concatenation that
        consists of them and is no part of another one."""
        earlier = [
            (len(known), whole)
            for known, whole in self._concatenations
            if len(known) <= len(parts) and all(map(_same, known, parts)) and _free(whole)
        ]
        count, whole = max(earlier, key=lambda one: one[0], default=(0, None))
        return [*parts] if whole is None else [whole, *parts[count:]]


def _turns(slope: Tensor | Slopes | None) -> TypeGuard[Tensor]:
    """Whether an activation of these slopes still is one when it is mirrored at 0."""
    return isinstance(slope, Tensor) and bool((slope > 0).all())


def _same(a: Value, b: Value) -> bool:
    return a.slot is b.slot and a.affine is b.affine and a.slope is b.slope and a.padding is b.padding


def _free(part: Value) -> bool:
    """Whether a value can become a part of a concatenation where it lies."""
    slot = part.slot
    return not slot.outside and slot.parent is None and (part.affine is None or part.affine.parent is None)


def _joined(layer: SparseConv, deferred: Padding | None) -> tuple[str, tuple[int, int]] | None:
    """A layer's padding and a deferred padding as one padding: the mode, and the rows and columns before the image.

    None if one padding cannot express both.
    """
    own = rows_and_columns(layer.padding_before(), 0)
    if deferred is None:
        return layer.padding_mode, own
    none = all(p == 0 for p in own) and layer.padding != "same"
    if layer.adjoint or not (none or layer.padding_mode == deferred.mode == "zeros"):
        return None
    return deferred.mode, (own[0] + deferred.sizes[2], own[1] + deferred.sizes[0])
