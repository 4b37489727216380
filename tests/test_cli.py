"""The command line, end to end on tiny networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsegan.cli
import sparsegan.cli.compress
import sparsegan.cli.loading
from sparsegan import data
from sparsegan.cli import main
from sparsegan.cli.bound import LADDER
from sparsegan.cli.verdict import VALIDATED, original_images
from sparsegan.compress import gap
from sparsegan.compress.step import CompressionTask
from sparsegan.gans import Objective, dcgan, store
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning.allocation import sensitivity
from sparsegan.training import endless
from sparsegan.training.adversarial import AdversarialTask


@pytest.fixture(autouse=True)
def few_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict compares few images, to save time."""
    monkeypatch.setattr("sparsegan.cli.verdict.IMAGES", 32)


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
    rate = store.read_config(small)["generator_lr"]
    assert main(["compress", str(dense), *again, "--lr", "0.5", "--resume", *common, str(small)]) == 1
    assert f"generator_lr was {rate} and is 0.5" in capsys.readouterr().err
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
    alone += ["--data", "mnist", "--out", str(tmp_path / "alone")]
    assert main(alone) == 1
    assert "which needs a trained discriminator; give --discriminator or --warm-up" in capsys.readouterr().err


def face(path: Path, channels: int = 3) -> Path:
    """A generator in one file, whose images differ from noise to noise, as a trained generator's do."""
    torch.manual_seed(0)
    generator = dcgan.Generator(20, 4, channels)
    for weight in generator.parameters():
        weight.data *= 12 if weight.dim() == 4 else 1
    torch.save(generator.state_dict(), path)
    return path


@pytest.mark.usefixtures("few_digits")
def test_a_generator_alone_gets_a_verdict_and_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    bare, verdicts = face(tmp_path / "face.pth"), []
    for sparsity, out in (("0", tmp_path / "same"), ("0.9", tmp_path / "far")):
        command = ["compress", "--generator", str(bare), "--data-free", "--recipe", "one-shot", "--quiet"]
        assert main([*command, "--sparsity", sparsity, "--batch", "4", "--warm-up", "0", "--out", str(out)]) == 0
        printed = capsys.readouterr()
        result = json.loads((out / "result.json").read_text())
        assert printed.out.splitlines()[-1] == result["line"]
        assert (result["line"] in printed.err) == (result["verdict"] == "far")
        page = (out / "report.html").read_text()
        assert result["line"][1:].replace("'", "&#x27;") in page
        assert "sparsity, without data</h1>" in page
        assert store.read_config(out)["data"] == result["settings"]["data"] == "none"
        for file in ("report.html", "result.json", "config.json"):
            assert "mnist" not in (out / file).read_text()
        ours, pruned = (result["likeness"][name]["samples"] for name in ("compressed", "pruned"))
        assert ours == pytest.approx(pruned)  # one-shot: not fine-tuned
        verdicts.append((result["verdict"], ours["psnr"] > ours["mean_image"] + 8))
    assert verdicts == [("close", True), ("far", False)]
    assert "do not ship this; try --steps, --sparsity" in printed.err


@pytest.mark.usefixtures("few_digits")
def test_a_generator_alone_never_gets_the_digits_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = ["--generator", str(face(tmp_path / "face.pth"))]
    out = ["--out", str(tmp_path / "out")]
    for command, words in (
        (["compress", *bare, *out], "--data is missing; nothing here says what this GAN was trained on"),
        (["compress", *bare, "--data-free", "--features", "test_cli:features", *out], "--data is missing"),
        (["compress", *bare, "--data", "mnist", *out], "has images of 1 channel(s) here; the GAN needs 3"),
        (["compress", *bare, "--data", "mnist", "--data-free", *out], "--data is for scores by --features only"),
        (["evaluate", *bare, "--features", "test_cli:features"], "--data is missing"),
        (["evaluate", *bare, "--features", "test_cli:features", "--data", "mnist"], "the GAN needs 3"),
    ):
        assert main(command) == 1, command
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


