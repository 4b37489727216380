"""The results on disk: one JSON line per row, one file per task."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
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
        self._known: dict[str, tuple[tuple[int, ...], dict[str, Report]]] = {}

    def of(self, row: Row) -> Report | None:
        """Returns the report of a row. Returns None if the row has not run, or ran with settings that changed since."""
        found = self._read(row.task).get(row.key)
        wanted = json.loads(json.dumps(row.settings()))
        return found if found is not None and found["settings"] == wanted else None

    def add(self, report: Report) -> None:
        """Adds the report of a row. It replaces an earlier report of the same row."""
        task = report["row"].split("/")[0]
        with self._locked():
            self._write(task, self._read(task) | {report["row"]: report})

    def obsolete(self, planned: Iterable[Row]) -> list[str]:
        """Returns the names of the stored rows that are not among the `planned` rows, or ran with other settings."""
        wanted = {row.key: json.loads(json.dumps(row.settings())) for row in planned}
        tasks = sorted(file.stem for file in self.folder.glob("*.jsonl"))
        stored = [report for task in tasks for report in self._read(task).values()]
        return [report["row"] for report in stored if wanted.get(report["row"]) != report["settings"]]

    def remove(self, keys: Iterable[str]) -> None:
        """Removes the reports of the rows with these names."""
        gone = set(keys)
        with self._locked():
            for task in {key.split("/")[0] for key in gone}:
                self._write(task, {key: report for key, report in self._read(task).items() if key not in gone})

    def _write(self, task: str, lines: dict[str, Report]) -> None:
        write_text(self._file(task), "".join(json.dumps(lines[key]) + "\n" for key in sorted(lines)))

    def _file(self, task: str) -> Path:
        return self.folder / f"{task}.jsonl"

    def _read(self, task: str) -> dict[str, Report]:
        """Returns the stored reports of a task by name. The file is read again only when it has changed."""
        file = self._file(task)
        if not file.exists():
            return {}
        found = file.stat()
        version = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._known.get(task, ((),))[0] != version:
            lines = file.read_text(encoding="utf-8").splitlines()
            self._known[task] = version, {report["row"]: report for report in map(json.loads, lines)}
        return self._known[task][1]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
