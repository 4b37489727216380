"""Options of `sparsegan compress`, and its settings file, over which the options take precedence."""

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

#: The generator's default learning rate divided by the discriminator's. In few steps, the kept weights of a pruned
#: generator must take over the work of the dropped weights. The discriminator's learning rate is too low for this.
LR_FACTOR = 5

#: The number of batches for the measurement of --allocation sensitivity.
SENSITIVITY_BATCHES = 4

#: From the name of a field of `CompressionConfig` to the option that sets it.
OPTIONS = {name: name for name in ("granularity", "exclude", "allocation", "decay", "ema", "accumulate", "seed")} | {
    "autocast": "autocast",
    "discriminator_lr": "discriminator_lr",
    "generator_every": "generator_every",
    "generator_lr": "lr",
}
#: The fields that come from the GAN where neither the command line nor the settings file has them.
OF_THE_GAN = ("discriminator_lr", "generator_every", "generator_lr")
#: Options that are fields of `SelfSupervisedLoss`.
OF_THE_LOSS = ("lam", "denominator", "one_sided")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan compress`."""
    recipes = "; ".join(f"{name} ({recipe.text})" for name, recipe in RECIPES.items())
    add_gan_options(parser)
    add_data_options(parser, "default: that of the GAN's training, or the task's")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a settings file: a JSON object of compression settings by name, such as a run folder's compression.json; "
        "options on the command line override its settings, and its settings must agree with the recipe",
    )
    parser.add_argument("--recipe", default="self-supervised", choices=list(RECIPES), metavar="NAME", help=recipes)
    parser.add_argument("--sparsity", type=float, default=0.9, help="target, from 0 to below 1 (default: 0.9)")
    parser.add_argument(
        "--granularity",
        help="the unit of pruning: element, vector:V for V output channels, kernel, filter or 2:4; different units by "
        "layer as in 'model.1*=filter,element' (default: element)",
    )
    parser.add_argument(
        "--allocation",
        choices=(*ALLOCATIONS, "sensitivity"),
        help="how the sparsity is allocated to the layers. uniform: the same for every layer; global: by one threshold "
        "for all layers; global-normalized: the same threshold, with each layer's weights divided by their root mean "
        f"square; sensitivity: each layer raises equations 7-9 by the same amount, on {SENSITIVITY_BATCHES} batches "
        "(default: uniform)",
    )
    parser.add_argument("--exclude", nargs="*", metavar="LAYER", help="layers that stay dense (default: none)")
    parser.add_argument("--steps", type=int, default=400, help="fine-tuning steps (default: 400)")
    parser.add_argument("--batch", type=int, help="images per step (default: the task's)")
    parser.add_argument(
        "--lr", type=float, help=f"the generator's learning rate, Adam (default: {LR_FACTOR} times the discriminator's)"
    )
    parser.add_argument(
        "--discriminator-lr", type=float, help="the discriminator's learning rate, Adam (default: the task's)"
    )
    parser.add_argument(
        "--generator-every",
        type=int,
        help="discriminator steps per generator step (default: the task's, and 1 where no discriminator is updated)",
    )
    parser.add_argument(
        "--decay",
        action=argparse.BooleanOptionalAction,
        help="let both learning rates fall to 0 over the second half of the run (default: no)",
    )
    parser.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="make the result a moving average of the weights with this decay, for example 0.999 (default: 0, none)",
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        metavar="PARTS",
        help="process each batch in this number of parts, one after the other, which saves memory (default: 1)",
    )
    parser.add_argument(
        "--autocast",
        choices=["bfloat16", "float16"],
        help="the dtype in which the networks compute (default: that of their weights)",
    )
    parser.add_argument("--lambda", type=float, dest="lam", help="lambda of equation 9 (default: 0.5)")
    parser.add_argument(
        "--denominator", choices=["floored", "running"], help="the denominator of equations 7-8 (default: floored)"
    )
    parser.add_argument(
        "--statistics",
        choices=["batch", "stored"],
        help="the statistics that the compressed generator's batch norms use in training (default: the recipe's)",
    )
    parser.add_argument(
        "--one-sided",
        action=argparse.BooleanOptionalAction,
        help="give no gradient where the compressed generator scores better than the original (default: no)",
    )
    add_content(parser)
    parser.add_argument(
        "--warm-up",
        type=int,
        metavar="STEPS",
        help="steps that first train an untrained discriminator (default: 300 where the recipe needs a trained "
        "discriminator and there is none, else 0)",
    )
    parser.add_argument(
        "--data-free",
        action="store_true",
        help="use images of the dense generator in the place of real images; --data is then used for inputs only, and "
        "dcgan needs no data",
    )
    parser.add_argument(
        "--features",
        help="add scores of both generators to the report, in the features of this network (see evaluate)",
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="N", help="steps between two checkpoints (default: 100)"
    )
    parser.add_argument(
        "--values",
        default="float32",
        choices=["float32", "float16", "bfloat16"],
        help="the dtype of the weights in the written file (default: float32)",
    )
    add_run_options(parser, "runs/compress")
    parser.set_defaults(seed=None)  # None means that --seed was not given: the seed of --config is then used


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `CompressionConfig` by name, from the options and the settings file of --config.

    An option that was not given is set in `arguments` to the file's value, or else to the field's default. The fields
    of `OF_THE_GAN` may stay None. Raises ValueError for a file with other contents, and for settings that contradict
    the recipe.
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

    # Wrong settings are refused here, before a warm-up takes time.
    unknown = {name: 1 for name in OF_THE_GAN if settings[name] is None}
    recipe.config(**{**settings, "allocation": "uniform", **unknown})
    return settings


def _loss(arguments: argparse.Namespace, recipe: Recipe, given: GeneratorLoss | None) -> GeneratorLoss:
    """The loss: `given`, the settings file's loss, or else the default, with the fields that options set."""
    minimised = type(recipe.config().loss)
    if given is not None and type(given) is not minimised:
        raise ValueError(
            f"--config {arguments.config}: its loss is a {type(given).__name__}; it must be a {minimised.__name__}, "
            f"the loss of --recipe {arguments.recipe}"
        )
    loss = SelfSupervisedLoss() if given is None else given
    named = {name: getattr(arguments, name) for name in OF_THE_LOSS if getattr(arguments, name) is not None}
    if not named:
        return loss
    if not isinstance(loss, SelfSupervisedLoss):
        raise ValueError(
            f"--config {arguments.config}: its loss is a {minimised.__name__}; --lambda, --denominator and --one-sided "
            "need a SelfSupervisedLoss"
        )
    return replace(loss, **named)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"the file holds {values!r:.80}; it must hold an object of settings by name")
        return settings_from(values)
    except ValueError as error:
        raise ValueError(f"--config {file}: {error}") from None
