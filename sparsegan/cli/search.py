"""The search of `sparsegan compress --within`: runs at rising sparsities, each from the generator of an earlier one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..atomic_files import write_json
from ..compress import Compressor, Result, RunConfig, Validation
from ..progress import announce
from ..training import Run, ranks
from .bound import MOST, Bound, climb
from .compress_job import Job
from .validation import Scorer, Watch, best_of


@dataclass(frozen=True)
class Trial:
    """One sparsity of a search: the best validation score of its run, its result, and the run's discriminator."""

    sparsity: float
    score: float
    holds: bool
    result: Result
    discriminator: nn.Module


class Search:
    """The highest sparsity whose validation score stays within `bound`.

    `make(sparsity, run, validate)`: a compressor from the dense generator. A later run starts from the generator, the
    discriminator and the sparsity of the highest one that holds. Each run has a folder OUT/sparsities/0.9000, in which
    it is resumed; OUT/config.json has the settings of the search.
    """

    def __init__(
        self,
        job: Job,
        scorer: Scorer,
        bound: Bound,
        make: Callable[[float, RunConfig, Validation | None], Compressor],
        run: RunConfig,
        loader: Any,
    ) -> None:
        self.job, self.scorer, self.bound, self.make, self.run_config, self.loader = (
            job,
            scorer,
            bound,
            make,
            run,
            loader,
        )
        self.trials: list[Trial] = []
        self.steps: int = job.arguments.steps
        self.dense = scorer(job.gan.generator)
        self.limit = bound.limit(self.dense)

    @property
    def held(self) -> bool:
        """Whether a sparsity holds."""
        return any(trial.holds for trial in self.trials)

    @property
    def chosen(self) -> float:
        """The highest sparsity that holds; the lowest that was tried where none does."""
        held = [trial.sparsity for trial in self.trials if trial.holds]
        return max(held) if held else self.trials[0].sparsity

    @property
    def line(self) -> str:
        """The outcome in one line."""
        trial = self._of(self.chosen)
        dense = "" if self.bound.decibels else f"dense {self.scorer.text(self.dense)}, "
        score = f"{self.scorer.name} {self.scorer.text(trial.score)}"
        figures = f"{score}, {dense}bound {self.scorer.text(self.limit)}"
        if not self.held:
            return f"not even {trial.sparsity:.0%} sparsity is within {self.bound}: {figures}"
        return f"highest sparsity within {self.bound}: {trial.sparsity:.2%} ({figures})"

    def run(self) -> Result:
        """Try the sparsities. Returns the result at the chosen one."""
        arguments, run = self.job.arguments, self.run_config
        bounds = f"at most {MOST} sparsities of {self.steps} steps, {MOST * self.steps} steps in all"
        announce(f"--within {arguments.within}: {bounds}; each run starts from an earlier generator", arguments.quiet)
        settings = {**run.settings, "within": arguments.within, "steps": self.steps, "patience": arguments.patience}
        Run(arguments.out, settings, resume=arguments.resume)
        climb(self._try)
        return self._of(self.chosen).result

    def to_dict(self) -> dict[str, Any]:
        """All figures, as values that JSON can hold."""
        tried = [
            {
                "sparsity": trial.sparsity,
                "score": trial.score if math.isfinite(trial.score) else None,
                "holds": trial.holds,
                "steps": len(trial.result.history),
            }
            for trial in self.trials
        ]
        return {
            "bound": str(self.bound),
            "score": self.scorer.name,
            "dense": self.dense,
            "limit": self.limit,
            "chosen": self.chosen if self.held else None,
            "tried": tried,
        }

    def _of(self, sparsity: float) -> Trial:
        return next(trial for trial in self.trials if trial.sparsity == sparsity)

    def _try(self, sparsity: float, start: float | None) -> bool:
        arguments = self.job.arguments
        folder = arguments.out / "sparsities" / f"{sparsity:.4f}"
        watch = Watch(self.job, self.scorer, folder / "validation", f"{sparsity:.2%}: ")
        validate = watch.validation(arguments.validate or self.steps, arguments.patience)
        settings = {**self.run_config.settings, "start": start}
        run = replace(self.run_config, run_dir=folder, settings=settings, title=f"{sparsity:.2%} sparsity")
        compressor = self._compressor(sparsity, start, run, validate)
        if start is None and ranks.rank() == 0:  # only rank 0 writes
            write_json(arguments.out / "compression.json", compressor.config.to_dict())
        result = compressor.fit(self.loader)
        best = best_of(result.looks)
        score = math.nan if best is None else best["score"]
        holds = self.bound.holds(score, self.dense)
        self.trials.append(Trial(sparsity, score, holds, result, compressor.task.discriminator))
        words = "within" if holds else "not within"
        announce(f"{sparsity:.2%} sparsity: {self.scorer.text(score)}, {words} {self.bound}", arguments.quiet)
        return holds

    def _compressor(self, sparsity: float, start: float | None, run: RunConfig, validate: Validation) -> Compressor:
        if start is None:
            return self.make(sparsity, run, validate)
        before, fresh = self._of(start), self.make(sparsity, RunConfig(quiet=True), None)
        return Compressor(
            self.job.gan.generator,
            before.discriminator,
            fresh.task.objective,
            replace(fresh.schedule, initial=start),  # type: ignore[type-var]
            fresh.config,
            run=run,
            student=before.result.generator,
            validate=validate,
        )
