"""The command line, end to end on tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsegan.cli
import sparsegan.cli.compress
from sparsegan import data
from sparsegan.cli import main
from sparsegan.compress import gap
from sparsegan.compress.step import CompressionTask
from sparsegan.gans import Objective, dcgan, store
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning.allocation import sensitivity
from sparsegan.training import endless
from sparsegan.training.adversarial import AdversarialTask


@pytest.mark.usefixtures("few_digits")
def test_train_compress_generate_profile_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    dense, small, picture = tmp_path / "dense", tmp_path / "small", tmp_path / "made.png"
    common = ["--batch", "8", "--steps", "4", "--quiet", "--out"]
    assert main(["train", "dcgan", "--width", "2", *common, str(dense)]) == 0
    assert main(["compress", str(dense), "--sparsity", "0.8", "--values", "float16", *common, str(small)]) == 0
    assert main(["compress", str(dense), "--sparsity", "0.8", *common, str(small)]) == 1
    assert "already holds a run; resume it" in capsys.readouterr().err
    again = ["--config", str(small / "compression.json"), "--values", "float16", "--sparsity", "0.8"]
    assert main(["compress", str(dense), *again, *common, str(tmp_path / "again")]) == 0
    files = [folder / "generator.safetensors" for folder in (small, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert main(["compress", str(dense), *again, "--lr", "0.5", "--resume", *common, str(small)]) == 1
    assert "generator_lr was 0.001 and is 0.5" in capsys.readouterr().err
    assert main(["generate", str(small), "--count", "3", "--columns", "2", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "3 images in 1 call(s) on" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["profile", str(small), "--batch", "2"]) == 0
    assert capsys.readouterr().out.count("SparseConvTranspose2d") == 5

    from sparsegan.cli.loading import load_trained

    loaded = load_trained(small).generator
    noise = dcgan.noise(loaded, 2, 0)
    assert loaded(noise).shape == (2, 1, 64, 64)
    assert (small / "generator.safetensors").stat().st_size < 0.5 * (dense / "generator.safetensors").stat().st_size


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("recipe", ["small-dense", "gan-loss-scratch"])
def test_baselines_with_fresh_generators_are_written_with_their_own_sizes(recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    dense, small = tmp_path / "dense", tmp_path / "small"
    common = ["--batch", "8", "--steps", "2", "--quiet", "--out"]
    assert main(["train", "dcgan", "--width", "6", *common, str(dense)]) == 0
    assert main(["compress", str(dense), "--recipe", recipe, "--sparsity", "0.8", *common, str(small)]) == 0
    from sparsegan.cli.loading import load_trained

    weights = [sum(p.numel() for p in load_trained(folder).generator.parameters()) for folder in (dense, small)]
    assert weights[1] == pytest.approx(0.2 * weights[0], rel=0.5 if recipe == "small-dense" else 0.05)
    assert (store.read_config(small)["network"]["width"] < 6) == (recipe == "small-dense")


def interrupted(monkeypatch: pytest.MonkeyPatch, task: type, at: int) -> None:
    """Makes the next training run of class `task` stop with KeyboardInterrupt at step `at`."""
    forward = task.step

    def step(self: object, number: int, batch: object) -> dict[str, float]:
        if number == at:
            monkeypatch.setattr(task, "step", forward)
            raise KeyboardInterrupt
        return forward(self, number, batch)

    monkeypatch.setattr(task, "step", step)


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("data", [[], ["--data-free"]])
def test_interruptions_in_and_after_the_warm_up_change_nothing(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    dense, whole, parts = tmp_path / "dense", tmp_path / "whole", tmp_path / "parts"
    common = ["--batch", "8", "--quiet", "--steps"]
    assert main(["train", "dcgan", "--width", "2", *common, "2", "--out", str(dense)]) == 0
    command = ["compress", str(dense), "--warm-up", "5", *data, "--checkpoint-every", "2", *common, "5", "--out"]
    assert main([*command, str(whole)]) == 0
    interrupted(monkeypatch, AdversarialTask, 3)
    assert main([*command, str(parts)]) == 130
    assert not (parts / "config.json").exists()
    assert main([*command, str(parts), "--resume", "--seed", "1"]) == 1
    assert "seed was 0 and is 1" in capsys.readouterr().err
    interrupted(monkeypatch, CompressionTask, 3)
    assert main([*command, str(parts), "--resume"]) == 130
    assert not (parts / "generator.safetensors").exists()
    assert main([*command, str(parts), "--resume"]) == 0
    for file in ("generator.safetensors", "metrics.jsonl", "discriminator/metrics.jsonl"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.usefixtures("few_digits")
def test_the_command_allocates_by_the_sensitivity_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    dense, small = tmp_path / "dense", tmp_path / "small"
    common = ["--batch", "8", "--quiet", "--steps", "4"]
    assert main(["train", "dcgan", "--width", "4", *common, "--out", str(dense)]) == 0
    gan = store.load(dense)
    for weight in (weight for network in (gan.generator, gan.discriminator) for weight in network.parameters()):
        weight.data *= 5 if weight.dim() == 4 else 1  # untrained, all layers would have the same sensitivity
    store.save(dense, gan.generator, gan.discriminator)
    command = ["compress", str(dense), "--allocation", "sensitivity", "--sparsity", "0.7", "--exclude", "main.12"]
    command += [*common, "--out", str(small)]
    interrupted(monkeypatch, CompressionTask, 2)
    assert main(command) == 130
    monkeypatch.setattr(sparsegan.cli.compress, "sensitivity", None)  # a resumed run does not measure again
    assert main([*command, "--resume"]) == 0

    from sparsegan.cli.loading import load_trained

    batches = list(islice(endless(data.load("images", "mnist", 64, "all", channels=1).batches(8), 0), 4))
    measure = gap(gan.generator, gan.discriminator, gan.objective, batches)
    wanted = sensitivity(gan.generator, measure, 0.7, exclude=("main.12",))
    assert max(wanted.values()) - min(wanted.values()) > 0.05
    assert store.read_config(small)["allocation"] == pytest.approx(wanted)
    layers = dict(sparse_layers(load_trained(small).generator))
    assert {name: layer.sparsity for name, layer in layers.items()} == pytest.approx(wanted, abs=0.01)

    bare = str(tmp_path / "generator.pth")
    torch.save(gan.generator.state_dict(), bare)
    alone = ["compress", "--generator", bare, "--allocation", "sensitivity", "--warm-up", "0", *common]
    assert main([*alone, "--out", str(tmp_path / "alone")]) == 1
    assert "which needs a trained discriminator; give --discriminator or --warm-up" in capsys.readouterr().err


def write_images(folder: Path, count: int, width: int = 32, height: int = 32) -> None:
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(str(folder)))
    for index in range(count):
        pixels = torch.randint(256, (4, 4, 3), generator=generator, dtype=torch.uint8).numpy()
        image.fromarray(pixels).resize((width, height)).save(folder / f"{index}.png")


def write_data(task: str, root: Path) -> None:
    """Training and test images in a layout of the task."""
    for split in ("train", "test"):
        if task == "cyclegan":
            write_images(root / f"{split}A", 3)
            write_images(root / f"{split}B", 2)
        elif task == "stargan":
            for domain in ("old", "young"):
                write_images(root / split / domain, 2)
        else:
            write_images(root / split, 3, width=64 if task == "pix2pix" else 32)


TASKS = {
    "pix2pix": ["--network", "downs=5", "discriminator_layers=2"],
    "cyclegan": ["--network", "blocks=1", "discriminator_layers=2"],
    "stargan": ["--network", "blocks=1", "discriminator_layers=3"],
    "srgan": ["--network", "blocks=1"],
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_training_over_public_files_to_pictures_and_scores(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torchmetrics")
    image = pytest.importorskip("PIL.Image")
    source, dense, small = tmp_path / "data", tmp_path / "dense", tmp_path / "small"
    write_data(task, source)
    common = ["--data", str(source), "--size", "32", "--batch", "2", "--steps", "2", "--quiet", "--out"]
    assert main(["train", task, "--width", "2", *TASKS[task], *common, str(dense)]) == 0
    assert image.open(dense / "samples.png").mode == "RGB"
    config = json.loads((dense / "config.json").read_text())
    assert f"train {task} --data" in config["command"]
    assert "--size 32" in config["command"]

    # The same networks as files of the public repositories, with and without a discriminator
    files: dict[str, list[str]] = {"generator": [], "discriminator": []}
    trained = store.load(dense)
    for side, network in (("generator", trained.generator), ("discriminator", trained.discriminator)):
        for index, part in enumerate(network.children() if task == "cyclegan" else [network]):
            files[side].append(str(tmp_path / f"{side}{index}.pth"))
            torch.save({"module." + key: value for key, value in part.state_dict().items()}, files[side][-1])
    arguments = ["compress", "--generator", *files["generator"], "--sparsity", "0.8"]
    judged = ["--discriminator", *files["discriminator"]] if task != "stargan" else ["--warm-up", "2"]
    features = ["--features", "test_cli:features"]
    assert main([*arguments, *judged, *features, *common, str(small)]) == 0
    assert (small / "discriminator").is_dir() == (task == "stargan")
    page = (small / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "FID (test_cli:features" in page
    assert image.open(small / "samples.png").mode == "RGB"
    written = store.read_config(small)
    assert written["network"]["gan"] == task
    assert written["compressed"]

    capsys.readouterr()
    made, inputs = tmp_path / "made", tmp_path / "inputs"
    write_images(inputs / "deep", 1)
    assert main(["generate", str(small), "--images", str(inputs), "--quiet", "--out", str(made)]) == 0
    folders = {"cyclegan": ["a_to_b", "b_to_a"], "stargan": ["old", "young"]}.get(task, ["."])
    size = 128 if task == "srgan" else 32
    assert sorted(path.relative_to(made) for path in made.rglob("*.png")) == [Path(f, "deep", "0.png") for f in folders]
    assert all(image.open(path).size == (size, size) for path in made.rglob("*.png"))
    assert main(["generate", str(small), "--images", str(inputs), "--out", str(inputs)]) == 1
    assert "the inputs would be overwritten" in capsys.readouterr().err

    # Several images per call, of two sizes, give the same pictures as one image per call.
    write_images(inputs / "other", 2)
    write_images(inputs / "wide", 2, width=64)
    alone, together = tmp_path / "alone", tmp_path / "together"
    for batch, folder in (("1", alone), ("3", together)):
        command = ["generate", str(small), "--images", str(inputs), "--batch", batch, "--quiet", "--out", str(folder)]
        assert main(command) == 0
    calls = 2 * len(folders)  # one call for 3 images of 32x32, one for 2 of 64x32
    assert f"{5 * len(folders)} images in {calls} call(s)" in capsys.readouterr().out
    for file in alone.rglob("*.png"):
        pictures = [np.asarray(image.open(root / file.relative_to(alone))).astype(int) for root in (alone, together)]
        assert abs(pictures[0] - pictures[1]).max() <= 1
    (inputs / "wide" / "0.png").write_bytes((inputs / "wide" / "1.png").read_bytes()[:50])
    assert main([*command[:-1], str(tmp_path / "corrupt")]) == 1
    assert f"{inputs / 'wide' / '0.png'} is not an image that pillow can read" in capsys.readouterr().err

    assert main(["evaluate", str(small), "--data", str(source), *features, "--quiet", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.pop("split") == "test"
    assert all(score["fid"] is not None and score["images"] >= 2 for score in scores.values())
    assert all((score["psnr"] is not None) == (task in ("pix2pix", "srgan")) for score in scores.values())


def features() -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: images.mean((2, 3))


def build() -> tuple[torch.nn.Module, torch.nn.Module, Objective]:
    """A user's GAN, which colours grey images."""
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1))
    judge = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 2), torch.nn.LeakyReLU(), torch.nn.Conv2d(4, 1, 4))
    return (
        generator,
        judge,
        Objective(
            lambda g, d, fake, batch: {"gen": -d(fake).mean()},
            lambda g, d, fake, batch: {"dis": d(fake).mean() - d(batch).clamp(max=1).mean()},
            lambda g, batch: g(batch.mean(1, keepdim=True).expand(-1, 3, -1, -1)),
        ),
    )


