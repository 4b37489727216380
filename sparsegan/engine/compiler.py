"""The compiler from a traced graph to a program. It follows the nodes and calls a builder, which appends the steps.

Norms, activations and paddings become deferred work (`values.py`). Convolutions, sums and upsampling become native
steps, which also do the deferred work on their inputs. Every other node becomes a call of torch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..nn.dispatch import DTYPES
from ..nn.layer import SparseConv
from ..signals import IMAGE, SIGNAL
from . import meanings, rules
from .builder import Builder
from .layers import Layers
from .steps import SparseConvStep, Step, Torch
from .tracing import is_random
from .values import Slot, Value


class Unsafe(Exception):
    """The graph cannot be cut into steps; the message gives the reason.

    `module`: the name of the innermost module whose forward contains the node at fault, "" for the model's own forward.
    """

    def __init__(self, why: str, node: fx.Node) -> None:
        super().__init__(why)
        self.module = module_around(node)


def module_around(node: fx.Node) -> str:
    """The name of the innermost module whose forward contains a node, "" for the model's own forward."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


@dataclass
class Program:
    """The steps of a graph for one shape of its inputs.

    `result`: the graph's output with slots in the place of tensors. If there is a `structure`, the result is the list
    of the leaves of that structure. `affine_dtype`: of scales and shifts.
    """

    steps: list[Step]
    inputs: list[Slot]
    result: Any
    structure: Any = None
    affine_dtype: torch.dtype = torch.float32

    @property
    def outputs(self) -> set[Slot]:
        """The slots of the result."""
        found: set[Slot] = set()
        fx.node.map_aggregate(self.result, lambda one: found.add(one) if isinstance(one, Slot) else None)
        return found


