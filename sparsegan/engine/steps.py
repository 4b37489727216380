"""The steps of an engine's program. Each step knows which slots it reads and writes. Binding a step to a memory turns
the step into a function without arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..nn.modulated import demodulation
from ..ops import OUTPUT_ACTIVATIONS, PADDING_MODES
from ..signals import IMAGE
from .memory import Memory
from .precision import Short
from .values import Affine, Slopes, Slot, Value

Run = Callable[[], None]


@dataclass
class Norm:
    """An instance norm of the output of a step. Each run computes scale and shift into `affine`.

    weight, bias: ``[C]`` or None. `groups`: as in :class:`sparsegan.engine.meanings.Norm`.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    affine: Affine
    groups: int = 0

    def write(self, spread: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> None:
        """Writes scale and shift, ``[N, C]`` each. `spread`: variance + eps, ``[N, groups]`` or ``[N, C]``, as `mean`.
        Both are lost."""
        grouped = (mean.shape[1], -1)
        scale, shift = scale.unflatten(1, grouped), shift.unflatten(1, grouped)
        factor, opposite = spread.rsqrt_().unsqueeze(2), mean.neg_().unsqueeze(2)
        scale.copy_(factor if self.weight is None else factor * self.weight.view(grouped))
        torch.mul(opposite, scale, out=shift)
        if self.bias is not None:
            shift.add_(self.bias.view(grouped))


@dataclass(kw_only=True)
class Step:
    """A step. `name`: the module or function that it comes from. `why`: the reason for its backend. `fused`: other work
    that it also does."""

    name: str
    why: str = ""
    fused: list[str] = field(default_factory=list)

    backend = ""

    @property
    def reads(self) -> list[Slot]:
        """The slots that must hold their values before the step runs."""
        raise NotImplementedError

    @property
    def writes(self) -> list[Slot]:
        """The slots that hold their values after the step has run."""
        raise NotImplementedError

    def bind(self, memory: Memory) -> Run:
        """The step as a function without arguments, for the tensors of one memory."""
        raise NotImplementedError


@dataclass(eq=False)
class SharedPanel:
    """A panel of `channels` channels in tiles of `tile` outputs, which several sparse convolutions read; see
    csrc/cpu/conv.h. `slot`: its bytes."""

    slot: Slot
    channels: int
    tile: tuple[int, int]


@dataclass(kw_only=True)
class SparseConvStep(Step):
    """A sparse convolution. It does the deferred work of `x` while it reads `x`. While it writes `y`, it does a
    PixelShuffle, applies an output activation (one of ops.OUTPUT_ACTIVATIONS), and computes scale and shift of a norm
    of `y`. With a `panel`, it finds the first `packed` channels of `x` there, and adds the others for later steps."""

    x: Value
    y: Slot
    values: Tensor  # in the order of the taps of the plan, which is a direct plan
    bias: Tensor | None
    support: Tensor
    plan: Tensor
    geometry: list[int]
    adjoint: bool
    padding_mode: str
    pad_before: tuple[int, int]
    shuffle: int = 1
    output_activation: str = "none"
    norm: Norm | None = None
    panel: SharedPanel | None = None
    packed: int = 0
    short: Short | None = None  # of `values`; None in full precision

    backend = "sparse"

    @property
    def reads(self) -> list[Slot]:
        return [self.x.slot]

    @property
    def writes(self) -> list[Slot]:
        return [self.y] if self.panel is None else [self.y, self.panel.slot]

    def bind(self, memory: Memory) -> Run:
        x, y = memory.map_reader(self.x.slot), memory.map_reader(self.y)
        transform = memory.input_transform(self.x)
        norm = self.norm
        of_norm = (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
        found = memory.maps(norm.affine) if norm else (None, None)
        taps = (self.values, self.bias, self.support, self.plan, self.geometry, self.adjoint)
        padding = (PADDING_MODES.index(self.padding_mode), list(self.pad_before))
        op, curve = torch.ops.sparsegan.sparse_conv_fused.default, OUTPUT_ACTIVATIONS.index(self.output_activation)
        shared: tuple[Any, ...] = (None, 0, 0, [0, 0])
        short = self.short
        of_sums = () if short is None else (short.sum_scale, short.to_integer, short.precision.most)
        if self.panel is not None:
            panel = memory.reader(self.panel.slot)()  # in the arena, the same in each run
            shared = (panel, self.panel.channels, self.packed, list(self.panel.tile))
        last = (*shared, *of_sums)
        return lambda: op(x(), *transform, *taps, *padding, 1.0, curve, self.shuffle, *of_norm, y(), *found, *last)


@dataclass(kw_only=True)
class Pointwise(Step):
    """y = a, or y = a + b, after the deferred work of a and b, followed by an output activation (one of
    ops.OUTPUT_ACTIVATIONS). `repeat`: the factor of a nearest upsampling."""

    a: Value
    b: Value | None = None
    y: Slot
    output_activation: str = "none"
    repeat: int = 1

    backend = "pointwise"

    @property
    def reads(self) -> list[Slot]:
        return [self.a.slot] if self.b is None else [self.a.slot, self.b.slot]

    @property
    def writes(self) -> list[Slot]:
        return [self.y]

    def bind(self, memory: Memory) -> Run:
        a, y = memory.map_reader(self.a.slot), memory.map_reader(self.y)
        op, own = torch.ops.sparsegan.pointwise.default, memory.input_transform(self.a)
        curve = OUTPUT_ACTIVATIONS.index(self.output_activation)
        if self.b is None:
            return lambda: op(a(), *own, None, None, None, None, curve, self.repeat, y())
        b, other = memory.map_reader(self.b.slot), memory.input_transform(self.b)
        return lambda: op(a(), *own, b(), *other, curve, self.repeat, y())


@dataclass(kw_only=True)
class Statistics(Step):
    """Computes scale and shift of an instance norm of `x`, if no sparse convolution can do so while it writes `x`."""

    x: Slot
    norm: Norm

    backend = "torch"

    @property
    def reads(self) -> list[Slot]:
        return [self.x]

    @property
    def writes(self) -> list[Slot]:
        return []

    def bind(self, memory: Memory) -> Run:
        x, norm = memory.map_reader(self.x), self.norm
        scale, shift = memory.maps(norm.affine)
        assert scale is not None
        assert shift is not None

        def run() -> None:
            grouped = x().to(scale.dtype).unflatten(1, (norm.groups or norm.affine.channels, -1))
            variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0)
            norm.write(variance.add_(norm.eps), mean, scale, shift)

        return run


@dataclass(kw_only=True)
class GroupStatistics(Step):
    """Computes scale and shift of a group norm from those of an instance norm of the same tensor, without reading the
    tensor. `channels`: scale and shift of that instance norm, which has no weight and bias and the same eps."""

    channels: Affine
    norm: Norm

    backend = "channels"

    @property
    def reads(self) -> list[Slot]:
        return []

    @property
    def writes(self) -> list[Slot]:
        return []

    def bind(self, memory: Memory) -> Run:
        norm, (own_scale, own_shift), (scale, shift) = self.norm, *map(memory.maps, (self.channels, self.norm.affine))
        assert own_scale is not None
        assert own_shift is not None
        assert scale is not None
        assert shift is not None

        def run() -> None:
            # scale = 1 / sqrt(variance + eps) and shift = -mean * scale, for each channel
            means = own_shift.div(own_scale).neg_().unflatten(1, (norm.groups, -1))
            within = own_scale.pow(-2).unflatten(1, (norm.groups, -1)).mean(2)  # of variance + eps
            between, mean = torch.var_mean(means, 2, correction=0)
            norm.write(within.add_(between), mean, scale, shift)

        return run


@dataclass(kw_only=True)
class Modulation(Step):
    """Changes the deferred scale and shift of a value, as in AdaIN and squeeze-and-excitation, without reading the
    value: ``x + other``, ``x - other``, ``x * other`` or ``x / other``, where `other` has one number per channel.

    `before`: scale and shift before the step, or None. `affine`: after it. `rank`: the number of dimensions of the
    value. `other`: a slot or a tensor, of a shape that broadcasts to ``[N, C, 1, 1]``, for signals to ``[N, C, 1]``.
    """

    operation: str
    other: Slot | Tensor
    rank: int
    before: Affine | None
    affine: Affine

    backend = "channels"

    @property
    def reads(self) -> list[Slot]:
        return [self.other] if isinstance(self.other, Slot) else []

    @property
    def writes(self) -> list[Slot]:
        return []

    def bind(self, memory: Memory) -> Run:
        given, rank, operation = self.other, self.rank, self.operation
        read = memory.reader(given) if isinstance(given, Slot) else lambda: given
        old_scale, old_shift = memory.maps(self.before)
        scale, shift = memory.maps(self.affine)
        assert scale is not None
        assert shift is not None

        def run() -> None:
            other = read().to(scale.dtype)
            other = other.reshape((1,) * (rank - other.dim()) + other.shape).flatten(1)
            scale.fill_(1) if old_scale is None else scale.copy_(old_scale)
            shift.zero_() if old_shift is None else shift.copy_(old_shift)
            if operation in "*/":
                factor = other if operation == "*" else other.reciprocal()
                scale.mul_(factor)
                shift.mul_(factor)
            else:
                shift.add_(other, alpha=1 if operation == "+" else -1)

        return run


@dataclass(kw_only=True)
class ScaledActivation(Step):
    """Changes the deferred work of one image whose activation has the constant slopes a > 0, so that the result is
    multiplied by one number f per channel, without reading the image.

    f * activation(z) is activation(f * z) where f >= 0. Where f < 0, it is w = a * f * z if w > 0, and w / a otherwise.
    `factor`: f, of a shape that broadcasts to ``[1, C, 1, 1]``. `slope`: a, ``[C]``. `before`: scale and shift before
    the step, or None. `affine`, `slopes`: after it.
    """

    factor: Slot | Tensor
    slope: Tensor
    before: Affine | None
    affine: Affine
    slopes: Slopes

    backend = "channels"

    @property
    def reads(self) -> list[Slot]:
        return [self.factor] if isinstance(self.factor, Slot) else []

    @property
    def writes(self) -> list[Slot]:
        return []

    def bind(self, memory: Memory) -> Run:
        given, channels = self.factor, self.affine.channels
        read = memory.reader(given) if isinstance(given, Slot) else lambda: given
        old_scale, old_shift = memory.maps(self.before)
        (scale, shift), slopes = memory.maps(self.affine), memory.slopes(self.slopes)
        assert scale is not None
        assert shift is not None
        assert slopes is not None
        slope = self.slope.to(scale.dtype)

        def run() -> None:
            factor = read().to(scale.dtype).flatten().expand(channels)
            mirrored = factor < 0
            factor = torch.where(mirrored, slope * factor, factor)
            torch.where(mirrored, slope.reciprocal(), slope, out=slopes)
            scale.copy_(factor if old_scale is None else factor * old_scale)
            shift.zero_() if old_shift is None else torch.mul(factor, old_shift, out=shift)

        return run


@dataclass(kw_only=True)
class Demodulation(Step):
    """Computes the deferred scale of a modulated convolution's output, without reading it.

    `scales`: of the input channels, ``[N, C]`` or ``[1, C]``. `sums`, `eps`: the arguments of
    :func:`sparsegan.nn.modulated.demodulation`. `affine`: scale and shift of the output.
    """

    scales: Slot | Tensor
    sums: Tensor
    eps: float
    affine: Affine

    backend = "channels"

    @property
    def reads(self) -> list[Slot]:
        return [self.scales] if isinstance(self.scales, Slot) else []

    @property
    def writes(self) -> list[Slot]:
        return []

    def bind(self, memory: Memory) -> Run:
        given = self.scales
        read = memory.reader(given) if isinstance(given, Slot) else lambda: given
        scale, shift = memory.maps(self.affine)
        assert scale is not None
        assert shift is not None

        def run() -> None:
            scale.copy_(demodulation(read(), self.sums, self.eps))
            shift.zero_()

        return run


@dataclass(kw_only=True)
class PlaneSum(Step):
    """y = a + plane, where the plane ``[N or 1, 1, H, W]`` is added to all channels, after the deferred scale and shift
    of a. The sum runs in torch, because the kernels add tensors of one shape only."""

    a: Value
    plane: Slot | Tensor
    y: Slot

    backend = "torch"

    @property
    def reads(self) -> list[Slot]:
        return [self.a.slot, self.plane] if isinstance(self.plane, Slot) else [self.a.slot]

    @property
    def writes(self) -> list[Slot]:
        return [self.y]

    def bind(self, memory: Memory) -> Run:
        given = self.plane
        a, y = memory.reader(self.a.slot), memory.reader(self.y)
        read = memory.reader(given) if isinstance(given, Slot) else lambda: given
        scale, shift = memory.maps(self.a.affine)
        beside = (..., *[None for _ in self.y.shape[2:]])

        def run() -> None:
            if scale is None or shift is None:
                torch.add(a(), read(), out=y())
                return
            torch.addcmul(read(), a(), scale[beside].to(self.y.dtype), out=y())
            if shift.any():  # a demodulation leaves 0, and then no second pass is needed
                y().add_(shift[beside])

        return run


@dataclass(kw_only=True)
class Torch(Step):
    """Any other operation: a function of torch or a module, called between the native steps.

    The arguments `args` and `kwargs` hold slots in the place of tensors.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    y: Slot

    backend = "torch"

    @property
    def reads(self) -> list[Slot]:
        found: list[Slot] = []
        _mapped((self.args, self.kwargs), lambda slot: found.append(slot))
        return found

    @property
    def writes(self) -> list[Slot]:
        return [self.y]

    def bind(self, memory: Memory) -> Run:
        arena, outside = memory.arena.untyped_storage().data_ptr(), memory.outside
        readers = {slot: memory.reader(slot) for slot in self.reads}

        def own(result: Any) -> Any:
            """A result that later steps do not change, with images contiguous, as the kernels read them.

            A view of the arena is copied, because later steps write to the arena.
            """
            if not isinstance(result, Tensor):
                return result
            if result.untyped_storage().data_ptr() == arena:
                return result.clone(memory_format=torch.contiguous_format)
            return result.contiguous() if result.dim() == IMAGE else result

        def run() -> None:
            args, kwargs = _mapped((self.args, self.kwargs), lambda slot: readers[slot]())
            outside[self.y] = fx.node.map_aggregate(self.function(*args, **kwargs), own)

        return run


@dataclass(kw_only=True)
class Dense(Torch):
    """A dense convolution in torch, because dense is faster or because the layer's backend is ``"dense"``."""

    backend = "dense"


def _mapped(arguments: Any, change: Callable[[Slot], Any]) -> Any:
    """The arguments with each slot replaced by ``change(slot)``."""
    return fx.node.map_aggregate(arguments, lambda one: change(one) if isinstance(one, Slot) else one)
