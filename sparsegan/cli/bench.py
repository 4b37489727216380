"""Time layers, their training, and whole generators against the best dense engine that is installed."""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..benchmark import Results

HEAD = (
    f"{'layer':<43}{'sparsity':>9}{'units':>10}{'threads':>8}{'best dense':>21}{'dense ms':>10}{'sparse ms':>10}"
    f"{'+-':>6}{'ratio':>7}{'target':>8}       {'GFLOP/s':>8}{'of peak':>8}"
)

GENERATOR_HEAD = (
    f"{'generator':<36}{'sparsity':>9}{'units':>10}{'threads':>8}{'best dense':>21}{'dense ms':>10}{'layers ms':>10}"
    f"{'engine ms':>10}{'+-':>6}{'ratio':>7}{'target':>8}       {'GFLOP/s':>8}{'of peak':>8}"
)

#: Default values of the options that only some kinds of benchmark accept.
DEFAULTS = {
    "threads": "1",
    "sparsity": "0.9",
    "granularity": "element",
    "layers": "",
    "generators": "",
    "batch": "1,16,64",
    "precision": "float32",
}
#: From a kind of benchmark to the options of `DEFAULTS` that it accepts.
TAKEN = {
    "layers": {"threads", "sparsity", "granularity", "layers"},
    "training": {"threads", "sparsity", "granularity", "layers"},
    "generators": {"threads", "sparsity", "granularity", "generators", "precision"},
    "gpu": {"layers", "batch"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan bench`."""
    kinds = "layers: one forward of each reference layer; training: forward and backward, memory, a new mask; "
    kinds += "generators: one forward of each reference generator, latency and memory; "
    kinds += "gpu: layers, forward and training, on an NVIDIA GPU, in every granularity, at 90 %% sparsity and at the "
    kinds += "sparsities that have a target"
    parser.add_argument("what", choices=list(TAKEN), help=kinds)
    parser.add_argument(
        "--threads", default=DEFAULTS["threads"], help="numbers of threads, for example 1,2 (default: 1)"
    )
    parser.add_argument(
        "--sparsity", default=DEFAULTS["sparsity"], help="sparsities, for example 0.5,0.9 (default: 0.9)"
    )
    parser.add_argument(
        "--granularity",
        default=DEFAULTS["granularity"],
        help="granularities, for example element,vector:4 (default: element)",
    )
    for name, usual in (
        ("layers", "all"),
        ("generators", "all but those of ESRGAN, StyleGAN2 and HiFi-GAN, which may take minutes a row"),
    ):
        text = f"only the {name} whose names contain one of these parts, separated by commas (default: {usual})"
        parser.add_argument(f"--{name}", default=DEFAULTS[name], metavar="PARTS", help=text)
    parser.add_argument(
        "--precision",
        default=DEFAULTS["precision"],
        help="generators only: of the engine, for example int16 with --granularity input:2 (default: float32)",
    )
    parser.add_argument("--batch", default=DEFAULTS["batch"], help="gpu only: batch sizes (default: 1,16,64)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent per row, in seconds (default: 1)")
    parser.add_argument(
        "--json", type=Path, help="also write the figures to this file; an interrupted run is continued from the file"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print one row per layer or generator, sparsity, granularity and number of threads."""
    if not 0 < arguments.seconds <= 3600:
        raise ValueError(f"--seconds is {arguments.seconds}; it must be above 0 and at most 3600")
    for name in sorted(DEFAULTS.keys() - TAKEN[arguments.what]):
        if getattr(arguments, name) != DEFAULTS[name]:
            raise ValueError(f"--{name} is {getattr(arguments, name)!r}; `bench {arguments.what}` does not take it")
    {"gpu": _gpu, "generators": _generators}.get(arguments.what, _cpu)(arguments)


def _cpu(arguments: argparse.Namespace) -> None:
    from ..benchmark import Job, Results, facts, jobs, time_layer, time_training
    from ..ops import native

    threads = _numbers("--threads", arguments.threads, int, 1, 1024)
    sparsities = _numbers("--sparsity", arguments.sparsity, float, 0, 0.999)
    todo, left_out = jobs(arguments.layers, sparsities, arguments.granularity.split(","), threads)
    measure = time_layer if arguments.what == "layers" else time_training
    peak = native.fma_gflops()
    results = Results(_command(arguments), arguments.json, facts(), {"fma_peak_gflops_a_core": peak})

    def measured(job: Job) -> dict[str, Any]:
        row = measure(job, arguments.seconds)
        return {**row, "peak_share": row["gflops"] / (peak * job.threads)}

    print(HEAD)
    for job in todo:
        print(_line(results.row(job.name, partial(measured, job))), flush=True)
    print(*left_out, sep="\n", end="\n" * bool(left_out))
    more = _whole_models(sparsities, threads, arguments.seconds) if arguments.what == "training" else {}
    results.finish(**more)
    _print_facts(results, [*results.rows, *(row for rows in more.values() for row in rows)])


def _generators(arguments: argparse.Namespace) -> None:
    from ..benchmark import GeneratorJob, Results, facts, generator_jobs, time_generator
    from ..ops import native

    threads = _numbers("--threads", arguments.threads, int, 1, 1024)
    sparsities = _numbers("--sparsity", arguments.sparsity, float, 0, 0.999)
    todo = generator_jobs(
        arguments.generators, sparsities, arguments.granularity.split(","), threads, arguments.precision
    )
    peak = native.fma_gflops()
    results = Results(_command(arguments), arguments.json, facts(), {"fma_peak_gflops_a_core": peak})

    def measured(job: GeneratorJob) -> dict[str, Any]:
        row = time_generator(job, arguments.seconds)
        return {**row, "peak_share": row["gflops"] / (peak * job.threads)}

    print(GENERATOR_HEAD)
    for job in todo:
        row = results.row(job.name, partial(measured, job))
        print(_generator_line(row), _more_of(row), sep="\n", flush=True)
    results.finish()
    _print_facts(results, [*results.rows, *(limit for row in results.rows for limit in row["limits"].values())])


def _generator_line(r: dict[str, Any]) -> str:
    spread = _spread(r)
    asked, verdict = ("-", "") if r["target"] is None else (f"{r['target']:.2f}x", "holds" if r["holds"] else "short")
    return (
        f"{r['generator']:<36}{r['sparsity']:>9.0%}{r['granularity']:>10}{r['threads']:>8}{r['best_dense']:>21}"
        f"{r['dense_ms'][r['best_dense']]:>10.2f}{r['layers_ms']:>10.2f}{r['sparse_ms']:>10.2f}{spread:>6.0%}"
        f"{r['ratio']:>6.1f}x{asked:>8} {verdict:<5} {r['gflops']:>8.0f}{r['peak_share']:>8.0%}"
    )


def _more_of(r: dict[str, Any]) -> str:
    """The second line of a generator: latency, memory, the fraction of time outside multiplications, missed targets."""
    percentiles = ", ".join(f"{name} {ms:.2f}" for name, ms in r["latency_ms"].items())
    memory = " against ".join(f"{held / 1e6:.0f} MB ({name})" for name, held in r["memory"].items())
    short = [
        f"{name} {limit['value']:.2f}, at most {limit['at_most']:g} is asked"
        for name, limit in r["limits"].items()
        if limit["holds"] is False
    ]
    if r["holds"] is False:
        short.insert(0, f"{1 - r['ratio'] / r['target']:.0%} below the target")
    return (
        f"    latency in ms {percentiles}; first call {r['first_call_s']:.2f} s; memory {memory}; "
        f"{r['outside']:.0%} of the time outside multiplications; largest difference {r['difference']:.1e} "
        f"of {r['largest_value']:.2g}"
        + "".join(f"; short: {text}" for text in short)
        + "".join(f"\n    {name} refused: {reason}" for name, reason in r.get("refused", {}).items())
        + _beside(r)
    )


def _beside(r: dict[str, Any]) -> str:
    """The other engines of a row in a short precision, with their distances from float32; "" for another row."""
    if "beside_ms" not in r:
        return ""
    far = r["decibels"]
    others = (
        f"{name} {ms:.2f} ms" + (f", {far[name]:.1f} dB" if name in far else "") for name, ms in r["beside_ms"].items()
    )
    return f"\n    {r['precision']}, {far['engine']:.1f} dB; beside it {'; '.join(others)}"


def _spread(r: dict[str, Any]) -> float:
    """Half the distance between the quartiles, as a fraction of the sparse time."""
    first, third = r["sparse_quartiles_ms"]
    return (third - first) / 2 / r["sparse_ms"]


def _line(r: dict[str, Any]) -> str:
    """One row of the table."""
    spread = _spread(r)
    asked, verdict = ("-", "") if r["target"] is None else (f"{r['target']:.2f}x", "holds" if r["holds"] else "short")
    note = "" if r["backend"] == "sparse" else "  (auto: dense)"
    if verdict == "short" and "why" in r:  # where the time goes, by the cost model that chose the tiling
        note += f"  {r['why']}"
    return (
        f"{r['layer']:<43}{r['sparsity']:>9.0%}{r['granularity']:>10}{r['threads']:>8}{r['best_dense']:>21}"
        f"{r['dense_ms'][r['best_dense']]:>10.2f}{r['sparse_ms']:>10.2f}{spread:>6.0%}{r['ratio']:>6.1f}x"
        f"{asked:>8} {verdict:<5} {r['gflops']:>8.0f}{r['peak_share']:>8.0%}{note}"
    )


def _whole_models(sparsities: list[float], threads: list[int], seconds: float) -> dict[str, Any]:
    """The training memory and the time of a new mask of whole models. Prints and returns the rows."""
    from ..benchmark import time_new_mask, training_memory

    memory = [row for sparsity in sparsities for row in training_memory(sparsity)]
    for row in memory:
        parts = ("parameters", "gradients", "optimizer", "support", "plans", "workspace")
        print(
            f"training memory, {row['model']}, {row['sparsity']:.0%}: {row['ratio']:.3f} of masked-dense training's "
            f"{row['masked_dense'] / 1e6:.1f} MB{_asked(row, '.2f')}; "
            + ", ".join(f"{part} {row[part] / 1e6:.1f}" for part in parts)
            + " MB"
        )
    masks = [time_new_mask(sparsity, count, seconds) for count in threads for sparsity in sparsities]
    for row in masks:
        print(
            f"new mask, CycleGAN generator, {row['sparsity']:.0%}, {row['threads']} thread(s): "
            f"plans {row['plans_ms']:.1f} ms, a training step {row['step_ms']:.1f} ms: "
            f"{row['ratio']:.3f}{_asked(row, '.0f')}"
        )
    return {"memory": memory, "new_mask": masks}


def _asked(row: dict[str, Any], digits: str) -> str:
    if row["target"] is None:
        return ""
    return f" (at most {row['target']:{digits}}: {'holds' if row['holds'] else 'short'})"


def _print_facts(results: Results, rows: list[dict[str, Any]]) -> None:
    head = results.head
    print(f"{head['machine']}, {head['isa']}, FMA peak {head['fma_peak_gflops_a_core']:.0f} GFLOP/s per core")
    asked = [row["holds"] for row in rows if row["holds"] is not None]
    print(f"targets: {sum(asked)} of {len(asked)} hold")


def _gpu(arguments: argparse.Namespace) -> None:
    from ..benchmark import Results
    from ..benchmark.gpu import gpu_ceilings, gpu_facts, gpu_jobs, time_gpu

    same = gpu_facts()
    todo = gpu_jobs(arguments.layers, tuple(_numbers("--batch", arguments.batch, int, 1, 4096)))
    results = Results(_command(arguments), arguments.json, same, gpu_ceilings())
    print(f"{'layer':<44}{'units':>10}{'pass':>9}{'':>6}{'sparse ms':>10}{'auto ms':>9}   times as fast as dense at")
    for job in todo:
        row = results.row(job.name, partial(time_gpu, job, arguments.seconds))
        targets = "".join(f", {name} asked {least:g}x" for name, least in row["targets"].items())
        verdict = {True: " holds", False: " short", None: ""}[row["holds"]]
        ratios = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratios"].items())
        print(
            f"{row['layer']:<44}{row['granularity']:>10}{row['pass']:>9}{row['precision']:>6}{row['sparse_ms']:>10.4f}"
            f"{row['auto_ms']:>9.4f}   {ratios}{targets}{verdict}",
            flush=True,
        )
    results.finish()
    asked = [row["holds"] for row in results.rows if row["holds"] is not None]
    print(f"targets: {sum(asked)} of {len(asked)} hold")


def _command(arguments: argparse.Namespace) -> str:
    """The command line that repeats this run. Options at their defaults are left out."""
    parts = ["sparsegan", "bench", arguments.what]
    if arguments.what != "gpu":
        parts += ["--threads", arguments.threads, "--sparsity", arguments.sparsity]
    for name in ("granularity", "precision", "batch", "layers", "generators"):
        if getattr(arguments, name) != DEFAULTS[name]:
            parts += [f"--{name}", getattr(arguments, name)]
    if arguments.seconds != 1:
        parts += ["--seconds", f"{arguments.seconds:g}"]
    if arguments.json:
        parts += ["--json", str(arguments.json)]
    return shlex.join(parts)


def _numbers(name: str, text: str, kind: Any, least: float, most: float) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(least <= value <= most for value in values):
        raise ValueError(f"{name} is {text!r}; it must be numbers from {least} to {most} separated by commas")
    return values
