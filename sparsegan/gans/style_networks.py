"""The networks of StyleGAN2 (Karras et al., arXiv 1912.04958): mapping, synthesis and the residual discriminator.

Names and shapes are those of the widely used PyTorch port, but a modulated convolution holds an ordinary one. Weights
are stored as there: drawn from N(0, 1), and multiplied by 1 / sqrt(inputs) in each forward (equalised learning rate).
All tensors are floating-point, of the dtype of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.modulated import ModulatedConv

FIR = (1.0, 3.0, 3.0, 1.0)  # the filter of every resampling
EPS = 1e-8


def fir(gain: float) -> Tensor:
    """Returns the 4x4 filter, float32, with the sum `gain`."""
    row = torch.tensor(FIR)
    square = row[:, None] * row
    return gain * square / square.sum()


class EqualLinear(nn.Module):
    """x [N, inputs] -> [N, outputs], with an equalised learning rate. `rate`: the factor of the learning rate.

    `activated`: a leaky ReLU follows, as in :class:`BiasedLeakyReLU`.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0, activated: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate, self.activated = rate / math.sqrt(inputs), rate, activated

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.scale, self.bias * self.rate)
        return math.sqrt(2) * F.leaky_relu(y, 0.2) if self.activated else y


class EqualConv2d(nn.Module):
    """A convolution without bias and with an equalised learning rate, [N, inputs, H, W] -> [N, outputs, H', W']."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale, self.stride, self.padding = 1 / math.sqrt(inputs * kernel**2), stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, None, self.stride, self.padding)


class BiasedLeakyReLU(nn.LeakyReLU):
    """x [N, channels, H, W] -> sqrt(2) * leaky_relu(x + bias), which keeps the variance. The slope is 0.2.

    Losses that match activations find it by its base class.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(0.2)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(2) * super().forward(x + self.bias[:, None, None])


class Blur(nn.Module):
    """Convolves each channel with the filter, [N, channels, H, W] -> [N, channels, H + 2 padding - 3, ...].

    `gain`: the sum of the filter.
    """

    kernel: Tensor

    def __init__(self, channels: int, padding: int, gain: float = 1.0) -> None:
        super().__init__()
        self.channels, self.padding = channels, padding
        self.register_buffer("kernel", fir(gain))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.flip(0, 1).expand(self.channels, 1, -1, -1)
        return F.conv2d(x, kernel, padding=self.padding, groups=self.channels)


class Upsample(nn.Module):
    """Puts zeros between the pixels and filters the result, [N, channels, H, W] -> [N, channels, 2 H, 2 W]."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", fir(4.0))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.expand(self.channels, 1, -1, -1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=self.channels)


class StyleConv2d(nn.Module):
    """A modulated convolution of x [N, inputs, H, W] by a style w [N, style_dim].

    `up`: a transposed convolution of stride 2 and a blur double the size.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style_dim: int, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        convolution: nn.Conv2d | nn.ConvTranspose2d
        if up:
            convolution = nn.utils.skip_init(nn.ConvTranspose2d, inputs, outputs, kernel, stride=2, bias=False)
        else:
            convolution = nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.normal_(convolution.weight)
        self.modulated = ModulatedConv(convolution, demodulate, EPS)
        self.blur = Blur(outputs, padding=1, gain=4.0) if up else None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = self.modulated(x, self.modulation(w) * self.scale)
        return y if self.blur is None else self.blur(y)


class Noise(nn.Module):
    """Adds noise [N or 1, 1, H, W], times a learned strength, to all channels of x [N, C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class StyledLayer(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, up: bool = False) -> None:
        super().__init__()
        self.conv = StyleConv2d(inputs, outputs, 3, style_dim, up=up)
        self.noise = Noise()
        self.activate = BiasedLeakyReLU(outputs)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(x, w), noise))


class ToImage(nn.Module):
    """Features [N, inputs, H, W] -> images [N, channels, H, W], plus the enlarged image of the resolution below."""

    def __init__(self, inputs: int, channels: int, style_dim: int, first: bool = False) -> None:
        super().__init__()
        self.upsample = None if first else Upsample(channels)
        self.conv = StyleConv2d(inputs, channels, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, w: Tensor, below: Tensor | None = None) -> Tensor:
        image = self.conv(x, w) + self.bias
        return image if below is None or self.upsample is None else image + self.upsample(below)


class PixelNorm(nn.Module):
    """z [N, C] -> z / sqrt(mean of z^2 + eps)."""

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.rsqrt(z.square().mean(1, keepdim=True) + EPS)


class Constant(nn.Module):
    """The learned input of the synthesis, [1, channels, 4, 4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, count: int) -> Tensor:
        return self.input.expand(count, -1, -1, -1)


