"""Fills the tables of README.md and of the pages under docs/ from benchmarks/results/*.json.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.

python benchmarks/readme.py               rewrites the tables
python benchmarks/readme.py --check       only says whether that would change a page
python benchmarks/readme.py --table gpu   prints one table
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsegan.benchmark.cases import TARGET_SHARE
from sparsegan.benchmark.training import MEMORY_TARGET
from sparsegan.cli.demo_report import distances, note, sizes
from sparsegan.study import Results
from sparsegan.study.tables import changes, in_short
from sparsegan.study.techniques import DEFAULT

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("cpu", "engine", "gpu", "measured", "roofline")),
)
STUDY = Results(ROOT / "benchmarks" / "results" / "study")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Report = dict[str, Any]


def markdown(head: list[str], rows: list[list[str]], below: str) -> str:
    """A table and a line of text below it."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{below}\n"


def measured(command: str, *facts: str) -> str:
    """The sentence that names the command and the machine behind a report's figures."""
    return f"Measured by `{command}`{' (' + ', '.join(facts) + ')' if facts else ''}."


def checkpoint(report: Report) -> str:
    """File sizes, one row per network and sparsity."""

    def size(row: Report, kind: str) -> str:
        return f"{row[kind] / 1e6:.2f} MB ({row['dense'] / row[kind]:.1f}x)"

    kinds = ("float32", "float16", "bfloat16", "int8", "input:4 int8")
    head = ["DCGAN generator", "sparsity", "dense float32", *(f"{kind} values" for kind in kinds)]
    rows = [
        [
            f"ngf {row['ngf']}, {row['nc']} channel{'s' * (row['nc'] > 1)}",
            f"{row['sparsity']:.0%}",
            f"{row['dense'] / 1e6:.2f} MB",
            *(size(row, kind) for kind in kinds),
        ]
        for row in report["rows"]
    ]
    return markdown(head, rows, measured(report["command"], f"torch {report['torch']}"))


def large_image(report: Report) -> str:
    """Memory of one large image, one row per tile size."""
    head = ["tiles", "arena, MB", "peak of the process, MB", "of it before the image, MB", "of it the result, MB"]
    rows = [
        [f"{row['tile']} pixels" if row["tile"] else "none"]
        + [f"{row[key] / 1e6:.0f}" for key in ("arena_bytes", "peak_bytes", "bytes_before", "result_bytes")]
        for row in report["rows"]
    ]
    machine = report["machine"]
    return markdown(head, rows, measured(report["command"], f"{report['model']}, torch {machine['torch']}"))


def _bench(report: Report) -> str:
    """The sentence that names the command and the machine behind figures of `sparsegan bench`."""
    if not report["complete"]:
        raise SystemExit(f"a result file comes from an interrupted run; continue that run: {report['command']}")
    peak = f"FMA peak of a core {report['fma_peak_gflops_a_core']:.0f} GFLOP/s"
    limit = report.get("dense_limit")
    limits = [f"dense engines limited to {limit} by ONEDNN_MAX_CPU_ISA"] if limit else []
    return measured(report["command"], report["machine"], report["isa"], peak, f"torch {report['torch']}", *limits)


def _ms(median: float, quartiles: list[float]) -> str:
    """A time and its spread: half the distance between the quartiles, as a fraction of the median."""
    return f"{median:.2f} ± {(quartiles[1] - quartiles[0]) / 2 / median:.0%}"


def _target(isa: str) -> str:
    """The head of the targets' column. Targets are set for AVX-512, and other ISAs have a fraction of them."""
    fraction = TARGET_SHARE.get(isa)
    return "target" if fraction in (None, 1) else f"target ({fraction:g} of the AVX-512 one)"


def _holds(row: Report) -> str:
    return {True: "yes", False: "no", None: "-"}[row["holds"]]


def _ratio(row: Report) -> str:
    return f"{row['ratio']:.1f}x" + ("" if row["backend"] == "sparse" else " (runs dense)")


def _how_many(rows: list[Report]) -> str:
    asked = [row["holds"] for row in rows if row["holds"] is not None]
    return f"Targets: {sum(asked)} of {len(asked)} hold. " if asked else ""


