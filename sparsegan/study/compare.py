"""Compares the seeds of two configurations: Welch's interval of the difference of their means, and its verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

import numpy as np

LEVEL = 0.95


@cache
def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """Returns the t for which a fraction `level` of Student's distribution lies in [-t, t].

    `freedom`: degrees of freedom, at least 1. With t = sqrt(freedom) tan(a), the density in the angle a is proportional
    to cos(a)^(freedom - 1), which is integrated here.
    """
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"freedom is {freedom} and level {level}; they must be at least 1, and between 0 and 1")
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], angles)))


def welch(values: Sequence[float], others: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Returns Welch's interval (low, high) of the difference mean(`values`) - mean(`others`) at `level`.

    Raises ValueError for fewer than two numbers on a side.
    """
    if min(len(values), len(others)) < 2:
        raise ValueError(f"there are {len(values)} and {len(others)} values; an interval needs at least 2 of each")
    difference = statistics.mean(values) - statistics.mean(others)
    parts = [(statistics.variance(side) / len(side), len(side) - 1) for side in (values, others)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return difference, difference
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    half = t_quantile(freedom, level) * math.sqrt(variance)
    return difference - half, difference + half


def verdict(values: Sequence[float], others: Sequence[float]) -> str:
    """Returns "better" where `values` are lower than `others` and Welch's interval excludes 0, "worse" where they are
    higher, else "not apart"; "" where a side has fewer than two values."""
    if min(len(values), len(others)) < 2:
        return ""
    low, high = welch(values, others)
    return "better" if high < 0 else "worse" if low > 0 else "not apart"
