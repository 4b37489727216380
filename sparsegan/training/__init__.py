"""The training loop and its run directory. A run can be stopped at any moment and resumed."""

from ..atomic_files import write_json, write_tensors, write_text, write_whole  # these were once defined here
from .loop import Diverged, Task, endless, run_loop
from .run import Run

__all__ = ["Diverged", "Run", "Task", "endless", "run_loop", "write_json", "write_tensors", "write_text", "write_whole"]
