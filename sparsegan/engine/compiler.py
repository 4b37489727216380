"""From a traced graph to steps: what each node becomes.

Most nodes become a note on a value (`values.py`); convolutions, sums and upsampling become native steps that do what is
noted on their inputs; whatever is not known here becomes a call of torch. A program is for one shape of the inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..gans.parts import InstanceNorm2d
from ..nn import dispatch
from ..nn.layer import SparseConv
from .layers import Layers
from .steps import Dense, Norm, Pointwise, SparseConvStep, Statistics, Step, Torch
from .tracing import has_hooks, is_random
from .values import Affine, Padding, Slot, Value, concatenated

#: What the steps compute in; a model of another dtype runs in torch.
NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Unsafe(Exception):
    """The graph cannot be cut into steps: why. `module`: the name of the one in whose forward that is, "" for the
    model's own."""

    def __init__(self, why: str, node: fx.Node) -> None:
        super().__init__(why)
        stack = node.meta.get("nn_module_stack") or {}
        self.module = str(list(stack)[-1]) if stack else ""


@dataclass
class Program:
    """The steps of a graph for one shape of its inputs.

    `result`: the graph's output, slots in the place of tensors; its leaves in a list, where there is a `structure`.
    """

    steps: list[Step]
    inputs: list[Slot]
    result: Any
    structure: Any = None


