"""A run directory: config.json, metrics.jsonl and resumable checkpoints.

RUN/config.json                    what was asked for; a resumed run must ask for the same
RUN/metrics.jsonl                  one JSON object per step
RUN/checkpoints/step-0000100.pt    everything that the step after it depends on; the newest `keep` stay
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
    """One run directory.

    `path`: the folder, made when missing. `config`: JSON-able settings that decide the run's result.
    `resume`: continue from the newest checkpoint (start from step 0 when there is none).
    `keep`: how many of the newest checkpoints stay on disk.
    Raises FileExistsError when the folder holds a run and `resume` is false, ValueError when it holds another
    configuration.

    Of several processes (`ranks`) each makes one; rank 0 writes, the others only read, and how many there are may
    change from one run to the next.
    """

    def __init__(self, path: str | Path, config: dict[str, Any], resume: bool = False, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; it must be at least 1")
        self.path = Path(path)
        self.keep = keep
        self._writes = ranks.rank() == 0
        if not self._writes:
            ranks.barrier()  # for rank 0 to have made it
            resume = True
        config = json.loads(json.dumps(config))  # what reading it back will give: tuples become lists
        file = self.path / "config.json"
        if file.exists():
            if not resume:
                raise FileExistsError(f"{self.path} already holds a run; resume it, or choose another folder")
            old = json.loads(file.read_text(encoding="utf-8"))
            changed = sorted(key for key in old.keys() | config.keys() if old.get(key) != config.get(key))
            if changed:
                what = ", ".join(f"{key} was {old.get(key)!r} and is {config.get(key)!r}" for key in changed)
                raise ValueError(f"{self.path} cannot be resumed with other settings: {what}")
        else:
            write_json(file, config)
        if self._writes:
            ranks.barrier()

    # checkpoints

    def checkpoints(self) -> list[Path]:
        """The checkpoint files that exist, oldest first."""
        names = re.compile(r"step-\d{7}\.pt")
        folder = self.path / "checkpoints"
        return sorted(p for p in folder.iterdir() if names.fullmatch(p.name)) if folder.is_dir() else []

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` (tensors and plain Python values only), then drop the oldest ones."""
        path = self.path / "checkpoints" / f"step-{step:07d}.pt"
        if not self._writes:
            return path
        write_whole(path, lambda temporary: torch.save({"step": step, **state}, temporary))
        for old in self.checkpoints()[: -self.keep]:
            old.unlink()
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint's state, or None when there is none."""
        existing = self.checkpoints()
        return torch.load(existing[-1], map_location="cpu", weights_only=True) if existing else None

    # metrics

    @property
    def metrics_file(self) -> Path:
        """RUN/metrics.jsonl."""
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl (a line cut short by a crash ends the list)."""
        rows = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").split("\n"):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps at and after `step`, so that a resumed run writes them again."""
        kept = [row for row in self.metrics() if row["step"] < step]
        if self._writes:
            write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; `row` has a "step"."""
        if not self._writes:
            return
        with open(self.metrics_file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno()) if row["step"] % 100 == 0 else None
