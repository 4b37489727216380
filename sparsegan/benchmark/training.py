"""Training: forward and backward of a layer against dense, memory of a model, and the time of a new mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.replace import sparse_layers
from ..ops import native
from ..ops.plan import compile_plan
from ..profiling.macs import masked_dense_bytes, training_bytes
from ..pruning.surgery import sparsify
from .cases import LAYERS, Job, target
from .engines import against_dense, timed
from .layers import both_layers, check_same, multiplications
from .results import verdict

#: Upper limits at 90 %: memory over that of masked-dense training, and time of a new mask over a training step.
MEMORY_TARGET = 0.16
NEW_MASK_TARGET = 1.0


def time_training(job: Job, seconds: float) -> dict[str, Any]:
    """The fields of a row: forward and backward of a layer, with gradients in its input and its weights.

    Dense is the faster of torch NCHW and torch channels_last (its tensors are converted beforehand), with zeros in
    place and no mask applied.
    """
    layer, dense, x = both_layers(job)
    for bias in (layer.bias, dense.bias):
        assert bias is not None
        bias.requires_grad_(False)
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x.requires_grad_()
    x_last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = dense(x).detach()
    gy = torch.randn_like(y)
    gy_last = gy.contiguous(memory_format=torch.channels_last)

    def both(module: nn.Module, weight: Tensor, x: Tensor, gy: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x), (x, weight), gy)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(job.threads)
        ours, theirs = both(layer, layer.values, x, gy), both(dense, dense.weight, x, gy)
        check_same(ours[0], theirs[0], f"{job.case}: the gradient in the input")
        check_same(ours[1], theirs[1].flatten()[layer.positions()], f"{job.case}: the gradient in the values")
        row = against_dense(
            lambda: both(layer, layer.values, x, gy),
            {
                "torch": lambda: both(dense, dense.weight, x, gy),
                "torch channels_last": lambda: both(last, last.weight, x_last, gy_last),
            },
            seconds,
        )
    finally:
        torch.set_num_threads(before)
    choice = layer.choose(tuple(x.shape), (y.shape[2], y.shape[3]))
    return {
        **row,
        **verdict(row["ratio"], target(job, native.isa(), training=True)),
        "backend": choice.backend,
        "gflops": 6e-6 * multiplications(layer, x, y) / row["sparse_ms"],
    }


class CycleGanGenerator(nn.Sequential):
    """CycleGAN's generator for 256x256 images: three convolutions, nine residual blocks, three convolutions.

    Args:
        width: channels after the first layer, 64 in the paper.
    """

    def __init__(self, width: int = 64) -> None:
        w = width
        super().__init__(
            *_normed(nn.Conv2d(3, w, 7, padding=3, padding_mode="reflect")),
            *_normed(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1)),
            *_normed(nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1)),
            *(_Residual(4 * w) for _ in range(9)),
            *_normed(nn.ConvTranspose2d(4 * w, 2 * w, 3, stride=2, padding=1, output_padding=1)),
            *_normed(nn.ConvTranspose2d(2 * w, w, 3, stride=2, padding=1, output_padding=1)),
            nn.Conv2d(w, 3, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )


class _Residual(nn.Module):
    """``x + conv(relu(conv(x)))``, with an instance norm after each convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        second = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.body = nn.Sequential(*_normed(first), second, nn.InstanceNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _normed(conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return conv, nn.InstanceNorm2d(conv.out_channels), nn.ReLU(inplace=True)


def _training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, forward: Callable[[], Tensor]
) -> Callable[[], None]:
    """A function that runs forward, backward and the optimizer's step."""

    def step() -> None:
        model.zero_grad()
        forward().square().mean().backward()
        optimizer.step()

    return step


def training_memory(sparsity: float, width: int = 64) -> list[dict[str, Any]]:
    """Bytes that training holds after a step of Adam, for all of :data:`LAYERS` together and for CycleGAN's generator.

    Every layer runs its sparse kernels, so the plans of both directions exist. Workspace is the memory that the kernels
    hold for all layers that the process has run. Activations are not counted.
    """
    torch.manual_seed(0)
    layers = sparsify(nn.ModuleList(case.dense() for case in LAYERS), sparsity)
    inputs = [case.input().requires_grad_() for case in LAYERS]
    generator = sparsify(CycleGanGenerator(width), sparsity)
    image = torch.randn(1, 3, 256, 256, requires_grad=True)

    def all_layers() -> Tensor:
        return torch.stack([layer(x).square().mean() for layer, x in zip(layers, inputs, strict=True)])

    rows = []
    models: list[tuple[str, nn.Module, Callable[[], Tensor]]] = [
        ("the layers above", layers, all_layers),
        ("CycleGAN generator", generator, lambda: generator(image)),
    ]
    for name, model, forward in models:
        for _name, layer in sparse_layers(model):
            layer.backend = "sparse"
        optimizer = torch.optim.Adam(model.parameters())
        _training_step(model, optimizer, forward)()
        held, dense = training_bytes(model, optimizer), masked_dense_bytes(model)
        ratio = sum(held.values()) / dense
        rows.append(
            {
                "model": name,
                "sparsity": sparsity,
                **held,
                "workspace": native.workspace_bytes(),
                "masked_dense": dense,
                "ratio": ratio,
                "target": MEMORY_TARGET if sparsity == 0.9 else None,
                "holds": ratio <= MEMORY_TARGET if sparsity == 0.9 else None,
            }
        )
    return rows


def time_new_mask(sparsity: float, threads: int, seconds: float, width: int = 64) -> dict[str, Any]:
    """Time of a new mask for CycleGAN's generator (all plans, both directions) against one step of its training.

    A step is a sparse forward, backward and Adam step for one 256x256 image. The plans are those that a step needs.
    """
    torch.manual_seed(0)
    generator = sparsify(CycleGanGenerator(width), sparsity)
    image = torch.randn(1, 3, 256, 256)
    layers = [layer for _name, layer in sparse_layers(generator)]

    def plans() -> None:
        for layer in layers:
            for adjoint in (False, True):
                compile_plan(layer.support, layer.geometry, adjoint)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        step = _training_step(generator, torch.optim.Adam(generator.parameters()), lambda: generator(image))
        new_mask, training = timed([plans, step], seconds)
    finally:
        torch.set_num_threads(before)
    ratio = new_mask.median / training.median
    return {
        "sparsity": sparsity,
        "threads": threads,
        "plans_ms": new_mask.median,
        "plans_quartiles_ms": new_mask.quartiles,
        "step_ms": training.median,
        "step_quartiles_ms": training.quartiles,
        "ratio": ratio,
        "target": NEW_MASK_TARGET if sparsity == 0.9 else None,
        "holds": ratio < NEW_MASK_TARGET if sparsity == 0.9 else None,
    }
