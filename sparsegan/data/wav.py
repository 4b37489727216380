"""Reads and writes WAV files.

Python's `wave` refuses files of floats, and in Python 3.10 the extensible header that many programs write. The reader
here takes PCM of 8, 16, 24 and 32 bits and floats of 32 and 64 bits, with either header.
"""

from __future__ import annotations

import io
import math
import os
import struct
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..atomic_files import write_whole

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_ACCEPTED = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}


@dataclass(frozen=True)
class Header:
    """The facts of a WAV file. `rate`: samples per second and channel. `length`: samples per channel.

    `kind`: 1 for integers, 3 for floats. `bits`: of one sample. `start`: the place of the first sample in the file.
    """

    rate: int
    channels: int
    length: int
    kind: int
    bits: int
    start: int


def read_header(file: Path) -> Header:
    """The facts of a WAV file. No samples are read.

    Raises FileNotFoundError, and ValueError, with the file's name, for a file that is damaged or of another format.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is {'a folder' if file.is_dir() else 'missing'}; a WAV file is expected")
    with open(file, "rb") as stream:
        try:
            return _header(stream, os.fstat(stream.fileno()).st_size)
        except (ValueError, struct.error) as error:
            raise ValueError(f"{file} is no WAV file that can be read: {error}") from None


def _header(stream: BinaryIO, size: int) -> Header:
    if len(head := stream.read(12)) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise ValueError("it does not begin with RIFF and WAVE")
    found: tuple[int, int, int, int, int] | None = None
    while len(part := stream.read(8)) == 8:
        name, length = part[:4], int.from_bytes(part[4:], "little")
        start = stream.tell()
        if name == b"fmt ":
            found = _format(stream.read(min(length, 64)))
        elif name == b"data":
            if found is None:
                raise ValueError("its samples come before their format")
            kind, channels, rate, frame, bits = found
            if start + length > size:
                raise ValueError(f"it announces {length} bytes of samples and has {size - start}")
            if length % frame:
                raise ValueError(f"its {length} bytes of samples are no whole number of {frame} bytes")
            if not length:
                raise ValueError("it holds no samples")
            return Header(rate, channels, length // frame, kind, bits, start)
        stream.seek(start + length + length % 2)
    raise ValueError("it holds no samples")


def _format(text: bytes) -> tuple[int, int, int, int, int]:
    """Kind, channels, rate, bytes of one sample of all channels, and bits of a sample."""
    kind, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", text)
    if kind == _EXTENSIBLE:
        (kind,) = struct.unpack_from("<H", text, 24)
    if (kind, bits) not in _ACCEPTED:
        raise ValueError(
            f"its samples are of format {kind} with {bits} bits; integers (1) of 8, 16, 24 or 32 bits and floats (3) "
            "of 32 or 64 bits are accepted"
        )
    if channels < 1 or rate < 1 or frame != channels * bits // 8:
        raise ValueError(f"its header contradicts itself: {channels} channels, {rate} Hz, {frame} bytes per sample")
    return kind, channels, rate, frame, bits


def read_wav(file: Path) -> tuple[Tensor, int]:
    """(the sound, float32 [1, T] in [-1, 1], its rate in Hz). Several channels become their mean.

    Raises what `read_header` raises, and ValueError for floats that are not finite. Floats beyond 1 are not changed.
    """
    header = read_header(file)
    with open(file, "rb") as stream:
        stream.seek(header.start)
        content = stream.read(header.length * header.channels * header.bits // 8)
    values: np.ndarray
    if header.kind == _FLOAT:
        values = np.frombuffer(content, f"<f{header.bits // 8}").astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{file} holds values that are not finite; all must be numbers")
    elif header.bits == 8:  # the only one without a sign
        values = (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
    elif header.bits == 24:
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        values = (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
    else:
        values = (np.frombuffer(content, f"<i{header.bits // 8}") / 2.0 ** (header.bits - 1)).astype(np.float32)
    return torch.from_numpy(values.reshape(-1, header.channels).mean(1, dtype=np.float32))[None], header.rate


def to_wav(sound: Tensor, rate: int) -> bytes:
    """A WAV file, 16 bits, of a sound [1, T] or [T] in [-1, 1]. Values beyond are limited.

    Raises ValueError for another shape, for values that are not finite and for a rate below 1 Hz.
    """
    if sound.dim() == 2 and len(sound) == 1:
        sound = sound[0]
    if sound.dim() != 1:
        raise ValueError(f"sound has shape {tuple(sound.shape)}; it must be [1, T] or [T]")
    if rate < 1:
        raise ValueError(f"rate is {rate}; it must be at least 1 Hz")
    values = sound.detach().cpu().double()
    if not math.isfinite(values.sum().item()):
        raise ValueError("sound holds values that are not finite; all must be numbers")
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((values.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes())
    return stream.getvalue()


def write_wav(file: Path, sound: Tensor, rate: int) -> None:
    """Writes `to_wav(sound, rate)` to a file, completely or not at all."""
    content = to_wav(sound, rate)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_whole(file, write)
