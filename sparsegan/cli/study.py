"""Run the missing rows of a study, or rebuild its tables and plots from the finished rows.

A row is one run: a task, a technique, a sparsity, a granularity and a seed. sparsegan/study/grids.py lists all rows.
The result of a row is a JSON line under benchmarks/results/study. The command in this line repeats the row, and gives
the same numbers on the same machine. Run this command in a clone of the repository.
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
from ..study.runner import chosen, command, run_missing
from ..study.scoring import samples_of
from ..study.speed import FILE, forget, left_behind, measure
from ..study.techniques import DEFAULT, FEATURES, METHOD
from .common import add_device, device_named, find_checkpoints, need, use_device
from .pictures import comparison, some, write_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan study`."""
    parser.add_argument("study", nargs="?", choices=list(STUDIES), metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PARTS",
        help="only the rows whose name TASK/TECHNIQUE/SPARSITY/GRANULARITY/SEED (/validation behind it for candidates) "
        "matches one of these patterns, for example 'dcgan*/*/0.9/*' (default: all)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="rows to run at the same time, each on one thread (default: 1)"
    )
    parser.add_argument("--list", action="store_true", help="list the rows, and whether they are done")
    parser.add_argument(
        "--repeat", action="store_true", help="run all these rows, also finished rows, and print their JSON lines"
    )
    parser.add_argument(
        "--time",
        action="store_true",
        help="run no rows: time the generators that earlier rows left in --out, on one thread",
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="run no rows: write one picture per task beside --page, of the images that the generators in --out make "
        "from the same inputs",
    )
    parser.add_argument(
        "--report", action="store_true", help="run no rows: rebuild the tables and plots of --page from the results"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="run no rows, and give no NAME: remove the results and times that belong to no row of any study, or whose "
        "settings have changed, and list them",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results/study"),
        help="the folder of the rows' results (default: %(default)s)",
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/study.md"), help="the page with the tables (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/study"), help="the folder of the generators (default: %(default)s)"
    )
    add_device(parser, "cpu")  # the rows in the repository ran on the CPU, and their commands name no device
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(arguments: argparse.Namespace) -> None:
    """Run, repeat, list, time, draw, report or prune the rows of a study."""
    modes = ("repeat", "report", "list", "time", "pictures", "prune")
    given = [f"--{name}" for name in modes if getattr(arguments, name)]
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(given)} are given; give only one of {', '.join(f'--{name}' for name in modes)}"
        )
    results = Results(arguments.results)
    runs_nothing = bool(given) and not arguments.repeat
    if runs_nothing and device_named(arguments.device) != CPU:
        raise ValueError(f"--device is {arguments.device!r}; it must be cpu where no rows are run")
    if arguments.prune:
        _prune(arguments, results)
        return
    if arguments.study is None:
        raise ValueError(f"NAME is missing; it must be one of {', '.join(STUDIES)}")
    rows = chosen(rows_of(arguments.study), arguments.only)
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
        print(f"timed {count} generators; {arguments.results / FILE} has the times")
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
    for row in possible or rows:  # where no row is possible, the first raises its error
        repeats = shlex.join(command(arguments.study, row, device))
        report = run_row(row, find_checkpoints(), arguments.out, repeats, device)
        print(json.dumps(report), flush=True)
        before = results.of(row)
        if before is not None:
            same = all(before.get(name) == report.get(name) for name in ("failed", "scores", "classes", "curves"))
            print(f"{row.key}: {'the same as' if same else 'other numbers than'} the stored row", file=sys.stderr)


def _prune(arguments: argparse.Namespace, results: Results) -> None:
    """Remove what no row of any study needs, and print its name."""
    if arguments.study is not None or arguments.only:
        raise ValueError("--prune is given with NAME or --only; it looks at the rows of all studies")
    planned = [row for study in STUDIES for row in rows_of(study)]
    gone = results.obsolete(planned)
    results.remove(gone)
    for key in gone:
        print(key)
    timed = forget(results, planned)
    for key in timed:
        print(f"time of {key}")
    print(f"removed {len(gone)} results and {len(timed)} times")


#: From the heading of a picture's column to the technique and sparsity of its generator.
COLUMNS = {
    "7-9, 90": (METHOD, 0.9),
    "L_F, 90": (FEATURES, 0.9),
    "distilled 90": (DEFAULT, 0.9),
}
PICTURED = 4  # samples per picture


def _draw(rows: Sequence[Row], out: Path, folder: Path) -> None:
    """Write study-TASK.png for each task of `rows` that has the generators of all columns."""
    checkpoints, drawn = find_checkpoints(), 0
    for name in dict.fromkeys(row.task for row in rows):
        task = TASKS[name]
        gan = store.load(checkpoints / task.checkpoint)
        columns = {text: left_behind(Row(name, *whose), gan, out) for text, whose in COLUMNS.items()}
        generators = {text: generator for text, generator in columns.items() if generator is not None}
        if missing := [text for text in columns if text not in generators]:
            print(f"{name}: no picture, {out} has no generator for {', '.join(missing)}")
            continue
        samples = samples_of(gan, task, "test")
        batch = some(samples, PICTURED)
        picture = comparison({"dense": gan.generator} | generators, gan.objective, batch, 0, samples.domains)
        write_png(folder / f"study-{name}.png", picture)
        drawn += 1
    print(f"drew {drawn} pictures")