def test_a_users_gan_is_compressed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_images(tmp_path / "data", 12, 64, 64)
    out = tmp_path / "out"
    command = ["compress", "--generator", "test_cli:build", "--data", str(tmp_path / "data"), "--batch", "4"]
    command += ["--steps", "2", "--sparsity", "0.5", "--quiet", "--out", str(out)]
    assert main(command) == 1
    assert "--task is missing; it says how --data is read" in capsys.readouterr().err
    assert main([*command, "--task", "dcgan"]) == 0
    assert "data:image/png" in (out / "report.html").read_text()
    from sparsegan.cli.loading import load_trained

    assert load_trained(out).generator[0].sparsity == pytest.approx(0.5, abs=0.01)
    assert main(["profile", str(out)]) == 1
    assert (
        "is made by 'test_cli:build', a Python function; to allow this function to run, add --generator test_cli:build"
        in capsys.readouterr().err
    )
    assert main(["evaluate", str(out), "--task", "dcgan", "--generator", "os:abort"]) == 1
    assert "add --generator test_cli:build" in capsys.readouterr().err
    for entry, why in (
        ("test_cli:nothing", "must be package.module:function"),
        ("test_cli:features", "it must return"),
    ):
        assert main(["compress", "--generator", entry, "--task", "dcgan", "--out", str(tmp_path / "x")]) == 1
        assert why in capsys.readouterr().err