def against_dense(report: Report) -> str:
    """Layers against the best dense engine, one row per layer."""
    rows = [
        [
            row["layer"],
            f"{row['sparsity']:.0%}" + ("" if row["granularity"] == "element" else f" {row['granularity']}"),
            str(row["threads"]),
            f"{_ms(row['dense_ms'][row['best_dense']], row['best_dense_quartiles_ms'])} ({row['best_dense']})",
            _ms(row["sparse_ms"], row["sparse_quartiles_ms"]),
            _ratio(row),
            "-" if row["target"] is None else f"{row['target']:.2f}x",
            _holds(row),
            f"{row['gflops']:.0f} ({row['peak_share']:.0%})",
        ]
        for row in report["rows"]
    ]
    head = ["layer", "sparsity", "threads", "best dense, ms", "sparse, ms", "faster", _target(report["isa"]), "holds"]
    head.append("GFLOP/s on kept weights (of peak)")
    return markdown(head, rows, f"{_how_many(report['rows'])}{_bench(report)}")


def _across(report: Report, column: str, show: Callable[[Any], str]) -> str:
    """Ratios: one row per layer, one column per value of a field. A ratio that misses its target is shown with it."""
    columns = list(dict.fromkeys(row[column] for row in report["rows"]))
    lines: dict[tuple[str, int], dict[Any, str]] = {}
    for row in report["rows"]:
        short = f", asked {row['target']:.2f}x" if row["holds"] is False else ""
        lines.setdefault((row["layer"], row["threads"]), {})[row[column]] = _ratio(row) + short
    rows = [
        [layer, str(threads), *(cells.get(value, "-") for value in columns)]
        for (layer, threads), cells in lines.items()
    ]
    head = ["layer", "threads", *map(show, columns)]
    return markdown(head, rows, f"{_how_many(report['rows'])}{_bench(report)}")


def sparsity(report: Report) -> str:
    """The plot, then the ratios at every sparsity."""
    if not (ROOT / "docs" / "speedup.svg").exists():
        raise SystemExit("docs/speedup.svg is not drawn: run python benchmarks/plot_sparsity.py")
    picture = "![Speed-up over the best dense engine against sparsity](speedup.svg)"
    return f"{picture}\n\n{_across(report, 'sparsity', '{:.0%}'.format)}"


def vectors(report: Report) -> str:
    """Ratios of layers whose units are vectors of output channels."""
    return _across(report, "granularity", str)


def training(report: Report) -> str:
    """Forward and backward of layers, then memory and new masks of whole models."""

    def asked(row: Report, at_most: str) -> str:
        return "" if row["target"] is None else f" (asked: {at_most}; holds: {_holds(row)})"

    def megabytes(size: int) -> str:
        return f"{size / 1e6:.1f} MB"

    lines = []
    for row in report["memory"]:
        held = sum(row[part] for part in ("parameters", "gradients", "optimizer", "support", "plans"))
        lines.append(
            f"- Memory of {row['model']} at {row['sparsity']:.0%}: {megabytes(held)}, {row['ratio']:.3f} of the "
            f"{megabytes(row['masked_dense'])} of masked-dense training{asked(row, f'at most {MEMORY_TARGET}')}; of it "
            f"support {megabytes(row['support'])}, plans {megabytes(row['plans'])}. "
            f"Workspace: {megabytes(row['workspace'])}."
        )
    for row in report["new_mask"]:
        plans, step = (_ms(row[f"{part}_ms"], row[f"{part}_quartiles_ms"]) for part in ("plans", "step"))
        lines.append(
            f"- A new mask for the whole CycleGAN generator at {row['sparsity']:.0%}, {row['threads']} thread(s): "
            f"{plans} ms for all plans, against {step} ms for a training step{asked(row, 'less than a step')}."
        )
    return f"{against_dense(report)}\n" + "".join(f"{line}\n" for line in lines)


