"""The study: rows repeat, watching changes nothing, results resume, and the page says which rows are missing."""

from __future__ import annotations

import copy
import json
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsegan import data
from sparsegan.checkpoint import save
from sparsegan.cli import main
from sparsegan.cli.study import COLUMNS
from sparsegan.compress import CompressionConfig, Compressor, RunConfig
from sparsegan.data import Batches, idx
from sparsegan.gans import store
from sparsegan.pruning.schedule import GradualPruning
from sparsegan.pruning.surgery import sparsify
from sparsegan.study import STUDIES, TASKS, TECHNIQUES, Results, Row, Task, Technique, rows_of
from sparsegan.study import row as study_row
from sparsegan.study.cell import Cell, distance
from sparsegan.study.columns import VIEWS, judged
from sparsegan.study.compare import t_quantile, verdict, welch
from sparsegan.study.report import TABLES, rebuild
from sparsegan.study.row import _changed, _compress
from sparsegan.study.runner import run_missing
from sparsegan.study.scoring import _FLOORS, _real_images, samples_of, score
from sparsegan.study.watch import Watched, entropy, thinned

ROOT = Path(__file__).resolve().parent.parent
TINY = Task("tiny", "tiny", "dcgan", 6, 4, 60, 4, 1e-3, 1e-2, 1e-3, exclude=("main.12",), images=24, classifier="mnist")
NETWORK = {"gan": "dcgan", "nz": 8, "width": 4, "channels": 1}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a tiny dense GAN, its images, and a study of two rows."""
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "dcgan-mnist").mkdir(parents=True)  # the folder is recognised by this entry
    shutil.copytree(ROOT / "checkpoints" / "digit-classifier", checkpoints / "digit-classifier")
    pixels = torch.randint(256, (24, 28, 28)).to(torch.uint8)
    (tmp_path / "images").mkdir()
    for part in ("train", "t10k"):
        idx.write(tmp_path / "images" / f"{part}-images-idx3-ubyte.gz", pixels)
    (checkpoints / "tiny").mkdir()
    (checkpoints / "tiny" / "config.json").write_text(json.dumps({"network": NETWORK, "data": "images"}))
    gan = store.build({"network": NETWORK})
    store.save(checkpoints / "tiny", gan.generator, gan.discriminator)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "tiny", replace(TINY, probability="output"))
    mixed = Technique("", "feature-distillation", settings={"allocation": "sensitivity"}, average=0.97)
    monkeypatch.setitem(TECHNIQUES, "mixed", mixed)
    warm = Technique("", "feature-distillation", warm_up=2, data_free=True)
    monkeypatch.setitem(TECHNIQUES, "warm", warm)
    monkeypatch.setitem(STUDIES, "tiny", [Row("tiny", technique, 0.5) for technique in ("self-supervised", "mixed")])
    return tmp_path


class _Made(Exception):
    """A compressor was made and asked to run."""


class _Blank:
    """Samples of black images."""

    def batches(self, size: int) -> Any:
        return Batches(torch.zeros(200, 1, 64, 64), size)

    def order(self) -> torch.Tensor:
        return torch.arange(200)

    def batch(self, chosen: torch.Tensor, draws: None) -> torch.Tensor:
        return torch.zeros(len(chosen), 1, 64, 64)


def _same_each_time(report: dict[str, Any]) -> dict[str, Any]:
    cost = {name: value for name, value in report.get("cost", {}).items() if name not in ("seconds", "peak_bytes")}
    return report | {"cost": cost}


@pytest.mark.filterwarnings("ignore:no scale of the last layer")  # the network is untrained
def test_a_row_repeats(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "tiny", "--repeat"]) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["row"] for report in first] == [row.key for row in rows_of("tiny")]
    reports = {report["row"].split("/", 1)[1]: report for report in first}
    assert list(reports)[:5] == [
        "dense/0/element/0",
        "real/0/element/0",
        *(f"dense-longer/0/element/{s}" for s in range(3)),
    ]
    assert reports["real/0/element/0"]["scores"]["samples"]["images"] == 12  # half against half
    assert {"cost", "size", "watched"}.isdisjoint(reports["real/0/element/0"])
    for report in first[2:]:
        assert report["scores"]["samples"]["images"] == 24
        assert report["scores"]["samples"]["fid"] > 0
        assert [look["step"] for look in report["watched"]] == list(range(7))
        assert report["cost"]["images"] == 24 + 16 * ("mixed" in report["row"])
    for report in (first[1], *first[-3:]):
        torch.manual_seed(1)  # earlier draws must not change a row
        _, *words = report["command"].split()
        assert main(words) == 0
        again = json.loads(capsys.readouterr().out)
        assert _same_each_time(again) == _same_each_time(report)
    assert first[-1]["allocation"].keys() == {"main.0", "main.3", "main.6", "main.9"}
    longer, dense = reports["dense-longer/0/element/0"], first[0]
    assert longer["size"] == dense["size"] | {"file_bytes": longer["size"]["file_bytes"]}  # nothing was pruned
    assert longer["scores"] != dense["scores"]


def test_watching_changes_nothing() -> None:
    torch.manual_seed(0)
    gan = store.build({"network": NETWORK})
    images = torch.rand(12, 1, 64, 64) * 2 - 1

    def compressor() -> Compressor:
        schedule, config = GradualPruning(9, 0.8, every=2), CompressionConfig(seed=3)
        return Compressor(gan.generator, gan.discriminator, gan.objective, schedule, config, run=RunConfig(quiet=True))

    plain = compressor()
    with FlopCounterMode(display=False) as counter:
        expected = plain.fit(Batches(images, 4))
    seen = compressor()
    watched = Watched(Batches(images, 4), seen, gan.generator, replace(TINY, probability="output"), images[:3], 0.0)
    found = seen.fit(watched)
    watched.finish()
    assert found.history == expected.history
    for network in ("student", "discriminator"):
        states = [getattr(one.task, network).state_dict() for one in (plain, seen)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert [look["step"] for look in watched.looks] == list(range(10))
    assert watched.macs == counter.get_total_flops() // 2  # so short a run counts every step
    last = watched.looks[-1]
    judge = copy.deepcopy(seen.task.discriminator)
    assert last["real"] == pytest.approx(judge(images[:3]).mean().item(), rel=1e-6)
    assert last["entropy_real"] == pytest.approx(entropy(copy.deepcopy(seen.task.discriminator)(images[:3])), rel=1e-6)


def test_the_average_is_of_the_second_half() -> None:
    torch.manual_seed(0)
    gan = store.build({"network": NETWORK})
    images = torch.rand(8, 1, 64, 64) * 2 - 1
    compressor = Compressor(
        gan.generator, gan.discriminator, gan.objective, GradualPruning(8, 0.5), run=RunConfig(quiet=True)
    )
    student, expected = compressor.task.student, None
    steps: list[torch.Tensor] = []
    compressor.task.optimizer.register_step_post_hook(
        lambda *_: steps.append(dict(student.named_parameters())["main.12.values"].detach().clone())
    )
    watched = Watched(Batches(images, 4), compressor, gan.generator, TINY, images[:2], 0.75)
    compressor.fit(watched)
    watched.finish()
    for values in steps[4:]:
        expected = values if expected is None else 0.75 * expected + 0.25 * values
    watched.keep_average()
    assert expected is not None
    torch.testing.assert_close(dict(student.named_parameters())["main.12.values"], expected)


def test_entropy_and_curves() -> None:
    assert entropy(torch.tensor([0.5, 0.5])) == pytest.approx(1)
    assert entropy(torch.tensor([0.0, 1.0])) == pytest.approx(0, abs=1e-9)
    assert entropy(torch.tensor([0.11])) == pytest.approx(0.4999, abs=1e-4)
    history = [{"step": float(i), "dis": 2.0 * i} | ({} if i % 2 else {"gen": 1.0}) for i in range(48)]
    curves = thinned(history)
    assert curves["step"] == [2 * i + 0.5 for i in range(24)]
    assert curves["dis"] == [4 * i + 1 for i in range(24)]
    assert curves["gen"] == [1.0] * 24


def test_untrained_and_noisy_layers_of_a_discriminator() -> None:
    torch.manual_seed(0)
    gan = store.build({"network": NETWORK})
    before = gan.discriminator.state_dict()
    technique = replace(TECHNIQUES["features-untrained-last"], untrained=("main.8", "main.1*"))
    after = _changed(gan, technique, 1).state_dict()
    changed = {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"main.8", "main.11"}
    noisy = _changed(gan, replace(technique, untrained=(), noise=1.0), 0)
    for (name, old), new in zip(gan.discriminator.named_parameters(), noisy.parameters(), strict=True):
        assert torch.equal(old, new) == (old.dim() < 4), name
    with pytest.raises(ValueError, match=r"main\.99"):
        _changed(gan, replace(technique, untrained=("main.99",)), 0)


def _report(row: Row, kid: float) -> dict[str, Any]:
    score = {"network": "digit classifier", "images": 9, "fid": 2 * kid, "kid": kid, "psnr": None, "ssim": None}
    return {"row": row.key, "settings": row.settings(), "scores": {"samples": score}}


def test_resuming(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(place / "results")
    first, second = STUDIES["tiny"]
    results.add(_report(first, 5.0))
    asked: list[str] = []

    def killed(words: list[str], **options: Any) -> Any:
        asked.append(words[words.index("--only") + 1])
        assert options["env"]["OMP_NUM_THREADS"] == "1"
        return SimpleNamespace(returncode=-9, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", killed)
    run_missing("tiny", STUDIES["tiny"], results, 2, quiet=True)
    assert asked == [second.key]
    assert results.of(second)["failed"] == "killed: out of memory"  # type: ignore[index]
    run_missing("tiny", STUDIES["tiny"], results, 2, quiet=True)
    assert asked == [second.key]
    monkeypatch.setitem(TASKS, "tiny", replace(TINY, steps=7))  # with another budget, the stored result does not count
    assert results.of(first) is None
    broken = SimpleNamespace(returncode=1, stdout="", stderr="sparsegan study: no such data\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    with pytest.raises(RuntimeError, match="no such data"):
        run_missing("tiny", [first], results, 1, quiet=True)
    assert results.of(first) is None


def test_pruning_removes_what_no_planned_row_needs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(place / "results")
    kept, changed = STUDIES["tiny"]
    gone = replace(kept, sparsity=0.7)
    for row in (kept, changed, gone):
        results.add(_report(row, 5.0))
    results.add({"row": "unknown/dense/0/element/0", "settings": {}})
    (place / "results" / "speed.json").write_text(json.dumps({kept.key: 1, gone.key: 2}))
    words = ["study", "--prune", "--results", str(place / "results")]
    technique = TECHNIQUES[changed.technique]
    monkeypatch.setitem(TECHNIQUES, changed.technique, replace(technique, settings={"allocation": "uniform"}))
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [changed.key, gone.key, "unknown/dense/0/element/0"]
    assert lines[3:] == [f"time of {gone.key}", "removed 3 results and 1 times"]
    assert results.of(kept) is not None
    assert json.loads((place / "results" / "speed.json").read_text()) == {kept.key: 1}
    assert main(words) == 0
    assert capsys.readouterr().out == "removed 0 results and 0 times\n"


def test_a_cell_says_what_is_missing(place: Path) -> None:
    results = Results(place / "results")

    def show(row: Row) -> str:
        return Cell.of(results, row).show("scores", "samples", "kid", form=distance, base=20.0)

    row = Row("tiny", "self-supervised", 0.5)
    assert show(row) == "not run"
    assert show(replace(row, sparsity=0.9, granularity="2:4")) == "2:4 is 50 %"
    results.add(_report(row, 25.0))
    assert show(row) == "25.0 (+25%)"
    results.add(_report(replace(row, seed=1), 35.0))
    assert show(row) == f"30.0 ± {statistics.stdev([25, 35]):.1f} (+50%)"
    results.add(_report(replace(row, seed=2), 0.0) | {"failed": "step 7: gen is nan"})
    assert show(row).endswith("(+50%); 1 of 3 seeds: diverged")


def test_students_quantiles_and_welchs_interval_are_those_of_the_books() -> None:
    for freedom, quantile in ((1, 12.7062), (2, 4.30265), (4, 2.77645), (10, 2.22814), (30, 2.04227), (1000, 1.96234)):
        assert t_quantile(freedom) == pytest.approx(quantile, rel=1e-5)
    assert t_quantile(5, 0.99) == pytest.approx(4.03214, rel=1e-5)
    # 3.0 and 3.5 against 1, 2, 3: variances 0.125 and 1, hence 0.25**2 / 2 + 1 / 3 = 0.395833 and 2.3956 degrees
    low, high = welch([3.0, 3.5], [1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(1.25)
    variance, freedom = 0.125 / 2 + 1 / 3, (0.125 / 2 + 1 / 3) ** 2 / ((0.125 / 2) ** 2 + (1 / 3) ** 2 / 2)
    assert (high - low) / 2 == pytest.approx(t_quantile(freedom) * variance**0.5)
    assert welch([1.0, 1.0], [3.0, 3.0]) == (-2.0, -2.0)
    with pytest.raises(ValueError, match="there are 1 and 2 values"):
        welch([1.0], [1.0, 2.0])
    assert verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]) == "better"
    assert verdict([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]) == "worse"
    assert verdict([1.0, 3.0, 2.0], [2.0, 2.1, 1.9]) == "not apart"
    assert verdict([1.0], [2.0, 2.1]) == ""


def test_all_plots_are_drawn_and_ranks_are_correlated(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from sparsegan.study.plots import PLOTS, draw, rank_correlation

    assert rank_correlation([(0, 1), (1, 10), (2, 100), (5, 1e6)]) == pytest.approx(1)
    assert rank_correlation([(0, 3), (1, 2), (2, 1)]) == pytest.approx(-1)
    assert rank_correlation([(1, 1), (1, 2), (2, 3), (3, 4)]) == pytest.approx(0.948683)  # scipy.stats.spearmanr
    results = Results(tmp_path / "results")
    looks = {"real": 0.9, "compressed": 0.2, "original": 0.3, "entropy_real": 0.4, "entropy_compressed": 0.5}
    for study in STUDIES:
        reports = []
        for index, row in enumerate(rows_of(study)):
            views = dict.fromkeys(VIEWS.get(row.task, ()), _report(row, 50.0 + index)["scores"]["samples"])
            curves = {
                "step": [0.0, 1.0],
                "gen": [1.0, 0.5 + index / 100],
                "dis": [1.0, 2.0],
                "gen_original": [1.0, 2.0],
            }
            extra = {
                "watched": [looks | {"step": 0}],
                "curves": curves,
                "scores": views,
                "classes": {},
                "size": {"macs": 9},
            }
            reports.append(_report(row, 1.0) | extra | {"machine": {"machine": "here"}})
        for task in dict.fromkeys(row.task for row in rows_of(study)):
            own = {report["row"]: report for report in reports if report["row"].split("/")[0] == task}
            results._write(task, results._read(task) | own)
    timed = {row.key: {"ms": {"dense": 2.0, "sparse": 1.0}} for study in STUDIES for row in rows_of(study)}
    (tmp_path / "results" / "speed.json").write_text(json.dumps(timed))
    for study, plots in PLOTS.items():
        draw(study, results, tmp_path)
        missing = {name for name in plots if not (tmp_path / f"study-{name}.svg").is_file()}
        assert not missing, study
    page = tmp_path / "study.md"
    shutil.copy(ROOT / "docs" / "study.md", page)
    for study in TABLES:
        rebuild(study, results, page)
    lines = page.read_text(encoding="utf-8").splitlines()
    without = [line for line in lines if "| not run |" in line and not line.startswith("|  |")]
    assert not [line for line in without if "MACs per image" not in line]  # not all sizes are planned


def test_a_headline_has_spread_change_and_verdict(place: Path) -> None:
    results = Results(place / "results")
    row = Row("tiny", "self-supervised", 0.5)
    results.add(_report(Row("tiny"), 100.0))
    assert judged(results, Row("tiny"), "samples") == "100.0 [200.0]"
    results.add(_report(row, 110.0))
    assert judged(results, row, "samples") == "110.0 (+10%) [220.0]"
    for seed in range(3):
        results.add(_report(replace(row, seed=seed), 120.0 + seed))
        results.add(_report(Row("tiny", "dense-longer", seed=seed), 95.0 + seed))
    assert judged(results, row, "samples") == "121.0 ± 1.0 (+21%, worse) [242.0]"
    assert judged(results, Row("tiny", "dense-longer"), "samples") == "96.0 ± 1.0 (-4%) [192.0]"
    other = Row("tiny", "one-shot", 0.5)
    assert other.seeds == Row("tiny").seeds == (0,)
    results.add(_report(other, 300.0))
    assert judged(results, other, "samples") == "300.0 (+200%) [600.0]"  # nothing is drawn, so there is no spread


def test_pictures_of_the_generators_of_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    gan = store.load(place / "checkpoints" / "tiny")
    words = ["study", "tiny", "--pictures", "--out", str(place / "out"), "--page", str(place / "docs" / "study.md")]
    for at, (technique, sparsity) in enumerate(COLUMNS.values()):
        assert main(words) == 0
        assert "drew 0 pictures" in capsys.readouterr().out
        pruned = sparsify(copy.deepcopy(gan.generator), 0.1 * at)
        save(pruned, place / "out" / Row("tiny", technique, sparsity).key / "generator.safetensors")
    assert main(words) == 0
    assert "drew 1 pictures" in capsys.readouterr().out
    with image.open(place / "docs" / "study-tiny.png") as picture:
        assert picture.width > 6 * 64


@pytest.mark.filterwarnings("ignore:no scale of the last layer")
def test_a_row_with_a_fresh_discriminator_and_no_data(place: Path) -> None:
    row = Row("tiny", "warm", 0.5)
    technique = TECHNIQUES[row.technique]
    gan = store.load(place / "checkpoints" / "tiny")
    made, report = _compress(row, TASKS["tiny"], technique, gan)
    again, _ = _compress(row, TASKS["tiny"], technique, gan)
    assert all(torch.equal(one, other) for one, other in zip(made.parameters(), again.parameters(), strict=True))
    assert report["cost"]["steps"] == 6
    assert report["cost"]["images"] == (6 + 2) * 4
    trained, _ = _compress(row, TASKS["tiny"], replace(technique, warm_up=0), gan)
    assert not all(torch.equal(one, other) for one, other in zip(made.parameters(), trained.parameters(), strict=True))


def test_a_row_of_the_validation_split_sees_no_reported_image_and_no_reported_noise(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GAN of MNIST has one set of images: half of them report, and the others compare candidates."""
    gan, task = store.load(place / "checkpoints" / "tiny"), replace(TASKS["tiny"], held_out=False)
    halves = [torch.cat(_real_images(gan, task, split)) for split in ("test", "validation")]
    assert all(len(half) > 10 for half in halves)
    everything = torch.cat(list(samples_of(gan, task, "test").in_order(100)))
    assert len(everything) == sum(map(len, halves)) == 48
    rows = {split: Row("tiny", "self-supervised", 0.5, split=split) for split in ("test", "validation")}
    assert rows["validation"].key == f"{rows['test'].key}/validation"
    noises, loaded = [], []
    monkeypatch.setattr(store, "example", _noted(store.example, noises))
    monkeypatch.setattr(data, "load", _noted(data.load, loaded))
    for row in rows.values():
        score(row, gan, gan.generator, place / "checkpoints", place / "out")
    assert [words["seed"] for _, words in noises] == [20_000, 30_000]
    assert [given[3] for given, _ in loaded] == ["test", "validation"]


