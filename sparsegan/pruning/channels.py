"""The channels of a model: the layers that write them, the layers that read them, and the operations in between.

``removal`` removes channels and ``reorder`` changes their order. Both use this analysis to find out which other modules
must change with a layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..calls import Call, positional
from ..copying import bake, copy_model
from ..engine import meanings, rules
from ..engine.tracing import NORMS, Tracer, close
from ..nn.granularity import as_units
from ..nn.kept_weights import DenseConv
from ..nn.layer import DENSE_CLASSES
from ..nn.replace import densify
from ..signals import IMAGE, SIGNAL

Model = TypeVar("Model", bound=nn.Module)

CONVOLUTIONS = DENSE_CLASSES
#: A reason why channels stay.
ADDED = "they are added to channels that are not constant"


def rewritten(model: Model, example: Any, rewrite: Callable[[Channels], None]) -> Model:
    """Returns a dense copy of a model whose channels ``rewrite`` has changed. The copy gives the model's results.

    Raises ValueError if the model cannot be traced, or if the results of copy and model for ``example`` differ.
    """
    changed = densify(bake(copy_model(model))).eval()

    call = Call.of(positional(example), {})

    def arguments() -> tuple[Any, ...]:
        """New copies for each run, because a forward may change its arguments in place."""
        return call.copies()[0]

    with torch.no_grad():
        expected = changed(*arguments())
        try:
            graph = Tracer(changed, call.changed(Tensor.clone)).trace()
        except Exception as error:  # a forward may raise anything when it gets proxies
            raise ValueError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error
        rewrite(Channels(graph, dict(changed.named_modules())))
        if not close(changed(*arguments()), expected):
            raise ValueError(
                f"the results of the changed {type(model).__name__} differ from the model's; the forward does "
                "something that torch.fx does not see"
            )
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in changed.named_modules():
        module.training = modes[name]
    return changed


@dataclass
class Tracked:
    """A tensor of the graph. Each list and tensor here has one entry per channel.

    `ids`: channels with the same id, in any tensor, stay or go together. `value`: float64, the constant that a channel
    holds; NaN if the channel is not constant. `why`: the reason why a channel that began as a constant is not one now.
    """

    ids: list[int]
    value: Tensor
    why: list[str]


@dataclass
class Layer:
    """A convolution. `reads`: its input when it runs. `ids`: of its output channels. `zero`: bool ``[out]``, which
    filters are zero."""

    module: DenseConv
    reads: Tracked
    ids: list[int]
    zero: Tensor

    @property
    def alike(self) -> bool:
        """Whether a constant input channel adds the same number to every element of an output channel."""
        module = self.module
        if module.transposed:
            return False
        none = all(p == 0 for p in module.padding) if isinstance(module.padding, tuple) else module.padding == "valid"
        return none or module.padding_mode != "zeros"


@dataclass
class Channels:
    """Every channel of a traced model, from the layer that writes it to the layers that read it.

    `layers`: the convolutions that can be changed, by name. `followers`: norms and PReLUs with the ids of their
    channels. `kept`: for ids that must stay, the reason: the channel is not constant, or an unknown operation reads it.
    `fixed`: ids of channels whose place must not change: an unknown operation reads them, or PixelShuffle does, for
    which neighbours matter. `refused`: convolutions that cannot be changed, with the reasons.
    """

    graph: fx.Graph
    modules: dict[str, Any]
    parents: list[int] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    followers: list[tuple[Any, list[int]]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        tensors = (one for module in self.modules.values() for one in module.parameters())
        self.device = next((one.device for one in tensors), torch.device("cpu"))
        self.calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        owners: dict[int, set[str]] = {}
        for name, module in self.modules.items():
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), set()).add(name)
        self.shared = {name for names in owners.values() if len(names) > 1 for name in names}
        self.tensors: dict[fx.Node, Tracked] = {}
        for node in self.graph.nodes:
            self._follow(node)

    # ------------------------------------------------------------------ ids

    def _new(self, count: int) -> list[int]:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return self.parents[first:]

    def root(self, one: int) -> int:
        """The representative id of the channels that stay or go together with a channel."""
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def _together(self, ids: Sequence[int], others: Sequence[int]) -> None:
        for one, other in zip(ids, others, strict=True):
            first, second = self.root(one), self.root(other)
            self.parents[second] = first
            if second in self.kept:
                self.kept.setdefault(first, self.kept.pop(second))

    def keep(self, one: int, why: str) -> None:
        self.kept.setdefault(self.root(one), why)

    # ------------------------------------------------------------------ following the channels

    def _follow(self, node: fx.Node) -> None:
        module: Any = rules.called(node, self.modules)
        # Hooks are ignored here: if a hook changes the result, `rewritten` notices.
        meaning = rules.meaning_of_forward(node, module)
        inputs, result = node.all_input_nodes, None
        if len(inputs) == 1 and inputs[0] in self.tensors:
            result = self._one(node, meaning, module, self.tensors[inputs[0]])
        elif isinstance(meaning, meanings.Combination) and meaning.operation == "+":
            result = self._sum(meaning)
        elif isinstance(meaning, meanings.Concatenation):
            result = self._concatenation(meaning.parts)
        if result is None:
            result = self._stop(node)
        if result is not None:
            self.tensors[node] = result

    def _one(self, node: fx.Node, meaning: meanings.Meaning | None, module: Any, x: Tracked) -> Tracked | None:
        """The result of a node with one input tensor; None if it is not known."""
        if rules.is_without_batch(node, module):
            return None
        name = str(node.target) if module is not None else node.name
        if isinstance(meaning, meanings.Arithmetic | meanings.Combination):  # of x with itself
            return self._changed(node, meaning.in_place, x)
        if not node.args or node.args[0] not in node.all_input_nodes:
            return None
        if isinstance(module, (*NORMS, nn.PReLU)):  # subclasses too: `_normed` compares them with the example
            value = None if self._refusal(name) else self._normed(node, module, x.value)
            if value is None:
                return None
            self.followers.append((module, x.ids))
            return Tracked(x.ids, value, x.why)
        match meaning:
            case meanings.Convolution() if type(module) in CONVOLUTIONS:
                return None if self._refusal(name) else self._convolution(name, x)
            case meanings.Identity():
                return x
            case meanings.Resize() | meanings.Pooling():
                return Tracked(x.ids, x.value, x.why)
            case meanings.Activation() | meanings.OutputActivation() | meanings.Elementwise():
                return self._changed(node, meaning.in_place, x)
            case meanings.Padding("zeros", _, border):
                beside = torch.where(x.value == border, x.value, torch.nan)
                return Tracked(x.ids, beside, self._because(x, beside, f"{name} pads them with another number"))
            case meanings.Padding():
                return Tracked(x.ids, x.value, x.why)
            case meanings.PixelShuffle(factor):
                return self._shuffled(x, factor**2)
        return None

    def _convolution(self, name: str, x: Tracked) -> Tracked:
        module = self.modules[name]
        assert isinstance(module, CONVOLUTIONS)
        for one, constant, why in zip(x.ids, x.value.cpu().tolist(), x.why, strict=True):
            if constant != constant:
                self.keep(one, why)
        zero = zero_filters(module)
        bias = module.weight.new_zeros(module.out_channels) if module.bias is None else module.bias.detach()
        ids = self._new(module.out_channels)
        self.layers[name] = Layer(module, Tracked(x.ids, x.value, x.why), ids, zero)
        return Tracked(ids, torch.where(zero, bias.double(), torch.nan), [""] * len(ids))

    def _normed(self, node: fx.Node, module: Any, value: Tensor) -> Tensor | None:
        """The constants after a norm or a PReLU; None if a subclass gives other results for the example."""
        entries = [getattr(module, name, None) for name in ("weight", "bias")]
        weight, bias = (None if entry is None else entry.detach().double() for entry in entries)
        if isinstance(module, nn.PReLU):
            return torch.where(value < 0, value * (1 if weight is None else weight), value)
        normed = [value * 0]  # by the statistics of the input: the mean of a constant channel is the constant
        if module.track_running_stats and module.running_mean is not None:
            scale = (module.running_var.double() + module.eps).rsqrt()
            normed.insert(0, (value - module.running_mean.double()) * scale)
        results = [one * (1 if weight is None else weight) + (0 if bias is None else bias) for one in normed]
        if type(module) in NORMS:
            return results[0]
        for result in results:
            seen = torch.where(result.isnan(), torch.nan, node.meta["corner"].double())
            if torch.allclose(seen, result.expand_as(seen), rtol=1e-3, atol=1e-3, equal_nan=True):
                return result
        return None

    def _changed(self, node: fx.Node, in_place: bool, x: Tracked) -> Tracked:
        """The result of an elementwise node, which turns a constant into a constant."""
        value = self._evaluate(node, x.value)
        if not in_place:
            return Tracked(x.ids, value, x.why)
        x.value = value
        return x

    def _evaluate(self, node: fx.Node, value: Tensor) -> Tensor:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda _: value.clone())
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = self.modules[str(node.target)] if node.op == "call_module" else node.target
        return function(*args, **kwargs)

    def _because(self, x: Tracked, value: Tensor, why: str) -> list[str]:
        lost = (value.isnan() & ~x.value.isnan()).cpu().tolist()
        return [why if new else old for new, old in zip(lost, x.why, strict=True)]

    def _sum(self, meaning: meanings.Combination) -> Tracked | None:
        a, b = self.tensors.get(meaning.a), self.tensors.get(meaning.b)
        if a is None or b is None or len(a.ids) != len(b.ids):
            return None
        self._together(a.ids, b.ids)
        value = a.value + b.value
        whys = [x or y for x, y in zip(*(self._because(one, value, ADDED) for one in (a, b)), strict=True)]
        if not meaning.in_place:
            return Tracked(a.ids, value, whys)
        a.value, a.why = value, whys
        return a

    def _concatenation(self, parts: Sequence[Any]) -> Tracked | None:
        tensors = [self.tensors[part] for part in parts if part in self.tensors]
        if len(tensors) != len(parts):
            return None
        return Tracked(
            [one for tensor in tensors for one in tensor.ids],
            torch.cat([tensor.value for tensor in tensors]),
            [why for tensor in tensors for why in tensor.why],
        )

    def _shuffled(self, x: Tracked, size: int) -> Tracked:
        """The result of a PixelShuffle, which makes one channel of each ``size`` consecutive channels of the input."""
        self.fixed.update(x.ids)
        for first in range(0, len(x.ids), size):
            self._together([x.ids[first]] * size, x.ids[first : first + size])
        parts = x.value.view(-1, size)
        value = torch.where((parts == parts[:, :1]).all(1), parts[:, 0], torch.nan)
        why = f"PixelShuffle makes one channel of {size}, which are not all the same constant"
        return Tracked(x.ids[::size], value, [why] * len(value))

    def _refusal(self, name: str) -> str:
        """The reason why a module with parameters per channel cannot be changed; empty if it can."""
        module = self.modules[name]
        if self.calls[name] > 1:
            return f"{name} is called {self.calls[name]} times"
        if name in self.shared:
            return f"{name} shares a parameter with another layer"
        if isinstance(module, CONVOLUTIONS):
            if module.groups > 1:
                return f"{name} has groups={module.groups}"
            if "weight" not in module._parameters:
                return f"the weight of {name} is computed"
        return ""

    def _stop(self, node: fx.Node) -> Tracked | None:
        """The result of an unknown node. All channels that it reads or writes stay."""
        why = {"output": "they reach the model's output", "placeholder": "they are the model's input"}.get(node.op, "")
        if node.op == "call_module":
            name = str(node.target)
            why = self._refusal(name) or f"this analysis does not know {name}, a {type(self.modules[name]).__name__}"
            if isinstance(self.modules[name], CONVOLUTIONS):
                self.refused[name] = why
        elif not why:
            why = f"they go into {getattr(node.target, '__name__', node.target)}, which this analysis does not know"
        for source in node.all_input_nodes:
            for one in self.tensors[source].ids if source in self.tensors else ():
                self.keep(one, why)
                self.fixed.add(one)
        shape: tuple[int, ...] = getattr(node.meta.get("value"), "shape", ())
        if len(shape) not in (SIGNAL, IMAGE):
            return None
        ids = self._new(shape[1])
        for one in ids:
            self.keep(one, why)
        unknown = torch.full((shape[1],), torch.nan, dtype=torch.float64, device=self.device)
        return Tracked(ids, unknown, [why] * shape[1])


def rows(module: DenseConv) -> Tensor:
    """The weight ``[out, in, *kernel_size]`` of a convolution without groups."""
    weight = module.weight.detach()
    return weight.transpose(0, 1) if module.transposed else weight


def zero_filters(module: DenseConv) -> Tensor:
    """bool ``[out]``: which filters of a convolution are zero."""
    return (as_units(module.weight.detach(), "filter", module.transposed, module.groups) == 0).all(1)


def replace(module: Any, name: str, tensor: Tensor) -> None:
    """Replaces a parameter or a buffer of a module by a tensor of another shape. A missing bias becomes a parameter."""
    old = getattr(module, name)
    trained = module.weight.requires_grad if old is None else old.requires_grad
    parameter = old is None or isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(tensor, requires_grad=trained) if parameter else tensor)
