"""The configuration of a compression: from and to JSON, in the run folder, on the command line, by old keywords."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from test_compress import images, small_gan

from sparsegan.cli.compress import _fill_in as fill_in
from sparsegan.cli.compress_options import OF_THE_COMMAND, add_arguments, read_settings, read_weights
from sparsegan.compress import (
    RECIPES,
    Blank,
    CompressionConfig,
    Compressor,
    DistillationLoss,
    OwnImages,
    PlainLoss,
    Recipe,
    RunConfig,
    SelfSupervisedLoss,
    baseline,
)
from sparsegan.compress.config import settings_from
from sparsegan.data import Batches
from sparsegan.gans import GANS, dcgan
from sparsegan.gans.store import Gan
from sparsegan.pruning import allocation
from sparsegan.pruning.schedule import GradualPruning, OneShot
from sparsegan.training import ranks

#: A configuration in which every field that can differs from its default.
OTHER = CompressionConfig(
    loss=SelfSupervisedLoss(lam=0.25, denominator="running"),
    granularity={"main.0": "2:4", "*": "filter"},
    exclude=("main.12",),
    allocation={"main.0": 0.5, "*": 0.75},
    saliency="fisher",
    reconstruct=4,
    regrow=0.25,
    prune_discriminator=True,
    discriminator_from="target",
    original_images="real",
    feature_layers=("main.0",),
    original_mode="evaluation",
    stored_statistics=True,
    contrast=True,
    generator_lr=1e-3,
    discriminator_lr=1e-4,
    betas=(0.0, 0.9),
    generator_every=5,
    lr_warm_up=0.125,
    decay=True,
    rewind=True,
    ema=0.999,
    accumulate=2,
    autocast=torch.bfloat16,
    seed=7,
)


@pytest.mark.parametrize(
    "config",
    [
        OTHER,
        CompressionConfig(DistillationLoss(distance="mse"), discriminator_mode="none", autocast=torch.float16),
        CompressionConfig(PlainLoss()),
        *(recipe.config() for recipe in RECIPES.values()),
    ],
)
def test_a_configuration_comes_back_from_json(config: CompressionConfig) -> None:
    assert CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_example_has_every_field() -> None:
    usual = CompressionConfig()
    same = [one.name for one in fields(usual) if getattr(usual, one.name) == getattr(OTHER, one.name)]
    # Other modes contradict prune_discriminator, and cosine contradicts decay.
    assert same == ["discriminator_mode", "cosine"]
    assert CompressionConfig.from_dict({}) == usual


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"generator_rate": 1},
            "'generator_rate' is no setting of CompressionConfig; its settings: loss, gran",
        ),
        ({"generator_lr": "fast"}, "generator_lr is 'fast'; it must be a number"),
        ({"ema": True}, "ema is True; it must be a number"),
        ({"reconstruct": -1}, "reconstruct is -1; it must be at least 0"),
        ({"decay": "yes"}, "decay is 'yes'; it must be true or false"),
        ({"accumulate": 2.5}, "accumulate is 2.5; it must be an integer"),
        ({"betas": [0.5]}, r"betas is \(0.5,\); it must be two numbers"),
        ({"exclude": [1]}, r"exclude is \(1,\); it must be a list of names"),
        ({"granularity": {"main.0": 4}}, "granularity is .*; it must be a name, or names by layer"),
        ({"granularity": "filters"}, "filters"),
        ({"allocation": "even"}, "allocation is 'even'; it must be one of 'uniform'"),
        ({"autocast": "float64"}, r"autocast is 'float64'; it must be torch\.bfloat16, torch\.float16 or None"),
        ({"discriminator_mode": []}, r"discriminator_mode is \[\]; it must be one of 'updated', 'frozen', 'none'"),
        ({"loss": "PlainLoss"}, 'loss is .*; it must have a "kind", one of SelfSupervisedLoss, DistillationLoss'),
        ({"loss": {"kind": "PlainLoss", "lam": 1}}, "'lam' is no setting of PlainLoss; its settings: none"),
        ({"loss": {"kind": "SelfSupervisedLoss", "lam": "1"}}, "lam is '1'; it must be a number"),
        ({"loss": {"kind": "SelfSupervisedLoss", "lam": -1}}, "lam is -1; it must be at least 0"),
        ({"rewind": True}, "rewind is set and decay is not"),
    ],
)
def test_wrong_configurations_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CompressionConfig.from_dict(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"keep": 0}, "keep is 0; it must be at least 1"),
        ({"checkpoint_every": 1.5}, r"checkpoint_every is 1\.5; it must be an integer"),
        ({"run_dir": 3}, "run_dir is 3; it must be a path or None"),
        ({"settings": ["data"]}, r"settings is \['data'\]; it must be a dict"),
    ],
)
def test_wrong_run_settings_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig(**values)


def test_a_users_loss_is_written_if_json_can_hold_it(tmp_path: Path) -> None:
    @dataclass
    class Mine(PlainLoss):
        weight: Any = 2.0
        _network: Any = None

    class NoDataclass:
        uses_terms, matches, matches_features = True, False, False
        __call__ = PlainLoss.__call__

    assert CompressionConfig(Mine(_network=len)).to_dict()["loss"] == {"kind": "Mine", "weight": 2.0}
    for loss, words in (
        (Mine(weight=len), "loss has weight=<built-in function len>, which cannot be written as JSON"),
        (NoDataclass(), "loss is a NoDataclass, whose settings cannot be written; it must be a dataclass"),
    ):
        config, both = CompressionConfig(loss), small_gan()
        Compressor(*both, dcgan.objective, OneShot(1), config)  # without a folder nothing is written
        with pytest.raises(ValueError, match=words):
            Compressor(*both, dcgan.objective, OneShot(1), config, run=RunConfig(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="one of SelfSupervisedLoss, DistillationLoss, PlainLoss"):
        CompressionConfig.from_dict(CompressionConfig(Mine()).to_dict())


#: The settings that the version before `CompressionConfig` wrote for the run below.
FORMER = {
    "schedule": {"kind": "GradualPruning", "steps": 4, "target": 0.5, "initial": 0.05, "ramp": 0.5, "every": 3},
    "loss": {
        "kind": "SelfSupervisedLoss",
        "lam": 0.5,
        "denominator": "running",
        "floor": 0.05,
        "momentum": 0.99,
        "stop_gradient": True,
        "discriminator_gradient": True,
        "one_sided": False,
        "terms": 1.0,
        "features": 0.0,
    },
    "granularity": {"main.0": "2:4", "*": "element"},
    "exclude": ["main.12"],
    "allocation": "uniform",
    "discriminator_mode": "updated",
    "prune_discriminator": False,
    "original_as_real": False,
    "feature_layers": [],
    "stored_statistics": False,
    "contrast": False,
    "generator_every": 1,
    "generator_lr": 0.001,
    "discriminator_lr": 0.0002,
    "betas": [0.5, 0.999],
    "decay": False,
    "accumulate": 1,
    "autocast": None,
    "seed": 2,
    "batch": 4,
}


def test_run_folders_hold_the_configuration_and_old_folders_resume(tmp_path: Path) -> None:
    config = CompressionConfig(
        SelfSupervisedLoss(denominator="running"),
        granularity={"main.0": "2:4", "*": "element"},
        exclude=("main.12",),
        generator_lr=1e-3,
        seed=2,
    )

    def opened(folder: str, config: CompressionConfig, resume: bool = True) -> Compressor:
        run = RunConfig(tmp_path / folder, resume, settings={"batch": 4}, quiet=True)
        return Compressor(*small_gan(), dcgan.objective, GradualPruning(4, 0.5, every=3), config, run=run)

    opened("new", config, resume=False).fit(Batches(images(), 4))
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == FORMER | {"original_mode": "same"}
    assert CompressionConfig.from_dict(json.loads((tmp_path / "new" / "compression.json").read_text())) == config

    (tmp_path / "former").mkdir()
    (tmp_path / "former" / "config.json").write_text(json.dumps(FORMER))
    former = replace(config, original_mode="evaluation")
    opened("former", former)
    for other, words in (
        (config, r"original_mode was None and is 'same'"),
        (replace(former, ema=0.9, seed=3), r"ema was None and is 0\.9, seed was 2 and is 3"),
        (replace(former, loss=PlainLoss()), "loss was .*'lam': 0.5.* and is {'kind': 'PlainLoss'}"),
    ):
        with pytest.raises(ValueError, match=f"cannot be resumed with other settings: {words}"):
            opened("former", other)


def test_recipes_make_configurations_and_accept_them_back() -> None:
    for recipe in RECIPES.values():
        config = recipe.config(ema=0.9)
        written = settings_from(json.loads(json.dumps(config.to_dict())))
        assert recipe.config(**written) == config
    features = RECIPES["feature-distillation"]
    assert features.config().contrast
    assert not features.config(contrast=False).contrast
    for settings, words in (
        ({"discriminator_mode": "updated"}, "discriminator_mode is 'updated'; the recipe has 'frozen'"),
        ({"loss": PlainLoss()}, r"loss is PlainLoss\(\); the recipe has SelfSupervisedLoss\("),
    ):
        with pytest.raises(ValueError, match=words):
            features.config(**settings)


def read(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_settings(parser.parse_args(["folder", *words]))


def config_of(*words: str) -> CompressionConfig:
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else "self-supervised"
    return RECIPES[recipe].config(**read("--recipe", recipe, *words))


def test_the_command_line_reads_a_file_and_wins_over_it(tmp_path: Path) -> None:
    assert config_of() == RECIPES["self-supervised"].config()
    of_the_gan = {"betas", "generator_lr", "discriminator_lr", "generator_every"}  # as the GAN was trained
    assert not of_the_gan & read("--recipe", "self-supervised").keys()

    file, mine = tmp_path / "settings.json", replace(OTHER, prune_discriminator=False, original_images="unused")
    file.write_text(json.dumps(mine.to_dict()))
    assert config_of("--config", str(file)) == mine

    words = ["--ema", "0", "--no-decay", "--exclude", "--autocast", "float16", "--seed", "0", "--lambda", "0.75"]
    words += ["--statistics", "batch", "--granularity", "main.3=kernel,element", "--lr", "0.5", "--betas", "0.1", "0.2"]
    file.write_text(json.dumps(replace(mine, rewind=False).to_dict()))
    assert config_of("--config", str(file), *words) == replace(
        mine,
        rewind=False,
        ema=0.0,
        decay=False,
        exclude=(),
        autocast=torch.float16,
        seed=0,
        loss=SelfSupervisedLoss(lam=0.75, denominator="running"),
        stored_statistics=False,
        granularity={"main.3": "kernel", "*": "element"},
        generator_lr=0.5,
        betas=(0.1, 0.2),
    )


def words_for(value: Any, hint: Any) -> list[str]:
    """Another value than `value`, in the words of a command line. `hint`: the type of the field."""
    if get_origin(hint) is Literal:
        return [next(choice for choice in get_args(hint) if choice != value)]
    if isinstance(value, tuple):
        return ["0.25", "0.75"] if value and isinstance(value[0], float) else ["main.0", "main.1"]
    if isinstance(value, str):
        others = {"floored": "running", "l1": "mse", "scales": "mse", "element": "kernel", "uniform": "global"}
        return [(others | {"mse": "relative", "relative": "mse", "batch": "sample"})[value]]
    if value is None:
        return ["bfloat16"]
    return [str(value + 1 if isinstance(value, int) else value / 2 + 0.125)]


def test_every_field_of_a_configuration_and_of_a_loss_has_an_option(tmp_path: Path) -> None:
    usual = CompressionConfig()
    decided = {"discriminator_mode", "prune_discriminator", "original_images", "loss"}  # by the recipe alone
    for name in {one.name for one in fields(usual)} - decided:
        value, flag = getattr(usual, name), "--" + name.replace("_", "-")
        if name == "stored_statistics":
            words = ["--statistics", "stored"]
        elif isinstance(value, bool):
            words = [flag, *(["--decay"] if name == "rewind" else [])]
        elif name == "saliency":
            words = [flag, "fisher"]
        else:
            words = [flag, *words_for(value, get_type_hints(CompressionConfig)[name])]
        assert getattr(config_of(*words), name) != value, name

    for recipe in ("self-supervised", "feature-distillation", "distillation-and-features"):
        config = RECIPES[recipe].config()
        names = [one.name for one in fields(config.loss) if one.init]
        assert names
        for name in names:
            value, flag = getattr(config.loss, name), f"loss-{name}".replace("_", "-")
            words = [f"--no-{flag}" if value else f"--{flag}"]
            if not isinstance(value, bool):
                words = [f"--{flag}", *words_for(value, get_type_hints(type(config.loss))[name])]
            changed = config_of("--recipe", recipe, *words)
            assert {one for one in names if getattr(changed.loss, one) != getattr(config.loss, one)} == {name}
            file = tmp_path / "settings.json"  # the settings file of such a run gives the same again
            file.write_text(json.dumps(changed.to_dict()))
            assert config_of("--recipe", recipe, "--config", str(file)) == changed


def test_weights_of_terms_are_read_or_refused() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert read_weights(parser.parse_args(["x"])) == {}
    assert read_weights(parser.parse_args(["x", "--weight", "gen=2", "--weight", "rec=0.5"])) == {"gen": 2, "rec": 0.5}
    for wrong in ("gen", "gen=", "=1", "gen=-1", "gen=nan", "gen=inf"):
        with pytest.raises(ValueError, match=f"--weight is '{wrong}'; it must be TERM=VALUE"):
            read_weights(parser.parse_args(["x", "--weight", wrong]))


def test_a_file_has_the_numbers_of_the_command_too(tmp_path: Path) -> None:
    parser, file = argparse.ArgumentParser(), tmp_path / "settings.json"
    add_arguments(parser)
    given = {"recipe": "gan-loss", "steps": 70, "sparsity": 0.5, "batch": 3, "ramp": 1, "prune_every": 4, "warm_up": 0}
    given |= {"validate": 20, "patience": 2, "within": "5%"}
    assert given.keys() | {"weight"} == OF_THE_COMMAND.keys()
    file.write_text(json.dumps(given | {"weight": {"gen": 2.0, "dis": 1}, "ema": 0.5}))
    arguments = parser.parse_args(["x", "--config", str(file)])
    assert read_settings(arguments)["ema"] == 0.5
    assert {name: getattr(arguments, name) for name in given} == given
    assert read_weights(arguments) == {"gen": 2.0, "dis": 1.0}

    flags = {"recipe": "distillation", "steps": 8, "sparsity": 0.25, "batch": 2, "ramp": 0.5, "prune_every": 1}
    flags |= {"warm_up": 5, "validate": 9, "patience": 1, "within": "9dB"}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    arguments = parser.parse_args(["x", "--config", str(file), *words, "--weight", "gen=3"])
    read_settings(arguments)
    assert {name: getattr(arguments, name) for name in flags} == flags
    assert read_weights(arguments) == {"gen": 3.0, "dis": 1.0}

    arguments = parser.parse_args(["x"])
    read_settings(arguments)
    assert (arguments.recipe, arguments.steps) == ("distillation", 400)
    for name, value, accepted in (
        ("steps", 1.5, "an integer"),
        ("steps", True, "an integer"),
        ("sparsity", "0.9", "a number"),
        ("patience", 0, "an integer, at least 1"),
        ("within", 5, "a text"),
        ("weight", [1], "an object of numbers by term"),
    ):
        file.write_text(json.dumps({name: value}))
        with pytest.raises(ValueError, match=rf"settings\.json: {name} is .*; it must be {accepted}"):
            read("--config", str(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", r"the file holds \[\]; it must hold an object"),
        ('{"lr": 1}', "'lr' is no setting of CompressionConfig; its settings: loss, "),
        ('{"loss": {"kind": "PlainLoss"}}', "its loss is a PlainLoss; it must be a SelfSupervisedLoss, the"),
    ],
)
def test_a_file_without_valid_settings_is_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    method = ["--recipe", "self-supervised", "--config", str(file)]
    with pytest.raises(ValueError, match=rf"--config .*settings\.json: {words}"):
        read(*method)
    file.write_text('{"loss": {"kind": "PlainLoss"}}')
    words = "--loss-one-sided is given; --recipe gan-loss minimises a PlainLoss, whose options are: none"
    with pytest.raises(ValueError, match=words):
        read("--config", str(file), "--recipe", "gan-loss", "--one-sided")
    file.write_text('{"discriminator_mode": "frozen"}')
    with pytest.raises(ValueError, match="discriminator_mode is 'frozen'; the recipe has 'updated'"):
        read(*method)
    with pytest.raises(ValueError, match="generator_every is 5 and discriminator_mode is 'frozen'; it must be 1"):
        read("--recipe", "self-supervised-frozen", "--generator-every", "5")


def test_a_recipe_with_a_frozen_discriminator_takes_no_generator_every_from_the_gan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = GANS["stargan"].training
    assert training.generator_every == 5
    for recipe, given, every, said in (
        ("self-supervised", None, 5, 0),
        ("self-supervised-frozen", None, 1, 1),
        ("self-supervised-frozen", 1, 1, 0),
    ):
        options = dict.fromkeys(("batch", "discriminator_lr", "lr", "betas", "size"), 1)
        arguments = argparse.Namespace(
            recipe=recipe, generator_every=given, quiet=False, data=None, features=None, **options
        )
        fill_in(arguments, Gan(None, None, None, {"network": {}}), training, without_data=True)
        assert arguments.generator_every == every
        printed = "".join(capsys.readouterr())
        assert printed.count("does not update the discriminator: the generator is updated at every step") == said


# Old keywords and names, until 0.2


def test_keywords_of_the_former_version_give_the_same_with_one_warning(tmp_path: Path) -> None:
    of_run = {"run_dir": tmp_path, "resume": True, "checkpoint_every": 3, "keep": 4, "limit": 1e3, "title": "x"}
    of_config = {one.name: getattr(OTHER, one.name) for one in fields(OTHER)}
    of_config |= {"regrow": 0.0, "exclude": (), "allocation": "global", "granularity": "element"}
    with pytest.warns(DeprecationWarning, match=r"config=CompressionConfig\(loss=.* run=RunConfig\(run_dir=") as said:
        old = Compressor(
            *small_gan(), dcgan.objective, OneShot(1), **of_config, **of_run, config={"batch": 4}, quiet=True
        )
    assert len(said) == 1
    assert said[0].filename == __file__
    assert old.config == CompressionConfig(**of_config)
    assert old.run_config == RunConfig(**of_run, settings={"batch": 4}, quiet=True)
    with pytest.warns(DeprecationWarning, match=r"baseline takes run=RunConfig\(quiet=\.\.\.\) now"):
        compressor = baseline("gan-loss", *small_gan(), dcgan.objective, steps=1, quiet=True, ema=0.5)
    assert compressor.run_config == RunConfig(title="gan-loss", quiet=True)
    assert compressor.config.ema == 0.5


def test_the_former_name_of_original_images_works_with_a_warning(tmp_path: Path) -> None:
    said = r"original_as_real=True is original_images='real' now; the old name goes in 0\.2"
    settings = {"original_as_real": True}
    made: list[Callable[[], CompressionConfig]] = [
        lambda: CompressionConfig(**settings),
        lambda: CompressionConfig.from_dict(settings),
        lambda: Recipe("mine", own=True, **settings).config(),
        lambda: RECIPES["adversarial-distillation"].config(**settings),
        lambda: Compressor(*small_gan(), dcgan.objective, OneShot(1), **settings).config,
        lambda: (
            baseline(
                "adversarial-distillation",
                *small_gan(),
                dcgan.objective,
                steps=1,
                fresh=lambda: small_gan()[1],
                fresh_generator=lambda: small_gan()[0],
                **settings,
            ).config
        ),
    ]
    for make in made:
        with pytest.warns(DeprecationWarning, match=said):
            config = make()
        assert config.original_images == "real"
        with pytest.warns(DeprecationWarning, match="CompressionConfig.original_as_real is .*original_images now"):
            assert config.original_as_real
    for value, written in (("real", {"original_as_real": True}), ("fake", {"original_images": "fake"})):
        folder = tmp_path / value
        Compressor(
            *small_gan(), dcgan.objective, OneShot(1), CompressionConfig(original_images=value), run=RunConfig(folder)
        )
        kept = json.loads((folder / "config.json").read_text())
        names = ("original_as_real", "original_images")
        assert {name: kept[name] for name in names if name in kept} == written
    for bad, words in (
        ({"original_as_real": 1}, "original_as_real is 1; it must be true or false"),
        ({"original_as_real": True, "original_images": "real"}, "beside original_images"),
    ):
        with pytest.raises(ValueError, match=words):
            CompressionConfig(**bad)


def test_one_setting_in_two_places_is_an_error() -> None:
    def made(*config: Any, **more: Any) -> Compressor:
        return Compressor(*small_gan(), dcgan.objective, OneShot(1), *config, **more)

    with pytest.raises(ValueError, match="ema given beside config; set it in CompressionConfig"):
        made(CompressionConfig(), ema=0.5)
    with pytest.raises(ValueError, match="keep, settings given beside run; set it in RunConfig"):
        made(run=RunConfig(), keep=3, config={"batch": 4})
    with pytest.raises(TypeError, match="Compressor got an unexpected keyword argument 'learning_rate'"):
        made(learning_rate=1)


def test_names_of_the_former_version_warn() -> None:
    for module, old, new in (
        (ranks, "count", "world_size"),
        (ranks, "wait", "barrier"),
        (allocation, "shares", "layer_sparsities"),
    ):
        with pytest.warns(DeprecationWarning, match=rf"{old} is .*\.{new} now; the old name goes in 0\.2"):
            assert getattr(module, old) is getattr(module, new)
    with pytest.warns(DeprecationWarning, match="Blank is BlankBatches now"):
        batches = Blank(2, 1, 8, count=1)
    with pytest.warns(DeprecationWarning, match="OwnImages is GeneratedBatches now"):
        assert len(OwnImages(small_gan()[0], dcgan.objective, batches)) == 1
