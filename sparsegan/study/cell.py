"""A cell of a table: the results of all seeds of one configuration, and the format of figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .compare import verdict
from .grids import Row
from .results import Report, Results


@dataclass(frozen=True)
class Cell:
    """The seeds of one configuration. `done`: the reports of the seeds that have run. `why_not`: the reason why a seed
    has no report, for each other seed."""

    done: list[Report]
    why_not: list[str]

    @classmethod
    def of(cls, results: Results, row: Row) -> Cell:
        """Returns the cell of all seeds of `row`'s configuration."""
        done, why_not = [], []
        for seed in row.seeds:
            one = replace(row, seed=seed)
            report = results.of(one)
            if report is not None and "failed" not in report:
                done.append(report)
            else:
                why_not.append(one.obstacle() or ("not run" if report is None else _failure(report)))
        return cls(done, why_not)

    def values(self, *path: str) -> list[float]:
        """Returns a figure from the report of every seed that has it. `path`: the keys that lead to the figure."""
        found = []
        for report in self.done:
            value: Any = report
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                found.append(value)
        return found

    def mean(self, *path: str) -> float | None:
        """Returns the mean of a figure over the seeds; None where no seed has the figure."""
        values = self.values(*path)
        return statistics.mean(values) if values else None

    def show(
        self, *path: str, form: Callable[[float], str], base: float | None = None, against: Cell | None = None
    ) -> str:
        """Returns a figure as text: mean ± sample standard deviation, where there are several seeds.

        In brackets stand the change of the mean against `base` and, if both cells have several seeds, the verdict
        against the cell `against`; see `compare.verdict`. The text also tells how many seeds failed, and why. Without
        any figure, it is the reason why there is none.
        """
        values = self.values(*path)
        if not values:
            return "not measured" if self.done else "; ".join(dict.fromkeys(self.why_not))
        mean = statistics.mean(values)
        text = form(mean)
        if len(values) > 1:
            text += f" ± {form(statistics.stdev(values))}"
        notes = [change(mean / base)] if base else []
        notes += [said] if against is not None and (said := verdict(values, against.values(*path))) else []
        text += f" ({', '.join(notes)})" if notes else ""
        failed = [why for why in self.why_not if why != "not run"]
        if failed:
            text += f"; {len(failed)} of {len(failed) + len(values)} seeds: {failed[0]}"
        return text


def _failure(report: Report) -> str:
    text = str(report["failed"])
    return "diverged" if text.startswith("step ") else text


def distance(value: float) -> str:
    """Returns a distance as text."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def change(ratio: float) -> str:
    """Returns a ratio as text: as a change in per cent below 10, as a factor from 10 on."""
    return f"{ratio - 1:+.0%}" if ratio < 10 else f"{ratio:.0f}x"


def percent(fraction: float) -> str:
    """Returns a sparsity as text."""
    return f"{100 * fraction:g} %"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], below: str = "") -> str:
    """Returns a table in Markdown, with the paragraph `below` it."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + (f"\n{below}\n" if below else "")