def comparison(report: Report) -> str:
    """Times of other ways to run sparse weights."""

    def other(row: Report, way: str) -> str:
        median = row[f"{way}_ms"]
        if median is None:
            return "-"
        return f"{_ms(median, row[f'{way}_quartiles_ms'])} ({median / row['sparse_ms']:.1f}x)"

    rows = [
        [
            row["layer"],
            _ms(row["sparse_ms"], row["sparse_quartiles_ms"]),
            other(row, "torch_csr"),
            other(row, "through_memory"),
        ]
        for row in report["rows"]
    ]
    head = ["layer at 90 %, 1 thread", "sparsegan, ms", "torch.sparse CSR and unfold, ms", "through memory, ms"]
    return markdown(head, rows, _bench(report))


def _machine(report: Report) -> tuple[str, ...]:
    machine = report["machine"]
    return (
        machine["machine"],
        machine["cpu isa in use"],
        f"{machine['threads']} thread(s)",
        f"torch {machine['torch']}",
    )


def _demo_facts(report: Report) -> str:
    return measured("make demo", *_machine(report))


def demo(report: Report) -> str:
    """The demo's own tables: distances of all generators, then sizes and times."""
    return f"{markdown(*distances(report), '')}{markdown(*sizes(report), f'{note(report)} {_demo_facts(report)}')}"


def layers(report: Report) -> str:
    """The layers of the demo's main generator."""
    rows = [
        [
            row["geometry"],
            f"{row['sparsity']:.1%}",
            f"{row['dense_macs'] / 1e6:,.1f} M",
            f"{row['executed_macs'] / 1e6:,.1f} M",
            f"{row['dense_ms']:.2f}",
            f"{row['sparse_ms']:.2f}",
            row["backend"],
        ]
        for row in report["layers"]
    ]
    head = ["layer", "sparsity", "MACs dense", "executed", "dense ms", "sparse ms", "backend that `auto` takes"]
    return markdown(head, rows, _demo_facts(report))


def demo_sweep(report: Report) -> str:
    """The learning rates that the demo's sweep tried, and the ones that it chose."""

    def distance(value: float | None) -> str:
        return "diverged" if value is None else f"{value:.0f}"

    rows = []
    for title, row in report["rows"].items():
        band = "none: a seed diverged" if row["band"] is None else "{:g} to {:g}".format(*row["band"])
        for tried in row["tried"]:
            rates = {name: tried[name] for name in row["chosen"]}
            chosen = f"{', '.join(map(distance, row['kid']))}; band {band}" if rates == row["chosen"] else ""
            shown = ["not trained" if rate is None else f"{rate:g}" for rate in rates.values()]
            rows.append([title, *shown, ", ".join(map(distance, tried["kid"])), chosen])
    head = [
        "generator",
        "learning rate",
        "the discriminator's",
        "validation, two seeds",
        "if chosen: the table's digits",
    ]
    return markdown(
        head, rows, f"Kernel distances, one per training seed. {measured(report['command'], *_machine(report))}"
    )


def ceilings(report: Report) -> str:
    """The limits of one core on the roofline page."""
    top = report["ceilings"]
    rows = [
        ["FMAs between registers", f"{top['fma']:.0f} GFLOP/s"],
        ["FMAs with one operand from the first-level cache", f"{top['fma_from_cache']:.0f} GFLOP/s"],
        *(
            [f"the sparse_conv kernel's inner loop alone, {taps} taps per target and block", f"{gflops:.0f} GFLOP/s"]
            for taps, gflops in top["sparse_conv_tile"].items()
        ),
        ["copying memory, read and written together", f"{top['stream_gbytes']:.1f} GB/s"],
    ]
    facts = (report["machine"], report["isa"], "one thread", f"torch {report['torch']}")
    return markdown(["limit", "measured"], rows, measured(report["command"], *facts))


