"""The study: the paper's tables, its reviewers' questions and better recipes, as rows. A command repeats each row."""

from .grids import STUDIES, TASKS, TECHNIQUES, Row, Task, Technique, rows_of
from .results import Results
from .row import run_row

__all__ = ["STUDIES", "TASKS", "TECHNIQUES", "Results", "Row", "Task", "Technique", "rows_of", "run_row"]
