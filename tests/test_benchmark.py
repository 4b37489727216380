"""`sparsegan bench`: its rows, targets and figures, on layers so small that timing takes no time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsegan.benchmark
from sparsegan.benchmark import (
    GENERATORS,
    LAYERS,
    GeneratorCase,
    GeneratorJob,
    Job,
    LayerCase,
    Results,
    engines,
    facts,
    generator_target,
    generators,
    gpu,
    jobs,
    target,
    training,
)
from sparsegan.benchmark.training import CycleGanGenerator
from sparsegan.cli import main
from sparsegan.gans.hifigan import SIZES as HIFIGAN_SIZES
from sparsegan.nn.layer import DENSE_CLASSES

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL = (
    LayerCase(16, 8, 3, 1, 1, 6, 2, target=2),
    LayerCase(16, 8, 4, 2, 1, 4, 1, target=2, transposed=True),
    LayerCase(8, 3, 3, 1, 1, 6, 1, target=2),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the measured layers and the generator by tiny ones."""
    for module in (sparsegan.benchmark.cases, training):
        monkeypatch.setattr(module, "LAYERS", SMALL)
    for name in ("training_memory", "time_new_mask"):
        monkeypatch.setattr(sparsegan.benchmark, name, partial(getattr(training, name), width=2))
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("layer", "sparsity", "granularity", "expected"),
    [
        ("256->256 3x3 @32x32 batch 16", 0.9, "element", 7),
        ("64->64 3x3 @96x96 batch 1", 0.9, "element", 5.5),
        ("64->64 3x3 @96x96 batch 1", 0.75, "element", 2.2),
        ("3->64 7x7 @256x256 batch 1", 0.5, "element", 1),
        ("256->128 transposed 3x3 s2 @64x64 batch 1", 0.95, "element", 9),
        ("512->256 transposed 4x4 s2 @4x4 batch 64", 0.95, "element", None),
        ("256->256 3x3 @64x64 batch 1", 0.9, "vector:8", 8),
        ("256->256 3x3 @64x64 batch 1", 0.75, "vector:8", None),
        ("64->64 3x3 @96x96 batch 1", 0.9, "vector:8", None),
        ("256->256 3x3 @64x64 batch 1", 0.99, "element", None),
    ],
)
def test_targets(layer: str, sparsity: float, granularity: str, expected: float | None) -> None:
    (case,) = [case for case in LAYERS if str(case) == layer]
    job = Job(case, sparsity, granularity, 2)
    assert target(job, "avx512") == expected
    assert target(job, "avx2") == (None if expected is None else pytest.approx(0.55 * expected))
    assert target(job, "scalar") is None
    wide = case.c_in == 256 and case.batch == 16
    of_training = (4 if wide else 2.5) if sparsity == 0.9 and granularity == "element" else None
    assert target(job, "avx512", training=True) == of_training