def roofline(report: Report) -> str:
    """Three layers: counted work, time at the ceilings, measured time."""
    rows = []
    for row in report["rows"]:
        taps = row["whole_ms"] - row["without_taps_ms"]
        rows.append(
            [
                row["layer"],
                f"{row['gflop']:.3f}",
                f"{row['tensor_bytes'] / 1e6:.1f} + {row['weight_bytes'] / 1e6:.1f}",
                f"{row['at_fma_peak_ms']:.2f}",
                f"{row['at_fma_from_cache_ms']:.2f}",
                f"{row['at_stream_ms']:.2f}",
                f"{row['whole_ms']:.2f}",
                f"{row['without_taps_ms']:.2f}",
                f"{taps:.2f} ({row['gflop'] / taps * 1e3:.0f} GFLOP/s)",
            ]
        )
    head = ["layer at 90 %", "GFLOP", "MB of tensors + weights", "ms at the FMA peak", "ms at FMAs from cache"]
    head += ["ms to copy the tensors", "ms measured", "of it without taps", "of it taps"]
    return markdown(head, rows, measured(report["command"], report["machine"], report["isa"], "one thread"))


def compression_step(report: Report) -> str:
    """A whole compression step, sparse and masked, with the sparse step's time by kind of work."""
    kinds = list(report["rows"][0]["shares"])
    rows = [
        [
            row["case"],
            str(row["threads"]),
            _ms(row["masked_ms"], row["masked_quartiles_ms"]),
            _ms(row["sparse_ms"], row["sparse_quartiles_ms"]),
            f"{row['ratio']:.2f}x",
            f"{row['target']:g}x",
            _holds(row),
            *(f"{row['shares'][kind]:.0%}" for kind in kinds),
        ]
        for row in report["rows"]
    ]
    head = ["step at 90 %", "threads", "masked, ms", "sparse, ms", "faster", "asked", "holds", *kinds]
    facts = (report["machine"], report["isa"], f"torch {report['torch']}")
    return markdown(head, rows, measured(report["command"], *facts))


def gpu(report: Report) -> str:
    """Layers on a GPU, one row per layer."""
    if not report["complete"]:
        raise SystemExit(f"a result file comes from an interrupted run; continue that run: {report['command']}")

    def ratio(row: Report, precision: str) -> str:
        asked = row["targets"].get(precision)
        return f"{row['ratios'][precision]:.2f}x" + ("" if asked is None else f" (asked {asked:g}x)")

    rows = [
        [
            row["layer"],
            f"{row['sparsity']:.0%} {row['granularity']} {row['precision']}",
            row["pass"],
            _ms(row["sparse_ms"] * 1e3, [q * 1e3 for q in row["sparse_quartiles_ms"]]),
            *(ratio(row, precision) for precision in ("fp32", "tf32", "bf16")),
            _holds(row),
            "sparse" if row["backend"] == "sparse" else f"dense, {row['auto_ms'] * 1e3:.0f} µs",
        ]
        for row in report["rows"]
    ]
    head = ["layer", "weights", "pass", "sparse, µs", "against dense FP32", "TF32", "bf16", "holds", "`auto` takes"]
    facts = [report["machine"], f"copy {report['copy_tbytes_s']:.2f} TB/s"]
    facts += [
        f"matrix product {name} {report[f'matrix_tflops_{name}']:.0f} TFLOP/s" for name in ("fp32", "tf32", "bf16")
    ]
    facts += [f"torch {report['torch']}", f"CUDA {report['cuda']}", f"Triton {report['triton']}"]
    return markdown(head, rows, f"{_how_many(report['rows'])}{measured(report['command'], *facts)}")


def short_generators(report: Report) -> str:
    """Whole generators at 90 %, with the most important columns only."""
    rows = [
        [
            row["generator"],
            str(row["threads"]),
            f"{_ms(row['dense_ms'][row['best_dense']], row['best_dense_quartiles_ms'])} ({row['best_dense']})",
            f"{row['layers_ms']:.1f}",
            _ms(row["sparse_ms"], row["sparse_quartiles_ms"]),
            f"{row['ratio']:.1f}x",
            f"{row['target']:.2f}x",
            _holds(row),
            f"{row['memory']['engine'] / 1e6:.0f} of {row['memory'][row['best_dense']] / 1e6:.0f}",
        ]
        for row in report["rows"]
        if row["sparsity"] == 0.9 and row["granularity"] == "element"
    ]
    head = ["generator, 90 %", "threads", "best dense, ms", "drop-in layers, ms", "engine, ms", "faster"]
    head += [_target(report["isa"]), "holds", "memory, MB"]
    return markdown(head, rows, _bench(report))


