"""Options of `sparsegan compress`, and the file of settings that they win over."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..compress import RECIPES, CompressionConfig, GeneratorLoss, Recipe, SelfSupervisedLoss
from ..compress.config import settings_from
from ..nn.granularity import parse_granularity
from ..pruning.allocation import ALLOCATIONS
from .common import add_run_options
from .loading import add_content, add_data_options, add_gan_options

#: A discriminator's rate is too slow for a pruned generator: what is kept must take over from what went, in few steps.
LR_FACTOR = 5

#: Batches that --allocation sensitivity measures on.
SENSITIVITY_BATCHES = 4

#: Options that are fields of `CompressionConfig`, by the field's name.
OPTIONS = {name: name for name in ("granularity", "exclude", "allocation", "decay", "ema", "accumulate", "seed")} | {
    "autocast": "autocast",
    "discriminator_lr": "discriminator_lr",
    "generator_every": "generator_every",
    "generator_lr": "lr",
}
#: Those that are the GAN's where neither the command line nor the file has them.
OF_THE_GAN = ("discriminator_lr", "generator_every", "generator_lr")
#: Options that are fields of `SelfSupervisedLoss`.
OF_THE_LOSS = ("lam", "denominator", "one_sided")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan compress`."""
    recipes = "; ".join(f"{name} ({recipe.text})" for name, recipe in RECIPES.items())
    add_gan_options(parser)
    add_data_options(parser, "default: what it was trained on, or the task's")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings of the compression by name: a JSON object, such as a run folder's compression.json; options on "
        "the command line win over it, and the recipe must agree with it",
    )
    parser.add_argument("--recipe", default="self-supervised", choices=list(RECIPES), metavar="NAME", help=recipes)
    parser.add_argument("--sparsity", type=float, default=0.9, help="target, from 0 to below 1 (default: 0.9)")
    parser.add_argument(
        "--granularity",
        help="what is dropped as one: element, vector:V for V output channels, kernel, filter or 2:4; by layer as in "
        "'model.1*=filter,element' (default: element)",
    )
    parser.add_argument(
        "--allocation",
        choices=(*ALLOCATIONS, "sensitivity"),
        help="every layer the same sparsity, one threshold for all of them, or what raises equations 7-9 evenly on "
        f"{SENSITIVITY_BATCHES} batches (default: uniform)",
    )
    parser.add_argument("--exclude", nargs="*", metavar="LAYER", help="layers to leave dense (default: none)")
    parser.add_argument("--steps", type=int, default=400, help="fine-tuning steps (default: 400)")
    parser.add_argument("--batch", type=int, help="images per step (default: the task's)")
    parser.add_argument(
        "--lr", type=float, help=f"the generator's learning rate, Adam (default: {LR_FACTOR} times the discriminator's)"
    )
    parser.add_argument(
        "--discriminator-lr", type=float, help="the discriminator's (default: what it was trained with)"
    )
    parser.add_argument(
        "--generator-every", type=int, help="discriminator steps per generator step (default: the task's)"
    )
    parser.add_argument(
        "--decay",
        action=argparse.BooleanOptionalAction,
        help="let both rates fall to 0 over the second half of the run (default: no)",
    )
    parser.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="the result is a moving average of the weights, of this decay (0.999, say; default: 0, none)",
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        metavar="PARTS",
        help="take a batch in so many parts, one after the other: a bound on memory (default: 1)",
    )
    parser.add_argument(
        "--autocast", choices=["bfloat16", "float16"], help="networks compute in this dtype (default: as they are)"
    )
    parser.add_argument("--lambda", type=float, dest="lam", help="of equation 9 (default: 0.5)")
    parser.add_argument("--denominator", choices=["floored", "running"], help="of equations 7-8 (default: floored)")
    parser.add_argument(
        "--statistics",
        choices=["batch", "stored"],
        help="what the compressed generator's batch norms use while it learns (default: the recipe's)",
    )
    parser.add_argument(
        "--one-sided",
        action=argparse.BooleanOptionalAction,
        help="no gradient where the compressed generator is better (default: no)",
    )
    add_content(parser)
    parser.add_argument(
        "--warm-up",
        type=int,
        metavar="STEPS",
        help="steps that train a fresh discriminator first (default: 300 without a trained one, else none)",
    )
    parser.add_argument(
        "--data-free",
        action="store_true",
        help="the dense generator's own images in the place of real ones; --data then gives inputs only (dcgan: none)",
    )
    parser.add_argument(
        "--features", help="score both generators in the report, in the features of this network (see evaluate)"
    )
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="N", help="steps (default: 100)")
    parser.add_argument(
        "--values", default="float32", choices=["float32", "float16", "bfloat16"], help="in the file (default: float32)"
    )
    add_run_options(parser, "runs/compress")
    parser.set_defaults(seed=None)  # what --config says of it is then known from what the command line does


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What options and the file of --config say of `CompressionConfig`: fields by name.

    An option that is not given becomes what the file has, else the field's default; those that are the GAN's may stay
    None. Raises ValueError for a file that holds no such settings, and for settings that the recipe does not go with.
    """
    settings = {} if arguments.config is None else _read(arguments.config)
    usual, recipe = CompressionConfig(), RECIPES[arguments.recipe]
    if arguments.autocast is not None:
        arguments.autocast = getattr(torch, arguments.autocast)
    for name, option in OPTIONS.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, settings.get(name, None if name in OF_THE_GAN else getattr(usual, name)))
        settings[name] = getattr(arguments, option)
    if isinstance(arguments.granularity, str):
        settings["granularity"] = parse_granularity(arguments.granularity)
    settings["exclude"] = tuple(arguments.exclude)
    if arguments.statistics is not None:
        settings["stored_statistics"] = arguments.statistics == "stored"
    settings["loss"] = _loss(arguments, recipe, settings.get("loss"))

    # Refused now, and not after a warm-up.
    recipe.config(**{**settings, "allocation": "uniform", **dict.fromkeys(OF_THE_GAN, 1)})
    return settings


def _loss(arguments: argparse.Namespace, recipe: Recipe, given: GeneratorLoss | None) -> GeneratorLoss:
    """The file's, if it has one, with what options say of it."""
    minimised = type(recipe.config().loss)
    if given is not None and type(given) is not minimised:
        raise ValueError(
            f"--config {arguments.config}: its loss is a {type(given).__name__}, and --recipe {arguments.recipe} has a "
            f"{minimised.__name__}"
        )
    loss = SelfSupervisedLoss() if given is None else given
    named = {name: getattr(arguments, name) for name in OF_THE_LOSS if getattr(arguments, name) is not None}
    if not named:
        return loss
    if not isinstance(loss, SelfSupervisedLoss):
        raise ValueError(
            f"--config {arguments.config}: its loss is a {minimised.__name__}; --lambda, --denominator and --one-sided "
            "go with a SelfSupervisedLoss"
        )
    return replace(loss, **named)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds {values!r:.80}; it must hold an object of settings by name")
        return settings_from(values)
    except ValueError as error:
        raise ValueError(f"--config {file}: {error}") from None