def _noted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def noted(*given: Any, **words: Any) -> Any:
        calls.append((given, words))
        return function(*given, **words)

    return noted


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_technique_makes_a_compressor(technique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a technique are known to its recipe, and those of its loss reach the loss."""
    gan = store.build({"network": NETWORK | {"width": 64}})
    chosen = TECHNIQUES[technique]
    made: list[Compressor] = []
    monkeypatch.setattr(study_row, "samples_of", lambda *_: _Blank())
    monkeypatch.setattr(Compressor, "fit", lambda self, loader: made.append(self) or (_ for _ in ()).throw(_Made()))
    with pytest.raises(_Made):
        _compress(Row("tiny", technique, 0.6), TINY, replace(chosen, warm_up=0), gan)
    (compressor,) = made
    for name, value in chosen.loss.items():
        assert getattr(compressor.config.loss, name) == value
    for name, value in chosen.settings.items():
        if name in CompressionConfig.__dataclass_fields__ and value != "sensitivity":
            assert getattr(compressor.config, name) == value


def test_the_tasks_know_their_dense_training() -> None:
    for task in TASKS.values():
        config = store.read_config(ROOT / "checkpoints" / task.checkpoint)
        assert (task.dense_steps, task.dense_batch, task.dense_lr) == tuple(
            config[name] for name in ("steps", "batch", "lr")
        )


FLOORED = {
    "pix2pix": {"width": 2, "downs": 5, "discriminator_layers": 2},
    "cyclegan": {"width": 2, "blocks": 1, "discriminator_layers": 2},
    "stargan": {"width": 2, "domains": 2, "blocks": 1, "image_size": 32, "discriminator_layers": 2},
    "srgan": {"width": 3, "blocks": 1, "scale": 4},
}


@pytest.mark.parametrize("name", FLOORED)
def test_floors_stand_in_the_place_of_the_generators_images(name: str) -> None:
    gan = store.build({"network": {"gan": name, **FLOORED[name]}})
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(6, 3, 8, 8) * 2 - 1, (32, 32), mode="bicubic")
    low = torch.nn.functional.interpolate(images, scale_factor=0.25, mode="area")
    second = {"stargan": torch.tensor([0, 1, 0, 1, 1, 0]), "srgan": images}.get(name, images.flip(0))
    batch = (low if name == "srgan" else images, second)
    with torch.no_grad():
        views = gan.objective.views(gan.objective.generate(gan.generator, batch), batch)
    task = next(task for task in TASKS.values() if task.gan == name)
    for view in views.values():
        made = {floor: _FLOORS[floor](view) for floor in task.floors}
        halves = torch.cat([made["real"].fake, made["real"].real])
        assert sorted(halves.sum((1, 2, 3)).tolist()) == sorted(view.real.sum((1, 2, 3)).tolist())
        assert not made["real"].paired
        other = made["bicubic" if name == "srgan" else "identity"]
        assert other.fake.shape == view.fake.shape
        assert torch.equal(other.real, view.real)
        if name == "srgan":
            assert (other.fake - images).abs().mean() < 0.5 * (images - images.mean()).abs().mean()
        else:
            assert torch.equal(other.fake, view.source)


def test_the_page_shows_the_stored_results(tmp_path: Path) -> None:
    page = tmp_path / "study.md"
    shutil.copy(ROOT / "docs" / "study.md", page)
    for study in STUDIES:
        rebuild(study, Results(ROOT / "benchmarks" / "results" / "study"), page)
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("study", STUDIES)
def test_every_row_can_be_named(study: str) -> None:
    for row in rows_of(study):
        assert row.settings()["seed"] == row.seed
        assert row.obstacle() or (ROOT / "checkpoints" / TASKS[row.task].checkpoint).is_dir()
    assert len({row.key for row in rows_of(study)}) == len(rows_of(study))


def test_refusals(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (["--only", "tiny/none"], "tiny/none"),
        (["--repeat", "--report"], "--repeat and --report are given"),
        (["--prune"], "--prune is given with NAME"),
        (["--report"], "missing"),
        (["--time"], "none of these rows' generators"),
    ):
        assert main(["study", "tiny", *words]) == 1
        assert text in capsys.readouterr().err