@pytest.mark.usefixtures("small")
def test_the_files_hold_all_that_the_readme_and_the_plot_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import readme

    forward, both = tmp_path / "layers.json", tmp_path / "training.json"
    quick = ["--seconds", "0.001", "--threads", "1"]
    assert main(["bench", "layers", *quick, "--granularity", "element,vector:4", "--json", str(forward)]) == 0
    assert main(["bench", "training", *quick, "--json", str(both)]) == 0
    printed = capsys.readouterr().out
    command = "sparsegan bench layers --threads 1 --sparsity 0.9 --granularity element,vector:4 --seconds 0.001 --json"
    assert f"{command} {forward}" in forward.read_text()
    names = [str(case) for case in SMALL]
    assert f"{names[2]}: left out, its 3 output channels are no whole vectors of vector:4" in printed
    for file, layers in ((forward, [*names, *names[:2]]), (both, names)):
        report = json.loads(file.read_text())
        assert report["complete"]
        assert [row["layer"] for row in report["rows"]] == layers
        for row in report["rows"]:
            assert row["ratio"] == pytest.approx(min(row["dense_ms"].values()) / row["sparse_ms"])
            assert 0 < row["peak_share"] < 1
            assert row["sparse_quartiles_ms"][0] <= row["sparse_ms"] <= row["sparse_quartiles_ms"][1]
            assert f"{row['ratio']:.1f}x" in printed
        table = readme.against_dense(report)
        assert table.count("\n|") == len(report["rows"]) + 1
    assert {row["model"] for row in report["memory"]} == {"the layers above", "CycleGAN generator"}
    assert all(0 < row["ratio"] < 1 and row["plans"] > 0 and row["workspace"] > 0 for row in report["memory"])
    assert readme.training(report).count("\n- ") == 3
    assert readme.vectors(json.loads(forward.read_text())).count("\n|") == 4  # a row for each layer

    pytest.importorskip("matplotlib")
    import plot_sparsity

    monkeypatch.setattr(plot_sparsity, "SHOWN", tuple(map(str, SMALL)))
    report = json.loads(forward.read_text())
    report["rows"] += [{**row, "sparsity": 0.5} for row in report["rows"]]
    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for picture in pictures:
        plot_sparsity.draw(report, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_bytes().startswith(b"<?xml")


SMALL_GENERATORS = (
    GeneratorCase("CycleGAN @16x16", "cyclegan", {"width": 4, "blocks": 1, "one_way": True}, 16, 1, 6, first_call=1e-9),
    GeneratorCase("DCGAN @64x64", "dcgan", {"nz": 8, "width": 4, "channels": 3}, 64, 2, target=1e-9),
)


@pytest.mark.parametrize(
    ("generator", "sparsity", "granularity", "expected"),
    [
        ("CycleGAN ResNet-9 @256x256 batch 1", 0.9, "element", 6),
        ("CycleGAN ResNet-9 @256x256 batch 1", 0.9, "vector:4", 7),
        ("StarGAN @128x128 batch 16", 0.9, "element", 6),
        ("SRGAN SRResNet-16 96->384 batch 1", 0.9, "element", 5),
        ("DCGAN @64x64 batch 64", 0.75, "element", 2.2),
        ("DCGAN @64x64 batch 64", 0.9, "vector:4", None),
        ("pix2pix U-Net-256 @256x256 batch 1", 0.5, "element", None),
    ],
)
def test_targets_of_generators(generator: str, sparsity: float, granularity: str, expected: float | None) -> None:
    (case,) = [case for case in GENERATORS if str(case) == generator]
    job = GeneratorJob(case, sparsity, granularity, 1)
    assert generator_target(job, "avx512") == expected
    assert generator_target(job, "avx2") == (None if expected is None else pytest.approx(0.55 * expected))
    assert generator_target(job, "scalar") is None


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("RRDB-6 ", (64, 64), (256, 256)), ("RRDB-23", (64, 64), (256, 256)), ("compact", (180, 320), (720, 1280))],
)
def test_generators_that_take_minutes_are_timed_only_if_named(
    name: str, low: tuple[int, int], high: tuple[int, int]
) -> None:
    usual = generators.generator_jobs("", [0.9], ["element"], [1])
    assert [job.case for job in usual] == list(GENERATORS)
    job, other = generators.generator_jobs(name, [0.9, 0.75], ["element"], [1])
    assert job.case not in GENERATORS
    assert generator_target(job, "avx512") is generator_target(other, "avx512") is None
    (images,) = job.case.inputs(1)
    assert images.shape == (1, 3, *low)
    assert job.case.dense().to("meta")(images.to("meta")).shape == (1, 3, *high)
    assert (
        sum(isinstance(one, torch.nn.Conv2d) for one in job.case.dense().modules())
        == ({"RRDB-6 ": 6 * 15 + 6, "RRDB-23": 23 * 15 + 6, "compact": 18}[name])
    )


def test_vocoders_are_timed_on_five_seconds_of_speech() -> None:
    todo = generators.generator_jobs("HiFi-GAN", [0.9], ["element"], [1])
    assert [str(job.case) for job in todo] == [f"HiFi-GAN {size} 5 s batch 1" for size in ("V1", "V2", "V3")]
    for job in todo:
        (mel,) = job.case.inputs(1)
        assert mel.shape == (1, 80, 430)
        sound = job.case.dense().to("meta")(mel.to("meta"))
        assert sound.shape == (1, 1, 430 * 256)
        assert sound.shape[2] / 22050 == pytest.approx(5, abs=0.01)


