"""The steps that an engine's program is made of. Each knows what it reads and writes, and becomes a call without
arguments once memory is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..ops import OUTPUT_ACTIVATIONS, PADDING_MODES
from .memory import Memory
from .values import Affine, Slot, Value

Run = Callable[[], None]


@dataclass
class Norm:
    """An instance norm of what a step writes; `affine` is what it finds. weight, bias: ``[C]`` or None."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    affine: Affine


@dataclass(kw_only=True)
class Step:
    """`name`: the module or function that it comes from. `why`: of the backend. `fused`: what else it does."""

    name: str
    why: str = ""
    fused: list[str] = field(default_factory=list)

    backend = ""

    @property
    def reads(self) -> list[Slot]:
        """Slots that must hold their values before."""
        raise NotImplementedError

    @property
    def writes(self) -> list[Slot]:
        """Slots that hold theirs afterwards."""
        raise NotImplementedError

    def bind(self, memory: Memory) -> Run:
        """The step as a call."""
        raise NotImplementedError


@dataclass(kw_only=True)
class SparseConvStep(Step):
    """A convolution on kept weights. It does the deferred work of `x` while it reads; while it writes, it does a
    PixelShuffle, applies an output activation (of ops.OUTPUT_ACTIVATIONS) and finds what a norm of `y` needs."""

    x: Value
    y: Slot
    values: Tensor  # in the order of the plan, a direct one
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

    backend = "sparse"

    @property
    def reads(self) -> list[Slot]:
        return [self.x.slot]

    @property
    def writes(self) -> list[Slot]:
        return [self.y]

    def bind(self, memory: Memory) -> Run:
        x, y = memory.reader(self.x.slot), memory.reader(self.y)
        transform = memory.input_transform(self.x)
        norm = self.norm
        of_norm = (norm.weight, norm.bias, norm.eps) if norm else (None, None, 0.0)
        found = memory.maps(norm.affine) if norm else (None, None)
        taps = (self.values, self.bias, self.support, self.plan, self.geometry, self.adjoint)
        padding = (PADDING_MODES.index(self.padding_mode), list(self.pad_before))
        op, curve = torch.ops.sparsegan.sparse_conv_fused.default, OUTPUT_ACTIVATIONS.index(self.output_activation)
        return lambda: op(x(), *transform, *taps, *padding, 1.0, curve, self.shuffle, *of_norm, y(), *found)


@dataclass(kw_only=True)
class Pointwise(Step):
    """y = a, or a + b, their deferred work done, then an output activation (of ops.OUTPUT_ACTIVATIONS). `repeat`:
    nearest upsampling by that factor."""

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
        a, y = memory.reader(self.a.slot), memory.reader(self.y)
        op, own = torch.ops.sparsegan.pointwise.default, memory.input_transform(self.a)
        curve = OUTPUT_ACTIVATIONS.index(self.output_activation)
        if self.b is None:
            return lambda: op(a(), *own, None, None, None, None, curve, self.repeat, y())
        b, other = memory.reader(self.b.slot), memory.input_transform(self.b)
        return lambda: op(a(), *own, b(), *other, curve, self.repeat, y())


@dataclass(kw_only=True)
class Statistics(Step):
    """An instance norm of what another kind of step wrote."""

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
        x, norm = memory.reader(self.x), self.norm
        scale, shift = memory.maps(norm.affine)
        assert scale is not None
        assert shift is not None

        def run() -> None:
            variance, mean = torch.var_mean(x().to(scale.dtype), (2, 3), correction=0)
            torch.rsqrt(variance.add_(norm.eps), out=variance)
            scale.copy_(variance if norm.weight is None else variance.mul_(norm.weight))
            torch.mul(mean.neg_(), scale, out=mean)
            shift.copy_(mean if norm.bias is None else mean.add_(norm.bias))

        return run


@dataclass(kw_only=True)
class Torch(Step):
    """Whatever else: torch's own function or a module, called between the kernels. Slots stand in its arguments."""

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
            """A view of the arena would change when others write there; the kernels read contiguous images."""
            if not isinstance(result, Tensor):
                return result
            if result.untyped_storage().data_ptr() == arena:
                return result.clone(memory_format=torch.contiguous_format)
            return result.contiguous() if result.dim() == 4 else result

        def run() -> None:
            args, kwargs = _mapped((self.args, self.kwargs), lambda slot: readers[slot]())
            outside[self.y] = fx.node.map_aggregate(self.function(*args, **kwargs), own)

        return run


@dataclass(kw_only=True)
class Dense(Torch):
    """A convolution by torch's own kernel, zeros in place, where that is faster or was asked for."""

    backend = "dense"


def _mapped(arguments: Any, change: Callable[[Slot], Any]) -> Any:
    """Arguments with something in the place of each slot."""
    return fx.node.map_aggregate(arguments, lambda one: change(one) if isinstance(one, Slot) else one)
