"""Spectrograms of sounds, computed by torch: mel spectrograms, their pictures, and distances between sounds.

A sound is a float tensor [N, 1, T] of samples in [-1, 1]. The mel spectrogram is that of the public HiFi-GAN: the sound
is padded by reflection so that every `hop` samples have one frame, a periodic Hann window is applied, and

    mel = log max(W sqrt(|STFT|^2 + 1e-9), 1e-5)

W has triangular bands on Slaney's mel scale (linear up to 1,000 Hz, logarithmic above: 27 mels per factor of 6.4), and
the area of each band is 1 (Slaney, "Auditory Toolbox", Interval Research Corporation, Technical Report 1998-010).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: FFT length, hop and window length in samples of the multi-resolution STFT distance (Yamamoto, Song and Kim, "Parallel
#: WaveGAN", arXiv 1910.11480).
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
#: The natural logarithms that are black and white in a picture.
_BLACK, _WHITE = -11.5, 2.5


@dataclass(frozen=True)
class Mel:
    """The settings of a mel spectrogram. By default they are those of the public HiFi-GAN's input.

    `rate`: samples per second. `n_fft`, `hop`, `window`: the length of the transform, the samples from one frame to the
    next, and the length of the window. `bands`: the number of mel bands from `low` to `high` Hz; None: to rate / 2.
    Raises ValueError for settings that contradict each other.
    """

    rate: int = 22050
    n_fft: int = 1024
    hop: int = 256
    window: int = 1024
    bands: int = 80
    low: float = 0.0
    high: float | None = 8000.0

    def __post_init__(self) -> None:
        for name in ("rate", "n_fft", "hop", "window", "bands"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer, at least 1")
        if not self.hop <= self.n_fft or not self.window <= self.n_fft:
            raise ValueError(f"n_fft is {self.n_fft}; it must be at least hop, {self.hop}, and window, {self.window}")
        if not 0 <= self.low < self.top <= self.rate / 2:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; they must be frequencies from 0 to {self.rate / 2:g} Hz, "
                "low below high"
            )

    @property
    def top(self) -> float:
        """The upper end of the highest band in Hz."""
        return self.rate / 2 if self.high is None else self.high

    @property
    def least(self) -> int:
        """The fewest samples of a sound, which the padding by reflection needs."""
        return max(self.n_fft - self.hop - (self.n_fft - self.hop) // 2 + 1, self.hop)

    def __call__(self, sound: Tensor) -> Tensor:
        """The mel spectrogram [N, bands, T // hop] of a sound [N, 1, T], in natural logarithms, differentiable.

        Raises ValueError for a tensor of another shape and for a sound that is shorter than `least`.
        """
        _check(sound)
        if sound.shape[2] < self.least:
            raise ValueError(
                f"the sound has {sound.shape[2]} samples; a mel spectrogram with these settings needs {self.least}"
            )
        left = (self.n_fft - self.hop) // 2
        with torch.autocast(sound.device.type, enabled=False):
            wide = sound if sound.dtype == torch.float64 else sound.float()
            padded = F.pad(wide, (left, self.n_fft - self.hop - left), mode="reflect").squeeze(1)
            strength = (_powers(padded, self.n_fft, self.hop, self.window, center=False) + 1e-9).sqrt()
            bands = mel_bands(self.rate, self.n_fft, self.bands, self.low, self.top).to(strength)
            return (bands @ strength).clamp_min(1e-5).log()


def _check(sound: Tensor) -> None:
    if sound.dim() != 3 or sound.shape[1] != 1:
        raise ValueError(f"a sound has shape {tuple(sound.shape)}; it must be [N, 1, T]")


def _powers(padded: Tensor, n_fft: int, hop: int, window: int, center: bool) -> Tensor:
    """|STFT|^2 of sounds [N, T], [N, n_fft // 2 + 1, frames]."""
    hann = torch.hann_window(window, dtype=padded.dtype, device=padded.device)
    found = torch.stft(padded, n_fft, hop, window, hann, center=center, pad_mode="constant", return_complex=True)
    return found.real.square() + found.imag.square()


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def _mels(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


@lru_cache(maxsize=16)
def mel_bands(rate: int, n_fft: int, bands: int, low: float, high: float) -> Tensor:
    """The weights W of the module's text, float64 [bands, n_fft // 2 + 1]. `low`, `high`: in Hz."""
    edges = _hertz(np.linspace(_mels(low), _mels(high), bands + 2))[:, None]
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return torch.from_numpy(triangles * 2 / (edges[2:] - edges[:-2]))


def picture(logarithms: Tensor) -> Tensor:
    """A spectrogram [N, bands, frames] in natural logarithms as pictures [N, 1, bands, frames] in [-1, 1].

    The lowest band is the lowest row. Below e^-11.5 all is black, and above e^2.5 all is white.
    """
    scaled = (logarithms - _BLACK) / (_WHITE - _BLACK) * 2 - 1
    return scaled.clamp(-1, 1).flip(1).unsqueeze(1)


def strengths(sound: Tensor) -> list[Tensor]:
    """|STFT| of a sound [N, 1, T] at each of `RESOLUTIONS`, [N, frequencies, frames] each. The ends are zero-padded."""
    _check(sound)
    with torch.autocast(sound.device.type, enabled=False):
        wide = (sound if sound.dtype == torch.float64 else sound.float()).squeeze(1)
        return [(_powers(wide, *one, center=True) + 1e-7).sqrt() for one in RESOLUTIONS]


def stft_distance(fake: Tensor, real: Tensor) -> Tensor:
    """The multi-resolution STFT distance of sounds `fake` to `real`, [N, 1, T] each; [N].

    At each of `RESOLUTIONS` it is |S_r - S_f| / |S_r| (Frobenius norms of the strengths) plus mean |log S_r - log S_f|.
    The result is the mean over the resolutions.
    """
    parts = []
    for ours, theirs in zip(strengths(fake), strengths(real), strict=True):
        gap = (theirs - ours).square().sum((1, 2)).sqrt() / theirs.square().sum((1, 2)).sqrt()
        parts.append(gap + (theirs.log() - ours.log()).abs().mean((1, 2)))
    return torch.stack(parts).mean(0)
