"""Schedules: the sparsity of the generator at each step of a compression run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """The length of a run and its sparsity over time. The sparsity never falls."""

    @property
    def steps(self) -> int:
        """The number of steps of the run; 0 for pruning without training."""

    def sparsity(self, step: int) -> float:
        """The sparsity in [0, 1) during step number `step`, counted from 0. At `steps`, the final sparsity."""


def prunings(schedule: Schedule) -> list[int]:
    """The steps at which a schedule prunes, beginning with 0, followed by the number of steps of the schedule."""
    later = range(1, schedule.steps)
    pruned = [step for step in later if schedule.sparsity(step) > schedule.sparsity(step - 1)]
    return [0, *pruned, schedule.steps]


def _check_sparsity(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class GradualPruning:
    """Automated gradual pruning (Zhu and Gupta, arXiv 1710.01878): cubic from `initial` to `target`, then constant.

        s(t) = target + (initial - target) (1 - t / span)^3,    span = ramp * steps

    `steps`: the length of the run. `ramp`: the fraction of the run after which the target is reached, by default half;
    the last step has the target in any case.
    `every`: the number of steps from one pruning to the next; in between, the sparsity is constant. Raises ValueError
    for values out of range.
    """

    steps: int
    target: float = 0.9
    initial: float = 0.05
    ramp: float = 0.5
    every: int = 10

    def __post_init__(self) -> None:
        _check_sparsity("target", self.target)
        _check_sparsity("initial", self.initial)
        if self.initial > self.target:
            raise ValueError(f"initial is {self.initial}; it must be at most target, {self.target}")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp is {self.ramp}; it must be above 0 and at most 1")
        for name in ("steps", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def sparsity(self, step: int) -> float:
        """Sparsity in [0, 1) that holds during step number `step` (from 0)."""
        if step < 0:
            raise ValueError(f"step is {step}; it must be at least 0")
        span = self.ramp * self.steps
        if step >= min(span, self.steps - 1):
            return self.target
        pruned_at = step - step % self.every
        return self.target + (self.initial - self.target) * (1 - pruned_at / span) ** 3


@dataclass(frozen=True)
class OneShot:
    """The target sparsity from the first step on. With `steps` 0, the model is pruned without fine-tuning."""

    steps: int = 0
    target: float = 0.9

    def __post_init__(self) -> None:
        _check_sparsity("target", self.target)
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it must be at least 0")

    def sparsity(self, step: int) -> float:
        """The target, for every step."""
        return self.target


@dataclass(frozen=True)
class Rounds:
    """Pruning and training in turns: `rounds` prunings at equal intervals, each by the same amount, up to `target`.

        s(t) = target (1 + floor(t rounds / span)) / rounds,    span = ramp * steps, at most target

    The rounds can be read as expectation and maximization. A pruning assigns each weight to the kept or to the dropped
    weights. The steps up to the next pruning train the kept weights for this assignment. Dropped weights stay dropped.

    `steps`: the length of the run. `ramp`: the fraction of the run over which the rounds are spread. Raises ValueError
    for values out of range.
    """

    steps: int
    target: float = 0.9
    rounds: int = 4
    ramp: float = 0.5

    def __post_init__(self) -> None:
        _check_sparsity("target", self.target)
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp is {self.ramp}; it must be above 0 and at most 1")
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def sparsity(self, step: int) -> float:
        """Sparsity in [0, 1) that holds during step number `step` (from 0)."""
        if step < 0:
            raise ValueError(f"step is {step}; it must be at least 0")
        done = 1 + math.floor(step * self.rounds / (self.ramp * self.steps))
        return self.target if done >= self.rounds else self.target * done / self.rounds
