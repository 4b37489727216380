"""The preview of `sparsegan compress`: before the first step it says how long a run takes and what to expect of it."""

from __future__ import annotations

from typing import Any

import torch

from ..compress import Compressor
from ..profiling.info import peak_bytes
from ..progress import announce, duration
from .compress_job import Job

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


def show_preview(job: Job, trial: Compressor, loader: Any, steps: int) -> None:
    """Announce the length, the memory and the expected result of a run of at most `steps` steps.

    `trial`: a compressor that nothing else uses; two steps of it are timed.
    """
    arguments = job.arguments
    what = "windows of sound" if job.sounds else "images"
    data = "no data" if job.samples is None else f"{len(job.samples):,} training {what}"
    if trial.schedule.steps > 0:
        seconds = trial.rehearse(loader)
        announce(f"{data}, {arguments.batch} {what} per step; {_length(seconds, steps, job.device)}")
    if text := expectation(arguments.sparsity, arguments.data_free):
        announce(text)


def _length(seconds: float, steps: int, device: torch.device) -> str:
    """How long `steps` steps of `seconds` each take, and the memory of the process so far."""
    total, memory = seconds * steps, peak_bytes(device)
    text = f"by two trial steps, which are not kept, about {seconds:.2g} seconds per step, at most {steps:,} steps: "
    text += duration(total) + (f"; about {memory / 1e9:.2g} GB of memory" if memory else "")
    if total > FEASIBLE and device.type == "cpu":
        text += "\nwarning: this is not feasible on this CPU; give fewer --steps, a smaller --batch or a GPU (--device)"
    return text
