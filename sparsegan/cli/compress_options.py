"""Options of `sparsegan compress`, and its settings file, over which the options take precedence."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ..compress import RECIPES, CompressionConfig, Recipe
from ..compress.baselines import DEFAULT, recipe_name
from ..compress.config import BY_SALIENCY, settings_from
from ..compress.losses import LOSSES
from ..nn.granularity import parse_granularity
from ..pruning.allocation import ALLOCATIONS
from .bound import LADDER, MOST, Bound
from .common import add_run_options, at_least_one
from .field_options import add_field, default_of, documented, given_fields, names_of
from .loading import add_content, add_data_options, add_gan_options

#: The generator's default learning rate divided by the discriminator's. In few steps, the kept weights of a pruned
#: generator must take over the work of the dropped weights. The discriminator's learning rate is too low for this.
LR_FACTOR = 5

#: The number of batches for the measurement of --allocation sensitivity.
SENSITIVITY_BATCHES = 4

#: The fields of `CompressionConfig` that only the recipe decides, and those that have no option of their own name.
OF_THE_RECIPE = ("discriminator_mode", "prune_discriminator", "original_images")
_ELSEWHERE = ("loss", "stored_statistics", "seed")
#: The fields that come from the GAN where the command line, the settings file and the recipe leave them open.
OF_THE_GAN = ("betas", "discriminator_lr", "generator_every", "generator_lr")

#: The options of the command that a settings file may have too, with the type of their values.
OF_THE_COMMAND: dict[str, type] = {
    "recipe": str,
    "steps": int,
    "sparsity": float,
    "within": str,
    "batch": int,
    "ramp": float,
    "prune_every": int,
    "warm_up": int,
    "validate": int,
    "patience": int,
    "weight": dict,
}
_KINDS = {str: "a text", int: "an integer", float: "a number", dict: "an object of numbers by term"}
_POSITIVE = ("prune_every", "validate", "patience")
_STEPS = 400

#: From the name of a field of `CompressionConfig` to the option that sets it, as `argparse` names it.
OPTIONS = {name: name for name in names_of(CompressionConfig) if name not in (*OF_THE_RECIPE, *_ELSEWHERE)}
OPTIONS |= {"generator_lr": "lr", "seed": "seed"}

#: The help texts of these options. A field without one has the text of the class's docstring.
HELP = {
    "granularity": "the unit of pruning: element, vector:V for V output channels, input:D for D input channels, "
    "kernel, filter or 2:4; different units by layer as in 'model.1*=filter,element'",
    "allocation": "how the sparsity is allocated to the layers. uniform: the same for every layer; global: by one "
    "threshold for all layers; global-normalized: the same threshold, with each layer's weights divided by their root "
    "mean square; saliency: the least salient weights of all layers are dropped, so that there are as many weights and "
    "no more multiply-accumulates than with uniform (needs --saliency fisher); sensitivity: each layer raises "
    f"equations 7-9 by the same amount, on {SENSITIVITY_BATCHES} batches",
    "exclude": "layers that stay dense",
    "reconstruct": "the most batches on which the pruned layers are fitted to the original's activations before the "
    "first step, by least squares; 0 for no fit",
    "regrow": "the initial fraction of a layer's kept weights that come back elsewhere, by their gradient, every ten "
    "steps; needs granularity element",
    "feature_layers": "the discriminator's modules whose outputs are its features, for a loss that matches features "
    "(default: its activations)",
    "contrast": "scale the last layer at the end, so that images have the original's contrast (default: the recipe's)",
    "generator_lr": "the generator's learning rate, Adam (default: the recipe's, where it has one, or else "
    f"{LR_FACTOR} times the discriminator's)",
    "discriminator_lr": "the discriminator's learning rate, Adam (default: the task's)",
    "betas": "the betas of Adam (default: the recipe's, or else the task's)",
    "generator_every": "discriminator steps per generator step (default: the task's, and 1 where no discriminator is "
    "updated)",
    "decay": "let both learning rates fall to 0 over the second half of the run; it needs --no-cosine where the recipe "
    "has --cosine",
    "rewind": "set both learning rates back at every pruning; needs --decay",
    "ema": "make the result a moving average of the weights with this decay, for example 0.999; 0 for none",
    "accumulate": "process each batch in this number of parts, one after the other, which saves memory",
    "autocast": "the dtype in which the networks compute (default: that of their weights)",
}
_FLAGS = {"generator_lr": ("--lr", "--generator-lr")}
_MORE: dict[str, dict[str, Any]] = {
    "allocation": {"choices": (*ALLOCATIONS, BY_SALIENCY, "sensitivity")},
    "exclude": {"metavar": "LAYER"},
    "feature_layers": {"metavar": "MODULE"},
    "autocast": {"choices": ["bfloat16", "float16"]},
    "ema": {"metavar": "DECAY"},
    "accumulate": {"metavar": "PARTS"},
    "betas": {"metavar": "BETA"},
}

#: The settings of the default recipe.
DEFAULT_SETTINGS = RECIPES[DEFAULT].settings

#: From the name of a field of a loss to the losses that have it.
LOSS_FIELDS = {
    name: [kind for kind in LOSSES.values() if name in names_of(kind)]
    for name in dict.fromkeys(name for kind in LOSSES.values() for name in names_of(kind))
}
LOSS_HELP = {
    "lam": "lambda of equation 9",
    "denominator": "the denominator of equations 7-8: floored or running",
    "floor": "the smallest denominator of equations 7-8 and of the features",
    "momentum": "the decay of the running denominator",
    "stop_gradient": "give the original's terms no gradient",
    "discriminator_gradient": "give the generator the gradient of equation 8",
    "one_sided": "give no gradient where the compressed generator scores better than the original",
    "terms": "the weight of equation 9",
    "features": "the weight of the discriminator's features",
    "own": "the weight of the GAN's own generator loss",
    "outputs": "the weight of the distance of the images",
    "distance": "the distance of the images: l1, mse or scales",
    "sharpness": "the weight of the difference of the edges' strengths",
    "activations": "the distance of the generators' activations: mse or relative",
    "intermediate": "the weight of the distance of the generators' activations",
}
_LOSS_FLAGS = {"lam": "--lambda", "denominator": "--denominator", "one_sided": "--one-sided"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan compress`."""
    recipes = "; ".join(f"{name} ({recipe.text})" for name, recipe in RECIPES.items())
    add_gan_options(parser)
    add_data_options(parser, "default: that of the GAN's training")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a settings file: a JSON object of compression settings by name, such as a run folder's compression.json; "
        f"it may also have {', '.join(OF_THE_COMMAND)}; options on the command line override its settings, and its "
        "settings must agree with the recipe",
    )
    parser.add_argument(
        "--recipe",
        type=_recipe,
        metavar="NAME",
        help=f"the way of compressing, one of: {recipes} (default: {DEFAULT})",
    )
    parser.add_argument("--sparsity", type=float, help="target, from 0 to below 1 (default: 0.9)")
    parser.add_argument(
        "--within",
        metavar="BOUND",
        help="find the highest sparsity whose validation score stays within a bound: 5%% allows a kernel distance of 5 "
        f"%% above the dense generator's, 25dB asks for a PSNR of 25 dB to the original; at most {MOST} sparsities of "
        "--steps steps",
    )
    parser.add_argument(
        "--validate",
        type=at_least_one,
        metavar="N",
        help="score the generator every N steps on a validation split, a tenth of the training images, which are then "
        "not trained on: by kernel distance with --features, or with this repository's classifier of the data, else by "
        "PSNR to the original; the best generator at the full sparsity is the result (default: no)",
    )
    parser.add_argument(
        "--patience",
        type=at_least_one,
        metavar="K",
        help="with --validate: end the run after K scores at the full sparsity without a better one (default: never)",
    )
    parser.add_argument("--steps", type=int, help=f"fine-tuning steps (default: {_STEPS})")
    parser.add_argument("--batch", type=int, help="images per step (default: the task's)")
    parser.add_argument(
        "--ramp",
        type=float,
        metavar="FRACTION",
        help="the fraction of the run after which gradual pruning reaches its target (default: the recipe's)",
    )
    parser.add_argument(
        "--initial-sparsity",
        type=float,
        metavar="FRACTION",
        help="the sparsity at the first step of gradual pruning; a high one needs --reconstruct (default: 0.05)",
    )
    parser.add_argument(
        "--prune-every", type=at_least_one, metavar="N", help="steps between two prunings of a recipe (default: 10)"
    )
    parser.add_argument(
        "--weight",
        action="append",
        metavar="TERM=VALUE",
        help="the weight of a term of the GAN's own losses, for example gen=1; may be repeated (default: the GAN's)",
    )
    parser.add_argument(
        "--statistics",
        choices=["batch", "stored"],
        help="the statistics that the compressed generator's batch norms use in training (default: the recipe's)",
    )
    usual = CompressionConfig()
    for name, dest in OPTIONS.items():
        if name != "seed":
            text = HELP.get(name) or documented(CompressionConfig, name)
            value = DEFAULT_SETTINGS.get(name, getattr(usual, name))
            of_recipe = ", or the recipe's" if name in DEFAULT_SETTINGS else ""
            text += "" if "(default" in text else f" (default: {default_of(value)}{of_recipe})"
            flags = _FLAGS.get(name, (_flag(name),))
            add_field(parser, CompressionConfig, name, flags, dest, text, **_MORE.get(name, {}))
    for name, kinds in LOSS_FIELDS.items():
        of = " and ".join(f"{kind.__name__}, {default_of(getattr(kind(), name))}" for kind in kinds)
        text = f"{LOSS_HELP.get(name) or documented(kinds[0], name)} (default: the recipe's, or of {of})"
        both = [_flag(f"loss_{name}"), *([_LOSS_FLAGS[name]] if name in _LOSS_FLAGS else [])]
        add_field(parser, kinds[0], name, both, f"loss_{name}", text)
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
        choices=["float32", "float16", "bfloat16", "int16", "int8"],
        help="the dtype of the weights in the written file (default: float32)",
    )
    add_run_options(parser, "runs/compress")
    parser.set_defaults(seed=None)  # None means that --seed was not given: the seed of --config is then used


