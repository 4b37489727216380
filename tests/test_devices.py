"""Devices other than the CPU: equal random numbers for both generators, batches on the device, float16, --device.

No GPU is needed. The tests of a complete second device are in `second_device.py`.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_gans
import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegan import randomness
from sparsegan.cli import main
from sparsegan.cli.common import device_named, use_device
from sparsegan.compress import CompressionConfig, Compressor, DistillationLoss, PlainLoss, RunConfig, SelfSupervisedLoss
from sparsegan.compress.comparison import Comparison
from sparsegan.gans import Objective, dcgan, store
from sparsegan.nn.replace import sparse_layers
from sparsegan.outermost import autocast
from sparsegan.placement import moved
from sparsegan.pruning.schedule import OneShot
from sparsegan.randomness import Draws
from sparsegan.training import ranks, run_loop


def test_a_second_device() -> None:
    """Runs in a separate process, because a backend cannot be removed from a process."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch takes no backend in Python")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/second_device.py"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]


# The same numbers for both generators


def test_draws_after_named_numbers_are_equal_too() -> None:
    """They are equal even where a later pass draws less before the named numbers, as it does when scores are cached."""
    draws, seen = Draws(), []
    for passing in (draws.first, draws.again, draws.again):
        before = torch.get_rng_state()
        with passing():
            torch.rand(1 if passing == draws.first else 0)
            seen.append((draws("noise", lambda: torch.rand(3)), torch.rand(2)))
        assert torch.equal(torch.get_rng_state(), before) == (passing != draws.first)
        torch.rand(1)  # a draw between two passes
    for named, last in seen:
        assert named is seen[0][0]
        assert torch.equal(last, seen[0][1])
    seen[0][0].neg_()
    with pytest.raises(RuntimeError, match="the random numbers 'noise' were changed in place"), draws.again():
        draws("noise", lambda: torch.rand(3))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", test_gans.TINY)
