"""The Python path of a GPU on fake tensors, without a GPU: layers and gradients, the engine, a compression step.

Torch must be built for CUDA, because another torch aborts when autograd meets a tensor of a GPU.
`make cuda-import-check` runs these tests. Torch's own engine of gradients asks for a real GPU, so a small one in Python
replaces it here. It calls the same nodes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import test_gans
import torch
from simulated_gpu import SimulatedGpu
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import sparsegan as sg
from sparsegan.calls import Call
from sparsegan.compress import CompressionConfig
from sparsegan.compress.step import CompressionTask
from sparsegan.engine.gpu import Replayed, _Turns, fused
from sparsegan.nn import dispatch
from sparsegan.ops import library
from sparsegan.pruning.allocation import Targets
from sparsegan.pruning.schedule import OneShot

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")


def gradients(outputs: Sequence[Tensor], given: Sequence[Any], inputs: Sequence[Tensor] | None) -> list[Tensor | None]:
    """The gradients in ``inputs``; without inputs they are added to the leaves' ``grad``."""
    waiting: dict[Any, int] = {}
    stack = [one.grad_fn for one in outputs]
    seen = set(stack)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] = waiting.get(node, 0) + 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    arrived: dict[Any, dict[int, Tensor]] = {}

    def add(node: Any, place: int, gradient: Tensor) -> None:
        own = arrived.setdefault(node, {})
        if (shape := tuple(node._input_metadata[place].shape)) != tuple(gradient.shape):
            gradient = gradient.sum_to_size(shape)  # of what was broadcast
        own[place] = own[place] + gradient if place in own else gradient

    for one, gradient in zip(outputs, given, strict=True):
        add(one.grad_fn, one.output_nr, torch.ones_like(one) if gradient is None else gradient)
    ready, of_leaves = [node for node in dict.fromkeys(one.grad_fn for one in outputs) if not waiting.get(node)], {}
    found = {}
    while ready:
        node = ready.pop()
        own = arrived.pop(node, {})
        for index, one in enumerate(inputs or ()):
            if one.grad_fn is node and one.output_nr in own:
                found[index] = own[one.output_nr]
        if hasattr(node, "variable"):
            if own:
                of_leaves[id(node.variable)] = node.variable, own[0]
            continue
        results: Any = [None] * len(node.next_functions)
        if own:
            filled = [own.get(place) for place in range(len(node._input_metadata))]
            if hasattr(node, "apply"):  # made in Python: torch fills in zeros
                filled = [
                    torch.zeros(tuple(about.shape), dtype=about.dtype, device=about.device) if one is None else one
                    for one, about in zip(filled, node._input_metadata, strict=True)
                ]
            results = node.apply(*filled) if hasattr(node, "apply") else node(*filled)
            results = results if isinstance(results, tuple) else (results,)
        for (after, place), gradient in zip_longest(node.next_functions, results[: len(node.next_functions)]):
            if after is None:
                continue
            if gradient is not None:
                add(after, place, gradient)
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
    if inputs is None:
        for leaf, gradient in of_leaves.values():
            leaf.grad = gradient.detach() if leaf.grad is None else leaf.grad + gradient.detach()
        return []
    return [found.get(i, of_leaves.get(id(one), (None, None))[1]) for i, one in enumerate(inputs)]


