"""Train a dense reference GAN, or a classifier that scores its images, on real data."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from .. import data
from ..atomic_files import write_json
from ..data.sounds import Sounds
from ..gans import GANS, store
from ..metrics.classifier import CLASSIFIERS, FILE, save_classifier, train_classifier
from ..training import Run, run_loop
from ..training.adversarial import AdversarialTask
from .common import add_run_options, need, set_threads, use_device
from .loading import add_content, add_data_options, content_objective, load_data, placed, test_data
from .pictures import comparison, some, write_png

#: Options that are also fields of a GAN's `Training`. An option that is not given becomes the field's value.
OPTIONS = ("data", "size", "steps", "batch", "lr", "discriminator_lr", "generator_every", "decay")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan train`."""
    tasks = "; ".join(f"{name} ({reference.text})" for name, reference in GANS.working().items()).replace("%", "%%")
    parser.add_argument(
        "what", choices=[*GANS, "classifier"], help=f"{tasks}; classifier (of digits, clothes or emoji styles)"
    )
    default = "default: the task's, for two CPU cores"
    add_data_options(parser, default)
    parser.add_argument("--steps", type=int, help=f"optimisation steps ({default})")
    parser.add_argument("--batch", type=int, help=f"images per step ({default})")
    parser.add_argument("--width", type=int, help=f"the widths of both networks, ngf and ndf ({default})")
    parser.add_argument(
        "--network",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="other settings of the networks, for example blocks=9 norm=batch dropout=false",
    )
    parser.add_argument("--lr", type=float, help=f"the generator's learning rate, Adam ({default})")
    parser.add_argument("--discriminator-lr", type=float, help=f"the discriminator's learning rate, Adam ({default})")
    parser.add_argument("--generator-every", type=int, help=f"discriminator steps per generator step ({default})")
    parser.add_argument(
        "--decay",
        action=argparse.BooleanOptionalAction,
        help=f"let both learning rates fall to 0 over the second half of the run ({default})",
    )
    add_content(parser)
    parser.add_argument("--half", action="store_true", help="write the weights of the convolutions in float16")
    parser.add_argument("--epochs", type=int, default=12, help="classifier: number of epochs (default: 12)")
    parser.add_argument(
        "--checkpoint-every", type=int, default=200, metavar="N", help="steps between two checkpoints (default: 200)"
    )
    parser.add_argument("--keep", type=int, default=2, help="number of newest checkpoints that stay (default: 2)")
    add_run_options(parser, "runs/train")


def run(arguments: argparse.Namespace) -> None:
    """Write the trained networks into the run directory, and samples.png for a GAN."""
    set_threads(arguments.threads)
    device = use_device(arguments)
    if arguments.what == "classifier":
        _classifier(arguments, device)
    else:
        _gan(arguments, device)


def _gan(arguments: argparse.Namespace, device: torch.device) -> None:
    need("PIL")
    task, reference = arguments.what, GANS[arguments.what]
    for name in OPTIONS:
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(reference.training, name))
    if reference.size not in (None, arguments.size):
        raise ValueError(f"--size is {arguments.size}; it must be {reference.size} for {task}")
    samples = load_data(arguments, reference, arguments.size, None, "train")
    network = _network(arguments, samples)
    settings = {name: getattr(arguments, name) for name in (*OPTIONS, "content")}
    config = {"command": _command(arguments, settings), "network": network, **settings, "seed": arguments.seed}
    if samples.domains:
        config["domain_names"] = samples.domains
    run = Run(arguments.out, config, resume=arguments.resume, keep=arguments.keep)

    torch.manual_seed(arguments.seed)
    gan = placed(store.build(config), device)
    betas = reference.training.betas
    training = AdversarialTask(
        gan.generator,
        gan.discriminator,
        content_objective(arguments, gan),
        torch.optim.Adam(gan.generator.parameters(), arguments.lr, betas),
        torch.optim.Adam(gan.discriminator.parameters(), arguments.discriminator_lr, betas),
        arguments.generator_every,
        arguments.steps if arguments.decay else None,
    )
    run_loop(
        training,
        samples.batches(arguments.batch),
        arguments.steps,
        run=run,
        checkpoint_every=arguments.checkpoint_every,
        seed=arguments.seed,
        title=f"{task} on {arguments.data}",
        quiet=arguments.quiet,
    )
    store.save(run.path, gan.generator, gan.discriminator, arguments.half)
    unseen, split = test_data(arguments, reference, arguments.size, samples.channels)
    batch = some(unseen, 64 if reference.from_noise else 16)
    picture = comparison({"": gan.generator.eval()}, gan.objective, batch, arguments.seed, samples.domains)
    write_png(run.path / "samples.png", picture)
    print(f"wrote {run.path / 'generator.safetensors'}, discriminator.safetensors and samples.png ({split} data)")


