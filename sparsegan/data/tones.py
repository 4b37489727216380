"""Synthetic sounds for generators that start from a sound, where no sounds are at hand.

Each sound is a row of syllables. A voiced syllable is a sum of harmonics of a gliding pitch, and three resonances shape
their strengths, as in vowels. Other syllables are noise, and some are silent. They are not speech, but their
spectrograms have the parts of speech: lines, bands, noise, edges and silence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .layouts import Reading
from .samples import Samples
from .sounds import Sounds, cells_of

#: The name of the set for `data.load` and --data.
NAME = "tones"
COUNT = 192
#: The seed of each split. The splits have no sound in common.
SEEDS = {"train": 0, "fit": 0, "all": 0, "test": 1, "validation": 2}
#: Samples per second for which the pitches and resonances are meant.
RATE = 22050


def sounds(count: int, length: int, seed: int = 0) -> Tensor:
    """Returns `count` sounds, float32 [count, 1, length] in [-1, 1]. They depend on the arguments alone."""
    draws = torch.Generator().manual_seed(seed)
    made = torch.zeros(count, 1, length)
    for sound in made[:, 0]:
        start = 0
        while start < length:
            kind, duration, loudness = torch.rand(3, generator=draws).tolist()
            size = min(int((0.06 + 0.2 * duration) * RATE), length - start)
            if kind < 0.9:
                part = _voiced(size, draws) if kind < 0.65 else _noise(size, draws)
                rise = torch.linspace(0, math.pi, size).sin().clamp_min(0).sqrt()  # sin(pi) may be below 0
                sound[start : start + size] = part * rise * 10 ** (-1.2 * loudness)
            start += size
    return made.clamp(-1, 1)


def _voiced(size: int, draws: torch.Generator) -> Tensor:
    """A sum of harmonics whose pitch glides, [size]."""
    low, glide, *places = torch.rand(5, generator=draws).tolist()
    pitch = 80 * 4**low * torch.linspace(1, 0.7 + 0.6 * glide, size)
    orders = torch.arange(1, int(6000 / pitch.max()) + 1).unsqueeze(1)
    angles = 2 * math.pi * pitch.double().cumsum(0) / RATE
    starts = 2 * math.pi * torch.rand(len(orders), 1, generator=draws)
    hertz = orders * pitch
    weights = sum(
        1 / (1 + ((hertz - centre) / width).square())
        for centre, width in (
            (250 + 600 * places[0], 90),
            (900 + 1500 * places[1], 140),
            (2500 + 1200 * places[2], 220),
        )
    )
    waves = weights / orders.sqrt() * (orders * angles % (2 * math.pi) + starts).sin()
    return (0.3 * waves.sum(0)).float()


def _noise(size: int, draws: torch.Generator) -> Tensor:
    """Noise that leans to low or to high frequencies, [size]."""
    noise, (lean,) = torch.randn(size + 1, generator=draws), torch.rand(1, generator=draws).tolist()
    return 0.1 * (noise[1:] + (2 * lean - 1) * noise[:-1])


def samples(kind: str, how: Reading) -> Samples:
    """Returns samples of the kind "sounds". Raises ValueError for another kind."""
    if kind != "sounds":
        raise ValueError(f"{NAME} are sounds; this GAN learns from {kind}: name real images")
    length = 2 * how.size
    made = list(sounds(COUNT // 2, length, SEEDS[how.split]))
    cells = cells_of([length] * len(made), how.size)
    names = [f"{NAME}/{index} from {start}" for index, start in cells.tolist()]
    return Sounds(made, names, how.size, cells=cells, rate=None, **how.training)