class Numbers(TorchDispatchMode):
    """Notes the ops and the devices of their results. A number that the host asks for is 0.5, and
    tensors that it compares are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[str] = set()
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5
        if func is torch.ops.aten.equal.default:
            return True
        output = func(*args, **(kwargs or {}))
        self.ops.add(func.name())
        for one in pytree.tree_leaves(output):
            if isinstance(one, FakeTensor) and one.device.type != "cuda" and one.dim() > 0:
                self.elsewhere.append(func.name())
        return output


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Numbers]:
    """A fake H100, for which all kernels are built."""
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "gpu", lambda device: dispatch.Gpu(132, *dispatch.GPUS[9, 0]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(library, "cuda_library", lambda: Path("_cuda.so"))

    def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> Any:
        outputs, inputs = ([one] if isinstance(one, Tensor) else list(one) for one in (outputs, inputs))
        given = [grad_outputs] if isinstance(grad_outputs, Tensor) else grad_outputs or [None] * len(outputs)
        with torch.set_grad_enabled(bool(options.get("create_graph"))):
            return tuple(gradients(outputs, given, inputs))

    def backward(tensor: Tensor, gradient: Tensor | None = None, **options: Any) -> None:
        with torch.no_grad():
            gradients([tensor], [gradient], options.get("inputs"))

    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(Tensor, "backward", backward)
    with FakeTensorMode(allow_non_fake_inputs=True), Numbers() as numbers:
        yield numbers


def on_gpu(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are fake tensors of a GPU."""
    with torch._C._DisableTorchDispatch():
        module = copy.deepcopy(module)
    for one in module.modules():
        for own in (one._parameters, one._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                needed = tensor.requires_grad
                own[name] = nn.Parameter(there, needed) if isinstance(tensor, nn.Parameter) else there
    return module


def there(batch: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda one: torch.empty(one.shape, dtype=one.dtype, device="cuda"), batch)


LAYERS = {
    "3x3": (nn.Conv2d(16, 32, 3, padding=1), 8),
    "strided": (nn.Conv2d(16, 32, 4, 2, 1), 8),
    "transposed": (nn.ConvTranspose2d(32, 16, 4, 2, 1), 4),
}


@pytest.mark.parametrize("backend", ["sparse", "dense", "auto"])
@pytest.mark.parametrize("granularity", ["element", "vector:16", "input:4"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_first_and_second_gradients(
    name: str, granularity: str, backend: str, traced: Numbers
) -> None:
    dense, size = LAYERS[name]
    kind = sg.SparseConv2d if isinstance(dense, nn.Conv2d) else sg.SparseConvTranspose2d
    with torch._C._DisableTorchDispatch():
        real = kind.from_dense(dense, 0.9, granularity)
        expected = dense(torch.zeros(2, dense.in_channels, size, size)).shape
    layer = on_gpu(real)
    layer.backend = backend
    x = torch.empty(2, dense.in_channels, size, size, device="cuda", requires_grad=True)
    traced.ops.clear()
    traced.elsewhere.clear()
    y = layer(x)
    assert y.shape == expected
    first = torch.autograd.grad(y.square().sum(), (x, layer.values, layer.bias), create_graph=True)
    second = torch.autograd.grad(sum(one.square().sum() for one in first), (x, layer.values))
    wanted = [x, layer.values, layer.bias, x, layer.values]
    for gradient, of in zip([*first, *second], wanted, strict=True):
        assert gradient is not None
        assert (gradient.shape, gradient.dtype, gradient.device) == (of.shape, of.dtype, of.device)
    assert not traced.elsewhere
    prefix = "vector_" if granularity == "vector:16" else ""
    if backend == "sparse":
        assert {f"sparsegan::{prefix}sparse_conv", f"sparsegan::{prefix}wgrad"} <= traced.ops
    elif backend == "dense":
        assert not any("sparse_conv" in op for op in traced.ops)


def small_generator() -> nn.Module:
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1))
    return sg.sparsify(nn.Sequential(*layers, nn.Tanh()).eval(), 0.5)


def test_the_engine_captures_and_replays(traced: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, events and graphs are those of the simulated GPU; the tensors have no numbers to compare."""
    with torch._C._DisableTorchDispatch():
        real = small_generator()
    for _, layer in sg.sparse_layers(real):
        layer.backend = "sparse"
    SimulatedGpu(monkeypatch)
    call = Call.of((torch.empty(2, 3, 8, 8, device="cuda"),), {})
    with torch.no_grad():
        model, lines = fused(on_gpu(real), call)
        assert any("with 1, 2" in line for line in lines), lines
        replayed = Replayed(model, call, _Turns())
        traced.elsewhere.clear()
        y = replayed(call.tensors)
    assert (tuple(y.shape), y.device.type) == ((2, 3, 16, 16), "cuda")
    assert "sparsegan::sparse_conv" in traced.ops
    assert not traced.elsewhere


@pytest.mark.parametrize("name", test_gans.TINY)
def test_a_compression_step(name: str, traced: Numbers) -> None:
    with torch._C._DisableTorchDispatch():
        gan = test_gans.tiny(name)
        (real,) = test_gans.batches(name, 1)
        pruned = sg.sparsify(copy.deepcopy(gan.generator), 0.5)
        targets = Targets.of(gan.generator, 0.5)
    for _, layer in sg.sparse_layers(pruned):
        layer.backend = "sparse"
    original, student, judge = (on_gpu(net) for net in (gan.generator, pruned, gan.discriminator))
    optimizers = [torch.optim.Adam(net.parameters(), 1e-3) for net in (student, judge)]
    task = CompressionTask(
        original.requires_grad_(False).eval(),
        student.train(),
        judge.train(),
        gan.objective,
        OneShot(2, 0.5),
        CompressionConfig(),
        targets,
        *optimizers,
    )
    traced.ops.clear()
    figures = task.step(0, there(real))
    assert figures["sparsity"] == 0.5
    assert {"sparsegan::sparse_conv", "sparsegan::wgrad"} <= traced.ops
    for net, optimizer in zip((student, judge), optimizers, strict=True):
        for parameter in net.parameters():
            assert parameter.device.type == "cuda"
        assert optimizer.state
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].shape == parameter.shape
            assert state["exp_avg"].device == parameter.device
