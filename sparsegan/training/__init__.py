"""Runs that can be stopped at any moment: the run directory and the training loop."""

from ..atomic_files import write_json, write_tensors, write_text, write_whole  # names that this package had first
from .loop import Diverged, Task, endless, run_loop
from .run import Run

__all__ = ["Diverged", "Run", "Task", "endless", "run_loop", "write_json", "write_tensors", "write_text", "write_whole"]