def test_reference_gans_restore_no_random_state(name: str, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = test_gans.tiny(name)
    if name == "pix2pix":  # dropout draws in the forward, without names
        sizes = test_gans.TINY[name] | {"gan": name, "dropout": False}
        gan = store.build({"network": sizes})
    (batch,) = test_gans.batches(name, 1)
    compressor = Compressor(
        gan.generator,
        gan.discriminator,
        gan.objective,
        OneShot(1, 0.5),
        CompressionConfig(original_images="real", accumulate=accumulate),
    )

    def refused(state: Tensor) -> None:
        raise AssertionError("torch's generator is set back")

    monkeypatch.setattr(torch, "set_rng_state", refused)
    compressor.task.step(0, batch)


# Tensors on the device of the networks


class Elsewhere(TorchDispatchMode):
    """Records the names of ops that return a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.device.type == "cpu":
            self.found.append(str(func))
        return output


LOSSES = {
    "terms and features": SelfSupervisedLoss(features=0.5),
    "distances": SelfSupervisedLoss(terms=0.0, features=1.0),
    "plain": PlainLoss(),
    "distillation": DistillationLoss(own=1.0, intermediate=1.0),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("name", test_gans.TINY)
def test_all_tensors_of_a_step_are_where_the_networks_are(name: str, loss: Any) -> None:
    """Runs on the meta device, because "cuda" needs a torch that was built for CUDA."""
    gan = test_gans.tiny(name)
    (batch,) = test_gans.batches(name, 1)
    if name == "stargan":
        batch = batch[0], torch.eye(3)[batch[1]]  # attributes, because domain labels are read as numbers
    there = torch.device("meta")
    student, original, judge = (
        net.to(there) for net in (gan.generator, copy.deepcopy(gan.generator), gan.discriminator)
    )
    judge.requires_grad_(False)
    batch = moved(batch, there)
    both = Comparison(original.eval(), judge, gan.objective, loss)
    noise = Draws([])
    with Elsewhere() as elsewhere:
        scores = both.compare(student, both.generate(student, batch, noise), None, batch, noise)
        total = loss(gan.objective, *scores)
        total.backward()
    assert total.device == there
    assert not elsewhere.found


def test_several_tensors_are_drawn_under_one_name() -> None:
    draws = Draws()
    noise, labels = draws("both", lambda: (torch.rand(3), {"labels": torch.randint(9, (3,))}))
    again, those = draws("both", lambda: None)
    assert again is noise
    assert those is labels
    labels["labels"].add_(1)
    with pytest.raises(RuntimeError, match="'both' were changed in place"):
        draws("both", lambda: None)
    for wrong, words in (
        (lambda: (torch.rand(1), 3), "hold int"),
        (tuple, "an empty tuple"),
        (lambda: None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=words):
            draws(words, wrong)


def test_batches_go_where_the_networks_are() -> None:
    there = torch.device("meta")
    batch = {"images": torch.ones(2), "more": [torch.ones(1), "text"]}
    assert moved(batch, randomness.CPU) is batch
    gone = moved(batch, there)
    assert gone["images"].device == gone["more"][0].device == there
    assert gone["more"][1] == "text"
    gan = test_gans.tiny("dcgan")
    gan.discriminator.to(there)
    with pytest.raises(ValueError, match=r"generator's main\.0\.weight is on cpu and the discriminator's .* on meta"):
        Compressor(gan.generator, gan.discriminator, gan.objective, OneShot(1, 0.5))


class Slow:
    """A task on the meta device that records the order of events."""

    device = torch.device("meta")
    meanwhile: Any = None

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def step(self, step: int, batch: Tensor) -> dict[str, float]:
        assert batch.device == self.device
        self.events.append(f"begins {step}")
        self.meanwhile()
        self.events.append(f"waits {step}")
        return {"loss": 0.0}

    def state_dict(self) -> dict[str, Any]:
        return {}

    load_state_dict = None


def test_the_next_batch_is_made_while_another_device_works() -> None:
    events: list[str] = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            for index in range(9):
                events.append(f"makes {index}")
                yield torch.ones(1)

    task = Slow(events)
    run_loop(task, Loader(), 3, quiet=True)
    steps = ["begins 0", "makes 1", "waits 0", "begins 1", "makes 2", "waits 1", "begins 2", "waits 2"]
    assert events == ["makes 0", *steps]  # and no batch that no step uses
    assert task.meanwhile is None


# float16


def test_gradients_that_float16_cannot_hold_train() -> None:
    """Losses times 1e-9 have gradients that float16 rounds to 0. With loss scaling every layer changes."""
    gan = test_gans.tiny("dcgan")

    def small_terms(generator: nn.Module, judge: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        return {name: 1e-9 * term for name, term in dcgan.discriminator_terms(generator, judge, fake, real).items()}

    def small_gen(generator: nn.Module, judge: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        return {"gen": 1e-9 * dcgan.generator_terms(generator, judge, fake, real)["gen"]}

    objective = Objective(small_gen, small_terms, dcgan.generate)
    compressor = Compressor(
        gan.generator,
        gan.discriminator,
        objective,
        OneShot(2, 0.5),
        CompressionConfig(PlainLoss(), autocast=torch.float16),
        run=RunConfig(quiet=True),
    )
    task = compressor.task
    before = copy.deepcopy([task.student, task.discriminator])
    compressor.fit(list(test_gans.batches("dcgan", 2)))
    for old, new in zip(before, (task.student, task.discriminator), strict=True):
        for (name, one), other in zip(old.named_parameters(), new.parameters(), strict=True):
            assert not torch.equal(one, other), name
    scales = task.state_dict()["scales"]
    assert scales["generator"]["scale"] == scales["discriminator"]["scale"] == 65536
    task.load_state_dict(task.state_dict())


def test_a_step_with_overflowing_gradients_is_skipped() -> None:
    gan = test_gans.tiny("dcgan")
    objective = Objective(
        lambda *given: {"gen": 1e3 * dcgan.generator_terms(*given)["gen"]}, dcgan.discriminator_terms, dcgan.generate
    )
    compressor = Compressor(
        gan.generator,
        gan.discriminator,
        objective,
        OneShot(40, 0.5),
        CompressionConfig(PlainLoss(), regrow=0.3, autocast=torch.float16),
        run=RunConfig(limit=1e9, quiet=True),
    )
    task = compressor.task
    kept = [layer.support.clone() for _, layer in sparse_layers(task.student)]
    before = copy.deepcopy(task.student)
    (batch,) = test_gans.batches("dcgan", 1)
    with autocast(torch.float16, task.student, task.discriminator):
        task.step(0, batch)
    assert all(torch.equal(*pair) for pair in zip(task.student.parameters(), before.parameters(), strict=True))
    after = [layer.support for _, layer in sparse_layers(task.student)]
    assert all(torch.equal(*pair) for pair in zip(kept, after, strict=True))
    assert task.scales["generator"].state_dict()["scale"] == 32768


# --device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with two GPUs. The list receives the indices that become the current device."""
    current: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    return current


def test_a_device_is_one_of_this_machines(monkeypatch: pytest.MonkeyPatch, two_gpus: list[int]) -> None:
    names = {None: "cuda:0", "cuda": "cuda:0", "cuda:1": "cuda:1", "cpu": "cpu", "cpu:0": "cpu"}
    assert {name: str(device_named(name)) for name in names} == names
    for name in ("cuda:2", "cuda:256", "cuda:99999", "cuda:", "cuda:01", "xpu", "meta", "gpu", "cpu:1", ""):
        with pytest.raises(ValueError, match=rf"--device is '{name}'.*; this machine has cpu, cuda:0, cuda:1$"):
            device_named(name)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [str(device_named(name)) for name in (None, "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(ValueError, match="is 'cuda:1' in all processes; --device cuda gives each process a"):
        device_named("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="--device is 'cuda' in process 2; this machine has cpu, cuda:0, cuda:1"):
        device_named("cuda")


def test_a_gpu_in_use_is_announced(two_gpus: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert use_device(SimpleNamespace(device="cuda:1", quiet=False)) == torch.device("cuda", 1)
    assert two_gpus == [1]
    assert capsys.readouterr().err == "running on cuda:1 (Some GPU); --device cpu runs on the CPU\n"
    assert use_device(SimpleNamespace(device="cpu", quiet=False)) == randomness.CPU
    assert two_gpus == [1]
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("name", "backend"), [("cpu", "gloo"), ("cuda:1", "cpu:gloo,cuda:nccl")], ids=["cpu", "gpu"])
def test_the_process_group_fits_the_device(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch, two_gpus: list[int]
) -> None:
    begun: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", begun.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with ranks.from_environment(torch.device(name)):
        assert begun == [backend]
        assert two_gpus == ([] if name == "cpu" else [1])


COMMANDS = {
    "train": ["dcgan"],
    "compress": ["folder"],
    "generate": ["folder"],
    "evaluate": ["folder"],
    "study": ["paper-table2"],
    "demo": [],
    "profile": ["folder"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_device_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*COMMANDS[command], "--device", "cuda:99"]
    assert main([command, *given]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sparsegan {command}: --device is 'cuda:99'; this machine has cpu")
