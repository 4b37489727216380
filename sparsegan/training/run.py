"""A run directory: config.json, metrics.jsonl and resumable checkpoints.

RUN/config.json                    the settings of the run; a resumed run must have the same settings
RUN/metrics.jsonl                  one JSON object per step
RUN/checkpoints/step-0000100.pt    the complete state after 100 steps; only the newest `keep` checkpoints are kept
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from ..atomic_files import write_json, write_text, write_whole
from . import ranks


class Run:
    """A run directory.

    `path`: the folder, made where it is missing. `config`: settings that decide the run's result, as values that JSON
    can hold.
    `resume`: continue from the newest checkpoint, or from step 0 where there is none.
    `keep`: the number of newest checkpoints that stay on disk, at least 1.
    Raises FileExistsError where the folder holds a run and `resume` is False, and ValueError where the folder holds a
    run with other settings.

    With several processes (`ranks`), each process makes a `Run`. Rank 0 writes, the other ranks only read. The number
    of processes may change between a run and its continuation.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], resume: bool = False, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; it must be at least 1")
        self.path = Path(path)
        self.keep = keep
        self._writes = ranks.rank() == 0
        if not self._writes:
            ranks.barrier()  # rank 0 makes the folder first
            resume = True
        config = json.loads(json.dumps(config))  # as it will be when it is read back: tuples become lists
        file = self.path / "config.json"
        if file.exists():
            if not resume:
                raise FileExistsError(f"{self.path} already holds a run; resume it, or choose another folder")
            old = json.loads(file.read_text(encoding="utf-8"))
            changed = sorted(key for key in old.keys() | config.keys() if old.get(key) != config.get(key))
            if changed:
                changes = ", ".join(f"{key} was {old.get(key)!r} and is {config.get(key)!r}" for key in changed)
                raise ValueError(f"{self.path} cannot be resumed with other settings: {changes}")
        else:
            write_json(file, config)
        if self._writes:
            ranks.barrier()

    # checkpoints

    def checkpoints(self) -> list[Path]:
        """The existing checkpoint files, oldest first."""
        names = re.compile(r"step-\d{7}\.pt")
        folder = self.path / "checkpoints"
        return sorted(p for p in folder.iterdir() if names.fullmatch(p.name)) if folder.is_dir() else []

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint after `step` steps, then delete the oldest checkpoints. Returns the file's path.

        `state`: tensors and plain Python values only.
        """
        path = self.path / "checkpoints" / f"step-{step:07d}.pt"
        if not self._writes:
            return path
        write_whole(path, lambda temporary: torch.save({"step": step, **state}, temporary))
        for old in self.checkpoints()[: -self.keep]:
            old.unlink()
        return path

    def load(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, or None where there is no checkpoint."""
        existing = self.checkpoints()
        return torch.load(existing[-1], map_location="cpu", weights_only=True) if existing else None

    # metrics

    @property
    def metrics_file(self) -> Path:
        """The path of RUN/metrics.jsonl."""
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, up to the first incomplete line, which a crash can leave."""
        rows = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").split("\n"):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def rewind(self, step: int) -> None:
        """Delete the rows of `step` and later steps, which a resumed run writes again."""
        kept = [row for row in self.metrics() if row["step"] < step]
        if self._writes:
            write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl. `row` must have the key "step"."""
        if not self._writes:
            return
        with open(self.metrics_file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno()) if row["step"] % 100 == 0 else None