class Generator(nn.Module):
    """Latents z [N, style_dim] -> images [N, channels, S, S], about in [-1, 1]. S = 2**(len(widths) + 1).

    `widths`: the channels at 4, 8, ..., S pixels. `mapping`: layers of the mapping network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (512, 512, 512, 512, 512),
        style_dim: int = 512,
        mapping: int = 8,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.style_dim, self.layers, self.size = style_dim, 2 * len(widths) - 1, 2 ** (len(widths) + 1)
        layers = [EqualLinear(style_dim, style_dim, rate=0.01, activated=True) for _ in range(mapping)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = Constant(widths[0])
        self.conv1 = StyledLayer(widths[0], widths[0], style_dim)
        self.to_rgb1 = ToImage(widths[0], channels, style_dim, first=True)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for before, width in pairwise(widths):
            self.convs.append(StyledLayer(before, width, style_dim, up=True))
            self.convs.append(StyledLayer(width, width, style_dim))
            self.to_rgbs.append(ToImage(width, channels, style_dim))
        for layer, shape in enumerate(self.noise_shapes(1)):
            self.noises.register_buffer(f"noise_{layer}", torch.randn(shape))

    def noise_shapes(self, count: int) -> list[tuple[int, int, int, int]]:
        """Returns the shape of each layer's noise for `count` images: [count, 1, 4, 4], then two per resolution."""
        sides = [2 ** ((layer + 5) // 2) for layer in range(self.layers)]
        return [(count, 1, side, side) for side in sides]

    def forward(self, z: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Returns the images of latents [N, style_dim].

        `noise`: one tensor per layer, [N, 1, S', S'] or [1, 1, S', S'] of `noise_shapes`. None takes the fixed noise
        that is stored with the weights, so that the generator is a function of z.
        """
        if isinstance(z, Tensor) and z.shape[1:] != (self.style_dim,):  # no tensor while torch.fx traces
            raise ValueError(f"z has shape {tuple(z.shape)}; it must be [N, {self.style_dim}]")
        return self.synthesis(self.style(z), noise)

    def synthesis(self, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Returns the images of styles w: [N, style_dim], or [N, layers + 1, style_dim] with a style per layer."""
        if noise is None:
            noise = [getattr(self.noises, f"noise_{layer}") for layer in range(self.layers)]
        if len(noise) != self.layers:
            raise ValueError(f"noise has {len(noise)} tensors; it must have {self.layers}, one per layer")
        styles = [w] * (self.layers + 1) if w.dim() == 2 else [w[:, layer] for layer in range(self.layers + 1)]
        x = self.conv1(self.input(w.shape[0]), styles[0], noise[0])
        image = self.to_rgb1(x, styles[1])
        for index, to_rgb in enumerate(self.to_rgbs):
            first = 2 * index + 1  # the style of an image is that of the next resolution's first layer
            x = self.convs[first - 1](x, styles[first], noise[first])
            x = self.convs[first](x, styles[first + 1], noise[first + 1])
            image = to_rgb(x, styles[first + 2], image)
        return image


def _layer(inputs: int, outputs: int, kernel: int, down: bool = False, activated: bool = True) -> nn.Sequential:
    """Returns a convolution of the discriminator; `down`: behind a blur, and with stride 2."""
    layers: list[nn.Module] = [Blur(inputs, padding=(kernel + 1) // 2)] if down else []
    layers.append(
        EqualConv2d(inputs, outputs, kernel, 2, 0) if down else EqualConv2d(inputs, outputs, kernel, 1, kernel // 2)
    )
    return nn.Sequential(*layers, *([BiasedLeakyReLU(outputs)] if activated else []))


class JudgeBlock(nn.Module):
    """A residual block that halves the size, [N, inputs, H, W] -> [N, outputs, H / 2, W / 2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _layer(inputs, inputs, 3)
        self.conv2 = _layer(inputs, outputs, 3, down=True)
        self.skip = _layer(inputs, outputs, 1, down=True, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Images [N, channels, S, S] -> logits of being real [N, 1]. S = 2**(len(widths) + 1), `widths` as in Generator."""

    def __init__(self, widths: Sequence[int] = (512, 512, 512, 512, 512), channels: int = 3) -> None:
        super().__init__()
        self.size = 2 ** (len(widths) + 1)
        blocks = [JudgeBlock(wide, width) for wide, width in zip(widths[:0:-1], widths[-2::-1], strict=True)]
        self.convs = nn.Sequential(_layer(channels, widths[-1], 1), *blocks)
        self.final_conv = _layer(widths[0] + 1, widths[0], 3)
        self.final_linear = nn.Sequential(
            EqualLinear(16 * widths[0], widths[0], activated=True), EqualLinear(widths[0], 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (self.size, self.size):
            raise ValueError(f"images are {images.shape[2]}x{images.shape[3]}; they must be {self.size}x{self.size}")
        x = self.convs(images)
        return self.final_linear(self.final_conv(torch.cat([x, deviation(x)], 1)).flatten(1))


def deviation(x: Tensor) -> Tensor:
    """Returns the mean standard deviation within groups of images, [N, 1, H, W] for x [N, C, H, W].

    The images n, n + N / g, ... form a group of g, the largest number up to 4 that divides N.
    """
    group = next(size for size in (4, 3, 2, 1) if len(x) % size == 0)
    parts = x.unflatten(0, (group, -1))
    spread = (parts.var(0, correction=0) + EPS).sqrt().mean((1, 2, 3), keepdim=True)
    return spread.repeat(group, 1, *x.shape[2:])
