"""Times the forward pass of the generators that rows have saved, in turns with the dense generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic_files import write_json
from ..checkpoint import load
from ..clock import Clock
from ..engine import optimize_for_inference
from ..gans import store
from ..nn.replace import densify
from ..profiling.info import cpu_name
from ..profiling.layers import interleaved_ms
from ..pruning.removal import remove_filters
from .grids import Row
from .results import Results
from .tasks import TASKS
from .techniques import TECHNIQUES

FILE = "speed.json"
BATCH = 64  # for generators that start from noise; for all others it is 1


def times(results: Results) -> dict[str, dict[str, Any]]:
    """Returns all times that have been measured, by the row's name."""
    file = results.folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def forget(results: Results, planned: Iterable[Row]) -> list[str]:
    """Removes the times of rows that are not among `planned`. Returns their names."""
    found, wanted = times(results), {row.key for row in planned}
    gone = sorted(found.keys() - wanted)
    if gone:
        write_json(results.folder / FILE, {key: entry for key, entry in found.items() if key in wanted})
    return gone


def best_and_dense(results: Results, row: Row) -> tuple[float, float] | None:
    """Returns the milliseconds of a row's generator in its fastest form, and of the dense generator.

    Returns None if the row was not timed.
    """
    entry = times(results).get(row.key)
    if entry is None:
        return None
    ms = dict(entry["ms"])
    dense = ms.pop("dense")
    return min(ms.values()), dense


def measure(rows: Iterable[Row], checkpoints: Path, out: Path, results: Results, seconds: float = 1.0) -> int:
    """Times every compressed generator of `rows` that is in `out`, on one thread. Returns the number of generators.

    The median milliseconds are: "dense", the dense generator in the better of torch's two memory formats; "sparse", the
    sparse layers; "engine", the result of `optimize_for_inference`; "removed", for granularity "filter", smaller dense
    layers. Techniques that train a narrower network are left out, because their generators are dense.
    """
    torch.set_num_threads(1)
    count = 0
    for row in rows:
        if not row.sparsity or TECHNIQUES[row.technique].recipe.startswith("small"):
            continue
        gan = store.load(checkpoints / TASKS[row.task].checkpoint)
        example = store.example(gan, BATCH if gan.from_noise else 1)
        sparse = left_behind(row, gan, out)
        if sparse is None:
            continue
        networks: dict[str, Callable[..., Any]] = {
            "sparse": sparse,
            "engine": optimize_for_inference(sparse, example),
            "dense": _plain(gan.generator),
            "last": gan.generator,
        }
        if row.granularity == "filter":
            networks["removed"] = remove_filters(sparse, example)
        with torch.inference_mode():
            found = interleaved_ms(
                Clock(example), [partial(network, *example) for network in networks.values()], seconds
            )
        ms = dict(zip(networks, found, strict=True))
        ms["dense"] = min(ms["dense"], ms.pop("last"))
        entry = {"batch": len(example[0]), "threads": 1, "machine": cpu_name(), "ms": ms}
        write_json(results.folder / FILE, times(results) | {row.key: entry})
        count += 1
    return count


def left_behind(row: Row, gan: store.Gan, out: Path) -> nn.Module | None:
    """Returns the generator that a row has saved in `out`, or None if it has saved none."""
    file = out / row.key / "generator.safetensors"
    return load(copy.deepcopy(gan.generator), file).eval() if file.is_file() else None


def _plain(generator: nn.Module) -> nn.Module:
    """Returns a dense copy with its weights in torch's default memory format."""
    plain = densify(copy.deepcopy(generator))
    for parameter in plain.parameters():
        parameter.data = parameter.data.contiguous()
    return plain
