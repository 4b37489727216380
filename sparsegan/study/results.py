"""The results on disk: one JSON line per row, one file per task."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from .grids import Row

Report = dict[str, Any]


class Results:
    """The reports of rows that have run, in `folder`/TASK.jsonl, sorted by name. Several processes may add rows at the
    same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, row: Row) -> Report | None:
        """Returns the report of a row. Returns None if the row has not run, or ran with settings that changed since."""
        found = self._read(row.task).get(row.key)
        wanted = json.loads(json.dumps(row.settings()))
        return found if found is not None and found["settings"] == wanted else None

    def add(self, report: Report) -> None:
        """Adds the report of a row. It replaces an earlier report of the same row."""
        task = report["row"].split("/")[0]
        with self._locked():
            lines = self._read(task) | {report["row"]: report}
            text = "".join(json.dumps(lines[key]) + "\n" for key in sorted(lines))
            write_text(self._file(task), text)

    def _file(self, task: str) -> Path:
        return self.folder / f"{task}.jsonl"

    def _read(self, task: str) -> dict[str, Report]:
        file = self._file(task)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return {report["row"]: report for report in map(json.loads, lines)}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
