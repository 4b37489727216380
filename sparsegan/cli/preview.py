"""The preview of `sparsegan compress`: before the first step it says how long a run takes and what to expect of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from ..compress import Compressor
from ..profiling.info import peak_bytes
from ..progress import announce, duration
from ..training import ranks
from .compress_job import Job
from .validation import Scorer

#: Seconds of a run above which a CPU is called not feasible.
FEASIBLE = 2 * 86400.0


def expectation(sparsity: float, data_free: bool) -> str:
    """One sentence on the result to expect at a sparsity of 0.9 and more; "" below that."""
    if sparsity < 0.9:
        return ""
    more = ", the more so without data" if data_free else ""
    return (
        f"at {sparsity:.1%} sparsity images often come out softer than the original's{more}; the last line will say "
        "how near they are, and --within finds the highest sparsity that holds a bound"
    )


@dataclass(frozen=True)
class Cost:
    """The expected time and memory of a run.

    `step`: seconds per step. `steps`: the most steps of the compression. `warm_up`: the steps that first train a
    discriminator; each is taken to be as long. `look`: seconds per look of the validation. `looks`: the most looks.
    `memory`: peak bytes of one process, 0 where the system does not tell. `processes`: the number of processes.
    """

    step: float
    steps: int
    warm_up: int = 0
    look: float = 0.0
    looks: int = 0
    memory: int = 0
    processes: int = 1

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.step * (self.steps + self.warm_up) + self.look * self.looks

    def words(self, on_cpu: bool) -> str:
        """One sentence, and a second one where the run is not feasible on a CPU."""
        text = f"by two trial steps, which are not kept, about {self.step:.2g} seconds per step, at most {self.steps:,}"
        text += " steps"
        text += f", {self.warm_up:,} more to train a discriminator first" if self.warm_up else ""
        text += f", {self.looks:,} looks of {self.look:.2g} seconds" if self.looks else ""
        text += f": {duration(self.seconds)}"
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        text += f"; about {self.memory / 1e9:.2g} GB of memory{each}" if self.memory else ""
        if self.seconds > FEASIBLE and on_cpu:
            text += (
                "\nwarning: this is not feasible on this CPU; give fewer --steps, a smaller --batch or a GPU (--device)"
            )
        return text


def show_preview(job: Job, trial: Compressor, loader: Any, scorer: Scorer | None, runs: int) -> None:
    """Announce the length, the memory and the expected result of at most `runs` runs.

    `trial`: a compressor that nothing else uses; two steps of it are timed. `scorer`: that of a validation; one score
    is timed. Every process must call this function.
    """
    arguments = job.arguments
    what = "windows of sound" if job.sounds else "images"
    data = "no data" if job.samples is None else f"{len(job.samples):,} training {what}"
    if trial.schedule.steps > 0:
        step, look, looks = trial.rehearse(loader), 0.0, 0
        if scorer is not None:
            start = time.perf_counter()
            scorer(job.gan.generator)
            look = time.perf_counter() - start
            looks = runs * math.ceil(arguments.steps / (arguments.validate or arguments.steps))
        cost = Cost(
            step,
            arguments.steps * runs,
            arguments.warm_up,
            look,
            looks,
            peak_bytes(job.device),
            ranks.world_size(),
        )
        words = cost.words(job.device.type == "cpu")
        announce(f"{data}, {arguments.batch} {what} per step; {words}", arguments.quiet)
    if text := expectation(arguments.sparsity, arguments.data_free):
        announce(text, arguments.quiet)
