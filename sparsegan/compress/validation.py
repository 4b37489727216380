"""Looks at the compressed generator during a run: its score, the best generator so far, and an early end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..modes import in_mode
from ..nn.replace import sparse_layers
from ..randomness import undisturbed
from ..training import ranks

#: A look: the number of steps done, the sparsity, the score, and whether it is the best score at the full sparsity.
Look = dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """How a run looks at its compressed generator.

    `score(generator)`: a number for a generator in evaluation mode, on data that neither train nor report it.
    `every`: the number of steps from one look to the next. There is one more look after the last step.
    `higher`: whether a higher score is better.
    `patience`: the run ends after so many looks without a better score; 0 for never. Only looks at the schedule's full
    sparsity count.
    `seen(look, generator)`: called after each look.

    The generator is the one that the run would give: the moving average where there is one. The contrast is matched
    after the run only, so a look is without it.
    In a process group every process calls `score` and `seen`, with the same arguments. The rows of each call of the
    generator are divided among the processes, and the score of process 0 counts. Only process 0 should write files.
    Raises ValueError for values out of range.
    """

    score: Callable[[nn.Module], float]
    every: int
    higher: bool = False
    patience: int = 0
    seen: Callable[[Look, nn.Module], None] | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; it must be at least 1")
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; it must be at least 0")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a resumed run must repeat."""
        return {"every": self.every, "higher": self.higher, "patience": self.patience}


class Looks:
    """The looks of a run of `steps` steps so far, and the best generator at the full sparsity."""

    def __init__(self, validation: Validation, steps: int) -> None:
        self.validation, self.steps = validation, steps
        self.rows: list[Look] = []
        self._best: dict[str, Any] | None = None  # a state_dict

    @property
    def best(self) -> Look | None:
        """The look with the best score at the full sparsity; None before the first."""
        return next((row for row in reversed(self.rows) if row["best"]), None)

    @property
    def finished(self) -> bool:
        """Whether the patience is at its end."""
        after = 0
        for row in self.rows:
            after = 0 if row["best"] else after + row["full"]
        return 0 < self.validation.patience <= after

    def after(self, step: int, generator: nn.Module, sparsity: float, full: bool) -> None:
        """Look at the generator if `step` steps done are due for a look. `full`: whether `sparsity` is the last one."""
        if step % self.validation.every and step != self.steps:
            return
        with in_mode(generator, False), undisturbed(), ranks.divided(generator, padded=True):
            score = ranks.agreed(float(self.validation.score(generator)))
            look = {"step": step, "sparsity": sparsity, "score": score, "full": full}
            look["best"] = full and math.isfinite(score) and self._is_better(score)
            self.rows.append(look)
            if look["best"]:
                self._best = {name: tensor.detach().clone() for name, tensor in generator.state_dict().items()}
            if self.validation.seen is not None:
                self.validation.seen(look, generator)

    def _is_better(self, score: float) -> bool:
        best = self.best
        if best is None:
            return True
        earlier: float = best["score"]
        return score > earlier if self.validation.higher else score < earlier

    def restore(self, generator: nn.Module) -> bool:
        """Give `generator` the weights of the best look. Returns False where it has them already."""
        if self._best is None or self.rows[-1]["best"]:
            return False
        _load(generator, self._best)
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return {"rows": [dict(row) for row in self.rows], "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rows, self._best = state["rows"], state["best"]


def _load(generator: nn.Module, state: dict[str, Any]) -> None:
    for name, layer in sparse_layers(generator):
        layer.set_support(state[f"{name}.support"], state[f"{name}.values"])
    generator.load_state_dict(state)