def _recipe(name: str) -> str:
    try:
        return recipe_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Recipe.config`, from the options and the settings file of --config.

    They are the fields that the command line or the file has, with granularity, exclude, allocation and seed in any
    case, and `loss_fields`. An option that was not given is set in `arguments` to the recipe's value, or to None where
    the recipe leaves a field of `OF_THE_GAN` open. Raises ValueError for a file with other contents, and for settings
    that contradict the recipe.
    """
    values = {} if arguments.config is None else _values(arguments.config, arguments)
    arguments.recipe = arguments.recipe or DEFAULT
    arguments.steps = _STEPS if arguments.steps is None else arguments.steps
    recipe, usual = RECIPES[arguments.recipe], CompressionConfig()
    settings, loss_fields = ({}, {}) if arguments.config is None else _read(arguments.config, values, arguments, recipe)
    settings |= given_fields(arguments, OPTIONS)
    if isinstance(settings.get("autocast"), str):
        settings["autocast"] = getattr(torch, settings["autocast"])
    if isinstance(arguments.granularity, str):
        settings["granularity"] = parse_granularity(arguments.granularity)
    for name in ("granularity", "exclude", "allocation", "seed"):
        settings.setdefault(name, recipe.settings.get(name, getattr(usual, name)))
    if arguments.statistics is not None:
        settings["stored_statistics"] = arguments.statistics == "stored"
    settings["loss_fields"] = loss_fields | _loss_options(arguments, recipe)

    # Wrong settings are refused here, before a warm-up takes time.
    allocation = "uniform" if settings["allocation"] == "sensitivity" else settings["allocation"]
    checked = recipe.config(**{**settings, "allocation": allocation})
    for name, option in OPTIONS.items():
        value = settings.get(name, getattr(checked, name))
        of_the_gan = name in OF_THE_GAN and name not in settings and value == getattr(usual, name)
        setattr(arguments, option, None if of_the_gan else value)
    return settings


def _loss_options(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """The fields of the recipe's loss that options set. Raises ValueError for one that the loss does not have."""
    given = given_fields(arguments, {name: f"loss_{name}" for name in LOSS_FIELDS})
    loss = type(recipe.config().loss)
    for name in given:
        if name not in names_of(loss):
            known = ", ".join(_flag(f"loss_{one}") for one in names_of(loss)) or "none"
            raise ValueError(
                f"{_flag(f'loss_{name}')} is given; --recipe {arguments.recipe} minimises a {loss.__name__}, whose "
                f"options are: {known}"
            )
    return given


def read_search(arguments: argparse.Namespace) -> Bound | None:
    """The bound of --within, if given. Sets --sparsity where it is not given, and --patience to 0.

    Raises ValueError for options that contradict each other.
    """
    if arguments.patience is not None and arguments.validate is None:
        raise ValueError(f"--patience is {arguments.patience} and --validate is not given; patience counts its scores")
    arguments.patience = arguments.patience or 0
    if arguments.within is None:
        arguments.sparsity = 0.9 if arguments.sparsity is None else arguments.sparsity
        return None
    bound, recipe = Bound.of(arguments.within), RECIPES[arguments.recipe]
    if arguments.sparsity is not None:
        raise ValueError(f"--sparsity is {arguments.sparsity} and --within is given; --within finds the sparsity")
    if not isinstance(arguments.allocation, str) or arguments.allocation == "sensitivity":
        raise ValueError(
            "--allocation gives sparsities by layer; --within tries several, so it must be uniform or global"
        )
    if recipe.start != "dense" or recipe.pruning != "gradual":
        raise ValueError(
            f"--recipe is {arguments.recipe}; --within needs one that prunes the dense generator gradually"
        )
    arguments.sparsity = LADDER[0]
    return bound


def read_weights(arguments: argparse.Namespace) -> dict[str, float]:
    """The weights of --weight by the name of the term. Raises ValueError for another form and for one below 0."""
    weights = {}
    for setting in arguments.weight or ():
        name, equals, text = setting.partition("=")
        try:
            weights[name] = float(text)
        except ValueError:
            equals = ""
        if not name or not equals or not 0 <= weights[name] < float("inf"):
            raise ValueError(f"--weight is {setting!r}; it must be TERM=VALUE, where VALUE is a number of at least 0")
    return weights


def _values(file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of a settings file but those of `OF_THE_COMMAND`, which become options that were not given."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {file}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {file}: the file holds {values!r:.80}; it must hold an object of settings by name")
    for name in values.keys() & OF_THE_COMMAND.keys():
        value, kind = values.pop(name), OF_THE_COMMAND[name]
        accepted = (int, float) if kind is float else (kind,)
        if type(value) not in accepted or (name in _POSITIVE and value < 1):
            least = ", at least 1" if name in _POSITIVE else ""
            raise ValueError(f"--config {file}: {name} is {value!r}; it must be {_KINDS[kind]}{least}")
        if name == "recipe":
            value = recipe_name(value)
        if name == "weight":  # terms on the command line stand behind those of the file, and win
            value = [*(f"{term}={number}" for term, number in value.items()), *(arguments.weight or ())]
        if name == "weight" or getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return values


def _read(
    file: Path, values: dict[str, Any], arguments: argparse.Namespace, recipe: Recipe
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `CompressionConfig` but the loss, and the fields of the loss, that a settings file has."""
    try:
        settings = settings_from(values)
    except ValueError as error:
        raise ValueError(f"--config {file}: {error}") from None
    if "loss" not in settings:
        return settings, {}
    given, minimised = type(settings.pop("loss")), type(recipe.config().loss)
    if given is not minimised:
        raise ValueError(
            f"--config {file}: its loss is a {given.__name__}; it must be a {minimised.__name__}, the loss of "
            f"--recipe {arguments.recipe}"
        )
    return settings, {name: value for name, value in values["loss"].items() if name != "kind"}
