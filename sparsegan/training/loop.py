"""The training loop: it feeds batches, logs metrics, writes checkpoints, resumes, and stops when a loss diverges."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import chain, count
from typing import Any, Protocol

import torch

from ..placement import moved
from ..progress import Progress
from ..randomness import CPU, run_state, seeded, set_run_state
from .run import Run

_NOTHING = object()


class Diverged(RuntimeError):
    """A loss was not finite or above the limit. The message names the last good checkpoint."""


class Task(Protocol):
    """The interface of the objects that `run_loop` drives: an optimisation step, and a state for checkpoints.

    A task may have an attribute `device`. Its batches are then moved to this device, and checkpoints hold the state of
    the device's random generator beside the CPU's. A task may also have an attribute `meanwhile`. Where the device is a
    GPU, the loop stores a function there, which makes the next batch. The task calls this function once it has started
    all GPU work of a step. Where a task has an attribute `finished` that is True after a step, the loop ends there.
    """

    def step(self, step: int, batch: Any) -> dict[str, float]:
        """Do step number `step` (from 0) on `batch`. Returns the figures to log."""

    def state_dict(self) -> dict[str, Any]:
        """The complete state, as tensors and plain Python values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def endless(loader: Iterable[Any], seed: int, start: int = 0) -> Iterator[Any]:
    """The batches of `loader`, epoch after epoch, from batch number `start` on.

    torch's random generator is seeded from (seed, e) while epoch e is opened. A loader that draws its order at that
    moment, as torch's DataLoader does, gives the same order in a resumed run. Raises ValueError for an empty loader.
    """
    length = len(loader) if isinstance(loader, Sized) else 0
    first_epoch, skip = divmod(start, length) if length else (0, start)
    for epoch in count(first_epoch):
        with seeded((seed * 1_000_003 + epoch) % 2**63):
            opened = iter(loader)
            first = next(opened, _NOTHING)
        if first is _NOTHING:
            raise ValueError("loader is empty; it must give at least one batch")
        for batch in chain([first], opened):
            if skip:
                skip -= 1
            else:
                yield batch


def run_loop(
    task: Task,
    loader: Iterable[Any],
    steps: int,
    *,
    run: Run | None = None,
    checkpoint_every: int = 100,
    seed: int = 0,
    limit: float = 1e4,
    title: str = "training",
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Drive `task` through steps 0 .. steps-1. Returns the figures of every step.

    Where `run` holds a checkpoint, the loop continues after its step. Parameters, buffers, optimizer state, data order
    and random state are all restored, so on one thread the results are bit for bit those of a run that was never
    stopped. On a device of another type than before, random numbers start anew, with one warning. A checkpoint is
    written every `checkpoint_every` steps and at the end, which may come early (`Task.finished`).

    Unless `quiet`, progress and an estimate of time and memory go to standard error; see `sparsegan.progress`.

    Raises Diverged where a figure is not finite or its magnitude exceeds `limit`, and ValueError for an empty loader
    and for `steps` or `checkpoint_every` below 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every is {checkpoint_every}; it must be at least 1")
    state = run.load() if run else None
    start = 0
    history: list[dict[str, float]] = []
    if run is not None:
        start = state["step"] if state else 0
        run.rewind(start)
        history = run.metrics()
    device: torch.device | None = getattr(task, "device", None)
    batches = endless(loader, seed, start)
    if state is not None:
        task.load_state_dict(state["task"])
        if start < steps:
            first = next(batches)  # opening the epoch may draw random numbers, so it comes before restoring their state
            batches = chain([first], batches)
        set_run_state(state["random"], device or CPU, seed + start)
    else:
        torch.manual_seed(seed)
        random.seed(seed)

    feed = _Feed(batches, device, steps - start)
    with Progress(title, steps, done=start, quiet=quiet, estimate=True) as progress, feed.ahead_of(task):
        for step in range(start, steps):
            if getattr(task, "finished", False):
                break
            figures = task.step(step, feed.take())
            _check(figures, limit, step, run)
            row = {"step": step, **figures}
            history.append(row)
            if run is not None:
                run.log(row)
                last = step + 1 == steps or getattr(task, "finished", False)
                if (step + 1) % checkpoint_every == 0 or last:
                    _save(run, step + 1, task, device or CPU)
            progress.advance(figures=" ".join(f"{k} {v:.2g}" for k, v in list(figures.items())[:3]))
    return history


class _Feed:
    """An iterator's next `count` batches, each moved to the device of a task."""

    def __init__(self, batches: Iterator[Any], device: torch.device | None, count: int) -> None:
        self.batches, self.device, self.left = batches, device, count
        self.ready: list[Any] = []

    def take(self) -> Any:
        """The next batch."""
        self.fetch()
        return self.ready.pop()

    def fetch(self) -> None:
        """Make the next batch ready, if there is one left."""
        if self.left and not self.ready:
            self.left -= 1
            batch = next(self.batches)
            self.ready.append(batch if self.device is None else moved(batch, self.device))

    @contextmanager
    def ahead_of(self, task: Any) -> Iterator[None]:
        """Within it, a task on a GPU can have the next batch made during a step, through `task.meanwhile`."""
        if self.device in (None, CPU) or not hasattr(task, "meanwhile"):
            yield
            return
        task.meanwhile = self.fetch
        try:
            yield
        finally:
            task.meanwhile = None


def _check(figures: dict[str, float], limit: float, step: int, run: Run | None) -> None:
    for name, value in figures.items():
        if not math.isfinite(value) or abs(value) > limit:
            why = "is not finite" if not math.isfinite(value) else f"exceeds the limit {limit:g}"
            raise Diverged(f"step {step}: {name} is {value:g} and {why}; {_last_good(run)}")


def _save(run: Run, step: int, task: Task, device: torch.device) -> None:
    state = task.state_dict()
    bad = sorted(name for name, tensor in _tensors("", state) if not torch.isfinite(tensor).all())
    if bad:
        raise Diverged(f"step {step - 1}: {', '.join(bad[:3])} holds values that are not finite; {_last_good(run)}")
    run.save(step, {"task": state, "random": run_state(device)})


def _last_good(run: Run | None) -> str:
    if run is None:
        return "this run keeps no checkpoints"
    existing = run.checkpoints()
    return f"the last good checkpoint is {existing[-1]}" if existing else "there is no checkpoint yet"


def _tensors(prefix: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield prefix, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list):
        for key, inner in enumerate(value):
            yield from _tensors(f"{prefix}.{key}", inner)
