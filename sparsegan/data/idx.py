"""The idx files of MNIST and its relatives: two zero bytes, element type, dimensions, their sizes, then the bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

MOST = 4 << 30  # bytes that a file may say it holds


def read(file: Path) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped when its name ends in .gz: uint8 of the shape that it states.

    Raises ValueError naming the file when it is not one, is longer or shorter than it says, or says above 4 GiB.
    """
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or not 1 <= head[3] <= 4:
                raise ValueError(
                    f"{file} is not an idx file: it begins with {head.hex(' ')}, not with 00 00 08 and 1-4"
                )
            if head[2] != 8:
                raise ValueError(f"{file} holds elements of type {head[2]:#04x}; only unsigned bytes, 0x08, are read")
            sizes = stream.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise ValueError(f"{file} ends inside its head")
            shape = struct.unpack(f">{head[3]}I", sizes)
            count = math.prod(shape)
            if not 0 < count <= MOST:
                raise ValueError(f"{file} says that it has the shape {shape}; 1 byte to {MOST >> 30} GiB are accepted")
            pixels = bytearray()
            while len(pixels) <= count and (part := stream.read(min(1 << 20, count + 1 - len(pixels)))):
                pixels += part  # in parts: a small file that claims much is refused before memory is taken for it
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if len(pixels) != count:
        has = "more" if len(pixels) > count else f"only {len(pixels)}"
        raise ValueError(f"{file} says that it has the shape {shape}, {count} bytes, and holds {has}")
    return torch.frombuffer(pixels, dtype=torch.uint8).view(shape)


def write(file: Path, values: Tensor) -> None:
    """Write uint8 `values` as an idx file, gzipped when its name ends in .gz."""
    head = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    content = head + values.contiguous().numpy().tobytes()
    file.write_bytes(gzip.compress(content, 6, mtime=0) if file.suffix == ".gz" else content)
