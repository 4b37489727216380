"""The study: the paper's tables, its reviewers' questions and better recipes, as rows that one command repeats."""

from .grids import STUDIES, TASKS, TECHNIQUES, Row, Task, Technique, rows_of
from .results import Results
from .row import run_row

__all__ = ["STUDIES", "TASKS", "TECHNIQUES", "Results", "Row", "Task", "Technique", "rows_of", "run_row"]
