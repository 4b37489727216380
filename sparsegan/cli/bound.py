"""The bound of `sparsegan compress --within`, and the order in which sparsities are tried."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

#: The sparsities of the search, from the lowest up. It stops at the first that does not hold.
LADDER = (0.5, 0.75, 0.85, 0.9, 0.95, 0.975)
#: Bisections between the highest sparsity that holds and the lowest that does not.
REFINEMENTS = 2
#: The most sparsities that a search tries.
MOST = len(LADDER) + REFINEMENTS


@dataclass(frozen=True)
class Bound:
    """A bound on the validation score.

    `decibels`: whether the score is a PSNR to the original, of at least `number` dB. Otherwise it is a kernel distance,
    which may exceed the dense generator's by `number` percent of this.
    """

    number: float
    decibels: bool

    @classmethod
    def of(cls, text: str) -> Bound:
        """The bound that --within names. Raises ValueError for another form than "5%" or "25dB"."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|dB)", text.strip(), re.IGNORECASE)
        if found is None:
            raise ValueError(
                f"--within is {text!r}; it must be a percentage of the dense generator's kernel distance, such as 5%, "
                "or a PSNR to the original, such as 25dB"
            )
        return cls(float(found[1]), found[2] != "%")

    def __str__(self) -> str:
        return f"{self.number:g} dB to the original" if self.decibels else f"{self.number:g} %"

    def limit(self, dense: float) -> float:
        """The worst score that holds. `dense`: the dense generator's score."""
        return self.number if self.decibels else dense + self.number / 100 * abs(dense)

    def holds(self, score: float, dense: float) -> bool:
        """Whether a score is within the bound. A score that is not a number is not."""
        return score >= self.limit(dense) if self.decibels else score <= self.limit(dense)


def climb(trial: Callable[[float, float | None], bool]) -> float | None:
    """The highest sparsity that holds, or None where not even the first of `LADDER` does.

    `trial(sparsity, start)`: whether `sparsity` holds. `start`: the highest sparsity that has held so far, from whose
    generator the trial may start, or None. It is called at most `MOST` times.
    """
    good: float | None = None
    bad: float | None = None
    for sparsity in LADDER:
        if not trial(sparsity, good):
            bad = sparsity
            break
        good = sparsity
    if good is None or bad is None:
        return good
    for _ in range(REFINEMENTS):
        middle = round((good + bad) / 2, 4)
        if trial(middle, good):
            good = middle
        else:
            bad = middle
    return good
