"""The engine for NVIDIA GPUs: folded batch norms, activations applied while a layer writes, one CUDA graph per shape.

At batch 1 the launches of kernels limit the speed of a generator; a CUDA graph replays all launches at once. Norms by
the statistics of each image have no kernel here. They run in torch, within the graph.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..calls import Call
from ..copying import bake, copy_model
from ..forks import ENGINES
from ..nn.layer import SparseConv
from . import meanings, rules
from .base import BaseEngine
from .layers import Layers
from .tracing import Tracer, has_hooks


def fused(model: nn.Module, call: Call) -> tuple[nn.Module, list[str]]:
    """Returns a copy in evaluation mode whose sparse layers contain the batch norms and activations that follow them.

    Also returns a line of text for each layer that contains another module now. A layer or a follower is not fused if
    it is called more than once, or if its result has several readers. In a model that torch.fx cannot trace, nothing is
    fused.
    """
    model = bake(copy_model(model)).eval().requires_grad_(False)
    modules = dict(model.named_modules())
    try:
        with torch.no_grad():
            graph = Tracer(model, call.changed(Tensor.clone)).trace()
    except Exception as error:  # a forward may raise anything when it gets proxies
        return model, [f"{type(model).__name__}: nothing fused, torch.fx cannot trace it: {error}"]
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)

    def follower(node: fx.Node) -> tuple[fx.Node, meanings.Meaning | None]:
        """The only node that reads a node's result, and the meaning of that node.

        The meaning is None unless the reading node is the only call of a module. With several readers, the node itself
        and None are returned.
        """
        one = next(iter(node.users)) if len(node.users) == 1 else node
        once = one.op == "call_module" and len(calls[str(one.target)]) == 1 and one.args == (node,) and not one.kwargs
        return one, rules.meaning(one, modules) if once else None

    layers, lines = Layers(model), []
    for name, nodes in calls.items():
        layer, taken = modules[name], []
        if not isinstance(layer, SparseConv) or len(nodes) > 1:
            continue
        after, meaning = follower(nodes[0])
        if isinstance(meaning, meanings.Norm) and meaning.statistics == "stored":
            weights = layers.weights(layer, str(after.target))
            layer.values.data = weights.values
            layer.bias = None if weights.bias is None else nn.Parameter(weights.bias, requires_grad=False)
            taken.append(str(after.target))
            after, meaning = follower(after)
        slope = meaning.slope if isinstance(meaning, meanings.Activation) else None
        if isinstance(slope, float | int) and 0 <= slope <= 1:  # not a parameter with a slope per channel
            layer.negative_slope = float(slope)
            taken.append(str(after.target))
        for one in taken:
            model.set_submodule(one, nn.Identity())
        if taken:
            lines.append(f"{name}: with {', '.join(taken)}")
    return model, lines


class _Turns:
    """The order of replays on one device. Each replay begins after the results of the replay before are copied.

    A graph has only one set of inputs and outputs, so its replays cannot overlap. Replays of two graphs cannot overlap
    either, because torch uses one random state and one workspace for matrix products for many graphs.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held by a thread while it enqueues a replay or captures a graph
        self.done = torch.cuda.Event()  # recorded when the results of the last replay are copied


_TURNS: dict[torch.device, _Turns] = {}


