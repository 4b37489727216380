"""The command line, end to end on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sparsegan.cli
from sparsegan import data
from sparsegan.cli import main
from sparsegan.gans import store


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 smooth blobs in place of the real digits, so that no package and no minute is needed."""

    def blobs(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        coarse = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear"), torch.arange(24) % 10

    monkeypatch.setitem(data.DATASETS, "mnist", blobs)


@pytest.mark.usefixtures("few_digits")
def test_train_compress_generate_profile_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, small, picture = tmp_path / "dense", tmp_path / "small", tmp_path / "made.png"
    common = ["--batch", "8", "--steps", "4", "--quiet", "--out"]
    assert main(["train", "dcgan", "--width", "2", *common, str(dense)]) == 0
    assert main(["compress", str(dense), "--sparsity", "0.8", "--values", "float16", *common, str(small)]) == 0
    assert main(["compress", str(dense), "--sparsity", "0.8", *common, str(small)]) == 1
    assert "already holds a run; resume it" in capsys.readouterr().err
    assert main(["generate", str(small), "--count", "3", "--columns", "2", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["profile", str(small), "--batch", "2"]) == 0
    assert capsys.readouterr().out.count("SparseConvTranspose2d") == 5

    from sparsegan.cli.common import load_generator

    loaded = load_generator(small)
    noise = store.noise(loaded, 2, 0)
    assert loaded(noise).shape == (2, 1, 64, 64)
    assert (small / "generator.safetensors").stat().st_size < 0.5 * (dense / "generator.safetensors").stat().st_size


@pytest.mark.usefixtures("few_digits")
def test_the_demo_ends_with_a_table_and_a_page_and_can_be_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("matplotlib")
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "demo"
    trained = ["--width", "2", "--batch", "8", "--steps", "2", "--quiet", "--out", str(checkpoints / "dcgan-mnist")]
    assert main(["train", "dcgan", *trained]) == 0
    assert main(["train", "digits", "--epochs", "1", "--quiet", "--out", str(checkpoints / "digit-classifier")]) == 1
    assert "held_out is 1000; it must be from 1 to 23" in capsys.readouterr().err
    from sparsegan import metrics

    metrics.save_digit_classifier(
        metrics.DigitClassifier(), checkpoints / "digit-classifier" / "classifier.safetensors"
    )
    command = ["demo", "--checkpoints", str(checkpoints), "--out", str(out), "--steps", "3", "--batch", "8"]
    command += ["--samples", "30", "--sparsity", "0.8", "--quiet"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert list(results["rows"]) == ["dense", "pruned, not fine-tuned", "pruned, plain GAN loss", "self-supervised"]
    for title, row in results["rows"].items():
        assert title.split(",")[0] in printed
        assert row["sparsity"] == pytest.approx(0.0 if title == "dense" else 0.8, abs=0.01)
        assert row["macs"] > 0
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5  # four grids, one figure with the curves
    assert "http://" not in page
    assert "https://" not in page

    # Continued: what is there is taken as it is, what is missing is made again to the same result.
    (out / "rows" / "self-supervised.json").unlink()
    monkeypatch.setattr(sparsegan.compress.Compressor, "fit", None)
    assert main(command) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["rows"]["self-supervised"]["fid"] == results["rows"]["self-supervised"]["fid"]
    assert main([*command, "--steps", "4"]) == 1
    assert "cannot be resumed with other settings: steps was 3 and is 4" in capsys.readouterr().err


def test_errors_are_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
