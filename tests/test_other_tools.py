"""Sparse layers in torch's own tools, supports that others change, and state_dicts and ops given anything."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import sparsegan as sg
from sparsegan.engine.steps import Gather, Pointwise


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.Conv2d(4, 3, 1))
    return sg.sparsify(net, 0.7).eval().to(dtype)


def image(n: int = 2, size: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n)).to(dtype)


def test_a_layer_is_a_leaf_of_a_traced_graph() -> None:
    net = network()
    graph = fx.symbolic_trace(net)
    assert [node.op for node in graph.graph.nodes][1:-1] == ["call_module"] * 4
    torch.testing.assert_close(graph(image(3, 8)), net(image(3, 8)))


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_jit(kernel: str) -> None:
    net = network()
    for _, layer in sg.sparse_layers(net):
        layer.kernel = kernel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, image())
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile"):
            torch.jit.script(net)
    torch.testing.assert_close(traced(image(5)), net(image(5)))


def test_functional_calls() -> None:
    net = network(torch.float64)
    x = image(dtype=torch.float64)
    values = {name: one.detach() for name, one in net.named_parameters()}
    ours = torch.func.functional_call(net, {name: one * 2 for name, one in values.items()}, x)
    doubled = copy.deepcopy(net)
    with torch.no_grad():
        for one in doubled.parameters():
            one.mul_(2)
    torch.testing.assert_close(ours, doubled(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that it runs dense
        mapped = torch.func.vmap(lambda one: net(one[None])[0])(x)
        slopes = torch.func.grad(lambda v: torch.func.functional_call(net, v, x).square().sum())(values)
    torch.testing.assert_close(mapped, net(x))
    net(x).square().sum().backward()
    for name, one in net.named_parameters():
        torch.testing.assert_close(slopes[name], one.grad)


def test_half_precision_and_compile() -> None:
    """A CPU has no sparse kernel for float16: dense, in eager and in a compiled graph."""
    net = network(torch.float16)
    x = image(dtype=torch.float16)
    wanted = sg.densify(copy.deepcopy(net))(x)
    torch.testing.assert_close(net(x), wanted, rtol=2e-3, atol=2e-3)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted, rtol=2e-3, atol=2e-3)


def test_copies_pickles_and_files(tmp_path: Path) -> None:
    net = network()
    net(image())  # plans are there
    torch.save(net, tmp_path / "net.pt")
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(tmp_path / "net.pt", weights_only=False)]
    for one in copies:
        torch.testing.assert_close(one(image()), net(image()))


# ---------------------------------------------------------------------- supports that others change


@pytest.mark.parametrize("through", ["copy_", "data", "load of a buffer"])
def test_a_support_that_is_changed_in_place_is_planned_anew(through: str) -> None:
    net, other = network(), network()
    sg.shrink(net, 0.8)
    torch.manual_seed(1)
    sg.shrink(other, 0.7)
    with torch.no_grad():
        for one in other.parameters():
            one.copy_(torch.randn_like(one))
    sg.shrink(other, 0.8)
    net(image())  # plans for the old support
    with torch.no_grad():
        for (_, ours), (_, theirs) in zip(sg.sparse_layers(net), sg.sparse_layers(other), strict=True):
            if through == "data":
                ours.support.data.copy_(theirs.support)
            else:
                ours.support.copy_(theirs.support)
            ours.values.copy_(theirs.values)
            ours.bias.copy_(theirs.bias)
    torch.testing.assert_close(net(image()), other(image()))


def test_a_support_that_an_average_has_spoiled_is_an_error() -> None:
    """A moving average over a state_dict truncates positions to integers, twice the same among them."""
    net, other = network(), network()
    net(image())
    with torch.no_grad():
        for (_, ours), (_, theirs) in zip(sg.sparse_layers(net), sg.sparse_layers(other), strict=True):
            theirs.support.copy_((theirs.support * 0.01).to(torch.int32))
            ours.support.copy_(theirs.support)
    with pytest.raises(ValueError, match=r"support.*changed"):
        net(image())


# ---------------------------------------------------------------------- anything at all


def test_any_state_dict() -> None:
    """A thousand damaged ones: an error leaves the model as it was, and working."""
    net = network()
    draw = np.random.default_rng(0)
    good = copy.deepcopy(net.state_dict())
    wanted = net(image())

    def spoiled(name: str, one: Tensor) -> Any:
        how = draw.integers(11)
        support = name.endswith("support")
        if how == 0:
            return one[: int(draw.integers(len(one)))] if one.dim() else one
        if how == 1:
            return torch.cat([one, one[-1:]])
        if how == 2:
            return one.flip(0)
        if how == 3:
            return one - 10**6 if support else one * float("nan")
        if how == 4:
            return one + 10**6 if support else one.to(torch.int64)
        if how == 5:
            return one.double() if support else one.to(torch.complex64)
        if how == 6:
            return one.to("meta")
        if how == 7:
            return one.view(1, -1)
        if how == 8:
            return [1, 2, 3]
        if how == 9:
            return one[:1].expand(one.shape)
        return one.to(torch.int64) * 2**40 if support else None

    refused = 0
    for _ in range(1000):
        state: dict[str, Any] = dict(good)
        for name in draw.choice(list(state), draw.integers(1, 3), replace=False):
            if draw.random() < 0.1:
                del state[name]
            else:
                state[name] = spoiled(name, state[name])
        try:
            net.load_state_dict(state)
        except (RuntimeError, ValueError, TypeError, AttributeError):
            refused += 1
            layers = dict(sg.sparse_layers(net))
            for name, layer in layers.items():
                assert layer.values.shape[0] == layer.support.shape[0], name
        assert net(image()).shape == wanted.shape
        net.load_state_dict(good)
        torch.testing.assert_close(net(image()), wanted)
    assert refused > 500


def test_any_arguments_of_the_engines_ops() -> None:
    """Tensors of other shapes and dtypes, of other layers, that share memory, cut short: an error, or nothing bad."""
    net = network()
    for _, layer in sg.sparse_layers(net):
        layer.kernel = "sparse"
    engine = sg.optimize_for_inference(net, image())
    other = sg.optimize_for_inference(
        sg.sparsify(nn.Sequential(nn.Conv2d(8, 8, 5)), 0.5).eval(), torch.randn(1, 8, 9, 9)
    )
    steps = [step for step in (*engine.steps(), *other.steps()) if isinstance(step, Gather | Pointwise)]
    draw = np.random.default_rng(1)
    calls: list[tuple[Any, list[Any]]] = []

    for step in steps:
        if isinstance(step, Gather):
            x, y = (torch.randn(one.shape) for one in (step.x.slot, step.y))
            none: list[Any] = [None] * 3
            taps = [step.values, step.bias, step.support, step.plan, step.geometry, step.adjoint]
            args = [x, *none, *taps, 0, list(step.pad_before), 1.0, 0, step.shuffle, None, None, 0.0, y, None, None]
            calls.append((torch.ops.sparsegan.gather_fused.default, args))
    x = torch.randn(2, 3, 4, 4)
    calls.append((torch.ops.sparsegan.pointwise.default, [x, None, None, None, x + 1, None, None, None, 0, 1, x * 0]))
    tensors = [one for _, args in calls for one in args if isinstance(one, Tensor)]
    for op, args in calls:
        op(*args)
        refused = 0
        for _ in range(400):
            bad = list(args)
            for at in draw.choice(len(bad), draw.integers(1, 3), replace=False):
                one = bad[at]
                how = draw.integers(7)
                if isinstance(one, Tensor) and how == 0:
                    bad[at] = one[: len(one) // 2]
                elif isinstance(one, Tensor) and how == 1:
                    bad[at] = one.double() if one.is_floating_point() else one.long()
                elif isinstance(one, Tensor) and how == 2:
                    bad[at] = tensors[int(draw.integers(len(tensors)))]
                elif isinstance(one, Tensor) and how == 3 and one.dim() == 4:
                    bad[at] = one.transpose(2, 3)
                elif isinstance(one, Tensor) and how == 4:
                    bad[at] = (one * 0 + 2**30).to(one.dtype) if not one.is_floating_point() else one.flatten()
                elif isinstance(one, list) and one:
                    bad[at] = [int(number) for number in draw.integers(-3, 40, len(one) - int(how == 5))]
                elif isinstance(one, bool):
                    bad[at] = not one
                elif isinstance(one, int):
                    bad[at] = int(draw.integers(-2, 9))
            try:
                op(*[one.clone() if isinstance(one, Tensor) and draw.random() < 0.8 else one for one in bad])
            except (RuntimeError, ValueError, TypeError):
                refused += 1
        assert refused > 100
