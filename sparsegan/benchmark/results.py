"""The rows of one run, and their file. An interrupted run continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..atomic_files import write_json
from ..ops import native
from ..profiling.info import cpu_name

Row = dict[str, Any]


#: The environment variable that limits the instructions of torch's dense convolutions and of OpenVINO's, for example
#: to AVX512_CORE_BF16: a machine with AMX then shows the figures of a machine without it.
DENSE_LIMIT = "ONEDNN_MAX_CPU_ISA"


def facts() -> dict[str, Any]:
    """The facts on which figures depend: machine, instruction set, torch, and the build of the kernels."""
    build = hashlib.sha256(native.LIBRARY.read_bytes()).hexdigest()[:16]
    limit = {"dense_limit": os.environ[DENSE_LIMIT]} if DENSE_LIMIT in os.environ else {}
    return {"machine": cpu_name(), "isa": native.isa(), "torch": torch.__version__, "build": build, **limit}


class Results:
    """The report of one command: facts, and one row per job.

    Args:
        command: the command that repeats the run.
        path: the file of the report. The whole report is written after every row, and says whether it is ``complete``.
            Rows of an incomplete report are kept if it has the same command and the same facts. A complete report is
            measured anew.
        same: the facts on which figures depend.
        ceilings: the limits of the machine, measured in this run.
    """

    def __init__(self, command: str, path: Path | None, same: Row, ceilings: Row) -> None:
        self.path = path
        self._same = {"command": command, **same}
        self.head = {**self._same, **ceilings}
        self.rows: list[Row] = []
        self._kept = self._unfinished()

    def _unfinished(self) -> list[Row]:
        """The rows that an interrupted run of the same command left."""
        if self.path is None or not self.path.exists():
            return []
        try:
            report = json.loads(self.path.read_text(encoding="utf-8"))
            same = all(report[name] == value for name, value in self._same.items())
            return list(report["rows"]) if same and not report["complete"] else []
        except (ValueError, KeyError, TypeError):  # the file is no such report and will be replaced
            return []

    def row(self, name: Row, measure: Callable[[], Row]) -> Row:
        """The row with the fields ``name``: a kept row, or ``name`` with the fields that ``measure`` returns."""
        kept = [row for row in self._kept if all(row.get(key) == value for key, value in name.items())]
        row = kept[0] if kept else {**name, **measure()}
        self.rows.append(row)
        self._write(complete=False)
        return row

    def finish(self, **more: Any) -> None:
        """Writes the report as complete, with ``more`` beside its rows."""
        self._write(complete=True, **more)

    def _write(self, complete: bool, **more: Any) -> None:
        if self.path is not None:
            write_json(self.path, {**self.head, "complete": complete, "rows": self.rows, **more})


def verdict(ratio: float, asked: float | None) -> Row:
    """The target of a ratio, and whether it holds; both ``None`` without a target."""
    return {"target": asked, "holds": None if asked is None else ratio >= asked}
