"""Sounds in commands: `sparsegan generate --sounds`, and the players of a report."""

from __future__ import annotations

import argparse
import base64
import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.sounds import Sounds, files_of
from ..data.wav import read_wav, to_wav, write_wav
from ..gans import store
from ..modes import in_mode
from ..placement import device_of
from ..progress import Progress
from ..randomness import seeded
from .pictures import grid
from .report import picture_uri

#: The endings of the files of --sounds.
ENDINGS = (".wav", ".npy", ".safetensors")
#: The sounds of a report: how many, and the most seconds of each.
PLAYED, SECONDS = 4, 3.0


def check_rate(gan: store.Gan, samples: Any, source: object) -> None:
    """Raise ValueError where sounds have another rate than those of the GAN."""
    needed, given = gan.config["network"].get("rate", default_rate(gan)), getattr(samples, "rate", None)
    if None not in (needed, given) and needed != given:
        raise ValueError(f"--data {source} has sounds of {given} Hz; the GAN needs {needed} Hz, so resample them first")


def default_rate(gan: store.Gan) -> int | None:
    """The rate in Hz of the sounds of a GAN whose configuration has none; None for a GAN without rates."""
    known = None if gan.reference is None else gan.reference.sizes.get("rate")
    return None if known is None else known.default


def generate_sounds(arguments: argparse.Namespace, gan: store.Gan, run: Callable[..., Tensor]) -> None:
    """Write a WAV file for each file of --sounds: a WAV file, or a mel spectrogram.

    `run(network, *inputs)`: the network's output on the CPU. Raises ValueError, with the file's name, for a file that
    does not fit.
    """
    out = arguments.out or Path("generated")
    if out.resolve() == arguments.sounds.resolve():
        raise ValueError(f"--out and --sounds are both {out}; they must differ, or the inputs would be overwritten")
    files = files_of(arguments.sounds, ENDINGS)
    places = [file.relative_to(arguments.sounds).with_suffix(".wav") for file in files]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ValueError(f"{files[places.index(place)]} and {files[index]} would both become {place}; rename one")
    rate, seconds = gan.config["network"].get("rate", default_rate(gan)), 0.0
    (way,) = gan.ways.values()
    with Progress("sounds", len(files), quiet=arguments.quiet) as progress:
        for file, place in zip(files, places, strict=True):
            try:
                if file.suffix.lower() == ".wav":
                    sound, given = read_wav(file)
                    if given != rate:
                        raise ValueError(f"it has {given} Hz; the GAN needs {rate} Hz, so resample it first")
                    made = run(way.network, *way.inputs(sound[None]))
                else:
                    bands = gan.reference.example(gan.config["network"], 1, 1)[0].shape[1] if gan.reference else None
                    made = run(way.network, read_mel(file, bands))
                write_wav(out / place, made[0], rate)
            except (ValueError, RuntimeError) as error:
                named = "" if str(file) in str(error) else f"{file}: "
                raise ValueError(f"{named}{error}") from None
            seconds += made.shape[2] / rate
            progress.advance()
    print(f"wrote {len(files)} sounds to {out}, {seconds:.1f} seconds together")


def read_mel(file: Path, bands: int | None) -> Tensor:
    """The mel spectrogram in a file, float32 [1, bands, T].

    The file is .npy, or .safetensors with one tensor or one of the name "mel". It has the shape [bands, T] or
    [1, bands, T], and natural logarithms. Raises ValueError for other content.
    """
    if file.suffix.lower() == ".npy":
        try:
            mel = torch.from_numpy(np.ascontiguousarray(np.load(file, allow_pickle=False)))
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise ValueError(f"{file} is no array that can be read: {error}") from None
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from None
        if len(tensors) != 1 and "mel" not in tensors:
            raise ValueError(f"{file} has tensors {', '.join(tensors) or 'of no name'}; it needs one, or one named mel")
        mel = tensors.get("mel", next(iter(tensors.values())))
    whole = mel[None] if mel.dim() == 2 else mel
    if whole.dim() != 3 or len(whole) != 1 or not whole.is_floating_point() or 0 in whole.shape:
        raise ValueError(f"{file} has {mel.dtype} {list(mel.shape)}; it must be floats [bands, T] or [1, bands, T]")
    if bands is not None and whole.shape[1] != bands:
        raise ValueError(f"{file} has {whole.shape[1]} bands {list(mel.shape)}; the GAN needs [{bands}, T]")
    if not whole.isfinite().all():
        raise ValueError(f"{file} holds values that are not finite; all must be numbers")
    return whole.float()


def players(generators: Mapping[str, nn.Module], gan: store.Gan, samples: Sounds, seed: int) -> str:
    """An HTML table of players: for some sounds, the real one and that of each generator, each with its picture.

    The sounds are parts of the page.
    """
    rate = samples.rate or gan.config["network"].get("rate", default_rate(gan))
    count = min(PLAYED, len(samples.images))
    rows = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in ('real', *generators))}</tr>"]
    for index in torch.linspace(0, len(samples.images) - 1, count).long().tolist():
        real = samples.images[index][None, :, : int(SECONDS * rate)]
        real = F.pad(real, (0, max(samples.size - real.shape[2], 0)))
        cells = []
        for name, generator in {"real": None, **generators}.items():
            sound = real.to(device_of(generator=gan.generator))
            if generator is not None:
                with in_mode(generator, False), torch.no_grad(), seeded(seed):
                    sound = gan.objective.generate(generator, sound)
            (view,) = gan.objective.views(sound, sound).values()
            uri = base64.b64encode(to_wav(sound[0], rate)).decode("ascii")
            cells.append(
                f'<td><img alt="spectrogram of {html.escape(name)}" src="{picture_uri(grid(view.fake.cpu(), 1))}"><br>'
                f'<audio controls preload="none" src="data:audio/wav;base64,{uri}"></audio></td>'
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="players">{"".join(rows)}</table>'