def generators(report: Report) -> str:
    """Whole generators against the best dense engine, one row per generator, with all columns."""
    rows = []
    for row in report["rows"]:
        latency, limits, memory = row["latency_ms"], row["limits"], row["memory"]
        asked = [f"{name} {limit['value']:.2f}" for name, limit in limits.items() if limit["holds"] is False]
        rows.append(
            [
                row["generator"],
                f"{row['sparsity']:.0%}" + ("" if row["granularity"] == "element" else f" {row['granularity']}"),
                str(row["threads"]),
                f"{_ms(row['dense_ms'][row['best_dense']], row['best_dense_quartiles_ms'])} ({row['best_dense']})",
                _ms(row["layers_ms"], row["layers_quartiles_ms"]),
                _ms(row["sparse_ms"], row["sparse_quartiles_ms"]),
                f"{row['ratio']:.1f}x",
                "-" if row["target"] is None else f"{row['target']:.2f}x",
                _holds(row),
                f"{latency['p50']:.1f} / {latency['p95']:.1f} / {latency['p99']:.1f}",
                f"{memory['engine'] / 1e6:.0f} of {memory[row['best_dense']] / 1e6:.0f}",
                f"{row['outside']:.0%}",
                f"{row['first_call_s']:.2f}",
                f"{row['gflops']:.0f} ({row['peak_share']:.0%})",
                ", ".join(asked) or "-",
            ]
        )
    head = ["generator", "sparsity", "threads", "best dense, ms", "drop-in layers, ms", "engine, ms", "faster"]
    head += [_target(report["isa"]), "holds", "p50 / p95 / p99, ms", "memory, MB", "outside multiplications"]
    head += ["first call, s", "GFLOP/s on kept weights (of peak)", "short besides"]
    return markdown(head, rows, f"{_how_many(report['rows'])}{_bench(report)}")


def short_precisions(report: Report) -> str:
    """Whole generators in a short precision beside dense engines in float32 and int8, and our engine in float32."""
    rows = []
    for row in report["rows"]:
        beside, far = row["beside_ms"], row["decibels"]
        int8 = min((name for name in beside if "int8" in name), key=lambda name: beside[name])
        bf16 = [f"{ms:.1f} ({far[name]:.0f} dB)" for name, ms in beside.items() if "bf16" in name]
        single = next(ms for name, ms in beside.items() if name not in far)
        rows.append(
            [
                row["generator"],
                f"{row['sparsity']:.0%} {row['granularity']}",
                str(row["threads"]),
                f"{_ms(row['dense_ms'][row['best_dense']], row['best_dense_quartiles_ms'])} ({row['best_dense']})",
                bf16[0] if bf16 else "-",
                f"{beside[int8]:.1f} ({int8.replace(' int8', '')}, {far[int8]:.0f} dB)",
                f"{single:.1f}",
                f"{_ms(row['sparse_ms'], row['sparse_quartiles_ms'])} ({row['precision']}, {far['engine']:.0f} dB)",
                f"{row['ratio']:.1f}x",
                f"{beside[int8] / row['sparse_ms']:.1f}x",
                f"{single / row['sparse_ms']:.2f}x",
                f"{row['outside']:.0%}",
            ]
        )
    head = ["generator", "sparsity", "threads", "best dense float32, ms", "dense bf16 (openvino), ms"]
    head += ["best dense int8, ms"]
    head += ["engine float32, element, ms", "engine, ms", "faster than dense float32", "than dense int8"]
    head += ["than our float32", "outside multiplications"]
    return markdown(head, rows, _bench(report))


