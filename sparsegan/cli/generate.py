"""Make images with a dense or compressed generator: a PNG grid from noise, or one image from each of a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.layouts import decode, image_files, to_tensor
from ..gans import store
from ..gans.stargan import as_rows
from .common import add_gan_options, add_threads, grid, load_any, set_threads, write_png

Translate = Callable[[Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan generate`."""
    add_gan_options(parser)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="inputs, for a GAN that makes images from images")
    parser.add_argument("--size", type=int, help="resize each input to this square, in pixels (default: as it is)")
    parser.add_argument("--direction", choices=["a_to_b", "b_to_a"], help="of CycleGAN (default: both)")
    parser.add_argument("--domains", nargs="+", help="StarGAN's targets, names or numbers (default: all)")
    parser.add_argument("--count", type=int, default=64, help="images from noise (default: 64)")
    parser.add_argument("--columns", type=int, default=8, help="images a row of the grid (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--out", type=Path, help="file to write, or the folder of the images (default: samples.png, or generated)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_threads(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the grid, or the images."""
    for name in ("count", "columns"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    set_threads(arguments.threads)
    gan = load_any(arguments)
    with torch.no_grad():
        if gan.config["network"]["gan"] == "dcgan":
            _from_noise(arguments, gan.generator)
        else:
            _from_images(arguments, gan)


def _from_noise(arguments: argparse.Namespace, generator: Any) -> None:
    if arguments.images is not None:
        raise ValueError("--images is given; dcgan makes images from noise")
    out = arguments.out or Path("samples.png")
    images = torch.cat([generator(z) for z in store.noise(generator, arguments.count, arguments.seed).split(64)])
    write_png(out, grid(images, arguments.columns))
    print(f"wrote {out}")


def _from_images(arguments: argparse.Namespace, gan: store.Gan) -> None:
    from rich.progress import track

    if arguments.images is None:
        raise ValueError("--images is missing; this GAN makes images from a folder of images")
    out = arguments.out or Path("generated")
    if out.resolve() == arguments.images.resolve():
        raise ValueError(f"--out and --images are both {out}; the inputs would be written over")
    files = image_files(arguments.images)
    ways = dict(_ways(gan, arguments))
    network = gan.config["network"]
    torch.manual_seed(arguments.seed)
    for file in track(files, "images", disable=arguments.quiet):
        image = decode(file, network.get("channels", network.get("in_channels", 3)))
        if arguments.size is not None:
            image = image.resize((arguments.size, arguments.size))
        pixels = to_tensor(image)[None].float() / 127.5 - 1
        place = file.relative_to(arguments.images).with_suffix(".png")
        for name, translate in ways.items():
            try:
                made = translate(pixels)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{file}: {error}") from None
            write_png(out / name / place, _picture(made))
    print(f"wrote {len(files) * len(ways)} images to {out}")


def _ways(gan: store.Gan, arguments: argparse.Namespace) -> Iterator[tuple[str, Translate]]:
    """(folder, function) of each image that is made of one: "" where there is one kind only."""
    generator, network = gan.generator, gan.config["network"]
    both_ways = network["gan"] == "cyclegan" and not network.get("one_way")
    for option, wanted in (("direction", both_ways), ("domains", network["gan"] == "stargan")):
        if getattr(arguments, option) is not None and not wanted:
            raise ValueError(f"--{option} is given; this GAN has none")
    if both_ways:
        for way in [arguments.direction] if arguments.direction else ["a_to_b", "b_to_a"]:
            yield way, getattr(generator, way)
    elif network["gan"] == "stargan":
        names = gan.config.get("domain_names") or [str(index) for index in range(generator.domains)]
        for name in arguments.domains or names:
            index = names.index(name) if name in names else int(name) if name.isdecimal() else -1
            if not 0 <= index < len(names):
                raise ValueError(f"--domains has {name!r}; this StarGAN knows {', '.join(names)}")
            yield names[index], partial(_to_domain, generator, index)
    else:
        yield "", generator


def _to_domain(generator: Any, domain: int, images: Tensor) -> Tensor:
    return generator(images, as_rows(torch.full((len(images),), domain), generator.domains))


def _picture(images: Tensor) -> Tensor:
    """[1, C, H, W] in [-1, 1] -> uint8 [H, W, C]."""
    return ((images[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