@pytest.mark.usefixtures("few_digits")
def test_only_stargan_takes_a_classifier_of_domains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = tmp_path / "dense"
    assert main(["train", "dcgan", "--width", "2", "--batch", "8", "--steps", "1", "--quiet", "--out", str(dense)]) == 0
    assert main(["evaluate", str(dense), "--classifier", "c.safetensors"]) == 1
    assert "only stargan is asked for a domain, and the task is dcgan" in capsys.readouterr().err


def test_errors_are_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("sparsegan.cli.common.find_spec", lambda name: None)
        assert main(["compress", "anything"]) == 1
    assert capsys.readouterr().err == "sparsegan compress: PIL is not installed; pip install sparsegan[demo]\n"
    assert main(["compress"]) == 1
    assert capsys.readouterr().err == "sparsegan compress: give a folder that train wrote, or --generator\n"
    assert main(["generate", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"sparsegan generate: {tmp_path} holds no config.json; it must be a folder that train or compress wrote\n"
    )
    with pytest.raises(SystemExit):
        main(["no-such-command"])


@pytest.mark.parametrize("command", sorted(sparsegan.cli.COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: sparsegan" in capsys.readouterr().out


def test_info_prints_what_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [["generate", "x", "--seed", str(2**64)], ["generate", "x", "--seed", "-1"], ["evaluate", "x", "--samples", "0"]],
)
def test_numbers_out_of_range_are_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(command)
    assert f"{command[2]}: the value is '{command[3]}'; it must be an integer from" in capsys.readouterr().err