class Compiler:
    """One compilation: `compiled` is the program.

    Args:
        graph: traced with an example running along (:class:`sparsegan.engine.tracing.Tracer`).
        modules: of the model, by name.
        layers: its convolutions, as the kernels read them.
        dtype: of the activations.
    """

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module], layers: Layers, dtype: torch.dtype) -> None:
        self.modules, self.layers, self.dtype = modules, layers, dtype
        self.map_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.steps: list[Step] = []
        self.inputs: list[Slot] = []
        self.known: dict[fx.Node, Any] = {}  # a Value, a Slot (of anything else), or a constant
        self.convs: dict[Slot, SparseConvStep] = {}
        self.folded: set[fx.Node] = set()  # batch norms that are part of the convolution before them
        self.views: set[Slot | Value] = set()  # what torch made of others' memory, and those others: copies here
        result = None
        for node in graph.nodes:
            if node.op == "output":
                result = fx.node.map_arg(node.args[0], self._output)
            else:
                self.known[node] = self._follow(node)
        self.compiled = Program(self.steps, self.inputs, result)

    # ------------------------------------------------------------------ nodes

    def _follow(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            slot = self._outside(node)
            self.inputs.append(slot)
            return self._held(slot, node)
        if node.op == "get_attr":
            return self.layers.constant(str(node.target))
        if node in self.folded:
            return self.known[node.all_input_nodes[0]]
        known = None
        kind, module = self._kind(node)
        if kind in _HANDLERS and self._tensors(node):
            known = _HANDLERS[kind](self, node, module)
        return self._torch(node, kind, module) if known is None else known

    def _kind(self, node: fx.Node) -> tuple[Any, Any]:
        """What a node calls: for a module its forward, and the module itself; a function; a method's name."""
        if node.op != "call_module":
            return node.target, None
        module = self.modules[str(node.target)]
        if has_hooks(module):
            return None, module
        if isinstance(module, SparseConv):
            return SparseConv, module
        return type(module).forward, module

    def _tensors(self, node: fx.Node) -> bool:
        """Whether the node's first argument, or all parts of it, are values of the engine's dtype."""
        first = node.args[0] if node.args else None
        found = first if isinstance(first, list | tuple) else [first]
        if not isinstance(first, fx.Node) and not isinstance(first, list | tuple):  # a number: (1 - x)
            found = node.all_input_nodes[:1]
        return bool(found) and all(isinstance(x, fx.Node) and isinstance(self.known.get(x), Value) for x in found)

    def _value(self, node: Any) -> Value:
        return self.known[node]

    def _outside(self, node: fx.Node) -> Slot:
        example = node.meta.get("value")
        if isinstance(example, Tensor):
            return Slot(tuple(example.shape), example.dtype, outside=True)
        return Slot((), torch.float32, outside=True)

    def _held(self, slot: Slot, node: fx.Node) -> Value | Slot:
        """A tensor that the kernels can read, or anything else."""
        example = node.meta.get("value")
        native = self.dtype in NATIVE_DTYPES
        if not native or not isinstance(example, Tensor) or example.dim() != 4 or example.dtype != self.dtype:
            return slot
        return Value(slot) if example.numel() else slot

    def _output(self, node: fx.Node) -> Any:
        known = self.known[node]
        if not isinstance(known, Value):
            return known
        slot = self._written(known)
        if slot.outside:
            return slot
        if slot.parent is not None or slot.parts:  # the caller gets a tensor of its own
            slot, copied = replace(slot, parent=None, offset=0, parts=[]), slot
            self.steps.append(Pointwise(name="output", why="part of a concatenation", a=Value(copied), y=slot))
        slot.outside = slot.fresh = True
        return slot

    # ------------------------------------------------------------------ values

    def _new(self, like: Slot, **changes: Any) -> Slot:
        return replace(like, **{"outside": False, "fresh": False, "parent": None, "offset": 0, "parts": [], **changes})

    def _written(self, value: Value) -> Slot:
        """The slot that holds a value itself; what is noted is done now, once."""
        if value.affine is not None or value.slope is not None:
            slot = self._new(value.slot)
            self.steps.append(Pointwise(name="what is noted", a=replace(value, padding=None), y=slot))
            value.become(Value(slot, padding=value.padding))
        if value.padding is not None:
            left, right, top, bottom = value.padding.sizes
            n, channels, height, width = value.slot.shape
            slot = self._new(value.slot, shape=(n, channels, height + top + bottom, width + left + right), outside=True)
            mode = {"zeros": "constant"}.get(value.padding.mode, value.padding.mode)
            pad = Torch(name="padding", function=F.pad, args=(value.slot, value.padding.sizes, mode), y=slot)
            self.steps.append(pad)
            value.become(Value(slot))
        return value.slot

    def _row(self, tensor: Tensor, channels: int) -> Tensor:
        """A parameter ``[C]`` (or of one element) as the kernels read it."""
        return tensor.detach().to(self.map_dtype).expand(channels).contiguous()

    def _numbers(self, value: Value, number: float) -> Tensor:
        return torch.full((value.slot.shape[1],), number, dtype=self.map_dtype)

    # ------------------------------------------------------------------ notes

    def _noted(self, node: fx.Node, noted: Value | None, in_place: bool) -> Value | None:
        if noted is not None and in_place:
            held = self._value(node.args[0])
            if held in self.views or held.slot in self.views:
                raise Unsafe(f"{node.name} changes in place what shares memory with something else", node)
            held.become(noted)
            return held
        return noted

    def activation(self, node: fx.Node, slope: Tensor | float, in_place: bool) -> Value | None:
        value = self._value(node.args[0])
        if isinstance(slope, Tensor):
            if slope.numel() not in (1, value.slot.shape[1]):
                return None
            row = self._row(slope, value.slot.shape[1])
        else:
            row = self._numbers(value, slope)
        noted = value.activated(row)
        if noted is None:
            self._written(value)
            noted = value.activated(row)
        return self._noted(node, noted, in_place)

    def mapped(self, node: fx.Node, value: Value, scale: Tensor, shift: Tensor, in_place: bool = False) -> Value | None:
        noted = value.mapped(scale, shift)
        if noted is None:
            self._written(value)
            noted = value.mapped(scale, shift)
        return self._noted(node, noted, in_place)

    def padded(self, node: fx.Node, sizes: tuple[int, ...], mode: str) -> Value | None:
        value = self._value(node.args[0])
        if len(sizes) != 4 or min(sizes) < 0:
            return None
        if value.padding is not None:
            self._written(value)
        return replace(value, padding=Padding(mode, (sizes[0], sizes[1], sizes[2], sizes[3])))

    def instance_norm(self, value: Value, weight: Tensor | None, bias: Tensor | None, eps: float, name: str) -> Value:
        channels = value.slot.shape[1]
        rows = [None if p is None else self._row(p, channels) for p in (weight, bias)]
        norm = Norm(rows[0], rows[1], eps, Affine(value.slot.shape[0], channels))
        if not value.raw:
            self._written(value)
        conv = self.convs.get(value.slot)
        if conv is not None and conv.norm is None:
            conv.norm = norm
            conv.fused.append(name)
        else:
            why = "its input is no sparse convolution's output" if conv is None else "another norm has its place"
            self.steps.append(Statistics(name=name, why=why, x=value.slot, norm=norm))
        return Value(value.slot, norm.affine)

    # ------------------------------------------------------------------ steps

    def convolution(self, node: fx.Node, layer: SparseConv, name: str) -> Value:
        """A convolution by the kernel that ``auto`` takes, the batch norm after it folded in."""
        value = self._value(node.args[0])
        norm = self._batch_norm_after(node)
        weights = self.layers.weights(name, layer, norm)
        n, channels, height, width = node.meta["value"].shape
        padding = self._padding(layer, value.padding)
        if padding is None:
            self._written(value)
            padding = self._padding(layer, None)
            assert padding is not None
        mode, before = padding
        coarse = value.slot.shape[2:] if layer.adjoint else (height, width)
        geometry = replace(layer.geometry, padding=before if mode == "zeros" else (0, 0))
        geometry = geometry.for_coarse_size(*(1 if size == 1 else 2 for size in coarse))
        x_size = (value.slot.shape[2], value.slot.shape[3])
        units = layer.support.shape[0]
        pinned = self.layers.pinned[name]
        if pinned == "auto":
            call = dispatch.Call(geometry, layer.adjoint, units, n, x_size, (height, width), self.dtype)
            choice = dispatch.choose(call)
        else:
            choice = dispatch.Choice(pinned, "set on the layer")
        if choice.backend == "dense":
            return self._dense(node, layer, name, value, weights, choice.why)
        taps = self.layers.taps(name, layer, norm, geometry)
        step = SparseConvStep(
            name=name,
            why=choice.why,
            x=value.now(),
            y=Slot((n, channels, height, width), self.dtype),
            values=taps.values,
            bias=weights.bias,
            support=layer.support,
            plan=taps.plan,
            geometry=geometry.numbers(),
            adjoint=layer.adjoint,
            padding_mode=mode,
            pad_before=(0, 0) if mode == "zeros" else before,
            fused=_noted_names(value),
        )
        if norm is not None:
            step.fused.append(norm)
        self.steps.append(step)
        self.convs[step.y] = step
        return Value(step.y)

    def _padding(self, layer: SparseConv, noted: Padding | None) -> tuple[str, tuple[int, int]] | None:
        """Mode, and rows and columns before x, of a layer's own padding and a noted one; None where they do not mix."""
        own = layer.padding_before()
        if noted is None:
            return layer.padding_mode, own
        none = all(p == 0 for p in own) and layer.padding != "same"
        if layer.adjoint or not (none or layer.padding_mode == noted.mode == "zeros"):
            return None
        return noted.mode, (own[0] + noted.sizes[2], own[1] + noted.sizes[0])

    def _dense(self, node: fx.Node, layer: SparseConv, name: str, value: Value, weights: Any, why: str) -> Value:
        x, slot = self._written(value), self._outside(node)
        function, args = self.layers.dense_call(name, layer, weights, tuple(node.meta["value"].shape[2:]), x.shape)
        self.steps.append(Dense(name=name, why=why, function=function, args=(x, *args), y=slot))
        return Value(slot)

    def _batch_norm_after(self, node: fx.Node) -> str | None:
        """The name of a batch norm that is all that reads a convolution's result."""
        follower = next(iter(node.users)) if len(node.users) == 1 else None
        if follower is None or follower.op != "call_module":
            return None
        if runs_by_numbers(self.modules[str(follower.target)]) and follower.args == (node,):
            self.folded.add(follower)
            return str(follower.target)
        return None

    def sum(self, node: fx.Node, in_place: bool) -> Value | None:
        a, b = (self.known.get(x) if isinstance(x, fx.Node) else x for x in node.args[:2])
        if not (isinstance(a, Value) and isinstance(b, Value)) or node.kwargs or len(node.args) > 2:
            return None
        if _shape(a) != _shape(b) or _shape(a) != tuple(node.meta["value"].shape):
            return None
        for value in (a, b):
            if value.padding is not None:
                self._written(value)
        y = self._new(a.slot)
        fused = [*_noted_names(a), *_noted_names(b)]
        self.steps.append(Pointwise(name=node.name, a=a.now(), b=b.now(), y=y, fused=fused))
        return self._noted(node, Value(y), in_place)

    def upsampled(self, node: fx.Node, scale: Any) -> Value | None:
        value, shape = self._value(node.args[0]), node.meta["value"].shape
        if value.padding is not None:
            self._written(value)
        height, width = value.slot.shape[2:]
        repeat = shape[2] // height
        wanted = scale if isinstance(scale, list | tuple) else [scale]
        exact = all(one is None or one == repeat for one in wanted)
        if not exact or repeat < 1 or (height * repeat, width * repeat) != tuple(shape[2:]):
            return None
        y = self._new(value.slot, shape=tuple(shape))
        self.steps.append(Pointwise(name=node.name, a=value.now(), y=y, repeat=repeat, fused=_noted_names(value)))
        return Value(y)

    def _only_read_here(self, value: Value) -> SparseConvStep | None:
        """The convolution that wrote a value, where nobody else reads it and no norm follows."""
        conv = self.convs.get(value.slot)
        holders = (node for node, known in self.known.items() if isinstance(known, Value) and known.slot is value.slot)
        if conv is None or conv.norm is not None or not value.raw or any(len(node.users) > 1 for node in holders):
            return None
        return conv

    def shuffled(self, node: fx.Node, factor: int) -> Value | None:
        """PixelShuffle of a convolution that nobody else reads: done while it is written."""
        value = self._value(node.args[0])
        conv = self._only_read_here(value)
        if conv is None or conv.shuffle > 1 or conv.adjoint:
            return None
        block, vector = factor**2, conv.geometry[-2] * conv.geometry[-1]
        if block % vector and vector % block:
            return None
        del self.convs[value.slot]
        conv.y, conv.shuffle = self._new(value.slot, shape=tuple(node.meta["value"].shape)), factor
        conv.fused.append(node.name)
        self.convs[conv.y] = conv
        return Value(conv.y)

    def curved(self, node: fx.Node, curve: str, in_place: bool) -> Value | None:
        """Tanh or Sigmoid: while a convolution that nobody else reads is written, else a step."""
        value = self._value(node.args[0])
        conv = self._only_read_here(value)
        if conv is not None and conv.curve == "none":
            conv.curve = curve
            conv.fused.append(node.name)
            return value
        if value.padding is not None:
            self._written(value)
        y = self._new(value.slot)
        self.steps.append(Pointwise(name=node.name, a=value.now(), y=y, curve=curve, fused=_noted_names(value)))
        return self._noted(node, Value(y), in_place)

    def concatenation(self, node: fx.Node) -> Value | None:
        """Parts are written where the whole lies, or copied there once."""
        parts, dim = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if dim not in (1, -3) or not isinstance(parts, list | tuple):
            return None
        values = [self._value(part) for part in parts]
        shapes = [_shape(value) for value in values]
        if any((s[0], *s[2:]) != (shapes[0][0], *shapes[0][2:]) for s in shapes):
            return None
        whole = Slot(tuple(node.meta["value"].shape), self.dtype)
        placed, offset = [], 0
        for value in values:
            if value.padding is not None:
                self._written(value)
            slot = value.slot
            free = not slot.outside and slot.parent is None and (value.affine is None or value.affine.parent is None)
            part = value.now()
            if not free:
                part = Value(self._new(slot))
                step = Pointwise(name=node.name, why="a part that lies elsewhere", a=value.now(), y=part.slot)
                self.steps.append(step)
            whole.adopt(part.slot, offset)
            offset += slot.shape[1]
            placed.append(part)
        affine, slope = concatenated(placed)
        return Value(whole, affine, slope)

    def _alone(self, node: fx.Node) -> bool:
        """Whether nobody else can see that a node changes its argument in place: it was computed for this node only."""
        first = node.args[0] if node.args and "out" not in node.kwargs else None
        if not isinstance(first, fx.Node) or first.op in ("placeholder", "get_attr") or len(first.users) > 1:
            return False
        held = self.known.get(first)
        slot = held.slot if isinstance(held, Value) else held
        if not isinstance(slot, Slot) or held in self.views or slot in self.views or slot.parent or slot.parts:
            return False
        others = (one for other, one in self.known.items() if other is not first)
        return not any(slot is (one.slot if isinstance(one, Value) else one) for one in others)

    def _torch(self, node: fx.Node, kind: Any, module: Any) -> Any:
        """Torch's own function, or a constant where nothing of a run enters."""
        if _changes_its_input(node, kind, module) and not self._alone(node):
            raise Unsafe(f"{node.name} changes its input in place, and is not known here", node)

        def given(one: fx.Node) -> Any:
            known = self.known[one]
            return self._written(known) if isinstance(known, Value) else known

        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), given)
        function: Callable[..., Any] = module
        if node.op == "call_function":
            function = node.target  # type: ignore[assignment]
        elif node.op == "call_method":
            function, args = _method, (str(node.target), *args)
        slot = self._outside(node)
        name = str(node.target) if node.op == "call_module" else node.name
        what = type(module).__name__ if module is not None else _name(kind)
        step = Torch(name=name, why=f"{what} runs in torch", function=function, args=args, kwargs=kwargs, y=slot)
        random = is_random(_name(kind)) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.training)
        if not step.reads and not random:
            return function(*args, **kwargs)
        self.steps.append(step)
        if node.meta.get("view"):
            values = [self.known[source] for source in node.all_input_nodes]
            self.views.update({slot, *(value for value in values if isinstance(value, Value))})
        return self._held(slot, node)


