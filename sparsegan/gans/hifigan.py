"""HiFi-GAN (Kong, Kim and Bae, arXiv 2010.05646): a vocoder, which turns mel spectrograms into sounds.

Layer names and shapes are those of the public jik876/hifi-gan, without its weight norms: `state_dicts.py` folds a
weight norm of a file into plain weights. The three published generators are `SIZES`. A batch is a sound y, float
[N, 1, T] in [-1, 1], and the generator G gets its mel spectrogram x. D has eight scales, and each gives a score per
place and its activations D_l. The terms and weights are those of the paper's equations 4 to 8:

    D minimises Dis = sum over scales  mean (D(y) - 1)^2 + mean D(G(x))^2
    Gen      = sum over scales  mean (D(G(x)) - 1)^2
    Features = sum over scales and layers l  mean |D_l(y) - D_l(G(x))|
    Mel      = mean |mel(y) - mel(G(x))|                               with bands up to half the rate
    G minimises Gen + 2 Features + 45 Mel

A picture of a sound is its mel spectrogram, also with bands up to half the rate. Where images are compared, these
pictures are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from ..data.kinds import SOUNDS
from ..spectrograms import Mel, picture, stft_distance, strengths
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, check, check_choice, count_up, size_of
from .reference import Reference, Training, Way

#: The arguments of `build` for the published generators.
SIZES: dict[str, dict[str, Any]] = {
    "V1": {"width": 512},
    "V2": {"width": 128},
    "V3": {
        "width": 256,
        "block": "2",
        "rates": "8-8-4",
        "kernels": "16-16-8",
        "block_kernels": "3-5-7",
        "dilations": "1-2/2-6/3-12",
    },
}
#: The dilations that the public configurations use, by the kind of block. Shapes do not show them.
_DILATIONS = {"1": "1-3-5", "2": SIZES["V3"]["dilations"]}
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
        rows = [numbers("dilations", part) for part in str(dilations or _DILATIONS[block]).split("/")]
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


# Losses


def _sum_of_means(values: list[Tensor], reduce: Reduce) -> Tensor:
    """The sum of the means of several [N, places], by a reduction that takes one tensor with a row per sample."""
    places = sum(one.shape[1] for one in values)
    return reduce(torch.cat([one * (places / one.shape[1]) for one in values], 1))


def target(fake: Tensor, sound: Tensor) -> Tensor:
    """The sound, cut to the whole frames of which `fake` was made."""
    return sound[:, :, : fake.shape[2]]


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Tensor, reduce: Reduce = mean
) -> Terms:
    """Returns {"dis": Dis}."""
    real, made = discriminator(target(fake, batch))[0], discriminator(fake)[0]
    on_real = _sum_of_means([(one - 1).square() for one in real], reduce)
    return {"dis": on_real + _sum_of_means([one.square() for one in made], reduce)}


def objective_for(mel: Mel) -> Objective:
    """Returns the objective of a generator that takes mel spectrograms of these settings."""
    full = replace(mel, high=None)

    def generate(generator: nn.Module, batch: Tensor) -> Tensor:
        return generator(mel(batch))

    def generator_terms(
        generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Tensor, reduce: Reduce = mean
    ) -> Terms:
        """Returns {"gen": Gen, "features": Features, "mel": Mel}."""
        real = target(fake, batch)
        with torch.no_grad():
            wanted = discriminator(real)[1]
        scores, found = discriminator(fake)
        layers = [
            (ours - theirs).abs().flatten(1).mean(1)
            for scale, others in zip(found, wanted, strict=True)
            for ours, theirs in zip(scale, others, strict=True)
        ]
        return {
            "gen": _sum_of_means([(one - 1).square() for one in scores], reduce),
            "features": reduce(torch.stack(layers, 1) * len(layers)),
            "mel": reduce((full(real) - full(fake)).abs()),
        }

    def views(fake: Tensor, batch: Tensor) -> dict[str, View]:
        return {"sound": View(None, picture(full(fake)), picture(full(target(fake, batch))), paired=True)}

    def compared(fake: Tensor) -> dict[str, Tensor]:
        """The sound as an image of one row, its mel spectrogram, and its STFT at several resolutions."""
        pictures = {f"stft {index}": picture(one.log()) for index, one in enumerate(strengths(fake))}
        return {"sound": fake.unsqueeze(2), "mel": picture(full(fake)), **pictures}

    def measures(fake: Tensor, batch: Tensor) -> dict[str, Tensor]:
        real = target(fake, batch)
        return {
            "mel L1": (full(fake) - full(real)).abs().mean((1, 2)),
            "multi-resolution STFT": stft_distance(fake, real),
        }

    return Objective(
        generator_terms,
        discriminator_terms,
        generate,
        {"features": 2.0, "mel": 45.0},
        distances=("mel",),
        own=lambda fake, batch: fake,
        views=views,
        compared=compared,
        measures=measures,
    )


def mel_of(network: Mapping[str, Any]) -> Mel:
    """The mel spectrogram that a generator of these sizes takes."""
    known = {name: network[name] for name in ("rate", "n_fft", "window", "bands", "low", "high") if name in network}
    return Mel(hop=math.prod(numbers("rates", network.get("rates", "8-8-2-2"))), **known)


def build(
    *,
    width: int,
    bands: int = 80,
    block: str = "1",
    rates: str = "8-8-2-2",
    kernels: str = "16-16-4-4",
    block_kernels: str = "3-7-11",
    dilations: str | None = None,
    rate: int = 22050,
    n_fft: int = 1024,
    window: int = 1024,
    low: float = 0,
    high: float | None = 8000,
    discriminator_width: int = 32,
) -> tuple[Generator, Discriminator]:
    """Returns untrained networks. The sizes from `width` to `dilations` are the generator's.

    `rate`, `n_fft`, `window`, `low`, `high`: of the mel spectrograms, see `sparsegan.spectrograms.Mel`. Their hop is
    the product of `rates`. `discriminator_width`: see `Discriminator`.
    """
    generator = Generator(width, bands, block, rates, kernels, block_kernels, dilations)
    Mel(rate, n_fft, generator.hop, window, bands, low, high)  # raises for settings that contradict each other
    return generator, Discriminator(discriminator_width)


# Public files


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns the arguments of `build` that fit a generator's state_dict.

    Shapes show neither the rates nor the dilations. A rate is half of its kernel size, as in the public configurations,
    and the dilations are those of the published generators. `beside` reads both from a public config.json.
    """
    ups = max(count_up(state, "ups.{}.weight"), 1)
    kernels = [size_of(state, f"ups.{index}.weight", 2, 4) for index in range(ups)]
    blocks = max(count_up(state, "resblocks.{}.convs1.0.weight"), count_up(state, "resblocks.{}.convs.0.weight"), 1)
    block = "1" if "resblocks.0.convs1.0.weight" in state else "2"
    layers = "convs1" if block == "1" else "convs"
    side_by_side = [size_of(state, f"resblocks.{index}.{layers}.0.weight", 2, 3) for index in range(blocks // ups)]
    rows = _DILATIONS[block].split("/")
    depth = max(count_up(state, f"resblocks.0.{layers}.{{}}.weight"), 1)
    if depth != len(rows[0].split("-")) or len(rows) not in (1, len(side_by_side)):
        rows = ["-".join(str(2 * index + 1) for index in range(depth))]  # the pattern of the public 1-3-5
    return [
        {
            "width": size_of(state, "conv_pre.weight", 0, 512),
            "bands": size_of(state, "conv_pre.weight", 1, 80),
            "block": block,
            "rates": "-".join(str(max(kernel // 2, 1)) for kernel in kernels),
            "kernels": "-".join(map(str, kernels)),
            "block_kernels": "-".join(map(str, side_by_side or [3])),
            "dilations": "/".join(rows),
        }
    ]


def discriminator_sizes(state: State) -> dict[str, Any]:
    """Returns the arguments of `build` that a discriminator's state_dict decides."""
    return {"discriminator_width": size_of(state, "mpd.discriminators.0.convs.0.weight", 0, 32)}


#: Names in a public config.json -> arguments of `build`.
_PUBLIC = {
    **{"upsample_initial_channel": "width", "num_mels": "bands", "resblock": "block", "upsample_rates": "rates"},
    **{"upsample_kernel_sizes": "kernels", "resblock_kernel_sizes": "block_kernels", "sampling_rate": "rate"},
    **{"resblock_dilation_sizes": "dilations", "n_fft": "n_fft", "win_size": "window", "fmin": "low", "fmax": "high"},
}


def beside(file: Path) -> dict[str, Any]:
    """Returns the arguments of `build` in the public config.json in the folder of a generator's file.

    Returns {} where the folder has none. Raises ValueError for a config.json that names upsample_rates and cannot be
    read as the public one.
    """
    config = file.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # it is of something else
    if not isinstance(found, dict) or "upsample_rates" not in found:
        return {}
    rates = found["upsample_rates"]
    if not isinstance(rates, list) or not all(isinstance(one, int) and one > 0 for one in rates):
        raise ValueError(f"{config} has upsample_rates {rates!r}; they must be a list of integers")
    if found.get("hop_size", math.prod(rates)) != math.prod(rates):
        raise ValueError(
            f"{config} has hop_size {found['hop_size']}; it must be the product of upsample_rates, {math.prod(rates)}"
        )
    return {name: _text(found[public]) for public, name in _PUBLIC.items() if public in found}


def _text(value: Any) -> Any:
    """A value of a public config.json as an argument of `build`: lists become texts such as 1-3-5/1-3-5."""
    if not isinstance(value, list):
        return value
    nested = any(isinstance(one, list) for one in value)
    return "/".join(map(_text, value)) if nested else "-".join(map(str, value))


def example(network: Mapping[str, Any], count: int, size: int) -> tuple[Tensor, ...]:
    """Returns random mel spectrograms of sounds of `size` samples."""
    mel = mel_of(network)
    return (2 * torch.randn(count, mel.bands, max(size // mel.hop, 1)) - 5,)


def ways(generator: nn.Module, config: Mapping[str, Any]) -> dict[str, Way]:
    """Returns the one way from sounds to sounds: by their mel spectrograms."""
    mel = mel_of(config["network"])
    return {"": Way(generator, lambda sounds: (mel(sounds),))}


reference = Reference(
    name="hifigan",
    text="speech from mel spectrograms",
    build=build,
    objective=lambda network: objective_for(mel_of(network)),
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    beside=beside,
    files=((), ("mpd", "msd")),
    example=example,
    ways=ways,
    samples=SOUNDS,
    network={**SIZES["V3"], "width": 128, "discriminator_width": 8},
    training=Training(
        data="speech", size=8192, batch=8, steps=20000, lr=2e-4, discriminator_lr=2e-4, betas=(0.8, 0.99), decay=True
    ),
)