class Replayed:
    """A model as a CUDA graph for inputs of one shape.

    A call copies its inputs to the graph's inputs, replays the graph, and copies the graph's outputs. All of this runs
    on the current stream of the calling thread. That stream first waits for the replay before, on whichever stream.

    Raises ValueError for a forward that waits for the device, as a branch on values does. A graph cannot contain waits.
    """

    def __init__(self, model: nn.Module, call: Call, turns: _Turns) -> None:
        self.turns, self.model = turns, model  # whose weights the graph reads
        self.inputs = tuple(torch.empty_like(one, memory_format=_layout(one)).copy_(one) for one in call.tensors)
        stream, warm, capture = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()
        warm.wait_stream(stream)
        with torch.cuda.stream(warm):
            for _ in range(3):  # the first call makes plans, which waits for the device
                args, kwargs = call.arguments([one.clone() for one in self.inputs])
                model(*args, **kwargs)
        stream.wait_stream(warm)
        self.graph = torch.cuda.CUDAGraph()
        args, kwargs = call.arguments(self.inputs)
        try:
            # `torch.cuda.stream` restores the stream if the capture fails. "thread_local": other threads may go on.
            with (
                turns.lock,
                torch.cuda.stream(capture),
                torch.cuda.graph(self.graph, stream=capture, capture_error_mode="thread_local"),
            ):
                self.outputs = model(*args, **kwargs)
        except RuntimeError as error:
            first = error.__context__ or error  # after an error in a capture, the end of the capture raises another
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            raise ValueError(
                f"a CUDA graph cannot hold what the forward of {type(model).__name__} does: {first}. It may not wait "
                "for the GPU, as branches on values and `.item()` do; change that, or call the model as it is"
            ) from error

    def __call__(self, tensors: tuple[Tensor, ...]) -> Any:
        """Returns copies of the outputs, to which no later call writes."""
        stream = torch.cuda.current_stream()
        with self.turns.lock:
            stream.wait_event(self.turns.done)
            try:
                for static, one in zip(self.inputs, tensors, strict=True):
                    static.copy_(one)
                self.graph.replay()
                return pytree.tree_map_only(Tensor, Tensor.clone, self.outputs)
            finally:  # also if allocating the results fails, because the replay is enqueued already
                self.turns.done.record(stream)

    def __del__(self) -> None:
        """Waits for the last replay, which may still use the memory that is freed here."""
        self.turns.done.synchronize()


def _layout(tensor: Tensor) -> torch.memory_format:
    """The memory format of a graph's copy of an input: channels_last if the input has it, contiguous otherwise."""
    if tensor.is_contiguous() or tensor.dim() != 4:
        return torch.contiguous_format
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _arithmetic() -> tuple[Any, ...]:
    """The settings of torch that decide which kernels a graph contains."""
    cudnn: Any = torch.backends.cudnn
    deterministic = cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    return cudnn.enabled, cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision, *deterministic


class GpuEngine(BaseEngine):
    """A compiled model on a GPU. Call it like the model; see :class:`sparsegan.Engine`.

    Calls may come from several threads and on several streams. A call enqueues its work on the calling thread's current
    stream of the engine's device and returns at once, as torch does. The results are copies in new memory of that
    stream, and no later call writes to them. Replays on one device run one after another, even for several engines.

    While a new shape is captured, replays of other threads wait. During that time no thread may synchronize the whole
    device or draw random numbers on it, because CUDA and torch forbid both.
    """

    unseen = "torch.fx or a CUDA graph"

    def __init__(self, model: nn.Module, example: Call, plans: int, statistics: str) -> None:
        with torch.inference_mode(False):  # inference tensors as graph inputs could not be written outside that mode
            super().__init__(model, example, plans, statistics)
        with ENGINES:
            self._turns = _TURNS.setdefault(self.device, _Turns())
        hooked = [name or type(model).__name__ for name, one in self._running.named_modules() if has_hooks(one)]
        if hooked:
            self._whole = f"hooks are on {', '.join(hooked)}"
        with self._computing(), self._still():
            self._fused, self.lines = fused(self._running, self._example)
        self._check()
        if self._whole is not None:
            warnings.warn(
                f"the engine calls the {type(self.model).__name__} itself and uses no CUDA graph ({self._whole})",
                stacklevel=3,
            )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Graph inputs that are made in inference mode could not be written outside that mode.
        with torch.cuda.device(self.device), torch.inference_mode(False), super()._computing():
            yield

    def _key(self, call: Call) -> Any:
        return call.key, tuple(map(_layout, call.tensors)), _arithmetic()

    def _make(self, call: Call) -> Replayed:
        made = Replayed(self._fused, call, self._turns)
        self._compare(lambda *args, **kwargs: made(Call.of(args, kwargs).tensors), call, self._expected(call))
        return made

    def _compile(self, call: Call) -> Any:
        """The program for a call; None if the engine calls the model itself."""
        if self._whole is not None:
            return None
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "an engine on a GPU is a CUDA graph and cannot be captured in another: capture its model"
            )
        return super()._compile(call)

    def _run(self, program: Replayed | None, call: Call) -> Any:
        if program is None:
            args, kwargs = call.arguments(call.tensors)
            return self._running(*args, **kwargs)
        return program(call.tensors)

    def __str__(self) -> str:
        how = "one CUDA graph per shape" if self._whole is None else f"no CUDA graph: {self._whole}"
        return "\n".join([f"{type(self.model).__name__}, {how}", *self.lines])
