"""HiFi-GAN (Kong, Kim and Bae, arXiv 2010.05646): a vocoder, which turns mel spectrograms into sounds.

The networks are in `vocoder_networks.py`. Their names and shapes are the public ones without weight norms:
`state_dicts.py` folds a weight norm of a file into plain weights. The three published generators are `SIZES`. A batch
is a sound y, float [N, 1, T] in [-1, 1], and the generator G gets its mel spectrogram x. D has eight scales, and each
gives a score per place and its activations D_l. The terms and weights are those of the paper's equations 4 to 8:

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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.kinds import SOUNDS
from ..spectrograms import Mel, picture, stft_distance, strengths
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, count_up, size_of
from .reference import Reference, Training, Way
from .vocoder_networks import DILATIONS, Discriminator, Generator, numbers

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
        "dilations": DILATIONS["2"],
    },
}

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
    rows = DILATIONS[block].split("/")
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
