"""Runs rows side by side. Each row runs the command that repeats it, in a process of one thread."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..randomness import CPU
from .grids import Row
from .results import Report, Results


def command(study: str, row: Row, device: torch.device = CPU) -> list[str]:
    """Returns the command that repeats a row alone, as words."""
    where = [] if device == CPU else ["--device", str(device)]
    return ["sparsegan", "study", study, "--only", row.key, "--repeat", *where]


def chosen(rows: Iterable[Row], only: Sequence[str]) -> list[Row]:
    """Returns the rows whose name matches one of the patterns `only`; all rows if `only` is empty.

    Raises ValueError for a pattern that matches no row.
    """
    rows = list(rows)
    for pattern in only:
        if not any(fnmatchcase(row.key, pattern) for row in rows):
            raise ValueError(f"--only has {pattern!r}; no row matches it. A row is named {rows[0].key}, for example")
    return [row for row in rows if not only or any(fnmatchcase(row.key, pattern) for pattern in only)]


def run_missing(
    study: str,
    rows: Iterable[Row],
    results: Results,
    workers: int,
    quiet: bool,
    more: Sequence[str] = (),
    device: torch.device = CPU,
) -> None:
    """Runs the rows that have no result yet, `workers` at a time, and adds each report to `results` when its row ends.

    `device`: where each row runs. `more`: further arguments of the commands, which change no figure. Each row is
    printed with the command that repeats it.

    A row that the system killed for lack of memory is added as failed. Raises ValueError for `workers` below 1 and,
    after the last row, RuntimeError if any row ended in another error.
    """
    if workers < 1:
        raise ValueError(f"--workers is {workers}; it must be at least 1")
    todo = [row for row in rows if not row.obstacle() and results.of(row) is None]
    bars = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    errors: list[str] = []
    with ThreadPoolExecutor(workers) as pool, Progress(TextColumn(study), *bars, disable=quiet) as progress:
        bar = progress.add_task(study, total=len(todo))
        futures = {pool.submit(_run, command(study, row, device), more, row): row for row in todo}
        try:
            for future in as_completed(futures):
                report, error = future.result()
                if report is not None:
                    results.add(report)
                else:
                    errors.append(f"{futures[future].key}: {error}")
                line = _line(futures[future], report, error)
                words = shlex.join(command(study, futures[future], device))
                progress.console.print(line, words, sep="\n  ", soft_wrap=True)
                progress.advance(bar)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    if errors:
        raise RuntimeError("; ".join(errors))


def _run(words: list[str], more: Sequence[str], row: Row) -> tuple[Report | None, str]:
    """Returns (the report that the row's process printed, "") or (None, the error of the process)."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-m", *words, *more], capture_output=True, text=True, env=os.environ | threads, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1]), ""
    if -done.returncode == signal.SIGKILL:  # the Linux kernel kills a process that takes too much memory
        report = {"row": row.key, "command": shlex.join(words), "settings": row.settings()}
        return report | {"failed": "killed: out of memory"}, ""
    return None, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _line(row: Row, report: Report | None, error: str) -> str:
    if report is None or "failed" in report:
        return f"{row.key}: {error or (report or {})['failed']}"
    scores = ", ".join(f"{name} KID {score['kid']:.4g}" for name, score in report["scores"].items())
    return f"{row.key}: {scores}; {report.get('cost', {}).get('seconds', 0):.0f} s"
