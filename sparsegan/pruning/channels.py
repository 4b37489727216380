"""The channels of a model: which layers put them out, which read them, and what happens to them on the way.

What takes channels out (``removal``) or puts them in another order (``reorder``) asks here what that means elsewhere.
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
from ..engine import rules
from ..engine.tracing import NORMS, Tracer, close
from ..nn.granularity import as_units
from ..nn.replace import densify

Model = TypeVar("Model", bound=nn.Module)

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
ADDED = "they are added to others that are not zero"


def rewritten(model: Model, example: Any, rewrite: Callable[[Channels], None]) -> Model:
    """A dense copy of a model, its channels changed by ``rewrite`` so that it still puts out the same.

    Raises ValueError where the model cannot be traced, or where the copy puts out something else for ``example``.
    """
    changed = densify(bake(copy_model(model))).eval()

    call = Call.of(positional(example), {})

    def arguments() -> tuple[Any, ...]:
        """Anew each time: a forward may change them in place."""
        return call.copies()[0]

    with torch.no_grad():
        expected = changed(*arguments())
        try:
            graph = Tracer(changed, call.changed(Tensor.clone)).trace()
        except Exception as error:  # whatever the model's forward makes of a proxy
            raise ValueError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error
        rewrite(Channels(graph, dict(changed.named_modules())))
        if not close(changed(*arguments()), expected):
            raise ValueError(
                f"the changed {type(model).__name__} does not put out the same; its forward does something "
                "that torch.fx does not see"
            )
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in changed.named_modules():
        module.training = modes[name]
    return changed


@dataclass
class Tracked:
    """A tensor of the graph, a channel an entry.

    `ids`: channels with one id, here or elsewhere, stay or go together. `value`: float64, the constant; NaN where it is
    none. `why`: the reason for that, where the channel began as one.
    """

    ids: list[int]
    value: Tensor
    why: list[str]


@dataclass
class Layer:
    """A convolution, what it reads (as it was at that time) and the ids of what it puts out."""

    module: nn.Conv2d | nn.ConvTranspose2d
    reads: Tracked
    ids: list[int]
    zero: Tensor

    @property
    def alike(self) -> bool:
        """Whether a constant input adds the same to every element of the output."""
        module = self.module
        if isinstance(module, nn.ConvTranspose2d):
            return False
        none = all(p == 0 for p in module.padding) if isinstance(module.padding, tuple) else module.padding == "valid"
        return none or module.padding_mode != "zeros"


@dataclass
class Channels:
    """Every channel of a traced model, from the layer that puts it out to those that read it.

    `layers`: the convolutions that are understood, by name. `followers`: norms and PReLUs with the ids of their
    channels. `kept`: why a channel is no constant, or reaches what is not known here. `fixed`: those that reach it, and
    those whose neighbours matter. `refused`: convolutions that are not understood, and why.
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
        """The same number for all channels that stay or go together."""
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

    # ------------------------------------------------------------------ the way of the channels

    def _follow(self, node: fx.Node) -> None:
        module: Any = rules.called(node, self.modules)
        # Hooks are passed over: `rewritten` finds out where one changes the result.
        meaning = rules.meaning_of_forward(node, module)
        inputs, result = node.all_input_nodes, None
        if len(inputs) == 1 and inputs[0] in self.tensors:
            result = self._one(node, meaning, module, self.tensors[inputs[0]])
        elif isinstance(meaning, rules.Sum):
            result = self._sum(meaning)
        elif isinstance(meaning, rules.Concatenation):
            result = self._concatenation(meaning.parts)
        if result is None:
            result = self._stop(node)
        if result is not None:
            self.tensors[node] = result

    def _one(self, node: fx.Node, meaning: rules.Meaning | None, module: Any, x: Tracked) -> Tracked | None:
        """What a node makes of its only tensor; None where that is not known."""
        name = str(node.target) if module is not None else node.name
        if isinstance(meaning, rules.Arithmetic | rules.Sum):  # a sum with itself
            return self._changed(node, meaning.in_place, x)
        if not node.args or node.args[0] not in node.all_input_nodes:
            return None
        if isinstance(module, (*NORMS, nn.PReLU)):  # their subclasses too, whatever the forward means
            value = None if self._refusal(name) else self._normed(node, module, x.value)
            if value is None:
                return None
            self.followers.append((module, x.ids))
            return Tracked(x.ids, value, x.why)
        match meaning:
            case rules.Convolution() if type(module) in CONVOLUTIONS:
                return None if self._refusal(name) else self._convolution(name, x)
            case rules.Identity():
                return x
            case rules.Resize() | rules.Pooling():
                return Tracked(x.ids, x.value, x.why)
            case rules.Activation() | rules.OutputActivation() | rules.Elementwise():
                return self._changed(node, meaning.in_place, x)
            case rules.Padding("zeros", _, border):
                beside = torch.where(x.value == border, x.value, torch.nan)
                return Tracked(x.ids, beside, self._because(x, beside, f"{name} pads them with another number"))
            case rules.Padding():
                return Tracked(x.ids, x.value, x.why)
            case rules.PixelShuffle(factor):
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
        """What a norm or a PReLU makes of constants; None where a subclass does something else with the example."""
        entries = [getattr(module, name, None) for name in ("weight", "bias")]
        weight, bias = (None if entry is None else entry.detach().double() for entry in entries)
        if isinstance(module, nn.PReLU):
            return torch.where(value < 0, value * (1 if weight is None else weight), value)
        normed = [value * 0]  # by statistics of its own: its mean is the constant itself
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
        """Every element by itself: a constant becomes a constant."""
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

    def _sum(self, meaning: rules.Sum) -> Tracked | None:
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
        """PixelShuffle: channels of the output are ``size`` consecutive ones of the input."""
        self.fixed.update(x.ids)
        for first in range(0, len(x.ids), size):
            self._together([x.ids[first]] * size, x.ids[first : first + size])
        parts = x.value.view(-1, size)
        value = torch.where((parts == parts[:, :1]).all(1), parts[:, 0], torch.nan)
        why = f"PixelShuffle makes one channel of {size}, which are not all the same constant"
        return Tracked(x.ids[::size], value, [why] * len(value))

    def _refusal(self, name: str) -> str:
        """Why a module with an entry a channel cannot be followed; empty where it can."""
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
        """Nothing is known: whatever goes in or comes out stays."""
        why = {"output": "they reach the model's output", "placeholder": "they are the model's input"}.get(node.op, "")
        if node.op == "call_module":
            name = str(node.target)
            why = self._refusal(name) or f"{name}, a {type(self.modules[name]).__name__}, is not known here"
            if isinstance(self.modules[name], CONVOLUTIONS):
                self.refused[name] = why
        elif not why:
            why = f"they go into {getattr(node.target, '__name__', node.target)}, which is not known here"
        for source in node.all_input_nodes:
            for one in self.tensors[source].ids if source in self.tensors else ():
                self.keep(one, why)
                self.fixed.add(one)
        shape: tuple[int, ...] = getattr(node.meta.get("value"), "shape", ())
        if len(shape) != 4:
            return None
        ids = self._new(shape[1])
        for one in ids:
            self.keep(one, why)
        unknown = torch.full((shape[1],), torch.nan, dtype=torch.float64, device=self.device)
        return Tracked(ids, unknown, [why] * shape[1])


def rows(module: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The weight ``[out, in, kernel_h, kernel_w]`` of a convolution without groups."""
    weight = module.weight.detach()
    return weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else weight


def zero_filters(module: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """bool ``[out]``."""
    transposed = isinstance(module, nn.ConvTranspose2d)
    return (as_units(module.weight.detach(), "filter", transposed, module.groups) == 0).all(1)


def replace(module: Any, name: str, tensor: Tensor) -> None:
    """Puts a tensor of another shape in a parameter's or buffer's place."""
    old = getattr(module, name)
    trained = module.weight.requires_grad if old is None else old.requires_grad
    parameter = old is None or isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(tensor, requires_grad=trained) if parameter else tensor)
