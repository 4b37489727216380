"""Runs that can be stopped at any moment: the run directory and the training loop."""

from .loop import Diverged, Task, endless, run_loop
from .run import Run

__all__ = ["Diverged", "Run", "Task", "endless", "run_loop"]
