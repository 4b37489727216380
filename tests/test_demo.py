"""The demo: its table and page, its splits of the digits, and the sweep that chooses its learning rates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import sparsegan.compress
from sparsegan.cli import demo_sweep, main
from sparsegan.cli.demo_report import distances, note
from sparsegan.cli.demo_rows import MAIN, REPORTED_NOISE, ROWS, VALIDATION_NOISE, Digits, slug
from sparsegan.metrics.classifier import Classifier, find_classifier, save_classifier

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture
def checkpoints(few_digits: None, tmp_path: Path) -> Path:
    """A folder with a tiny trained DCGAN and an untrained classifier."""
    pytest.importorskip("torchmetrics")
    pytest.importorskip("matplotlib")
    folder = tmp_path / "checkpoints"
    trained = ["--width", "2", "--batch", "8", "--steps", "2", "--quiet", "--out", str(folder / "dcgan-mnist")]
    assert main(["train", "dcgan", *trained]) == 0
    save_classifier(Classifier(), find_classifier("mnist", folder))
    return folder


def options(checkpoints: Path, out: Path) -> list[str]:
    tiny = ["--steps", "3", "--batch", "8", "--samples", "30", "--sparsity", "0.8", "--quiet"]
    return ["demo", "--checkpoints", str(checkpoints), "--out", str(out), *tiny]


@pytest.mark.filterwarnings("ignore:no scale of the last layer")  # the tiny generators are hardly trained
def test_the_demo_ends_with_a_table_and_a_page_and_can_be_continued(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    command = options(checkpoints, out)
    assert main(command) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert list(results["rows"]) == ["other real digits", "dense", *ROWS]
    for title, row in results["rows"].items():
        assert title in printed
        if title != "other real digits":
            assert row["sparsity"] == pytest.approx(0.0 if title == "dense" else 0.8, abs=0.01)
            assert row["macs"] > 0
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 1 + len(ROWS)  # the curves, dense, each row
    assert "http://" not in page
    assert "https://" not in page
    # The bands are those of the usual setting, and this is another setting.
    assert all(made["band"] is None for made in results["made"].values())
    assert "another machine" not in note(results)

    # Run again, the demo keeps finished results and makes missing results again, with the same figures.
    (out / "rows" / f"{slug(MAIN)}.json").unlink()
    monkeypatch.setattr(sparsegan.compress.Compressor, "fit", None)
    assert main(command) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["rows"][MAIN]["fid"] == results["rows"][MAIN]["fid"]
    assert main([*command, "--steps", "4"]) == 1
    assert "cannot be resumed with other settings: steps was 3 and is 4" in capsys.readouterr().err


def test_no_digit_and_no_noise_of_the_choice_is_in_the_table() -> None:
    images = torch.arange(103.0).view(-1, 1, 1, 1)
    digits = Digits.of(images)
    sets = [set(part.flatten().tolist()) for part in (digits.validation, digits.reported, digits.rest)]
    assert set.union(*sets) == set(images.flatten().tolist())
    assert sum(map(len, sets)) == len(images)
    assert [len(one) for one in sets] == [20, 41, 42]
    assert not set(VALIDATION_NOISE) & set(REPORTED_NOISE)
    # The file of digits is sorted by digit; a split into consecutive parts would separate the digits.
    assert all(min(one) < 15 and max(one) > 88 for one in sets)


def test_a_rate_is_only_as_good_as_its_worse_seed() -> None:
    assert min([[10.0, 90.0], [40.0, 50.0], [5.0, None]], key=demo_sweep.worst) == [40.0, 50.0]
    assert demo_sweep.band([100.0, 110.0, 90.0]) == [70, 130]
    assert demo_sweep.band([100.0, None]) is None


@pytest.mark.filterwarnings("ignore:no scale of the last layer")
def test_the_sweep_measures_its_choice_on_the_other_digits_and_can_be_continued(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"GENERATOR_LRS": (1e-4, 1e-2), "DISCRIMINATOR_LRS": (2e-4,), "BAND_SEEDS": 2}.items():
        monkeypatch.setattr(demo_sweep, name, value)
    command = [*options(checkpoints, tmp_path / "demo"), "--sweep"]
    assert main(command) == 0
    file = tmp_path / "demo" / "sweep" / "sweep.json"
    first = json.loads(file.read_text())
    for row in first["rows"].values():
        best = min(row["tried"], key=lambda tried: max(tried["kid"]))
        assert row["chosen"]["generator_lr"] == best["generator_lr"]
        assert row["kid"] != best["kid"]  # the same generators, other digits
    # A finished sweep trains nothing again and gives the same figures.
    monkeypatch.setattr(sparsegan.compress.Compressor, "fit", None)
    assert main(command) == 0
    assert json.loads(file.read_text())["rows"] == first["rows"]


def test_the_note_says_when_a_run_lies_outside_its_band() -> None:
    results = json.loads((RESULTS / "demo.json").read_text())
    measured = results["rows"][results["main"]]["kid"]
    results["made"][results["main"]]["band"] = [measured - 1, measured + 1]
    assert "and this run does" in note(results)
    head, lines = distances(results)
    shown = dict(zip((line[0] for line in lines), lines, strict=True))[results["main"]]
    low, high = results["made"][results["main"]]["band"]
    assert shown[head.index("of another run")] == f"{low:g} to {high:g}"
    results["rows"][results["main"]]["kid"] = math.nextafter(high, math.inf)
    assert f"this run does not, in: {results['main']}" in note(results)
