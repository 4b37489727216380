"""Run directories and the training loop: state after a crash, resumed runs, and runs that are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sparsegan.atomic_files import write_text, write_whole
from sparsegan.data import Batches
from sparsegan.training import Diverged, Run, endless, run_loop


class Walk:
    """A task whose state depends on every batch, every random draw and the state of its optimizer."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.optimizer = torch.optim.Adam([self.weight], 0.1)

    def step(self, step: int, batch: torch.Tensor) -> dict[str, float]:
        loss = ((self.weight - batch.mean(0) - torch.randn(3)) ** 2).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def state_dict(self) -> dict:
        return {"weight": self.weight.detach().clone(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.weight.data.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])


class Stopped(Exception):
    pass


class StopAt(Walk):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def step(self, step: int, batch: torch.Tensor) -> dict[str, float]:
        if step == self.at:
            raise Stopped
        return super().step(step, batch)


def images() -> torch.Tensor:
    return torch.arange(30.0).view(10, 3)


def shuffling_loader() -> DataLoader:
    return DataLoader(
        TensorDataset(images()), batch_size=3, shuffle=True, collate_fn=lambda rows: torch.stack([r[0] for r in rows])
    )


@pytest.mark.parametrize("loader", [lambda: Batches(images(), 3), shuffling_loader], ids=["Batches", "DataLoader"])
@pytest.mark.parametrize("stop", [5, 9, 12])
def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path, loader, stop: int) -> None:
    whole = Walk()
    rows = run_loop(whole, loader(), 13, seed=3, quiet=True)

    with pytest.raises(Stopped):
        run_loop(StopAt(stop), loader(), 13, run=Run(tmp_path / "r", {}), checkpoint_every=4, seed=3, quiet=True)
    torch.randn(17)  # other draws in between must not matter
    resumed = Walk()
    run = Run(tmp_path / "r", {}, resume=True)
    assert run_loop(resumed, loader(), 13, run=run, checkpoint_every=4, seed=3, quiet=True) == rows
    assert torch.equal(resumed.weight, whole.weight)
    assert run.metrics() == rows


def test_each_epoch_has_a_new_order_and_batches_start_at_any_step() -> None:
    loader = Batches(images(), 3)
    stream = endless(loader, seed=1)
    first = [next(stream) for _ in range(9)]
    assert len({tuple(sorted(b[:, 0].tolist())) for b in first[:3]}) == 3
    assert not torch.equal(torch.cat(first[:3]), torch.cat(first[3:6]))
    for start in (1, 3, 7):
        assert torch.equal(next(endless(loader, seed=1, start=start)), first[start])
        assert torch.equal(next(endless(Unsized(loader), seed=1, start=start)), first[start])
    with pytest.raises(ValueError, match="loader is empty"):
        next(endless([], seed=0))


class Unsized:
    """A loader without a length."""

    def __init__(self, loader) -> None:
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        textwrap.dedent("""
        import sys, time, torch
        torch.set_num_threads(1)
        from sparsegan.data import Batches
        from sparsegan.training import Run, run_loop
        from sparsegan.training.adversarial import AdversarialTask
        from sparsegan.gans import dcgan
        torch.manual_seed(0)
        nets = dcgan.Generator(8, 2, 1), dcgan.Discriminator(1, 2)
        task = AdversarialTask(*nets, dcgan.objective, *(torch.optim.Adam(n.parameters(), 1e-3) for n in nets))
        run = Run(sys.argv[1], {}, resume=True)
        run_loop(task, Batches(torch.randn(12, 1, 64, 64).clamp(-1, 1), 4), 40, run=run, checkpoint_every=5, quiet=True)
        print(sum(p.double().sum().item() for n in nets for p in n.state_dict().values()).hex())
        """)
    )
    command = [sys.executable, str(program)]
    whole = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, check=True).stdout
    child = subprocess.Popen([*command, str(tmp_path / "b")], stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "b" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints.is_dir() and any(checkpoints.glob("step-*.pt"))) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (tmp_path / "b" / "metrics.jsonl").open("a").write('{"step": 99, "di')  # an incomplete line
    resumed = subprocess.run([*command, str(tmp_path / "b")], capture_output=True, text=True, check=True).stdout
    assert resumed == whole
    assert (tmp_path / "b" / "metrics.jsonl").read_text() == (tmp_path / "a" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("value", "why"), [(float("nan"), "not finite"), (2e4, "exceeds the limit 10000")])
def test_a_diverging_loss_stops_the_run_and_names_the_last_good_checkpoint(
    tmp_path: Path, value: float, why: str
) -> None:
    class Diverging(Walk):
        def step(self, step: int, batch: torch.Tensor) -> dict[str, float]:
            return {"loss": value} if step == 5 else super().step(step, batch)

    run = Run(tmp_path / "r", {})
    with pytest.raises(Diverged, match=f"step 5: loss is .*{why}.*step-0000004.pt"):
        run_loop(Diverging(), Batches(images(), 3), 10, run=run, checkpoint_every=2, quiet=True)
    assert run.load()["step"] == 4


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path: Path) -> None:
    class Poisoned(Walk):
        def step(self, step: int, batch: torch.Tensor) -> dict[str, float]:
            figures = super().step(step, batch)
            if step == 3:
                self.weight.data[0] = float("inf")  # after the loss was computed
            return figures

    run = Run(tmp_path / "r", {})
    with pytest.raises(Diverged, match=r"weight holds values that are not finite.*step-0000002.pt"):
        run_loop(Poisoned(), Batches(images(), 3), 10, run=run, checkpoint_every=2, quiet=True)
    assert [p.name for p in run.checkpoints()] == ["step-0000002.pt"]


def test_a_run_directory_is_not_overwritten_and_not_resumed_with_other_settings(tmp_path: Path) -> None:
    Run(tmp_path / "r", {"lr": 1e-4, "betas": (0.5, 0.999)})
    with pytest.raises(FileExistsError, match="already holds a run"):
        Run(tmp_path / "r", {"lr": 1e-4})
    with pytest.raises(ValueError, match=r"lr was 0.0001 and is 0.0002"):
        Run(tmp_path / "r", {"lr": 2e-4, "betas": (0.5, 0.999)}, resume=True)
    Run(tmp_path / "r", {"lr": 1e-4, "betas": (0.5, 0.999)}, resume=True)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", {}, keep=3)
    run_loop(Walk(), Batches(images(), 3), 11, run=run, checkpoint_every=2, quiet=True)
    assert [p.name[5:12] for p in run.checkpoints()] == ["0000008", "0000010", "0000011"]
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 10


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    write_text(file, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
