"""The bound of `compress --within` and the order of its trials, the preview, and options made from fields."""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from typing import Literal

import pytest

from sparsegan.cli.bound import LADDER, MOST, Bound, climb
from sparsegan.cli.field_options import add_field, documented, given_fields, names_of
from sparsegan.cli.preview import Cost, expectation


def test_bounds_are_read_and_hold_on_their_side() -> None:
    percent, decibels = Bound.of("5%"), Bound.of(" 22.5 DB")
    assert percent.limit(2.0) == pytest.approx(2.1)
    assert percent.holds(2.09, 2.0)
    assert not percent.holds(2.11, 2.0)
    assert percent.holds(-0.96, -1.0)  # a kernel distance without bias can lie below 0
    assert not percent.holds(-0.94, -1.0)
    assert decibels.holds(22.5, 58.9)
    assert not decibels.holds(22.4, 58.9)
    assert not percent.holds(math.nan, 2.0)
    assert not decibels.holds(math.nan, 2.0)
    for wrong in ("5", "%", "-5%", "5 %%", "dB", "1e3dB", ""):
        with pytest.raises(ValueError, match="it must be a percentage"):
            Bound.of(wrong)


@pytest.mark.parametrize("highest", [0.3, 0.5, 0.6, 0.8, 0.89, 0.9, 0.93, 0.97, 0.98, 1.0])
def test_the_search_finds_the_highest_sparsity_that_holds(highest: float) -> None:
    tried: list[float] = []

    def trial(sparsity: float, start: float | None) -> bool:
        held = [one for one in tried if one <= highest]
        assert start == (max(held) if held else None)
        assert start is None or start < sparsity  # dropped weights do not come back
        tried.append(sparsity)
        return sparsity <= highest

    found = climb(trial)
    assert len(tried) == len(set(tried)) <= MOST
    if highest < LADDER[0]:
        assert (found, tried) == (None, [LADDER[0]])
        return
    assert found == max(one for one in tried if one <= highest)
    steps = [second - first for first, second in itertools.pairwise(LADDER)]
    assert highest >= LADDER[-1] or highest - found <= max(steps) / 4 + 1e-4


def test_only_high_sparsities_have_an_expectation() -> None:
    assert expectation(0.89, True) == ""
    assert expectation(0.9, False).startswith("at 90.0% sparsity")
    assert "without data" in expectation(0.95, True)


@dataclass
class Settings:
    """Some settings.

    `rate`: how fast. `name`, `kind`: two words that say
    what it is. `turned`: whether it is turned.
    `pair`: two numbers. Raises ValueError for others.
    """

    rate: float = 0.5
    name: str | None = None
    kind: Literal["a", "b"] = "a"
    turned: bool = False
    pair: tuple[float, float] = (0.0, 1.0)
    places: tuple[str, ...] = ()
    table: dict[str, int] | None = None


def test_options_are_made_from_the_fields_of_a_dataclass(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    names = names_of(Settings)[:-1]
    for name in names:
        add_field(parser, Settings, name, [f"--{name}"], name, documented(Settings, name))
    dests = {name: name for name in names}
    assert given_fields(parser.parse_args([]), dests) == {}
    words = "--rate 0.25 --name x --kind b --no-turned --pair 2 3 --places p q".split()
    given = given_fields(parser.parse_args(words), dests)
    assert given == {
        "rate": 0.25,
        "name": "x",
        "kind": "b",
        "turned": False,
        "pair": (2, 3),
        "places": ("p", "q"),
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--kind", "c"])
    with pytest.raises(TypeError, match="no option can hold it"):
        add_field(parser, Settings, "table", ["--table"], "table", "")
    texts = [documented(Settings, name) for name in ("rate", "kind", "turned", "pair", "places")]
    assert texts[:4] == ["how fast", "two words that say what it is", "whether it is turned", "two numbers"]
    assert texts[4] == "the field places of Settings"


def test_the_preview_counts_all_work_and_says_what_is_not_feasible() -> None:
    short = Cost(step=0.5, steps=400)
    assert short.seconds == 200
    assert short.words(on_cpu=True).endswith("about 0.5 seconds per step, at most 400 steps: 3.3 minutes")
    all_of_it = Cost(step=2.0, steps=800, warm_up=300, look=10.0, looks=16, memory=3_000_000_000, processes=2)
    assert all_of_it.seconds == 2 * 1100 + 160
    words = all_of_it.words(on_cpu=True)
    for part in (
        "300 more to train a discriminator first",
        "16 looks of 10 seconds",
        "39 minutes",
        "3 GB of memory in",
    ):
        assert part in words
    assert "not feasible" not in words
    for days, said in ((1.9, False), (2.1, True)):
        long = Cost(step=86.4, steps=round(days * 1000))
        assert ("not feasible on this CPU" in long.words(on_cpu=True)) == said
        assert "not feasible" not in long.words(on_cpu=False)