def _shape(value: Value) -> tuple[int, ...]:
    n, channels, height, width = value.slot.shape
    left, right, top, bottom = value.padding.sizes if value.padding else (0, 0, 0, 0)
    return n, channels, height + top + bottom, width + left + right


def _noted_names(value: Value) -> list[str]:
    found = {"norm": value.affine, "activation": value.slope, "padding": value.padding}
    return [name for name, noted in found.items() if noted is not None]


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _method(name: str, first: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(first, name)(*args, **kwargs)


def _changes_its_input(node: fx.Node, kind: Any, module: Any) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = _name(kind)
    known = name.endswith("_") and not name.endswith("__")
    return (
        known
        or kind in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
        or any(node.kwargs.get(key) not in (None, False) for key in ("inplace", "out"))
    )


def runs_by_numbers(module: Any) -> bool:
    """Whether a module normalises by numbers known beforehand, and does nothing else."""
    if type(module).forward not in (nn.BatchNorm2d.forward, nn.InstanceNorm2d.forward) or has_hooks(module):
        return False
    return bool(module.track_running_stats and module.running_mean is not None and not module.training)


# ---------------------------------------------------------------------- what is known, by what is called


Handler = Callable[[Compiler, fx.Node, Any], Value | None]


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _relu(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    in_place = _changes_its_input(node, node.target, module) or (
        module is None and _argument(node, 1, "inplace", False)
    )
    return c.activation(node, 0.0, bool(in_place))


def _leaky_relu(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    if module is not None:
        return c.activation(node, module.negative_slope, module.inplace)
    in_place = _argument(node, 2, "inplace", False) or _name(node.target).endswith("_")
    return c.activation(node, _argument(node, 1, "negative_slope", 0.01), bool(in_place))


def _prelu(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    weight = module.weight if module is not None else c.known.get(_argument(node, 1, "weight", None))
    return c.activation(node, weight, False) if isinstance(weight, Tensor) else None


def _curve(name: str) -> Handler:
    def handler(c: Compiler, node: fx.Node, module: Any) -> Value | None:
        return c.curved(node, name, _changes_its_input(node, node.target, module))

    return handler


def _norm(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    value = c._value(node.args[0])
    if runs_by_numbers(module):
        scale, shift = c.layers.running_map(str(node.target))
        return c.mapped(node, value, scale.to(c.map_dtype), shift.to(c.map_dtype))
    if isinstance(module, nn.BatchNorm2d) and (value.slot.shape[0] > 1 or module.training):
        return None  # of one image, the batch's statistics are the image's
    return c.instance_norm(value, module.weight, module.bias, module.eps, str(node.target))


def _functional_instance_norm(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    if not _argument(node, 5, "use_input_stats", True):
        return None
    given = (_argument(node, place, name, None) for place, name in ((3, "weight"), (4, "bias")))
    weight, bias = (c.known.get(one) if isinstance(one, fx.Node) else one for one in given)
    if not isinstance(weight, Tensor | None) or not isinstance(bias, Tensor | None):
        return None
    return c.instance_norm(c._value(node.args[0]), weight, bias, _argument(node, 7, "eps", 1e-5), node.name)


def _identity(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    return c._value(node.args[0])


def _functional_dropout(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    return None if _argument(node, 2, "training", True) else c._value(node.args[0])


def _dropout(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    return None if module.training else c._value(node.args[0])


def _pad_module(mode: str) -> Handler:
    def handler(c: Compiler, node: fx.Node, module: Any) -> Value | None:
        return c.padded(node, tuple(module.padding), mode) if getattr(module, "value", 0) == 0 else None

    return handler


def _functional_pad(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    mode, filler = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", None)
    sizes = _argument(node, 1, "pad", ())
    if (mode == "constant" and filler not in (None, 0)) or not all(isinstance(size, int) for size in sizes):
        return None
    return c.padded(node, tuple(sizes), "zeros" if mode == "constant" else mode)


def _convolution(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    name = str(node.target)
    layer = c.layers.layer(name)
    if layer is None or len(node.args) > 1 or node.kwargs:  # a transposed one's output_size
        return None
    return c.convolution(node, layer, name)


def _functional_convolution(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    transposed = node.target is F.conv_transpose2d
    last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *last)
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    given = {key: c.known.get(one) if isinstance(one, fx.Node) else one for key, one in given.items()}
    weight, bias = given.get("weight"), given.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        return None
    options = {key: one for key, one in given.items() if key not in ("input", "weight", "bias")}
    layer = c.layers.made(node.name, weight, bias, transposed, options)
    return None if layer is None else c.convolution(node, layer, node.name)


def _addition(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    in_place = node.target in (operator.iadd, "add_")
    return c.sum(node, in_place) or _arithmetic(c, node, module)


def _arithmetic(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    """With one number, on either side."""
    if len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    numbers = [one for one in (left, right) if isinstance(one, int | float)]
    nodes = [one for one in (left, right) if isinstance(one, fx.Node)]
    if len(numbers) != 1 or len(nodes) != 1:
        return None
    number, name = float(numbers[0]), _name(node.target).strip("_")
    in_place = _changes_its_input(node, node.target, None)
    reverse = isinstance(right, fx.Node)
    if name in ("add", "iadd"):
        scale, shift = 1.0, number
    elif name in ("sub", "isub"):
        scale, shift = (-1.0, number) if reverse else (1.0, -number)
    elif name in ("mul", "imul"):
        scale, shift = number, 0.0
    elif name in ("truediv", "itruediv", "div") and not reverse and number != 0:
        scale, shift = 1 / number, 0.0
    else:
        return None
    value = c._value(nodes[0])
    return c.mapped(node, value, c._numbers(value, scale), c._numbers(value, shift), in_place)


def _upsample(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    return c.upsampled(node, module.scale_factor) if module.mode == "nearest" else None


def _interpolate(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    if _argument(node, 3, "mode", "nearest") != "nearest":
        return None
    return c.upsampled(node, _argument(node, 2, "scale_factor", None))


def _pixel_shuffle(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    factor = module.upscale_factor if module is not None else _argument(node, 1, "upscale_factor", 1)
    return c.shuffled(node, factor)


def _concatenation(c: Compiler, node: fx.Node, module: Any) -> Value | None:
    return c.concatenation(node)


#: By a module's forward, a function, or a method's name.
_HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys((SparseConv, nn.Conv2d.forward, nn.ConvTranspose2d.forward), _convolution),
    **dict.fromkeys((F.conv2d, F.conv_transpose2d), _functional_convolution),
    **dict.fromkeys((nn.ReLU.forward, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((nn.LeakyReLU.forward, F.leaky_relu, F.leaky_relu_), _leaky_relu),
    **dict.fromkeys((nn.PReLU.forward, F.prelu, torch.prelu), _prelu),
    **dict.fromkeys((nn.Tanh.forward, F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), _curve("tanh")),
    **dict.fromkeys((nn.Sigmoid.forward, F.sigmoid, torch.sigmoid, torch.sigmoid_), _curve("sigmoid")),
    **dict.fromkeys(("sigmoid", "sigmoid_"), _curve("sigmoid")),
    **dict.fromkeys((nn.BatchNorm2d.forward, nn.InstanceNorm2d.forward, InstanceNorm2d.forward), _norm),
    F.instance_norm: _functional_instance_norm,
    **dict.fromkeys((nn.Identity.forward, "contiguous", "detach"), _identity),
    **dict.fromkeys((nn.Dropout.forward, nn.Dropout2d.forward, nn.AlphaDropout.forward), _dropout),
    **dict.fromkeys((F.dropout, F.dropout2d), _functional_dropout),
    nn.ReflectionPad2d.forward: _pad_module("reflect"),
    nn.ReplicationPad2d.forward: _pad_module("replicate"),
    nn.CircularPad2d.forward: _pad_module("circular"),
    nn.ConstantPad2d.forward: _pad_module("zeros"),
    F.pad: _functional_pad,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _addition),
    **dict.fromkeys((operator.sub, operator.mul, operator.truediv, torch.sub, torch.mul, torch.div), _arithmetic),
    **dict.fromkeys((operator.isub, operator.imul, operator.itruediv, "sub", "mul", "div"), _arithmetic),
    nn.Upsample.forward: _upsample,
    F.interpolate: _interpolate,
    **dict.fromkeys((nn.PixelShuffle.forward, F.pixel_shuffle), _pixel_shuffle),
    **dict.fromkeys((torch.cat, torch.concat), _concatenation),
}
