"""The lines that long jobs print where the output is no terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from sparsegan import progress
from sparsegan.progress import Progress, announce, duration, track
from sparsegan.training import run_loop


class Clock:
    """A clock that only the test advances, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(steps: int, seconds: float, **options: Any) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    with Progress("compressing", steps, clock=clock, stream=stream, **options) as bar:
        for step in range(options.get("done", 0), steps):
            clock.now += 20 if step == 0 else seconds  # the first step includes preparation
            bar.advance(figures=f"loss {step}")
    return stream.getvalue().splitlines()


def test_a_line_every_thirty_seconds_with_step_speed_and_time_left() -> None:
    lines = run(100, 5.0)
    assert lines[0] == "compressing: 3 of 100, 10 seconds each, about 16 minutes left (loss 2)"
    assert lines[1].startswith("compressing: 9 of 100, ")
    assert len(lines) == 17
    assert run(100, 0.01) == []
    fast = run(100_000, 0.01)
    assert fast[0].startswith("compressing: 1001 of 100000, 33.4 a second, about 49 minutes left")


def test_one_estimate_after_the_second_step() -> None:
    lines = [line for line in run(900, 0.5, estimate=True) if "by the second step" in line]
    assert len(lines) == 1
    assert lines[0].startswith("compressing: by the second step, about 0.5 seconds per step, 900 steps: 7.5 minutes; ")
    assert lines[0].endswith("GB of memory so far")
    resumed = [line for line in run(900, 0.5, estimate=True, done=400) if "by the second step" in line]
    assert "500 steps: 4.2 minutes" in resumed[0]


def test_quiet_prints_nothing() -> None:
    assert run(1000, 5.0, quiet=True, estimate=True) == []


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress("compressing", 3, stream=stream, clock=Clock()) as bar:
        for _ in range(3):
            bar.advance()
    assert "3/3" in stream.getvalue()


def test_loops_report_their_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Task:
        def step(self, step: int, batch: Any) -> dict[str, float]:
            return {"loss": 1.0}

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    monkeypatch.setattr(progress, "EVERY", 0.0)
    run_loop(Task(), [torch.zeros(1)], 5, title="a fresh discriminator")
    said = capsys.readouterr()
    assert said.out == ""
    assert "a fresh discriminator: by the second step" in said.err
    assert "a fresh discriminator: 4 of 5, " in said.err
    assert "(loss 1)" in said.err
    assert list(track(iter("abc"), "reading")) == ["a", "b", "c"]
    assert "reading: 2 of 3" in capsys.readouterr().err
    run_loop(Task(), [torch.zeros(1)], 5, quiet=True)
    assert list(track("abc", "reading", quiet=True)) == ["a", "b", "c"]
    announce("soon", quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (8, "8 seconds"),
        (89, "89 seconds"),
        (240, "4 minutes"),
        (2100, "35 minutes"),
        (9000, "2.5 hours"),
        (3e5, "3.5 days"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