#: The default recipe without data, in little time.
WITHOUT_D = ["--data-free", "--prune-every", "1", "--warm-up", "1", "--batch", "4", "--quiet"]


def test_a_validated_run_keeps_its_best_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    command = ["compress", "--generator", str(face(tmp_path / "face.pth")), "--sparsity", "0.5", "--steps", "8"]
    command += [*WITHOUT_D, "--ramp", "0.5", "--lr", "0.05", "--validate", "2", "--checkpoint-every", "3", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    result = json.loads((tmp_path / "whole" / "result.json").read_text())["validation"]
    assert [(look["step"], look["full"]) for look in result["looks"]] == [(2, False), (4, False), (6, True), (8, True)]
    best = max((look for look in result["looks"] if look["full"]), key=lambda look: look["score"])
    assert result["best step"] == best["step"]
    assert sorted(path.name for path in (tmp_path / "whole" / "validation").iterdir()) == [
        "scores.json",
        *(f"step-000000{step}.png" for step in (2, 4, 6, 8)),
    ]
    from sparsegan.cli.loading import load_trained

    gan = store.load_public(tmp_path / "face.pth")[0]
    images = original_images(gan, None, 64, 0, VALIDATED)
    written = load_trained(tmp_path / "whole").generator  # the score is that of the written generator
    assert images.compare(written)["samples"].psnr == pytest.approx(best["score"], abs=1e-4)

    interrupted(monkeypatch, CompressionTask, 7)
    assert main([*command, str(tmp_path / "parts")]) == 130
    assert main([*command, str(tmp_path / "parts"), "--resume"]) == 0
    files = [tmp_path / name / "generator.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads((tmp_path / "parts" / "result.json").read_text())["validation"] == result


def test_validation_never_sees_the_images_of_the_training_or_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torchmetrics")
    asked: dict[str, set[str]] = {}
    load = data.load

    def noted(kind: object, source: str, size: int, split: str, **more: object) -> data.Samples:
        samples = load(kind, source, size, split, **more)  # type: ignore[arg-type]
        asked[split] = set(samples.names)
        return samples

    write_images(tmp_path / "data", 60, 64, 64)
    monkeypatch.setattr(sparsegan.cli.loading.data, "load", noted)
    bare = ["compress", "--generator", str(face(tmp_path / "face.pth")), "--recipe", "gan-loss", "--warm-up", "1"]
    bare += ["--data", str(tmp_path / "data"), "--batch", "4", "--steps", "2", "--quiet"]
    scored = [*bare, "--features", "test_cli:features", "--validate", "2", "--out", str(tmp_path / "out")]
    assert main(scored) == 0
    assert set(asked) == {"fit", "validation", "test"}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values())) == 60
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["validation"]["score"] == f"kernel distance (test_cli:features, {len(asked['validation'])} images)"
    assert not result["validation"]["higher is better"]
    assert main([*bare, "--patience", "2", "--out", str(tmp_path / "x")]) == 1
    assert "--patience is 2 and --validate is not given" in capsys.readouterr().err