def _network(arguments: argparse.Namespace, samples: data.Samples) -> dict[str, Any]:
    """The sizes of the networks: the task's defaults, replaced by those of the data, replaced by those of options."""
    task, reference = arguments.what, GANS[arguments.what]
    known = reference.sizes
    found = {
        "channels": samples.channels,
        "in_channels": samples.channels,
        "out_channels": samples.channels,
        "domains": len(samples.domains),
        "image_size": arguments.size,
        **({"rate": samples.rate} if isinstance(samples, Sounds) and samples.rate else {}),
    }
    network = {"gan": task} | reference.network | {name: value for name, value in found.items() if name in known}
    if arguments.width is not None:
        network["width"] = arguments.width
    for setting in arguments.network:
        name, equals, text = setting.partition("=")
        if name not in known or not equals:
            raise ValueError(
                f"--network has {setting!r}; it must be NAME=VALUE, where NAME is one of {', '.join(known)}"
            )
        network[name] = {"true": True, "false": False}.get(text, int(text) if text.isdecimal() else text)
    return network


def _command(arguments: argparse.Namespace, settings: dict[str, Any]) -> str:
    """The command line that repeats the run."""
    words = ["sparsegan train", arguments.what]
    for name, value in {**settings, "width": arguments.width, "seed": arguments.seed}.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words.append(f"--{option} {value}")
    for name in ("network", "domains"):
        if value := getattr(arguments, name):
            words.append(f"--{name} {' '.join(value)}")
    for name, default in (("direction", "AtoB"), ("attributes", None), ("channels", None)):
        if (value := getattr(arguments, name)) != default:
            words.append(f"--{name} {value}")
    return " ".join(words) + (" --half" if arguments.half else "")


def _classifier(arguments: argparse.Namespace, device: torch.device) -> None:
    source = arguments.data or next(iter(CLASSIFIERS))
    if source not in CLASSIFIERS:
        raise ValueError(f"--data is {source}; for a classifier it must be one of {', '.join(CLASSIFIERS)}")
    images, labels = data.labelled(source)
    held_out = 1000
    model, accuracy = train_classifier(
        images,
        labels,
        name=CLASSIFIERS[source],
        epochs=arguments.epochs,
        held_out=held_out,
        seed=arguments.seed,
        device=device,
        progress=None if arguments.quiet else lambda epoch, loss: print(f"epoch {epoch + 1}: loss {loss:.4f}"),
    )
    file = arguments.out / FILE
    save_classifier(model, file)
    command = f"sparsegan train classifier --data {source} --epochs {arguments.epochs} --seed {arguments.seed}"
    config = {"command": command, "network": model.name, "data": source, "epochs": arguments.epochs}
    config |= {"seed": arguments.seed, "held_out": held_out, "held_out_accuracy": accuracy}
    write_json(arguments.out / "config.json", config)
    print(f"accuracy on {held_out} held-out images: {accuracy:.3f}; wrote {file}")
