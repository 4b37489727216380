"""Two processes give the results of one: losses, supports, weights and scores, for each kind of GAN, also resumed."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import test_gans
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparsegan.cli import main
from sparsegan.compress import CompressionConfig, Compressor, RunConfig, SelfSupervisedLoss, Validation
from sparsegan.metrics import distances as metrics
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning.schedule import GradualPruning
from sparsegan.training import ranks

Figures = list[dict[str, float]]


def compress(name: str, folder: Path, steps: int = 6, stop: int | None = None) -> tuple[Figures, dict[str, Tensor]]:
    """The figures and the generator's state of a run of ``steps``. With ``stop`` the run is interrupted there."""
    gan = test_gans.tiny(name, torch.float64)
    loss = SelfSupervisedLoss(features=0.5 if name == "dcgan" else 0.0)
    config = CompressionConfig(loss, generator_lr=1e-3)
    run = RunConfig(folder, resume=True, checkpoint_every=3, quiet=True)
    schedule = GradualPruning(steps, 0.6, every=1)
    compressor = Compressor(gan.generator, gan.discriminator, gan.objective, schedule, config, run=run)
    batches = list(test_gans.batches(name, 3, torch.float64))
    if stop is not None:
        forward = compressor.task.step

        def until(step: int, batch: Any) -> dict[str, float]:
            if step == stop:
                raise KeyboardInterrupt
            return forward(step, batch)

        compressor.task.step = until  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            compressor.fit(batches)
        return [], {}
    result = compressor.fit(batches)
    assert not any(hook for module in result.generator.modules() for hook in module._forward_pre_hooks.values())
    return result.history, dict(result.generator.state_dict())