def data_free(report: Report) -> str:
    """How near generators are to an original of which one file is all there is, one row per run."""
    pruned = ("pruned", "pruned, batch norms re-estimated")
    rows = []
    for run in report["rows"]:
        made = {name: figures["samples"] for name, figures in run["likeness"].items()}
        ours, settings = made["compressed"], run["settings"]
        others = [f"{made[name]['psnr']:.1f}" if name in made else "none" for name in pruned]
        figures = [f"{ours['psnr']:.1f}", f"{ours['edges']:.2f}", *others, run["verdict"]]
        rows.append([f"{settings['sparsity']:.0%}", run["recipe"], *figures])
    below = f"PSNR in dB, to the original's images from the same noise; their mean image has {ours['mean_image']:.1f}. "
    below += "Edge energy: the sum of squared Sobel gradients, over the original's. "
    below += f"{settings['steps']:,} steps of {settings['batch']}. "
    head = ["sparsity", "recipe", "PSNR", "edge energy", "not fine-tuned", "its norms re-estimated", "verdict"]
    return markdown(head, rows, below + measured("python benchmarks/data_free.py", report["machine"]["machine"]))


#: Name of a table in a page -> its file under results/, and the function that makes the table.
TABLES: dict[str, tuple[str, Callable[[Report], str]]] = {
    "checkpoint": ("checkpoint", checkpoint),
    "large_image": ("large_image", large_image),
    "bench_layers": ("layers", against_dense),
    "sparsity": ("sparsity", sparsity),
    "vectors": ("vectors", vectors),
    "training": ("training", training),
    "comparison": ("comparison", comparison),
    "ceilings": ("roofline", ceilings),
    "roofline": ("roofline", roofline),
    "data_free": ("data_free", data_free),
    "demo": ("demo", demo),
    "layers": ("demo", layers),
    "demo_sweep": ("demo_sweep", demo_sweep),
    "gpu": ("gpu", gpu),
    "compression_step": ("compression_step", compression_step),
    "generators": ("generators", generators),
    "generators_75": ("generators_75", generators),
    "generators_vectors": ("generators_vectors", generators),
    "bench_generators": ("generators", short_generators),
    "layers_avx512": ("layers_avx512", against_dense),
    "generators_avx512": ("generators_avx512", generators),
    "generators_esrgan": ("generators_esrgan", generators),
    "generators_int16": ("generators_int16", short_precisions),
    "generators_int8": ("generators_int8", short_precisions),
    "generators_int8_vnni": ("generators_int8_vnni", short_precisions),
}


def headline() -> str:
    """Two items of a list: speed and quality at 90 %."""
    report = json.loads((ROOT / "benchmarks" / "results" / "generators.json").read_text())
    ratios: dict[int, list[float]] = {}
    for row in report["rows"]:
        ratios.setdefault(row["threads"], []).append(row["ratio"])
    one, two = (f"{min(ratios[threads]):.1f} to {max(ratios[threads]):.1f}" for threads in (1, 2))
    names = {row["generator"].split()[0] for row in report["rows"]}
    grown = ", ".join(f"{text} {by}" for text, by in changes(STUDY, DEFAULT, 0.9).items())
    return (
        f"- **How fast.** At 90 %, {len(names)} generators run {one} times as fast as the best dense engine on one "
        f"thread, {two} times on two ([table](docs/measured.md#whole-generators-against-the-best-dense-engine)).\n"
        "- **How good.** At 90 %, by the default recipe, the kernel distance of the images from real ones changes: "
        f"{grown or 'not run yet'} ([table](docs/measured.md#the-study-six-gans-at-90-)).\n"
    )


def table(name: str) -> str:
    """One table, made from its file."""
    if name == "study":
        return in_short(STUDY)
    if name == "headline":
        return headline()
    stem, show = TABLES[name]
    file = ROOT / "benchmarks" / "results" / f"{stem}.json"
    return show(json.loads(file.read_text())) if file.exists() else "Not measured yet.\n"


def filled(text: str) -> str:
    """The text of a page with every table made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{table(block[2])}{block[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when README.md is not up to date")
    parser.add_argument("--table", choices=["headline", "study", *TABLES], help="change nothing; print this table")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    for page in PAGES:
        old = page.read_text()
        new = filled(old)
        if options.check and new != old:
            sys.exit(f"{page.name} does not show benchmarks/results: run python benchmarks/readme.py")
        if new != old:
            page.write_text(new)


if __name__ == "__main__":
    main()
