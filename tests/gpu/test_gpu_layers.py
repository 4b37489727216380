"""The layers behave on a GPU as torch.nn's do: autocast, layouts, streams, CUDA graphs, torch.compile, training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gpu_device import DEVICE, DTYPES, on_gpu
from torch import Tensor, nn

import sparsegan as sg

LAYERS = {
    "3x3": lambda: nn.Conv2d(32, 64, 3, padding=1),
    "4x4 s2": lambda: nn.Conv2d(32, 64, 4, 2, 1),
    "7x7 reflect": lambda: nn.Conv2d(16, 64, 7, padding=3, padding_mode="reflect"),
    "dilated": lambda: nn.Conv2d(32, 64, 3, padding=2, dilation=2, groups=2),
    "transposed 4x4 s2": lambda: nn.ConvTranspose2d(64, 64, 4, 2, 1),
    "transposed 3x3 s2": lambda: nn.ConvTranspose2d(64, 64, 3, 2, 1, 1),
    "transposed 4x4 of 1x1": lambda: nn.ConvTranspose2d(64, 64, 4, 1, 0),
    "signal 11 dilated": lambda: nn.Conv1d(32, 64, 11, padding=25, dilation=5),
    "signal transposed 16 s8": lambda: nn.ConvTranspose1d(64, 64, 16, 8, 4),
}
SIZES = {"transposed 4x4 of 1x1": 1, "signal 11 dilated": 1000, "signal transposed 16 s8": 125}
GRANULARITIES = ["element", "vector:4", "vector:16", "vector:32", "input:2", "input:4"]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def layer_and_input(name: str, granularity: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor]:
    dense = LAYERS[name]()
    layer = sg.sparsify(dense, 0.8, granularity).to(DEVICE, dtype)
    layer.backend = "sparse"
    size = SIZES.get(name, 12)
    return layer, torch.randn(3, dense.in_channels, *[size] * layer.dims, device=DEVICE, dtype=dtype)


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The output and the gradients with respect to input, weights and bias, all in float64 on the CPU."""
    x = x.detach().requires_grad_()
    weight: Any = layer.values if hasattr(layer, "values") else layer.weight
    y = layer(x)
    gy = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=torch.float64).view(y.shape).to(y.dtype)
    results = torch.autograd.grad(y, (x, weight, layer.bias), gy)
    return tuple(result.detach().double().cpu() for result in (y, *results))


def assert_near(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...], positions: Tensor, allowed: float) -> None:
    for index, (one, other) in enumerate(zip(ours, exact, strict=True)):
        expected = other.flatten()[positions.cpu()] if index == 2 else other
        assert float((one - expected).norm()) <= allowed * float(expected.norm())


@every_layer
@every_granularity
@pytest.mark.parametrize("dtype", DTYPES)
def test_like_dense(name: str, granularity: str, dtype: torch.dtype) -> None:
    layer, x = layer_and_input(name, granularity, dtype)
    exact = gradients(layer.to_dense().cpu().double(), x.cpu().double())
    allowed = 1e-5 if dtype == torch.float32 else 2e-2
    assert_near(gradients(layer, x), exact, layer.positions(), allowed)
    layer.backend = "dense"
    assert_near(gradients(layer, x), exact, layer.positions(), allowed)


@every_granularity
def test_double_backward(granularity: str) -> None:
    """A gradient penalty through the layer."""
    layer, x = layer_and_input("4x4 s2", granularity)

    def penalty(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        weight: Any = module.values if hasattr(module, "values") else module.weight
        (gx,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        return tuple(g.double().cpu() for g in torch.autograd.grad(gx.square().sum(), (x, weight)))

    ours, exact = penalty(layer, x), penalty(layer.to_dense().cpu().double(), x.cpu().double())
    assert float((ours[0] - exact[0]).norm()) <= 1e-4 * float(exact[0].norm())
    expected = exact[1].flatten()[layer.positions().cpu()]
    assert float((ours[1] - expected).norm()) <= 1e-4 * float(expected.norm())


@every_granularity
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(granularity: str, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and DEVICE.type == "cpu":
        pytest.skip("the CPU kernels have no float16")
    layer, x = layer_and_input("3x3", granularity)
    with torch.autocast(DEVICE.type, dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert layer.values.grad.dtype == torch.float32
    with torch.no_grad():
        exact = layer.to_dense().double()(x.double())
    assert float((y.detach().double() - exact).norm()) <= 2e-2 * float(exact.norm())


@every_granularity
def test_channels_last_and_the_same_bits_again(granularity: str) -> None:
    layer, x = layer_and_input("transposed 4x4 s2", granularity)
    first = gradients(layer, x)
    for other in (gradients(layer, x), gradients(layer, x.contiguous(memory_format=torch.channels_last))):
        assert all(torch.equal(one, again) for one, again in zip(first, other, strict=True))


@on_gpu
@every_layer
@every_granularity
@pytest.mark.parametrize("backend", ["sparse", "dense", "auto"])
def test_cuda_graph(name: str, granularity: str, backend: str) -> None:
    """Forward and backward are captured, replayed on new numbers, and equal the layer outside a graph."""
    layer, x = layer_and_input(name, granularity)
    layer.backend = backend
    static = x.clone().requires_grad_()

    def step() -> tuple[Tensor, ...]:
        y = layer(static)
        return (y, *torch.autograd.grad(y, (static, layer.values), torch.ones_like(y)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        static.copy_(torch.randn_like(x))
        layer.values.mul_(2)
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        torch.testing.assert_close(one, other)


@on_gpu
@every_granularity
def test_another_stream(granularity: str) -> None:
    """The layer runs on the current stream, after the long kernel that is queued there."""
    layer, x = layer_and_input("3x3", granularity)
    with torch.no_grad():
        expected = layer(x)
        side = torch.cuda.Stream()
        late = torch.zeros_like(x)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            y = layer(late)
        side.synchronize()
    assert torch.equal(y, expected)


@on_gpu
@every_granularity
def test_another_device(granularity: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    layer, x = layer_and_input("3x3", granularity)
    expected = layer(x)
    assert torch.equal(layer.to("cuda:1")(x.to("cuda:1")).cpu(), expected.cpu())


@every_granularity
def test_compile(granularity: str) -> None:
    model = nn.Sequential(LAYERS["4x4 s2"](), nn.ReLU(), LAYERS["transposed 4x4 s2"](), nn.Tanh())
    model = sg.sparsify(model, 0.8, granularity).to(DEVICE)
    x = torch.randn(2, 32, 16, 16, device=DEVICE)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), list(model.parameters())) for m in (compiled, model))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_training_follows_masked_dense() -> None:
    """Ten steps of Adam give the same for a small sparse generator as for a dense one with masked gradients."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.ConvTranspose2d(8, 32, 4), nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1)
    )
    sparse = sg.sparsify(copy.deepcopy(dense), 0.8, exclude="3").to(DEVICE)
    sparse[0].backend = "sparse"
    mask = sparse[0].mask()
    dense = sg.densify(copy.deepcopy(sparse)).to(DEVICE)
    networks = (sparse, dense)
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in networks]
    for _ in range(10):
        noise, wanted = torch.randn(4, 8, 1, 1, device=DEVICE), torch.randn(4, 3, 8, 8, device=DEVICE)
        losses = []
        for network, optimizer in zip(networks, optimizers, strict=True):
            loss = (network(noise) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if network is dense:
                dense[0].weight.grad.mul_(mask)
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(sparse[0].dense_weight(), dense[0].weight, rtol=1e-3, atol=1e-5)
