"""Compress a trained GAN's generator: prune it while it is fine-tuned, and write it compressed."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .. import data
from ..checkpoint import save
from ..compress import RECIPES, SelfSupervisedLoss, baseline
from ..gans import store
from .common import add_run_options, grid, set_threads, write_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan compress`."""
    recipes = "; ".join(f"{name} ({recipe.text})" for name, recipe in RECIPES.items())
    parser.add_argument("folder", type=Path, help="a trained GAN, as train writes it")
    parser.add_argument("--data", default="mnist", choices=sorted(data.DATASETS), help="data set (default: mnist)")
    parser.add_argument("--recipe", default="self-supervised", choices=list(RECIPES), metavar="NAME", help=recipes)
    parser.add_argument("--sparsity", type=float, default=0.9, help="target, from 0 to below 1 (default: 0.9)")
    parser.add_argument(
        "--granularity",
        default="element",
        help="what is dropped as one: element, or vector:V for V output channels (default: element)",
    )
    parser.add_argument(
        "--exclude", nargs="*", default=[], metavar="LAYER", help="layers to leave dense (default: none)"
    )
    parser.add_argument("--steps", type=int, default=400, help="fine-tuning steps (default: 400)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: 64)")
    parser.add_argument("--lr", type=float, default=2e-4, help="the generator's learning rate, Adam (default: 2e-4)")
    parser.add_argument("--discriminator-lr", type=float, default=2e-4, help="the discriminator's (default: 2e-4)")
    parser.add_argument("--decay", action="store_true", help="let both rates fall to 0 over the second half of the run")
    parser.add_argument("--lambda", type=float, default=0.5, dest="lam", help="of equation 9 (default: 0.5)")
    parser.add_argument(
        "--denominator", default="floored", choices=["floored", "running"], help="of equations 7-8 (default: floored)"
    )
    parser.add_argument("--one-sided", action="store_true", help="no gradient where the compressed generator is better")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="N", help="steps (default: 100)")
    parser.add_argument(
        "--values", default="float32", choices=["float32", "float16", "bfloat16"], help="in the file (default: float32)"
    )
    add_run_options(parser, "runs/compress")


def run(arguments: argparse.Namespace) -> None:
    """Write generator.safetensors (compressed) and samples.png into the run directory."""
    set_threads(arguments.threads)
    gan = store.load(arguments.folder)
    compressor = baseline(
        arguments.recipe,
        gan.generator,
        gan.discriminator,
        gan.objective,
        steps=arguments.steps,
        sparsity=arguments.sparsity,
        fresh=lambda: store.build(gan.config).discriminator,
        loss=SelfSupervisedLoss(lam=arguments.lam, denominator=arguments.denominator, one_sided=arguments.one_sided),
        granularity=arguments.granularity,
        exclude=tuple(arguments.exclude),
        generator_lr=arguments.lr,
        discriminator_lr=arguments.discriminator_lr,
        decay=arguments.decay,
        run_dir=arguments.out,
        resume=arguments.resume,
        checkpoint_every=arguments.checkpoint_every,
        config={"command": "compress", "compressed": True, "network": gan.config["network"]}
        | {name: getattr(arguments, name) for name in ("data", "recipe", "batch")},
        seed=arguments.seed,
        quiet=arguments.quiet,
    )
    generator = compressor.fit(data.Batches(data.load(arguments.data)[0], arguments.batch)).generator
    save(generator, arguments.out / "generator.safetensors", values=arguments.values)
    with torch.no_grad():
        write_png(arguments.out / "samples.png", grid(generator(store.noise(gan.generator, 64, arguments.seed))))
    print(f"wrote {arguments.out / 'generator.safetensors'} and samples.png")
