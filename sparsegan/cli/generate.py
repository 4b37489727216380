"""Make images or sounds with a dense or compressed generator.

From noise it makes a PNG grid, else an image for each image, or a WAV file for each sound, of a folder.

The generator runs in an engine (`sparsegan.optimize_for_inference`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..clock import Clock
from ..data.layouts import decode, image_files, to_tensor
from ..engine import optimize_for_inference
from ..engine.statistics import STATISTICS
from ..engine.tiles import tiling
from ..gans import store
from ..placement import device_of, moved
from ..progress import Progress, track
from .common import add_device, add_seed, add_threads, set_threads, use_device
from .loading import add_gan_options, chosen_ways, load_any, placed
from .pictures import grid, write_png
from .sounds import generate_sounds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan generate`."""
    add_gan_options(parser)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="inputs, for a GAN that makes images from images")
    parser.add_argument(
        "--sounds",
        type=Path,
        metavar="FOLDER",
        help="inputs, for a GAN that makes sounds: WAV files, or mel spectrograms as .npy or .safetensors",
    )
    parser.add_argument("--size", type=int, help="resize each input to a square of this side, in pixels (default: no)")
    parser.add_argument(
        "--tile",
        type=int,
        help="run larger images in tiles of this side, in pixels, to save memory; of sounds, frames of a spectrogram",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        help="overlap of neighbouring tiles, in pixels (default: the range that the generator's outputs depend on)",
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="allow tiles for a generator with a layer that depends on the whole image, such as an instance norm",
    )
    parser.add_argument(
        "--statistics",
        choices=STATISTICS,
        default="stored",
        help="statistics of batch norms: the stored ones, or those of each batch, as pix2pix is often run "
        "(default: stored)",
    )
    parser.add_argument("--direction", help="cyclegan: a_to_b or b_to_a (default: both)")
    parser.add_argument("--domains", nargs="+", help="stargan: target domains, by name or number (default: all)")
    parser.add_argument("--count", type=int, default=64, help="number of images from noise (default: 64)")
    parser.add_argument("--batch", type=int, help="images per call (default: 64 from noise, 1 from images)")
    parser.add_argument("--columns", type=int, default=8, help="images per row of the grid (default: 8)")
    add_seed(parser, "the noise")
    parser.add_argument(
        "--out", type=Path, help="the file, or the folder of images, to write (default: samples.png, or generated)"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    add_threads(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the grid or the images, and print the generator's times."""
    for name in ("count", "columns", "batch", "size", "tile"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    if arguments.tile is None and (arguments.overlap is not None or arguments.approximate):
        raise ValueError("--overlap or --approximate is given without --tile; both are settings of tiles")
    set_threads(arguments.threads)
    gan = placed(load_any(arguments), use_device(arguments))
    with torch.inference_mode():
        if gan.reference is not None and gan.reference.samples.signals:
            _sounds(arguments, gan)
        elif arguments.sounds is not None:
            raise ValueError(f"--sounds is {arguments.sounds}; this GAN makes images")
        elif gan.from_noise:
            _from_noise(arguments, gan)
        else:
            _from_images(arguments, gan)


class _Server:
    """Runs generators, each in an engine that is made at the generator's first call. ``str()`` states the times.

    The times include the copies of inputs and images to a GPU and back.
    `statistics`: the statistics of the norms, "stored" or "batch". `what`: the things that are made. `tiles`: keywords
    for calls of an engine in tiles.
    """

    def __init__(self, statistics: str, what: str = "images", **tiles: Any) -> None:
        self.statistics, self.what, self.tiles = statistics, what, tiles
        self.engines: dict[nn.Module, Callable[..., Tensor]] = {}
        self.images = 0
        self.sizes: set[tuple[nn.Module, torch.Size]] = set()
        self.first: list[float] = []  # milliseconds of each first call of a generator at a size, which makes the plans
        self.later: list[float] = []

    def __call__(self, generator: nn.Module, *inputs: Tensor) -> Tensor:
        clock = Clock(generator)
        start = clock.seconds()
        inputs = moved(inputs, device_of(generator=generator))
        if generator not in self.engines:
            example = tiling.corner(inputs, self.tiles["tile"]) if self.tiles else inputs
            self.engines[generator] = optimize_for_inference(generator, example, statistics=self.statistics)
        images = self.engines[generator](*inputs, **self.tiles).cpu()
        took = 1e3 * (clock.seconds() - start)
        size = (generator, inputs[0].shape)
        (self.later if size in self.sizes else self.first).append(took)
        self.sizes.add(size)
        self.images += len(images)
        return images

    def __str__(self) -> str:
        calls, rate = len(self.first + self.later), 1e3 * self.images / sum(self.first + self.later)
        what = self.what
        devices = {str(device_of(generator=one)) for one in self.engines} - {"cpu"}
        where = ", ".join(sorted(devices)) or f"{torch.get_num_threads()} thread(s)"
        text = f"{self.images} {what} in {calls} call(s) on {where}: {rate:.1f} {what} per second; "
        text += f"first call of a size: at most {max(self.first):.1f} ms"
        if self.later:
            median, most, nearly_all = np.percentile(self.later, [50, 95, 99])
            text += f"; later calls: median {median:.1f} ms, 95 % within {most:.1f} ms, 99 % within {nearly_all:.1f} ms"
        return text


def _from_noise(arguments: argparse.Namespace, gan: store.Gan) -> None:
    for name in ("images", "tile", "direction", "domains"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} is given; {gan.config['network']['gan']} makes images from noise")
    out, server = arguments.out or Path("samples.png"), _Server(arguments.statistics)
    noise = store.example(gan, arguments.count, seed=arguments.seed)
    batches = list(zip(*(tensor.split(arguments.batch or 64) for tensor in noise), strict=True))
    images = torch.cat([server(gan.generator, *batch) for batch in track(batches, "batches", arguments.quiet)])
    write_png(out, grid(images, arguments.columns))
    print(f"wrote {out}")
    print(server)


def _tiles(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of an engine's call that the options name."""
    if arguments.tile is None:
        return {}
    return {"tile": arguments.tile, "overlap": arguments.overlap, "approximate": arguments.approximate}


def _sounds(arguments: argparse.Namespace, gan: store.Gan) -> None:
    for name in ("images", "size", "batch", "direction", "domains"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} is given; {gan.config['network']['gan']} makes sounds, one per call")
    if arguments.sounds is None:
        raise ValueError(
            "--sounds is missing; it must be a folder of WAV files or mel spectrograms (.npy, .safetensors)"
        )
    server = _Server(arguments.statistics, "sounds", **_tiles(arguments))
    generate_sounds(arguments, gan, server)
    print(server)


def _from_images(arguments: argparse.Namespace, gan: store.Gan) -> None:
    if arguments.images is None:
        raise ValueError("--images is missing; it must be a folder of images, from which this GAN makes images")
    out = arguments.out or Path("generated")
    if out.resolve() == arguments.images.resolve():
        raise ValueError(f"--out and --images are both {out}; they must differ, or the inputs would be overwritten")
    files = image_files(arguments.images)
    places = [file.relative_to(arguments.images).with_suffix(".png") for file in files]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ValueError(f"{files[places.index(place)]} and {files[index]} would both become {place}; rename one")
    server = _Server(arguments.statistics, **_tiles(arguments))
    ways = chosen_ways(gan, arguments, ["direction", "domains"])
    torch.manual_seed(arguments.seed)
    with Progress("images", len(files), quiet=arguments.quiet) as progress:
        for batch, pixels in _batches(files, gan.channels or 3, arguments.size, arguments.batch or 1):
            for name, way in ways.items():
                try:
                    made = server(way.network, *way.inputs(pixels))
                except (ValueError, RuntimeError) as error:
                    named = ", ".join(str(files[index]) for index in batch)
                    raise ValueError(f"{named}: {error}") from None
                for index, image in zip(batch, made, strict=True):
                    write_png(out / name / places[index], _picture(image))
            progress.advance(len(batch))
    print(f"wrote {len(files) * len(ways)} images to {out}")
    print(server)


def _batches(files: list[Path], channels: int, size: int | None, most: int) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of at most `most` consecutive files whose images have the same size.

    Yields pairs of the files' indices and their images, float32 [N, C, H, W] in [-1, 1].
    """
    which: list[int] = []
    batch: list[Tensor] = []
    for index, file in enumerate(files):
        image = decode(file, channels)
        if size is not None:
            image = image.resize((size, size))
        pixels = to_tensor(image).float() / 127.5 - 1
        if batch and (len(batch) == most or batch[0].shape != pixels.shape):
            yield which, torch.stack(batch)
            which, batch = [], []
        which.append(index)
        batch.append(pixels)
    yield which, torch.stack(batch)


def _picture(image: Tensor) -> Tensor:
    """The uint8 picture [H, W, C] of an image [C, H, W] in [-1, 1]."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
