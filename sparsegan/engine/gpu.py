"""An engine on an NVIDIA GPU: batch norms folded, activations done while a layer writes, one CUDA graph a shape.

At batch 1 a generator is bound by launches, which a graph replays at once. Norms by an image's own statistics have no
kernel of their own here: they run in torch, within the graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..calls import Call
from ..copying import bake, copy_model
from ..nn import SparseConv
from ..tracing import Tracer
from . import tiling
from .compiler import runs_by_numbers
from .layers import Layers
from .served import Served
from .statistics import by_batch

#: What a layer does while it writes, by a module's forward: the slope where the sum is not above 0.
_ACTIVATIONS: dict[Any, Callable[[Any], float]] = {
    nn.ReLU.forward: lambda module: 0.0,
    nn.LeakyReLU.forward: lambda module: float(module.negative_slope),
}


def fused(model: nn.Module, call: Call) -> tuple[nn.Module, list[str]]:
    """A copy in evaluation with batch norms and activations made part of the sparse layers before them.

    Returns the copy, and a line for each layer that took something. Layers and followers that are called more than
    once, or whose result somebody else reads too, stay as they are; so does a model that torch.fx cannot trace.
    """
    model = bake(copy_model(model)).eval().requires_grad_(False)
    modules = dict(model.named_modules())
    try:
        with torch.no_grad():
            graph = Tracer(model, call.changed(Tensor.clone)).trace()
    except Exception as error:  # whatever a forward makes of a proxy
        return model, [f"{type(model).__name__}: nothing fused, torch.fx cannot trace it: {error}"]
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)

    def follower(node: fx.Node) -> fx.Node | None:
        """What alone reads a node's result, if that is a module called once."""
        one = next(iter(node.users)) if len(node.users) == 1 else None
        once = one is not None and one.op == "call_module" and len(calls[str(one.target)]) == 1
        return one if once and one is not None and one.args == (node,) and not one.kwargs else None

    layers, lines = Layers(model), []
    for name, nodes in calls.items():
        layer = modules[name]
        if not isinstance(layer, SparseConv) or len(nodes) > 1:
            continue
        after, taken = follower(nodes[0]), []
        if after is not None and runs_by_numbers(modules[str(after.target)]):
            weights = layers.weights(name, layer, str(after.target))
            layer.values.data = weights.values
            layer.bias = None if weights.bias is None else nn.Parameter(weights.bias, requires_grad=False)
            taken.append(str(after.target))
            after = follower(after)
        slope = None if after is None else _ACTIVATIONS.get(type(modules[str(after.target)]).forward)
        if after is not None and slope is not None:
            value = slope(modules[str(after.target)])
            if 0 <= value <= 1:
                layer.negative_slope = value
                taken.append(str(after.target))
        for one in taken:
            model.set_submodule(one, nn.Identity())
        if taken:
            lines.append(f"{name}: with {', '.join(taken)}")
    return model, lines


class Replayed:
    """A model as a CUDA graph for inputs of one shape."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        self.inputs = tuple(tensor.clone() for tensor in call.tensors)
        args, kwargs = call.arguments(self.inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):  # plans are made now, which waits for the device
                model(*args, **kwargs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.outputs = model(*args, **kwargs)

    def __call__(self, tensors: tuple[Tensor, ...]) -> Any:
        """The outputs, tensors of the caller's own."""
        for static, one in zip(self.inputs, tensors, strict=True):
            static.copy_(one)
        self.graph.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, self.outputs)


class GpuEngine(Served):
    """A compiled model on a GPU: call it like the model; see :class:`sparsegan.Engine`.

    Calls at the same time take turns: a graph has one set of inputs.
    """

    device_type = "cuda"

    def __init__(self, model: nn.Module, example: Call, plans: int, statistics: str) -> None:
        self.model = bake(copy_model(model)).eval().requires_grad_(False)
        self.example, self.statistics = example.arguments(example.tensors), statistics
        running = self.model if statistics == "stored" else by_batch(self.model)
        self._fused, self.lines = fused(running, example)
        self._plans = plans
        self._graphs: OrderedDict[Any, Replayed] = OrderedDict()
        self._lock = threading.Lock()
        self.tiles = tiling.Tiles(running)

    def __call__(
        self,
        *inputs: Any,
        tile: int | tuple[int, int] | None = None,
        overlap: int | tuple[int, int] | None = None,
        approximate: bool = False,
        **kwargs: Any,
    ) -> Any:
        """What ``model(*inputs, **kwargs)`` returns, in evaluation and without gradients; `tile`: `Engine.__call__`."""
        if tile is not None or overlap is not None or approximate:
            return tiling.run(self, inputs, kwargs, tile, overlap, approximate)
        call = Call.of(inputs, kwargs)
        key = call.key
        with self._lock, torch.no_grad():
            if key not in self._graphs:
                self._graphs[key] = Replayed(self._fused, call)
            self._graphs.move_to_end(key)
            while len(self._graphs) > self._plans:
                self._graphs.popitem(last=False)
            return self._graphs[key](call.tensors)

    def __str__(self) -> str:
        return "\n".join([f"{type(self.model).__name__}, one CUDA graph a shape", *self.lines])
