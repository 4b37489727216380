"""The study: the paper's tables, its reviewers' questions and better recipes, as rows. A command repeats each row."""

from .grids import STUDIES, Row, rows_of
from .results import Results
from .row import run_row
from .tasks import TASKS, Task
from .techniques import TECHNIQUES, Technique

__all__ = ["STUDIES", "TASKS", "TECHNIQUES", "Results", "Row", "Task", "Technique", "rows_of", "run_row"]
