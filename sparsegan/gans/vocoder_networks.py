"""The networks of HiFi-GAN (Kong, Kim and Bae, arXiv 2010.05646): the generator, and the discriminator of eight scales.

Names and shapes are those of the public jik876/hifi-gan, without its weight norms. All tensors are floating-point, of
the dtype of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from .parts import check, check_choice

#: The dilations that the public configurations use, by the kind of block. Shapes do not show them.
DILATIONS = {"1": "1-3-5", "2": "1-2/2-6/3-12"}
_SLOPE = 0.1


def numbers(name: str, text: Any) -> tuple[int, ...]:
    """The integers of a size such as "8-8-2-2". Raises ValueError for another text and for numbers below 1."""
    parts = str(text).split("-")
    if not all(part.isdecimal() and part.isascii() and int(part) >= 1 for part in parts):
        raise ValueError(f"{name} is {text!r}; it must be integers of at least 1, joined by '-', such as 8-8-2-2")
    return tuple(map(int, parts))


def _same(kernel: int, dilation: int = 1) -> int:
    """The padding with which a convolution keeps the length."""
    return dilation * (kernel - 1) // 2


class Block1(nn.Module):
    """x -> x + two convolutions of x, once per dilation; [N, width, T] -> the same. The second has no dilation."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1, self.convs2 = (
            nn.ModuleList(nn.Conv1d(width, width, kernel, dilation=d, padding=_same(kernel, d)) for d in row)
            for row in (dilations, [1] * len(dilations))
        )
        self.lrelu = nn.LeakyReLU(_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(self.lrelu(first(self.lrelu(x))))
        return x


class Block2(nn.Module):
    """x -> x + a convolution of x, once per dilation; [N, width, T] -> the same."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=_same(kernel, d)) for d in dilations
        )
        self.lrelu = nn.LeakyReLU(_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(self.lrelu(x))
        return x


class Generator(nn.Module):
    """Mel spectrograms [N, bands, T] in natural logarithms -> sounds [N, 1, T * the product of `rates`] in [-1, 1].

    `width`: channels before the first upsampling; each upsampling halves them, rounded down. `rates`, `kernels`: stride
    and kernel size of each transposed convolution. `block`: "1" or "2", the kind of the residual blocks.
    `block_kernels`: kernel sizes of the blocks that run side by side. `dilations`: those of each block in turn,
    separated by "/", or one list for all. Raises ValueError for sizes that do not fit together.
    """

    def __init__(
        self,
        width: int = 512,
        bands: int = 80,
        block: str = "1",
        rates: str = "8-8-2-2",
        kernels: str = "16-16-4-4",
        block_kernels: str = "3-7-11",
        dilations: str | None = None,
    ) -> None:
        super().__init__()
        check(width=width, bands=bands)
        block = str(block)
        check_choice("block", block, ("1", "2"))
        strides, sizes = numbers("rates", rates), numbers("kernels", kernels)
        side_by_side = numbers("block_kernels", block_kernels)
        rows = [numbers("dilations", part) for part in str(dilations or DILATIONS[block]).split("/")]
        if len(strides) != len(sizes) or any(k < r or (k - r) % 2 for k, r in zip(sizes, strides, strict=False)):
            raise ValueError(
                f"rates is {rates} and kernels is {kernels}; each rate needs a kernel that is larger by an even number"
            )
        if len(rows) == 1:
            rows = rows * len(side_by_side)
        if len(rows) != len(side_by_side) or any(kernel % 2 == 0 for kernel in side_by_side):
            raise ValueError(
                f"block_kernels is {block_kernels} and dilations is {dilations}; the kernels must be odd, with one "
                "list of dilations for each or one for all"
            )
        if not width >> len(strides):
            raise ValueError(f"width is {width}; with {len(strides)} rates it must be at least {2 ** len(strides)}")
        self.hop = math.prod(strides)
        self.conv_pre = nn.Conv1d(bands, width, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(width >> level, width >> (level + 1), kernel, stride, (kernel - stride) // 2)
            for level, (stride, kernel) in enumerate(zip(strides, sizes, strict=True))
        )
        kind = Block1 if block == "1" else Block2
        self.resblocks = nn.ModuleList(
            kind(width >> (level + 1), kernel, row)
            for level in range(len(strides))
            for kernel, row in zip(side_by_side, rows, strict=True)
        )
        self.conv_post = nn.Conv1d(width >> len(strides), 1, 7, padding=3)
        self.lrelu, self.last_lrelu = nn.LeakyReLU(_SLOPE), nn.LeakyReLU()  # the public code's last slope is torch's

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        count = len(self.resblocks) // len(self.ups)
        for level, up in enumerate(self.ups):
            x = up(self.lrelu(x))
            made = self.resblocks[count * level](x)
            for index in range(1, count):
                made = made + self.resblocks[count * level + index](x)
            x = made / count
        return torch.tanh(self.conv_post(self.last_lrelu(x)))


#: The scores [N, places] of each scale, and its activations.
Judged = tuple[list[Tensor], list[list[Tensor]]]


class Scale(nn.Module):
    """Convolutions of a sound or of its folds: x -> (score [N, places], activations). The last one is the score's."""

    def __init__(self, layers: list[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.convs, self.conv_post = nn.ModuleList(layers), last
        self.lrelu = nn.LeakyReLU(_SLOPE)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = []
        for conv in self.convs:
            x = self.lrelu(conv(x))
            found.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*found, x]


class Periods(nn.Module):
    """A sound [N, 1, T] -> its judgement at several periods: a scale sees it folded into rows of `period` samples."""

    def __init__(self, width: int, periods: tuple[int, ...]) -> None:
        super().__init__()
        self.periods = periods
        channels = (1, width, 4 * width, 16 * width, 32 * width)
        self.discriminators = nn.ModuleList(
            Scale(
                [
                    *(nn.Conv2d(before, after, (5, 1), (3, 1), padding=(2, 0)) for before, after in pairwise(channels)),
                    nn.Conv2d(32 * width, 32 * width, (5, 1), padding=(2, 0)),
                ],
                nn.Conv2d(32 * width, 1, (3, 1), padding=(1, 0)),
            )
            for _ in periods
        )

    def forward(self, sound: Tensor) -> Judged:
        scores, features = [], []
        for period, scale in zip(self.periods, self.discriminators, strict=True):
            missing = -sound.shape[2] % period
            whole = F.pad(sound, (0, missing), mode="reflect") if missing else sound
            score, found = scale(whole.unflatten(2, (-1, period)))
            scores.append(score)
            features.append(found)
        return scores, features


class Averages(nn.Module):
    """A sound [N, 1, T] -> its judgement at three sizes: itself, and its means over four samples, once and twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (
            *((1, 4, 15, 1, 1), (4, 4, 41, 2, 4), (4, 8, 41, 2, 16), (8, 16, 41, 4, 16), (16, 32, 41, 4, 16)),
            *((32, 32, 41, 1, 16), (32, 32, 5, 1, 1)),
        )

        def scale(norm: Callable[[nn.Module], nn.Module]) -> Scale:
            layers = [
                norm(
                    nn.Conv1d(
                        1 if index == 0 else before * width, after * width, kernel, stride, _same(kernel), groups=groups
                    )
                )
                for index, (before, after, kernel, stride, groups) in enumerate(sizes)
            ]
            return Scale(layers, norm(nn.Conv1d(32 * width, 1, 3, padding=1)))

        self.discriminators = nn.ModuleList([scale(spectral_norm), *(scale(lambda conv: conv) for _ in range(2))])
        self.pool = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, sound: Tensor) -> Judged:
        scores, features = [], []
        for index, scale in enumerate(self.discriminators):
            sound = self.pool(sound) if index else sound
            score, found = scale(sound)
            scores.append(score)
            features.append(found)
        return scores, features


class Discriminator(nn.Module):
    """Sounds [N, 1, T] -> (scores of the eight scales, their activations): five periods, then three sizes.

    `width`: 32 in the published one, a multiple of 4. The first of the three sizes has a spectral norm.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        check(discriminator_width=width)
        if width % 4:
            raise ValueError(f"discriminator_width is {width}; it must be a multiple of 4")
        self.mpd, self.msd = Periods(width, (2, 3, 5, 7, 11)), Averages(width)

    def forward(self, sound: Tensor) -> Judged:
        both = self.mpd(sound), self.msd(sound)
        return both[0][0] + both[1][0], both[0][1] + both[1][1]
