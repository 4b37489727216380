"""`sparsegan demo --sweep`: finds the learning rates and the bands in `ROWS` of demo_rows.py.

Each rate is judged by the kernel distance of two training seeds to the validation digits, with noise of its own. The
rates whose worse seed is nearest are chosen, because a row that every machine repeats matters more than its best run.
Rates that lose with their first seed are not given a second.
At the chosen rates five training seeds are measured as the demo measures, which gives the band of the row.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..atomic_files import write_json
from ..metrics.distances import Evaluator
from ..training import Diverged
from .demo_rows import REPORTED_NOISE, ROWS, VALIDATION_NOISE, DemoRow, Stage, slug, trains_discriminator

GENERATOR_LRS = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
DISCRIMINATOR_LRS = (2e-4, 5e-5)
SEEDS, BAND_SEEDS = 2, 5

#: "kid" and "fid": the distances of one generator; None where its training diverged.
Measured = dict[str, float | None]


@dataclass(frozen=True)
class Sweep:
    """The trials of one sweep. `seed`: the first training seed. Finished trials in `folder` are not repeated."""

    stage: Stage
    folder: Path
    seed: int

    def run(self) -> dict[str, Any]:
        """The trials, choice and band of every row that trains, by the row's name."""
        return {title: self._row(title, row) for title, row in ROWS.items() if row.generator_lr}

    def _row(self, title: str, row: DemoRow) -> dict[str, Any]:
        second = DISCRIMINATOR_LRS if trains_discriminator(row) else (None,)
        pairs = [replace(row, generator_lr=g, discriminator_lr=d) for g, d in product(GENERATOR_LRS, second)]
        validation = self.stage.evaluator(self.stage.digits.validation)
        tried: list[dict[str, Any]] = []
        nearest = math.inf
        for pair in pairs:
            seeds: list[Measured] = []
            while len(seeds) < SEEDS and worst(_listed(seeds)["kid"]) < nearest:  # else the other seeds need not run
                seeds.append(self._measured(title, pair, len(seeds), validation, VALIDATION_NOISE))
            nearest = min(nearest, worst(_listed(seeds)["kid"]))
            tried.append(_rates(pair) | _listed(seeds))
            print(f"{title}, {_shown(tried[-1])}: kernel distance {_figures(tried[-1]['kid'])} (validation)")
        best = min(range(len(pairs)), key=lambda index: worst(tried[index]["kid"]))
        reported = self.stage.evaluator(self.stage.digits.reported)
        seeds = [self._measured(title, pairs[best], seed, reported, REPORTED_NOISE) for seed in range(BAND_SEEDS)]
        result: dict[str, Any] = {"recipe": row.recipe, "tried": tried, "chosen": _rates(pairs[best])}
        result |= _listed(seeds)
        result["band"] = band(result["kid"])
        print(
            f"{title}: {_shown(result['chosen'])} chosen; {_figures(result['kid'])} (reported), band {result['band']}"
        )
        return result

    def _measured(self, title: str, row: DemoRow, seed: int, evaluator: Evaluator, noise: tuple[int, ...]) -> Measured:
        """The distances of one training seed at the rates of `row`. They are kept on disk."""
        rates = "-".join(f"{rate:g}" for rate in (row.generator_lr, row.discriminator_lr) if rate is not None)
        folder = self.folder / slug(title) / f"{rates}-seed{self.seed + seed}"
        kept = folder / ("reported.json" if noise == REPORTED_NOISE else "validation.json")
        self.stage.compressor(row, folder, title, self.seed + seed)  # refuses a folder of another recipe
        if not kept.exists():
            try:
                generator = self.stage.fine_tuned(row, folder, f"{title}, {rates}", self.seed + seed)
                distances = self.stage.distances(generator, evaluator, noise)
                write_json(kept, {"kid": distances.kid, "fid": distances.fid})
            except Diverged:
                write_json(kept, {"kid": None, "fid": None})
        measured: Measured = json.loads(kept.read_text(encoding="utf-8"))
        return measured


def worst(distances: list[float | None]) -> float:
    """The largest of the seeds' distances; infinite where a seed diverged, -infinite without seeds."""
    return max((math.inf if distance is None else distance for distance in distances), default=-math.inf)


def band(distances: list[float | None]) -> list[float] | None:
    """The mean ± three sample standard deviations, rounded outwards to whole numbers; None where a seed diverged.

    For five normally distributed seeds, a sixth lies in this band with a probability of about 95 %.
    """
    known = [distance for distance in distances if distance is not None]
    if len(known) < len(distances):
        return None
    mean, spread = statistics.mean(known), statistics.stdev(known)
    return [math.floor(mean - 3 * spread), math.ceil(mean + 3 * spread)]


def report(stage: Stage, folder: Path, seed: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Run the sweep and write sweep.json in `folder`. `facts`: entries that describe the command and the machine."""
    begun = time.perf_counter()
    results = {
        **facts,
        "setting": asdict(stage.setting),
        "seeds": {"first": seed, "validation": SEEDS, "band": BAND_SEEDS},
        "network": stage.features.network,
        "rows": Sweep(stage, folder, seed).run(),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    write_json(folder / "sweep.json", results)
    print(f"Set ROWS in sparsegan/cli/demo_rows.py to the chosen rates and bands; all trials: {folder / 'sweep.json'}")
    return results


def _rates(row: DemoRow) -> dict[str, Any]:
    return {"generator_lr": row.generator_lr, "discriminator_lr": row.discriminator_lr}


def _listed(seeds: list[Measured]) -> dict[str, list[float | None]]:
    return {name: [one[name] for one in seeds] for name in ("kid", "fid")}


def _shown(rates: Mapping[str, Any]) -> str:
    discriminator = rates["discriminator_lr"]
    return f"generator {rates['generator_lr']:g}" + (f", discriminator {discriminator:g}" if discriminator else "")


def _figures(values: list[float | None]) -> str:
    return ", ".join("diverged" if value is None else f"{value:.0f}" for value in values)