def process(rank: int, count: int, name: str, folder: Path, stop: int | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{count}-{stop}", rank=rank, world_size=count)
    history, state = compress(name, folder / "run", stop=stop)
    torch.save((history, state), folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_two(name: str, folder: Path, stop: int | None = None) -> list[tuple[Figures, dict[str, Tensor]]]:
    folder.mkdir(exist_ok=True)
    mp.start_processes(process, args=(2, name, folder, stop), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same(one: tuple[Figures, dict[str, Tensor]], other: tuple[Figures, dict[str, Tensor]]) -> None:
    for ours, theirs in zip(one[0], other[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-10)
    assert one[1].keys() == other[1].keys()
    for key, value in one[1].items():
        if value.is_floating_point():
            # The gradient of a bias before an instance norm is only rounding, and Adam turns it into steps.
            torch.testing.assert_close(value, other[1][key], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, other[1][key]), key


@pytest.mark.parametrize("name", ["dcgan", "cyclegan", "stargan"])
def test_two_processes_give_the_results_of_one(name: str, tmp_path: Path) -> None:
    alone = compress(name, tmp_path / "alone")
    two = on_two(name, tmp_path / "two")
    for rank in two:
        assert_same(rank, alone)
    assert all(torch.equal(two[0][1][key], two[1][1][key]) for key in two[0][1])  # bit for bit


def test_a_run_resumes_with_another_number_of_processes(tmp_path: Path) -> None:
    alone = compress("stargan", tmp_path / "alone")
    compress("stargan", tmp_path / "run", stop=4)
    assert_same(on_two("stargan", tmp_path)[0], alone)
    other = tmp_path / "other"
    on_two("stargan", other, stop=4)
    assert_same(compress("stargan", other / "run"), alone)


def watch(folder: Path, ema: float) -> tuple[list[dict[str, Any]], dict[str, Tensor], list[int]]:
    """The looks of a run, the state of the result, and the number of images of each call of the generator in a look."""
    gan, rows, inside = test_gans.tiny("dcgan", torch.float64), list[int](), list[bool]()
    noise = torch.randn(5, gan.generator.nz, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: rows.append(len(output)) if inside and isinstance(module, nn.Tanh) else None
    )

    def score(generator: nn.Module) -> float:
        assert not generator.training
        inside.append(True)
        made = generator(noise)  # five images, which two processes cannot divide evenly
        inside.clear()
        assert len(made) == 5
        return made.abs().mean().item() + ranks.rank()  # rank 0 decides

    validation = Validation(score, every=1, higher=True, patience=2)
    config = CompressionConfig(generator_lr=1e-3, ema=ema)
    schedule = GradualPruning(6, 0.6, every=1, ramp=0.3)
    compressor = Compressor(
        gan.generator, gan.discriminator, gan.objective, schedule, config, run=RunConfig(folder), validate=validation
    )
    result = compressor.fit(list(test_gans.batches("dcgan", 3, torch.float64)))
    hook.remove()
    return result.looks, dict(result.generator.state_dict()), rows


def watching(rank: int, folder: Path, ema: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(watch(folder / "run", ema), folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_two_processes_look_at_a_run_as_one_does(ema: float, tmp_path: Path) -> None:
    looks, state, rows = watch(tmp_path / "alone", ema)
    assert set(rows) == {5}
    mp.start_processes(watching, args=(tmp_path, ema), nprocs=2, start_method="fork")
    two = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    for found, result, made in two:
        assert set(made) == {3}
        assert_same((found, result), (looks, state))
    assert two[0][0] == two[1][0]
    assert all(torch.equal(two[0][1][key], two[1][1][key]) for key in state)


def command_on_two(rank: int, port: int, command: list[str]) -> None:
    torch.set_num_threads(1)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}
    assert main(command) == 0


@pytest.mark.usefixtures("few_digits")
def test_the_command_searches_on_two_processes_as_on_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sparsegan.cli.bound.LADDER", (0.5, 0.75))
    dense, common = tmp_path / "dense", ["--batch", "4", "--steps", "2", "--device", "cpu", "--out"]
    assert main(["train", "dcgan", "--width", "2", "--quiet", *common, str(dense)]) == 0
    command = ["compress", str(dense), "--data-free", "--within", "1dB", *common]
    assert main([*command, str(tmp_path / "alone")]) == 0
    capfd.readouterr()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(command_on_two, args=(port, [*command, str(tmp_path / "two")]), nprocs=2, start_method="fork")
    said = capfd.readouterr()
    assert "8 looks of" in said.err
    assert (said.err.count("by two trial steps"), said.out.count("wrote ")) == (1, 1), "only rank 0 speaks"
    one, two = (json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("alone", "two"))
    assert [trial["sparsity"] for trial in one["within"]["tried"]] == [0.5, 0.75]
    assert flat(two) == pytest.approx(flat(one), rel=1e-3, abs=1e-3)
    assert sorted(path.name for path in tmp_path.glob("two/**/step-*")) == sorted(
        path.name for path in tmp_path.glob("alone/**/step-*")
    )


def flat(value: Any) -> dict[str, float]:
    """The numbers in a JSON value by their place."""
    leaves = pytree.tree_flatten_with_path(value)[0]
    return {pytree.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, int | float)}


class Few:
    """11 samples of a task. Two processes cannot divide them evenly."""

    distinct = 11
    domains: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        parts = list(test_gans.batches(name, 3, torch.float64))
        self.parts = [torch.cat(part)[:11] for part in zip(*parts, strict=True)]

    def order(self, shuffled: bool = True) -> Tensor:
        return torch.arange(len(self.parts[0]))

    def batch(self, chosen: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        return tuple(part[chosen] for part in self.parts)


def scores(made: list[int]) -> dict[str, float]:
    """Scores of generators from images, with and without draws, and from noise. `made` receives the batch sizes."""

    def means(images: Tensor) -> Tensor:
        made.append(len(images))
        return images.flatten(2).mean(2)

    features, found = metrics.Features("means", means), dict[str, float]()
    for name in ("stargan", "srgan"):
        gan = test_gans.tiny(name, torch.float64)
        evaluator = metrics.TaskEvaluator(Few(name), gan.objective, features, batch_size=4)  # type: ignore[arg-type]
        for view, score in evaluator.scores(gan.generator.eval()).items():
            found |= {f"{name} {view} {label}": value for label, value in score.labelled().items()}
    generator = test_gans.tiny("dcgan", torch.float64).generator.eval()
    sampled = metrics.Evaluator(torch.rand(7, 1, 64, 64, dtype=torch.float64), features, "means", batch_size=4)
    with ranks.divided(generator, padded=True):
        result = sampled.distances(lambda n: generator(torch.randn(n, generator.nz, 1, 1).double()), 5, (0, 1))
    return found | {"fid": result.fid, "fid_spread": result.fid_spread, "kid": result.kid}


def scoring(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    made: list[int] = []
    torch.save((scores(made), made), folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_divide_the_scoring_and_get_the_scores_of_one(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    alone: list[int] = []
    wanted = scores(alone)
    mp.start_processes(scoring, args=(tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        found, made = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert made == [-(-count // 2) for count in alone]
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_a_single_process_changes_no_module() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with ranks.divided(network):
        assert type(network[1]) is nn.BatchNorm2d
        assert not network._forward_hooks
    assert (ranks.world_size(), ranks.rank()) == (1, 0)


def dropping(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Dropout(0.5), nn.Conv2d(3, 2, 3), nn.Dropout(0.2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
        torch.manual_seed(1)
        whole, after = network(x), torch.rand(())
        torch.manual_seed(1)
        with ranks.divided(network):
            assert torch.equal(network(x), whole)
        assert torch.equal(torch.rand(()), after)
    with ranks.divided(network), pytest.raises(ValueError, match="a batch of 3 does not divide among 2 processes"):
        network(torch.zeros(3, 1, 5, 5))
    with pytest.raises(TypeError, match="Dropout2d cannot drop the same elements"), ranks.divided(nn.Dropout2d()):
        pass
    dist.destroy_process_group()


def test_dropout_drops_as_in_one_process_and_uneven_batches_are_refused(tmp_path: Path) -> None:
    mp.start_processes(dropping, args=(tmp_path,), nprocs=2, start_method="fork")


def test_the_compressed_layers_are_sparse() -> None:
    """The states that the tests above compare contain supports."""
    gan = test_gans.tiny("dcgan")
    schedule = GradualPruning(2, 0.6, every=1)
    compressor = Compressor(gan.generator, gan.discriminator, gan.objective, schedule, run=RunConfig(quiet=True))
    result = compressor.fit(list(test_gans.batches("dcgan", 1)))
    assert list(sparse_layers(result.generator))
    assert any(key.endswith("support") for key in result.generator.state_dict())
