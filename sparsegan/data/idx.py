"""The idx file format of MNIST: two zero bytes, element type, number of dimensions, their sizes, then the elements."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

MOST = 4 << 30  # largest number of bytes that a file's head may state


def read(file: Path) -> Tensor:
    """Returns the content of an idx file of unsigned bytes: uint8 of the shape that the file states.

    The file is gzipped if its name ends in .gz. Raises ValueError, with the file's name, if the file is no idx file, if
    its length differs from the stated one, and if it states more than 4 GiB.
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
                pixels += part  # in parts, so that a small file that states a large shape takes little memory
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if len(pixels) != count:
        has = "more" if len(pixels) > count else f"only {len(pixels)}"
        raise ValueError(f"{file} says that it has the shape {shape}, {count} bytes, and holds {has}")
    return torch.frombuffer(pixels, dtype=torch.uint8).view(shape)


def write(file: Path, values: Tensor) -> None:
    """Writes uint8 `values` as an idx file, gzipped if the file's name ends in .gz."""
    head = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    content = head + values.contiguous().numpy().tobytes()
    file.write_bytes(gzip.compress(content, 6, mtime=0) if file.suffix == ".gz" else content)
