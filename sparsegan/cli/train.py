"""Train a dense reference GAN, or the digit classifier that the distances use, on real data."""

from __future__ import annotations

import argparse

import torch

from .. import data, metrics
from ..engine import Run, run_loop, write_json
from ..engine.adversarial import AdversarialTask
from ..gans import store
from .common import add_run_options, grid, set_threads, write_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan train`."""
    parser.add_argument("what", choices=["dcgan", "digits"], help="a GAN, or the digit classifier")
    parser.add_argument("--data", default="mnist", choices=sorted(data.DATASETS), help="data set (default: mnist)")
    parser.add_argument(
        "--steps", type=int, default=2496, help="optimisation steps (default: 2496, 16 epochs of mnist)"
    )
    parser.add_argument("--batch", type=int, default=32, help="images a step (default: 32)")
    parser.add_argument("--width", type=int, default=32, help="ngf and ndf, the networks' widths (default: 32)")
    parser.add_argument("--lr", type=float, default=1e-3, help="the generator's learning rate, Adam (default: 1e-3)")
    parser.add_argument(
        "--discriminator-lr",
        type=float,
        default=2e-4,
        help="the discriminator's; when it learns as fast as the generator it wins at once (default: 2e-4)",
    )
    parser.add_argument("--half", action="store_true", help="write the convolutions' weights in float16")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of the digit classifier (default: 12)")
    parser.add_argument("--checkpoint-every", type=int, default=200, metavar="N", help="steps (default: 200)")
    parser.add_argument("--keep", type=int, default=2, help="how many of the newest checkpoints stay (default: 2)")
    add_run_options(parser, "runs/train")


def run(arguments: argparse.Namespace) -> None:
    """Write the trained networks, and for a GAN samples.png, into the run directory."""
    set_threads(arguments.threads)
    if arguments.what == "digits":
        _digits(arguments)
    else:
        _gan(arguments)


def _gan(arguments: argparse.Namespace) -> None:
    images, _ = data.load(arguments.data)
    network = {"gan": arguments.what, "nz": 100, "width": arguments.width, "channels": images.shape[1]}
    settings = ("data", "steps", "batch", "width", "lr", "discriminator_lr", "seed")
    options = " ".join(f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in settings)
    command = f"sparsegan train {arguments.what} {options}" + (" --half" if arguments.half else "")
    config = {"command": command, "network": network} | {name: getattr(arguments, name) for name in settings}
    run = Run(arguments.out, config, resume=arguments.resume, keep=arguments.keep)

    torch.manual_seed(arguments.seed)
    gan = store.build(config)
    betas = (0.5, 0.999)
    task = AdversarialTask(
        gan.generator,
        gan.discriminator,
        gan.objective,
        torch.optim.Adam(gan.generator.parameters(), arguments.lr, betas),
        torch.optim.Adam(gan.discriminator.parameters(), arguments.discriminator_lr, betas),
    )
    run_loop(
        task,
        data.Batches(images, arguments.batch),
        arguments.steps,
        run=run,
        checkpoint_every=arguments.checkpoint_every,
        seed=arguments.seed,
        title=f"{arguments.what} on {arguments.data}",
        quiet=arguments.quiet,
    )
    store.save(run.path, gan.generator, gan.discriminator, arguments.half)
    with torch.no_grad():
        write_png(run.path / "samples.png", grid(gan.generator.eval()(store.noise(gan.generator, 64, arguments.seed))))
    print(f"wrote {run.path / 'generator.safetensors'}, discriminator.safetensors and samples.png")


def _digits(arguments: argparse.Namespace) -> None:
    images, labels = data.load(arguments.data)
    held_out = 1000
    model, accuracy = metrics.train_digit_classifier(
        images,
        labels,
        epochs=arguments.epochs,
        held_out=held_out,
        seed=arguments.seed,
        progress=None if arguments.quiet else lambda epoch, loss: print(f"epoch {epoch + 1}: loss {loss:.4f}"),
    )
    metrics.save_digit_classifier(model, arguments.out / "classifier.safetensors")
    config = {"command": "train", "network": "digit classifier", "data": arguments.data, "epochs": arguments.epochs}
    config |= {"seed": arguments.seed, "held_out": held_out, "held_out_accuracy": accuracy}
    write_json(arguments.out / "config.json", config)
    print(f"accuracy on {held_out} held-out digits: {accuracy:.3f}; wrote {arguments.out / 'classifier.safetensors'}")
