"""Progress of a long job: a bar on a terminal, one line from time to time elsewhere.

All of it goes to standard error, so that standard output has the results of a command only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

#: Seconds between two lines where the output is no terminal.
EVERY = 30.0


class Progress:
    """A context manager around a loop; each pass calls :meth:`advance`.

    Args:
        title: the name of the job.
        total: number of passes.
        done: number of passes that an earlier run has done.
        quiet: write nothing at all.
        estimate: after two passes, write once how long the job will take and how much memory it uses. The second pass
            is the measure, because the first one also does work once for all.
        every, clock, stream: seconds between lines, a clock in seconds, and where to write; for tests.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        quiet: bool = False,
        estimate: bool = False,
        every: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        from rich.console import Console  # a program that only serves a generator does not wait for rich
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.title, self.total, self.done, self.quiet = title.strip(), total, done, quiet
        self._first, self._estimate = done, estimate and not quiet
        self._every, self._clock = EVERY if every is None else every, clock
        self._stream = sys.stderr if stream is None else stream
        console = Console(file=self._stream)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=quiet or not console.is_terminal,
            refresh_per_second=2,
        )
        self._lines = not quiet and not console.is_terminal
        self._task = self._bar.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> Progress:
        self._bar.__enter__()
        self._start = self._said = self._pass = self._clock()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bar.__exit__(*raised)

    def advance(self, count: int = 1, figures: str = "") -> None:
        """Adds ``count`` passes; ``figures`` are a few words about them."""
        now = self._clock()
        self.done += count
        self._bar.update(self._task, advance=count, figures=figures)
        if self._estimate and self.done - self._first == 2 * count:
            self._estimate = False
            self.say(f"{self.title}: {_estimated((now - self._pass) / count, self.total - self._first)}")
        self._pass = now
        if self._lines and now - self._said >= self._every and self.done < self.total:
            self._said = now
            rate = (self.done - self._first) / max(now - self._start, 1e-9)
            left = duration((self.total - self.done) / rate)
            words = f"{self.title}: {self.done} of {self.total}, {_rate(rate)}, about {left} left"
            self.say(f"{words} ({figures})" if figures else words)

    def say(self, line: str) -> None:
        """Writes a line, above the bar where there is one; nothing if quiet."""
        if not self.quiet:
            self._bar.console.print(line, soft_wrap=True, markup=False, highlight=False)
            self._stream.flush()


def track(items: Iterable[Item], title: str, quiet: bool = False, total: int | None = None) -> Iterator[Item]:
    """Yields the items; each is one pass."""
    if total is None:
        items = items if isinstance(items, Sized) else list(items)
        total = len(items)
    with Progress(title, total, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.advance()


def announce(line: str, quiet: bool = False) -> None:
    """Writes one line to standard error, before something that takes long."""
    if not quiet:
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A duration in words, to about two digits: ``8 seconds``, ``4 minutes``, ``2.5 hours``, ``3.1 days``."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "about a second" if seconds >= 0.5 else "less than a second"


def _rate(rate: float) -> str:
    return f"{rate:.3g} a second" if rate >= 1 else f"{1 / max(rate, 1e-9):.3g} seconds each"


def _estimated(seconds: float, passes: int) -> str:
    """The estimate for ``passes`` passes of ``seconds`` each."""
    memory = peak_memory()
    text = f"by the second step, about {seconds:.2g} seconds per step, {passes} steps: {duration(seconds * passes)}"
    return text if memory is None else f"{text}; {memory / 1e9:.2g} GB of memory so far"


def peak_memory() -> int | None:
    """The most bytes that this process has had resident; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