def test_the_highest_sparsity_within_a_bound_is_found_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    command = ["compress", "--generator", str(face(tmp_path / "face.pth")), "--steps", "4", *WITHOUT_D, "--within"]

    def searched(bound: str, folder: str) -> dict[str, Any]:
        assert main([*command, bound, "--out", str(tmp_path / folder)]) == 0
        return json.loads((tmp_path / folder / "result.json").read_text())

    scores = {one["sparsity"]: one["score"] for one in searched("1dB", "all")["within"]["tried"]}
    assert list(scores) == list(LADDER)
    assert scores[0.75] > scores[0.85]
    bound = f"{(scores[0.75] + scores[0.85]) / 2:.4f}dB"  # between the second and the third sparsity
    capsys.readouterr()
    result = searched(bound, "out")
    found = result["within"]
    assert [one["sparsity"] for one in found["tried"][:4]] == [0.5, 0.75, 0.85, 0.8]
    assert [one["score"] for one in found["tried"][:3]] == [scores[one] for one in (0.5, 0.75, 0.85)]
    assert found["chosen"] == max(one["sparsity"] for one in found["tried"] if one["holds"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("highest sparsity within ")
    assert f"to the original: {found['chosen']:.2%} (PSNR" in line
    assert result["generators"]["compressed"]["sparsity"] == pytest.approx(found["chosen"], abs=0.005)

    interrupted(monkeypatch, CompressionTask, 3)  # within the first sparsity
    parts = ["--out", str(tmp_path / "parts")]
    assert main([*command, bound, *parts]) == 130
    assert main([*command, bound, *parts, "--resume"]) == 0
    files = [tmp_path / name / "generator.safetensors" for name in ("out", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert main([*command, "1dB", *parts, "--resume"]) == 1
    assert f"within was '{bound}' and is '1dB'" in capsys.readouterr().err

    nothing = tmp_path / "nothing"
    assert main([*command, "58dB", "--out", str(nothing)]) == 1
    assert "not even 50% sparsity is within 58 dB to the original" in capsys.readouterr().err
    assert "Not even 50% sparsity" in (nothing / "report.html").read_text()
    assert json.loads((nothing / "result.json").read_text())["within"]["chosen"] is None
    for wrong, words in (
        (["5%"], "which bounds a kernel distance, and here is none; give --features"),
        (["5"], "--within is '5'; it must be a percentage"),
        (["20dB", "--sparsity", "0.5"], "--within finds the sparsity"),
        (["20dB", "--recipe", "one-shot"], "--within needs one that prunes the dense generator gradually"),
    ):
        assert main([*command, *wrong, "--out", str(tmp_path / "x")]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_weights_of_terms_reach_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    command = ["compress", "--generator", str(face(tmp_path / "face.pth")), "--data-free", "--recipe", "gan-loss"]
    command += ["--batch", "4", "--steps", "1", "--warm-up", "1", "--quiet", "--out", str(tmp_path / "out")]
    assert main([*command, "--weight", "gan=1"]) == 1
    assert "--weight has the term 'gan'; this GAN has the terms gen, dis" in capsys.readouterr().err
    assert main([*command, "--resume", "--weight", "gen=3"]) == 0
    (row,) = (json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    assert row["loss"] == pytest.approx(3 * row["gen"])
    assert store.read_config(tmp_path / "out")["weights"] == {"gen": 3}


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
                write_images(root / split / domain, 6)
        else:
            write_images(root / split, 3, width=64 if task == "pix2pix" else 32)


TASKS = {
    "pix2pix": ["--network", "downs=5", "discriminator_layers=2"],
    "cyclegan": ["--network", "blocks=1", "discriminator_layers=2"],
    "stargan": ["--network", "blocks=1", "discriminator_layers=3"],
    "srgan": ["--network", "blocks=1"],
    "esrgan": ["--network", "blocks=1"],
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
    assert "KID (test_cli:features" in page
    assert image.open(small / "samples.png").mode == "RGB"
    written = store.read_config(small)
    assert written["network"]["gan"] == task
    assert written["compressed"]

    capsys.readouterr()
    made, inputs = tmp_path / "made", tmp_path / "inputs"
    write_images(inputs / "deep", 1)
    assert main(["generate", str(small), "--images", str(inputs), "--quiet", "--out", str(made)]) == 0
    folders = {"cyclegan": ["a_to_b", "b_to_a"], "stargan": ["old", "young"]}.get(task, ["."])
    size = 128 if task in ("srgan", "esrgan") else 32
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
    assert all((score["psnr"] is not None) == (task in ("pix2pix", "srgan", "esrgan")) for score in scores.values())


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

    layers = [layer for _, layer in sparse_layers(load_trained(out).generator)]
    weights = sum(math.prod(layer.weight_shape) for layer in layers)
    assert sum(layer.nnz for layer in layers) == pytest.approx(0.5 * weights, abs=len(layers))
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


@pytest.mark.usefixtures("few_digits")
def test_a_classifier_needs_images_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "classifier", "--epochs", "1", "--quiet", "--out", str(tmp_path / "none")]) == 1
    assert "held_out is 1000; it must be from 1 to 23" in capsys.readouterr().err


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
