"""Run a study's rows that are not done, or rebuild its tables and plots from the rows that are.

A row is one run: a task, a technique, a sparsity, a granularity and a seed, sparsegan/study/grids.py names them all.
What a row gave is a JSON line under benchmarks/results/study; the command in it repeats it alone, with the same numbers
on the same machine. Run this where the repository was cloned.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..gans import store
from ..randomness import CPU
from ..study import STUDIES, TASKS, Results, Row, rows_of, run_row
from ..study.row import samples_of
from ..study.runner import chosen, command, run_missing
from ..study.speed import FILE, left_behind, measure
from .common import add_device, device_named, find_checkpoints, need, use_device
from .pictures import comparison, some, write_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan study`."""
    parser.add_argument("study", choices=list(STUDIES), metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PARTS",
        help="rows whose name TASK/TECHNIQUE/SPARSITY/GRANULARITY/SEED matches one of these, 'dcgan*/*/0.9/*' for "
        "example (default: all)",
    )
    parser.add_argument("--workers", type=int, default=1, help="rows at a time, a thread each (default: 1)")
    parser.add_argument("--list", action="store_true", help="name the rows, and say which are done")
    parser.add_argument(
        "--repeat", action="store_true", help="run the rows again, done or not, and print their JSON lines"
    )
    parser.add_argument(
        "--time",
        action="store_true",
        help="run nothing: time the generators that the rows left in --out, on one thread",
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="run nothing: beside --page, a picture a task of what the generators in --out make of the same inputs",
    )
    parser.add_argument("--report", action="store_true", help="run nothing: rebuild the tables of --page and its plots")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/study"), help="(default: %(default)s)")
    parser.add_argument("--page", type=Path, default=Path("docs/study.md"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="for generators (default: %(default)s)")
    add_device(parser, "cpu")  # what the rows in the repository ran on, and their commands repeat
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> None:
    """Run, repeat, list, time, draw or report."""
    if sum((arguments.repeat, arguments.report, arguments.list, arguments.time, arguments.pictures)) > 1:
        raise ValueError("give one of --repeat, --report, --list, --time and --pictures")
    rows = chosen(rows_of(arguments.study), arguments.only)
    results = Results(arguments.results)
    runs_nothing = arguments.report or arguments.list or arguments.time or arguments.pictures
    if runs_nothing and device_named(arguments.device) != CPU:
        raise ValueError(f"--device is {arguments.device!r}; without rows to run there is nothing that it would change")
    if arguments.report:
        need("matplotlib")
        from ..study.report import rebuild

        rebuild(arguments.study, results, arguments.page)
        return
    if arguments.list:
        for row in rows:
            found = results.of(row)
            print(f"{row.key}: {row.obstacle() or ('not run' if found is None else found.get('failed', 'done'))}")
        return
    if arguments.time:
        count = measure(rows, find_checkpoints(), arguments.out, results)
        if not count:
            raise FileNotFoundError(f"{arguments.out} has none of these rows' generators; sparsegan study makes them")
        print(f"timed {count} generators; {arguments.results / FILE} has them")
        return
    if arguments.pictures:
        need("PIL")
        _draw(rows, arguments.out, arguments.page.parent)
        return
    need("torchmetrics")
    device = use_device(arguments)
    if not arguments.repeat:
        where = ["--out", str(arguments.out)]
        run_missing(arguments.study, rows, results, arguments.workers, arguments.quiet, where, device)
        return
    possible = [row for row in rows if not row.obstacle()]
    for row in possible or rows:  # of impossible ones alone, the first is an error
        repeats = shlex.join(command(arguments.study, row, device))
        report = run_row(row, find_checkpoints(), arguments.out, repeats, device)
        print(json.dumps(report), flush=True)
        before = results.of(row)
        if before is not None:
            same = all(before.get(name) == report.get(name) for name in ("failed", "scores", "classes", "curves"))
            print(f"{row.key}: {'the same as' if same else 'other numbers than'} the stored row", file=sys.stderr)


#: A column of a picture -> whose images.
COLUMNS = {
    "pruned 90": ("one-shot", 0.9),
    "7-9, 50": ("self-supervised", 0.5),
    "7-9, 90": ("self-supervised", 0.9),
    "L_F, 90": ("self-supervised-features", 0.9),
    "L_F x4, 90": ("features-fast", 0.9),
}
PICTURED = 4  # samples


def _draw(rows: Sequence[Row], out: Path, folder: Path) -> None:
    """study-TASK.png for each task of `rows` of which all columns are there."""
    checkpoints, drawn = find_checkpoints(), 0
    for name in dict.fromkeys(row.task for row in rows):
        task = TASKS[name]
        gan = store.load(checkpoints / task.checkpoint)
        columns = {text: left_behind(Row(name, *whose), gan, out) for text, whose in COLUMNS.items()}
        generators = {text: generator for text, generator in columns.items() if generator is not None}
        if missing := [text for text in columns if text not in generators]:
            print(f"{name}: {', '.join(missing)} not in {out}")
            continue
        samples = samples_of(gan, task, "test")
        batch = some(samples, PICTURED)
        picture = comparison({"dense": gan.generator} | generators, gan.objective, batch, 0, samples.domains)
        write_png(folder / f"study-{name}.png", picture)
        drawn += 1
    print(f"drew {drawn} pictures")