class Compiler:
    """One compilation. `compiled` is the resulting program.

    Args:
        graph: as :class:`sparsegan.engine.tracing.Tracer` returns it, with the example's values in the nodes.
        modules: the modules of the model, by name.
        layers: the model's convolutions, in the form that the kernels read.
        dtype: of the activations.
    """

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module], layers: Layers, dtype: torch.dtype) -> None:
        self.modules, self.layers, self.dtype = modules, layers, dtype
        self.builder = Builder(layers, dtype)
        self.inputs: list[Slot] = []
        self.known: dict[fx.Node, Any] = {}  # a Value, a Slot for what the kernels cannot read, or a constant
        self.folded: set[fx.Node] = set()  # batch norms that are part of the convolution before them
        self.views: set[Slot | Value] = set()  # tensors with common memory in torch; here each is a copy
        self.expansions: list[Torch] = []  # needed only if a step reads the expanded tensor
        result = None
        for node in graph.nodes:
            self.builder.reader = name_of(node)
            if node.op == "output":
                result = fx.node.map_arg(node.args[0], self._output)
            else:
                self.known[node] = self._follow(node)
        read = {slot for step in self.builder.steps for slot in step.reads}
        fx.node.map_aggregate(result, lambda one: read.add(one) if isinstance(one, Slot) else None)
        unread = {id(step) for step in self.expansions if step.y not in read}
        steps = [step for step in self.builder.steps if id(step) not in unread]
        self.compiled = Program(steps, self.inputs, result, affine_dtype=self.builder.affine_dtype)

    def _follow(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            slot = self._outside(node)
            self.inputs.append(slot)
            return self._held(slot, node)
        if node.op == "get_attr":
            return self.layers.constant(str(node.target))
        if node.target is operator.getitem and not node.users:
            return None  # a tuple was taken apart, and nothing reads this element
        if node in self.folded:
            return self.known[node.all_input_nodes[0]]
        value = self._step(node)
        return self._torch(node) if value is None else value

    def _tensors(self, node: fx.Node) -> bool:
        """Whether the node's first argument, or each element if it is a list, is a Value.

        If the first argument is a number, the first argument that is a node counts.
        """
        first = node.args[0] if node.args else None
        found = first if isinstance(first, list | tuple) else [first]
        if not isinstance(first, fx.Node) and not isinstance(first, list | tuple):  # a number: (1 - x)
            found = node.all_input_nodes[:1]
        return bool(found) and all(isinstance(x, fx.Node) and isinstance(self.known.get(x), Value) for x in found)

    def _given(self, argument: Any) -> Any:
        """An argument, with a node replaced by the node's Value, Slot or constant."""
        return self.known.get(argument) if isinstance(argument, fx.Node) else argument

    def _outside(self, node: fx.Node) -> Slot:
        example = node.meta.get("value")
        if isinstance(example, Tensor):
            return Slot(tuple(example.shape), example.dtype, outside=True)
        return Slot((), torch.float32, outside=True)

    def _held(self, slot: Slot, node: fx.Node) -> Value | Slot:
        """A Value for a tensor that the kernels can read, and the slot itself for anything else."""
        example = node.meta.get("value")
        native = self.dtype in DTYPES["cpu"]  # a model of another dtype runs in torch
        if not native or not isinstance(example, Tensor) or example.dtype != self.dtype:
            return slot
        if example.dim() not in (SIGNAL, IMAGE):
            return slot
        return Value(slot) if example.numel() else slot

    def _output(self, node: fx.Node) -> Any:
        known = self.known[node]
        return self.builder.result(known) if isinstance(known, Value) else known

    # ------------------------------------------------------------------ nodes with a meaning

    def _step(self, node: fx.Node) -> Value | None:
        """The value of a node whose work the builder can do or defer; None for every other node."""
        build, name, meaning = self.builder, name_of(node), rules.meaning(node, self.modules)
        if isinstance(meaning, meanings.Combination):
            return self._combination(node, meaning, name)
        if isinstance(meaning, meanings.ModulatedConvolution):
            return self._modulated(node, meaning, name)
        if meaning is None or not self._tensors(node):
            return None
        value: Value = self.known[node.all_input_nodes[0]]
        shape: tuple[int, ...] = tuple(getattr(node.meta.get("value"), "shape", ()))
        match meaning:
            case meanings.Convolution() if len(node.args) == 1 and not node.kwargs:  # without output_size
                return self._convolution(node, self.layers.layer(name), name)
            case meanings.FunctionalConvolution(transposed, arguments):
                return self._convolution(node, self._made(node, transposed, arguments), name)
            case meanings.Norm("stored"):
                return build.mapped(value, *self.layers.running_map(name))
            case meanings.Norm(statistics, weight, bias, eps, groups):
                weight, bias = self._given(weight), self._given(bias)
                if statistics == "batch" and value.slot.shape[0] > 1:
                    return None  # with one image per batch, batch statistics equal image statistics
                if not isinstance(weight, Tensor | None) or not isinstance(bias, Tensor | None):
                    return None
                return build.image_norm(value, weight, bias, eps, groups, name)
            case meanings.Activation(slope, in_place):
                slope = self._given(slope)
                if not isinstance(slope, Tensor | float | int):
                    return None
                return self._changed(node, build.activated(value, slope), in_place)
            case meanings.OutputActivation(activation, in_place):
                step = self._only_read_here(value)
                if step is None or step.output_activation != "none":
                    return self._changed(node, build.output_activation(value, activation, name), in_place)
                step.output_activation = activation
                step.fused.append(name)
                return value
            case meanings.Arithmetic((1.0, shift), in_place) if self._shifted_bias(value, shift, name):
                return value
            case meanings.Arithmetic((scale, shift), in_place):
                return self._changed(node, build.mapped(value, scale, shift), in_place)
            case meanings.Padding(_, sizes, border) as padding if border == 0 and min(sizes) >= 0:
                return build.padded(value, replace(padding, name=name))
            case meanings.Resize("nearest" | "nearest-exact", scale):
                return build.upsampled(value, scale, shape, name)
            case meanings.AveragePooling(kernel, stride, padding):
                weight = torch.full((value.shape[1], 1, *kernel), 1 / math.prod(kernel), dtype=self.dtype)
                options = {"stride": stride, "padding": padding, "groups": value.shape[1]}
                return self._convolution(node, self.layers.made(weight, None, False, options), name)
            case meanings.PixelShuffle(factor):
                step = self._only_read_here(value)
                return None if step is None else build.shuffled(step, factor, shape, name)
            case meanings.Concatenation(parts):
                values = [self.known[part] for part in parts]
                if len({(one.shape[0], *one.shape[2:]) for one in values}) > 1:
                    return None
                return build.concatenation(values, shape, name)
            case meanings.Identity():
                return value
        return None

    def _combination(self, node: fx.Node, meaning: meanings.Combination, name: str) -> Value | None:
        """A sum of two images or signals, or arithmetic on one and one number per channel; None for everything else."""
        a, b, operation = self._given(meaning.a), self._given(meaning.b), meaning.operation
        example = node.meta.get("value")
        if not isinstance(example, Tensor) or example.dtype != self.dtype:
            return None
        shape = tuple(example.shape)
        if operation == "+" and isinstance(a, Value) and isinstance(b, Value) and a.shape == b.shape == shape:
            return self._changed(node, self.builder.sum(a, b, name), meaning.in_place)
        small = self._per_channel(meaning.b, shape)
        if small is None or not isinstance(a, Value) or a.shape != shape:
            small, a = self._per_channel(meaning.a, shape), b
            if small is None or not isinstance(a, Value) or a.shape != shape or meaning.in_place or operation == "/":
                return self._with_plane(node, meaning, name) or self._beside(node, meaning, name)
            if operation == "-":  # number per channel - image
                negative = self.builder.mapped(a, -1.0, 0.0)
                assert negative is not None
                a, operation = negative, "+"
        b = self._given(small)
        other = self.builder.written(b) if isinstance(b, Value) else b
        return self._changed(node, self.builder.modulated(a, operation, other, name), meaning.in_place)

    def _with_plane(self, node: fx.Node, meaning: meanings.Combination, name: str) -> Value | None:
        """The sum of images and one plane ``[N or 1, 1, H, W]`` for all their channels, as the noise of StyleGAN2; None
        for every other operation."""
        shape = tuple(node.meta["value"].shape)
        pairs = [(meaning.a, meaning.b), (meaning.b, meaning.a)]
        for image, plane in pairs[: 1 if meaning.in_place else 2]:
            a, b = self._given(image), self._given(plane)
            example = b if isinstance(b, Tensor) else plane.meta.get("value")  # the node of a buffer holds no value
            if meaning.operation != "+" or not isinstance(a, Value) or a.shape != shape:
                continue
            if not isinstance(example, Tensor) or example.dtype != self.dtype or example.dim() != len(shape):
                continue
            if example.shape[0] in (1, shape[0]) and example.shape[1] == 1 and example.shape[2:] == shape[2:]:
                other = self.builder.written(b) if isinstance(b, Value) else b
                return self._changed(node, self.builder.plane_sum(a, other, name), meaning.in_place)
        return None

    def _beside(self, node: fx.Node, meaning: meanings.Combination, name: str) -> Value | None:
        """The result of an operation in place on an image that torch computes beside the image, which then takes its
        place; None for other operations."""
        a, b = self._given(meaning.a), self._given(meaning.b)
        if not meaning.in_place or not isinstance(a, Value) or a.shape != tuple(node.meta["value"].shape):
            return None
        if meaning.b.meta["value"].dtype != self.dtype:  # beside the image, the result could have the other dtype
            return None
        operations: dict[str, Callable[..., Any]] = {"+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div}
        function = operations[meaning.operation]
        args = tuple(self.builder.written(one) if isinstance(one, Value) else one for one in (a, b))
        slot = self._outside(node)
        why = f"{function.__name__} of two images runs in torch"
        self.builder.steps.append(Torch(name=name, why=why, function=function, args=args, y=slot))
        result = self._held(slot, node)
        return self._changed(node, result, True) if isinstance(result, Value) else None

    def _per_channel(self, node: fx.Node, shape: tuple[int, ...]) -> fx.Node | None:
        """The node itself if its tensor has one number per channel of images ``[N, C, H, W]`` or of signals
        ``[N, C, L]`` of a shape, or one number for all; for an expansion of such a tensor, the node of that tensor;
        None for any other node."""
        own = node.meta.get("value")
        if not isinstance(own, Tensor) or own.is_complex() or own.dim() > len(shape):
            return None
        if len(shape) not in (SIGNAL, IMAGE):
            return None
        n, channels, *grid = (1,) * (len(shape) - own.dim()) + tuple(own.shape)
        if n in (1, shape[0]) and channels in (1, shape[1]) and all(size == 1 for size in grid):
            return node
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and isinstance(rules.meaning(node, self.modules), meanings.Expansion):
            return self._per_channel(source, shape)
        return None

    def _changed(self, node: fx.Node, value: Value | None, in_place: bool) -> Value | None:
        """The result of a node. If the node works in place, the input's Value also becomes the result."""
        if value is None or not in_place:
            return value
        held: Value = self.known[node.all_input_nodes[0]]
        if held in self.views or held.slot in self.views:
            raise Unsafe(f"{node.name} changes a tensor in place, and another tensor shares its memory", node)
        held.overwrite(value)
        return held

    def _convolution(self, node: fx.Node, layer: SparseConv | None, name: str) -> Value | None:
        if layer is None:
            return None
        norm = self._batch_norm_after(node)
        return self.builder.convolution(
            self.known[node.all_input_nodes[0]], layer, name, tuple(node.meta["value"].shape), norm
        )

    def _modulated(self, node: fx.Node, meaning: meanings.ModulatedConvolution, name: str) -> Value | None:
        """A modulated convolution: scales before and after a convolution are deferred work. None if torch runs it."""
        first, inner = node.args[0], f"{name}.convolution"
        layer, shape = self.layers.layer(inner), tuple(node.meta["value"].shape)
        x, scales = self._given(first), self._given(meaning.scales)
        if isinstance(x, Tensor) and isinstance(first, fx.Node):
            x = self._constant(first, x)
        if layer is None or not isinstance(x, Value) or not isinstance(scales, Tensor | Slot):
            return None
        if len(shape) != len(layer.kernel_size) + 2:  # an image without a batch
            return None
        scaled = self.builder.modulated(x, "*", scales, f"{name}: scales", of_channels=True)
        y = self.builder.convolution(scaled, layer, inner, shape, None)
        return y if meaning.eps is None else self.builder.demodulated(y, scales, layer, meaning.eps, name)

    def _constant(self, node: fx.Node, tensor: Tensor) -> Value | Slot:
        """A constant as the output of a step, so that native steps can read it, as the learned input of StyleGAN2."""
        slot = self._outside(node)
        held = self._held(slot, node)
        self.builder.steps.append(
            Torch(
                name=name_of(node),
                why="a constant, which torch holds",
                function=_itself,
                args=(tensor.contiguous(),),
                y=slot,
            )
        )
        self.known[node] = held
        return held

    def _made(self, node: fx.Node, transposed: bool, arguments: Mapping[str, Any]) -> SparseConv | None:
        """A layer for a functional convolution; None if its weight or bias is not constant."""
        options = {key: self._given(one) for key, one in arguments.items()}
        options.pop("input", None)
        weight, bias = options.pop("weight", None), options.pop("bias", None)
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
            return None
        return self.layers.made(weight, bias, transposed, options)

    def _batch_norm_after(self, node: fx.Node) -> str | None:
        """The name of the batch norm that is the only reader of a convolution's result, or None."""
        follower = next(iter(node.users)) if len(node.users) == 1 else None
        if follower is None or follower.op != "call_module" or follower.args != (node,):
            return None
        match rules.meaning(follower, self.modules):
            case meanings.Norm("stored"):
                self.folded.add(follower)
                return str(follower.target)
        return None

    def _only_read_here(self, value: Value) -> SparseConvStep | None:
        """The sparse convolution that writes a value, if the value has one reader and no norm follows; else None."""
        step = self.builder.convolutions.get(value.slot)
        holders = (node for node, known in self.known.items() if isinstance(known, Value) and known.slot is value.slot)
        if step is None or step.norm is not None or value.deferred or any(len(node.users) > 1 for node in holders):
            return None
        return step

    def _shifted_bias(self, value: Value, shift: float, name: str) -> bool:
        """Adds a number to the bias of the sparse convolution that writes a value, as in the ``1 + gamma`` of SPADE;
        False if something else reads the output of the convolution."""
        step = self._only_read_here(value)
        if step is None or step.output_activation != "none":
            return False
        channels = value.shape[1] * step.shuffle**2
        step.bias = step.values.new_full((channels,), shift) if step.bias is None else step.bias + shift
        step.fused.append(name)
        return True

    # ------------------------------------------------------------------ nodes that torch computes

    def _torch(self, node: fx.Node) -> Any:
        """A call of torch as a step. If no input depends on the run, the node is computed now, as a constant."""
        module: Any = rules.called(node, self.modules)
        if rules.changes_its_input(node, module) and not self._alone(node):
            raise Unsafe(f"{node.name} changes its input in place, and the engine has no rule for it", node)

        def given(one: fx.Node) -> Any:
            known = self.known[one]
            return self.builder.written(known) if isinstance(known, Value) else known

        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), given)
        function: Callable[..., Any] = module
        if node.op == "call_function":
            function = node.target  # type: ignore[assignment]
        elif node.op == "call_method":
            function, args = _method, (str(node.target), *args)
        slot = self._outside(node)
        what = rules.name_of(node.target) if module is None else type(module).__name__
        if node.target is getattr:
            what = str(node.args[1])
        meaning, why = rules.meaning(node, self.modules), f"{what} runs in torch"
        if isinstance(meaning, meanings.FunctionalConvolution):
            if not isinstance(self._given(meaning.arguments.get("weight")), Tensor):
                why += ", because each run computes its weight"
        step = Torch(name=name_of(node), why=why, function=function, args=args, kwargs=kwargs, y=slot)
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.training
        random = drops if module is not None else is_random(what)
        if not step.reads and not random:
            return function(*args, **kwargs)
        self.builder.steps.append(step)
        if isinstance(meaning, meanings.Expansion):
            self.expansions.append(step)
        if node.meta.get("view"):
            values = [self.known[source] for source in node.all_input_nodes]
            self.views.update({slot, *(value for value in values if isinstance(value, Value))})
        return self._held(slot, node)

    def _alone(self, node: fx.Node) -> bool:
        """Whether a node may change its first argument in place, because only this node uses that tensor."""
        first = node.args[0] if node.args and "out" not in node.kwargs else None
        if not isinstance(first, fx.Node) or first.op in ("placeholder", "get_attr") or len(first.users) > 1:
            return False
        held = self.known.get(first)
        slot = held.slot if isinstance(held, Value) else held
        if not isinstance(slot, Slot) or held in self.views or slot in self.views or slot.parent or slot.parts:
            return False
        others = (one for other, one in self.known.items() if other is not first)
        return not any(slot is (one.slot if isinstance(one, Value) else one) for one in others)


def name_of(node: fx.Node) -> str:
    """The name of a step: the name of the module that a node calls; for a function, the name of the module whose
    forward calls it, and the name of the node."""
    if node.op == "call_module":
        return str(node.target)
    return f"{module_around(node)}: {node.name}".removeprefix(": ")


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _method(name: str, first: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(first, name)(*args, **kwargs)
