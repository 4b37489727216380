"""What several commands share: options, threads, pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..gans import store


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """--out, --resume, --seed, --threads, --quiet."""
    parser.add_argument("--out", type=Path, default=Path(out), help=f"run directory (default: {out})")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its newest checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    add_threads(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads."""
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's, all cores)")


def set_threads(count: int) -> None:
    """Have torch use `count` threads; 0 leaves it as it is."""
    if count < 0:
        raise ValueError(f"--threads is {count}; it must be at least 1, or 0 for torch's own choice")
    if count:
        torch.set_num_threads(count)


def grid(images: Tensor, columns: int = 8) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] -> one picture uint8 [rows*(H+2)+2, columns*(W+2)+2, C], missing cells black."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    picture = torch.full((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), 64, dtype=torch.uint8)
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    for index in range(rows * columns):
        top, left = index // columns * (height + 2) + 2, index % columns * (width + 2) + 2
        picture[top : top + height, left : left + width] = pixels[index] if index < count else 0
    return picture


def write_png(path: Path, picture: Tensor) -> None:
    """Write a picture uint8 [H, W, 1 or 3] as PNG, whole or not at all. Needs pillow."""
    from PIL import Image

    from ..engine import write_whole

    array = picture.numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))


def load_generator(folder: Path) -> Any:
    """The generator of a folder that train (dense) or compress (compressed) wrote, ready for evaluation."""
    config = store.read_config(folder)
    if not config.get("compressed"):
        return store.load(folder).generator
    from ..checkpoint import load

    return load(store.build(config).generator, folder / "generator.safetensors").eval()


def find_checkpoints() -> Path:
    """The repository's checkpoints folder: under the working directory, or beside the package's source."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "checkpoints" / "dcgan-mnist").is_dir():
            return root / "checkpoints"
    raise FileNotFoundError("no folder checkpoints/dcgan-mnist here; run this in a clone of the repository, or name it")