def test_a_generator_of_a_row_is_sparse_everywhere_and_has_statistics() -> None:
    vectors = GeneratorJob(SMALL_GENERATORS[0], 0.75, "vector:4", 1)
    dense, sparse, inputs = generators.both_generators(vectors)
    layers = dict(sparsegan.sparse_layers(sparse))
    assert [layer.granularity for layer in layers.values()] == ["vector:4"] * 7 + ["element"]  # the last has 3 channels
    assert all(layer.sparsity == pytest.approx(0.75, abs=0.02) for layer in layers.values())
    with torch.no_grad():
        torch.testing.assert_close(sparse(*inputs), dense(*inputs))
    again, _, _ = generators.both_generators(GeneratorJob(SMALL_GENERATORS[1], 0.9, "element", 1))
    norms = [module for module in again.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or torch.allclose(norm.running_mean, torch.zeros(1)) for norm in norms)


def test_a_row_of_a_generator_says_whether_its_targets_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generators, "GENERATORS", SMALL_GENERATORS)
    monkeypatch.setattr(generators, "peak_memory", lambda job, engine: 2000 if engine == generators.OURS else 1000)
    monkeypatch.setattr(generators, "TARGET_SHARE", {facts()["isa"]: 1.0})
    monkeypatch.setattr(engines, "which", lambda name: None)  # leaves out torch.compile, which is slow
    file = tmp_path / "generators.json"
    assert main(["bench", "generators", "--seconds", "0.001", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["complete"]
    assert [row["generator"] for row in report["rows"]] == list(map(str, SMALL_GENERATORS))
    assert [row["holds"] for row in report["rows"]] == [False, True]
    for row in report["rows"]:
        assert row["ratio"] == pytest.approx(min(row["dense_ms"].values()) / row["sparse_ms"])
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p95"] <= row["latency_ms"]["p99"]
        for profile in row["profile"].values():
            assert list(profile) == list(generators.KINDS)
            assert min(profile.values()) >= 0
        assert sum(row["profile"]["layers"].values()) == pytest.approx(row["layers_ms"])
        assert row["outside"] == pytest.approx(
            1 - row["profile"]["engine"]["multiplying"] / sum(row["profile"]["engine"].values())
        )
        assert row["limits"]["memory against the dense engine's"] == {"value": 2.0, "at_most": 1.0, "holds": False}
    assert "short: memory against the dense engine's 2.00, at most 1 is asked" in printed
    assert "seconds of the first call" in printed.splitlines()[2]
    assert "seconds of the first call" not in printed.splitlines()[4]

    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plot_generators

    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for picture in pictures:
        plot_generators.draw(report, picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    with pytest.raises(ValueError, match=r"no row of one thread, single elements and a sparsity of 0\.5"):
        plot_generators.draw(report, pictures[0], sparsity=0.5)

    assert main(["bench", "generators", "--layers", "3x3"]) == 1
    assert "--layers is '3x3'; `bench generators` does not take it" in capsys.readouterr().err
    assert main(["bench", "generators", "--generators", "BigGAN"]) == 1
    assert "--generators is 'BigGAN'; it must be a part of a name" in capsys.readouterr().err


#: Tiny forms of the named generators: one-dimensional layers, modulated layers with noise, frames that are no squares.
SMALL_NAMED = (
    GeneratorCase("HiFi-GAN", "hifigan", {**HIFIGAN_SIZES["V3"], "width": 8}, 6 * 256, 1, target=None),
    GeneratorCase("StyleGAN2 @16x16", "stylegan2", {"image_size": 16, "width": 4}, 16, 1, target=None),
    GeneratorCase(
        "compact 6x10", "esrgan", {"generator": "compact", "width": 8, "convs": 1}, 24, 1, target=None, frame=(6, 10)
    ),
)


def test_named_generators_run_sparse_and_an_engine_may_refuse_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(model: torch.nn.Module, inputs: Any, threads: int) -> Any:
        raise NotImplementedError(f"no signals\nand {type(model).__name__} is long")

    def refuses_later(model: torch.nn.Module, inputs: Any, threads: int) -> Any:
        return partial(refuses, model, inputs, threads)

    ours = {"torch": engines.makers(whole=False)["torch"], "strict": refuses, "late": refuses_later}
    monkeypatch.setattr(engines, "makers", lambda whole: ours)
    monkeypatch.setattr(generators, "NAMED_GENERATORS", SMALL_NAMED)
    monkeypatch.setattr(generators, "peak_memory", lambda job, engine: 1000)
    for case in SMALL_NAMED:
        _, sparse, _ = generators.both_generators(GeneratorJob(case, 0.9, "element", 1))
        layers = dict(sparsegan.sparse_layers(sparse))
        convolutions = [one for one in case.dense().modules() if isinstance(one, DENSE_CLASSES)]
        assert len(layers) == len(convolutions) > 2
        assert all(abs(layer.nnz - 0.1 * layer.mask().numel()) <= 1 for layer in layers.values())
    file = tmp_path / "named.json"
    names = ",".join(case.title for case in SMALL_NAMED)
    assert main(["bench", "generators", "--generators", names, "--seconds", "0.001", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["generator"] for row in rows] == list(map(str, SMALL_NAMED))
    for row in rows:
        assert list(row["dense_ms"]) == ["torch"]
        assert row["refused"] == dict.fromkeys(("strict", "late"), "NotImplementedError: no signals")
    assert capsys.readouterr().out.count("strict refused: NotImplementedError: no signals") == 3

    monkeypatch.setattr(engines, "makers", lambda whole: {"torch": refuses})
    with pytest.raises(NotImplementedError, match="no signals"):  # there would be nothing to compare with
        generators.time_generator(GeneratorJob(SMALL_NAMED[0], 0.9, "element", 1), 0.001)


def test_an_engine_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: torch.nn.Module, inputs: Any, threads: int) -> Any:
        return lambda: model(*inputs) * 1.001

    monkeypatch.setattr(engines, "makers", lambda whole: {"wrong": wrong})
    with pytest.raises(
        RuntimeError, match=r"DCGAN @64x64 batch 2: the output of wrong differs .* by 1\.0e-03 of its norm"
    ):
        generators.time_generator(GeneratorJob(SMALL_GENERATORS[1], 0.9, "element", 1), 0.001)


def test_memory_is_that_of_a_process_which_runs_the_engine_alone() -> None:
    case = GeneratorCase("DCGAN @64x64", "dcgan", {"nz": 100, "width": 64, "channels": 3}, 64, 1, target=5)
    held = generators.peak_memory(GeneratorJob(case, 0.9, "element", 1), "torch")
    weights = sum(4 * parameter.numel() for parameter in case.dense().parameters())
    # Weights, activations and the allocator's rounding. A whole process would need more than ten times the weights.
    assert weights < held < 8 * weights


@pytest.mark.usefixtures("small")
def test_a_layer_that_vectors_do_not_fit_is_named() -> None:
    todo, left_out = jobs("", [0.9], ["element", "vector:4", "input:16"], [1, 2])
    assert len(todo) == 2 * (3 + 2 + 2)
    assert left_out == [
        "8->3 3x3 @6x6 batch 1: left out, its 3 output channels are no whole vectors of vector:4",
        "8->3 3x3 @6x6 batch 1: left out, its 8 input channels are no whole units of input:16",
    ]
    with pytest.raises(ValueError, match=r"--layers is '9->9'; .*16->8 3x3 @6x6 batch 2"):
        jobs("9->9", [0.9], ["element"], [1])


def test_an_interrupted_run_continues_and_a_complete_run_starts_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    work = [Job(case, 0.9, "element", 1) for case in SMALL]
    calls = []

    def measure(job: Job) -> dict[str, Any]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(job)
        return {"gflops": float(len(calls)), "holds": None}

    def run(command: str) -> list[float]:
        results = Results(command, file, facts(), {})
        for job in work:
            results.row(job.name, partial(measure, job))
        results.finish(memory=[])
        return [row["gflops"] for row in results.rows]

    with pytest.raises(KeyboardInterrupt):
        run("one")
    assert not json.loads(file.read_text())["complete"]
    calls.append(work[0])  # from here on `measure` does not interrupt
    assert run("one") == [1, 2, 4]
    assert run("one") == [5, 6, 7]
    report = json.loads(file.read_text())
    file.write_text(json.dumps({**report, "complete": False, "build": "another"}))
    assert run("one") == [8, 9, 10]  # rows of another build are dropped


def test_cyclegan_has_the_published_size() -> None:
    generator = CycleGanGenerator()
    assert sum(p.numel() for p in generator.parameters()) == 11_378_179


def test_the_dry_run_of_the_gpu_script_lists_its_stages() -> None:
    script = ["bash", str(BENCHMARKS / "gpu.sh")]
    dry = subprocess.run([*script, "--dry-run"], capture_output=True, text=True, check=True).stdout
    stages = [line.split()[0] for line in dry.splitlines() if not line.startswith(" ")]
    assert stages == "build test sanitize numbers tune bench generators step table".split()
    one = subprocess.run([*script, "--dry-run", "bench"], capture_output=True, text=True, check=True).stdout
    assert "sparsegan bench gpu" in one
    wrong = subprocess.run([*script, "mesure"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "mesure is no stage; accepted: build test" in wrong.stderr


@pytest.mark.parametrize("failing", ["pip", "info", "pytest", "nothing"])
def test_the_gpu_script_stops_where_the_build_fails_and_nowhere_else(tmp_path: Path, failing: str) -> None:
    for folder in ("benchmarks", "kernels", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "kernels" / "tuned_table.py").touch()
    shutil.copy(BENCHMARKS / "gpu.sh", tmp_path / "benchmarks")
    for name in ("python", "compute-sanitizer"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho "ran $*"\ncase "$*" in *{failing}*) exit 3;; esac\n')
        program.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "bin" / "python"), "OUT": str(tmp_path / "out")}
    script = ["bash", str(tmp_path / "benchmarks" / "gpu.sh"), "build", "test", "sanitize", "table"]
    ran = subprocess.run(script, capture_output=True, text=True, env=environment)
    begun = [line.split()[1].strip(":") for line in ran.stdout.splitlines() if line.startswith("== ")]
    assert begun == (["build"] if failing in ("pip", "info") else ["build", "test", "sanitize", "table"])
    assert ran.returncode == {"pip": 3, "info": 3, "pytest": 1, "nothing": 0}[failing]
    assert ("these stages failed: test" in ran.stderr) == (failing == "pytest")
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert all(line in log for line in ran.stdout.splitlines())


def test_gpu_rows_and_their_targets(capsys: pytest.CaptureFixture[str]) -> None:
    rows = gpu.gpu_jobs()
    assert len({tuple(row.name.values()) for row in rows}) == len(rows)
    asked = {(r.name["layer"], r.granularity, r.sparsity, r.training): gpu.gpu_targets(r) for r in rows}
    residual = "256->256 3x3 @64x64 batch 16"
    assert asked[residual, "vector:64", 0.9, False] == {"bf16": 3.0}
    assert asked[residual, "vector:64", 0.9, True] == {"bf16": 2.0}
    assert asked["1024->512 transposed 4x4 s2 @4x4 batch 1", "vector:16", 0.9, False] == {"bf16": 2.0}
    assert asked["3->64 7x7 @256x256 batch 1", "vector:64", 0.9, False] == {}
    (element,) = [r for r in rows if r.name["layer"] == residual and r.sparsity == 0.95]
    assert gpu.gpu_targets(element) == {"tf32": 1.5}
    assert main(["bench", "gpu", "--threads", "2"]) == 1
    assert "--threads is '2'; `bench gpu` does not take it" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["bench", "gpu"]) == 1
        assert "no CUDA device is there" in capsys.readouterr().err
