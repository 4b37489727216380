"""The demo's table, on the terminal and in Markdown, and its HTML page with all pictures inside."""

from __future__ import annotations

import html
import io
from typing import Any

from torch import Tensor

from .pictures import grid
from .report import data_uri, facts_table, layer_table, page, picture_uri, smooth, table

MAIN_COLOR, OTHER_COLORS = "#1b6ca8", ("#d95f02", "#4d9221", "#7a7a7a")

Results = dict[str, Any]


def distances(results: Results) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table of distances: one line per generator, and one of real digits."""
    head = ["generator", "kernel distance", "of another run", "Fréchet distance", "fine-tuning"]
    lines = []
    for title, row in results["rows"].items():
        band, seconds = results["made"].get(title, {}).get("band"), row.get("seconds")
        lines.append(
            [
                title,
                _mean_spread(row["kid"], row["kid_spread"]),
                f"{band[0]:g} to {band[1]:g}" if band else "-",
                _mean_spread(row["fid"], row["fid_spread"]),
                f"{seconds:.0f} s" if seconds else "-",
            ]
        )
    return head, lines


def sizes(results: Results) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table of sizes and times: the dense generator's and the main row's."""
    pair, times = [results["rows"][title] for title in ("dense", results["main"])], results["times"]
    lines = [
        ["sparsity", *(f"{row['sparsity']:.1%}" for row in pair)],
        ["MACs per image", *(f"{row['macs'] / 1e6:.1f} M" for row in pair)],
        ["file", *(f"{row['file_bytes'] / 1e6:.2f} MB" for row in pair)],
        ["training state", *(f"{row['training_bytes'] / 1e6:.2f} MB" for row in pair)],
        *([what, *(f"{times[one][what]:.1f} ms" for one in ("dense", "sparse"))] for what in ("forward", "training")),
    ]
    return ["", "dense", results["main"]], lines


def _mean_spread(mean: float, spread: float | None) -> str:
    digits = 0 if abs(mean) >= 100 else 1
    return f"{mean:.{digits}f}" if spread is None else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def where(results: Results) -> str:
    """The device of the run; for a CPU, its number of threads."""
    machine = results["machine"]
    return f"{machine['threads']} thread(s)" if machine.get("device", "cpu") == "cpu" else machine["device"]


def note(results: Results) -> str:
    """A paragraph that explains the figures of the table."""
    row, settings = results["rows"]["dense"], results["settings"]
    return (
        f"The distances are to {results['digits']:,} real digits, in the features of this project's "
        f"{results['network']}: mean ± spread over {len(row['sample_seeds'])} seeds of {row['samples']:,} samples. The "
        "kernel distance has no bias, so that it may be slightly negative. The first row has other real digits in the "
        "place of samples, and is the floor. All digits were training images of the dense generator, and are those of "
        f"the fine-tuning. The fine-tuning has {settings['steps']} steps of "
        f"{settings['batch']} images. The plain GAN loss prunes by magnitude within each layer, up to half of the run; "
        "distillation prunes by saliency, up to 70 % of it. The last layer, "
        f"{results['last_layer']}, is dense in every generator. {_recipes(results)} All pruned generators "
        "have about the same size and speed. Times are medians in milliseconds for a batch of 64, of a forward pass "
        f"and of a forward with a backward pass (training), on {where(results)}. Dense: the faster of torch's two "
        "layouts, with the zeros in place. The training state is parameters, gradients, Adam's moments, support and "
        "plans."
    )


def _recipes(results: Results) -> str:
    """Sentences on the recipe and rates of each row, the repair, and the bands."""
    made = results["made"]
    texts = []
    for title, one in made.items():
        if one["generator_lr"] is not None:
            judge = f", the discriminator's {one['discriminator_lr']:g}" if one["discriminator_lr"] else ""
            texts.append(f"{title[0].upper()}{title[1:]}: {one['text']}; learning rate {one['generator_lr']:g}{judge}.")
    texts.append("No rate was chosen by the distances of this table: other noise and other digits were used.")
    plain = ", ".join(f'"{title}"' for title, one in made.items() if not one["repaired"])
    texts.append(
        f"In all pruned rows but {plain}, batch norms have statistics of the pruned network, unless the recipe keeps "
        "the original's, and the last layer is scaled to the original's contrast. No real image is used for either."
    )
    bands = {title: one["band"] for title, one in made.items() if one["band"]}
    if bands:
        outside = [t for t, (low, high) in bands.items() if not low <= results["rows"][t]["kid"] <= high]
        texts.append(
            'The column "of another run" has the mean kernel distance ± three spreads over training seeds. A run on '
            "another machine should lie there"
            + (f"; this run does not, in: {', '.join(outside)}." if outside else ", and this run does.")
        )
    return " ".join(texts)


def show_tables(results: Results) -> None:
    """Print both tables and their note."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for head, lines in (distances(results), sizes(results)):
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        shown.add_column(head[0], no_wrap=True)
        for name in head[1:]:
            shown.add_column(name, justify="right")
        for line in lines:
            shown.add_row(*line, style="bold" if line[0] == results["main"] else None)
        console.print(shown)
    console.print(note(results), highlight=False)


def report(results: Results, samples: dict[str, Tensor], histories: dict[str, list[dict[str, float]]]) -> str:
    """The demo's HTML page. `samples`: images [N, C, H, W] in [-1, 1] of each generator from the same noise."""
    figures = "".join(
        f"<figure><img src='{picture_uri(grid(images, columns=10))}' alt='samples'>"
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, images in samples.items()
    )
    main = html.escape(results["main"])
    body = f"""<div class="wide">{table(*distances(results), bold=results["main"])}</div>
{table(*sizes(results))}
<p>{html.escape(note(results))}</p>
<h2>Samples from the same noise</h2>
<div class="grids">{figures}</div>
<h2>Losses and sparsity over the fine-tuning</h2>
<img class="plot" alt="curves" src="{_curves(results["main"], histories)}">
<p>Left and middle: the generator's and the discriminator's term on the compressed generator's images, smoothed over 10
steps. Dotted: the original generator's score by the same discriminator.</p>
<h2>Layers of the generator "{main}" (batch of 64, forward)</h2>
<div class="wide">{layer_table(results["layers"])}</div>
<h2>Machine</h2>
{facts_table(results["machine"])}"""
    return page(f"A DCGAN's generator at {results['settings']['sparsity']:.0%} element sparsity, on real digits", body)


def _curves(main: str, histories: dict[str, list[dict[str, float]]]) -> str:
    """A picture as a data: address: the two terms and the sparsity of every row with a history."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = {name: rows for name, rows in histories.items() if rows}
    others = [name for name in trained if name != main]
    colors = {main: MAIN_COLOR} | dict(zip(others, OTHER_COLORS, strict=False))
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for axes, term, title in ((left, "gen", "generator term"), (middle, "dis", "discriminator term")):
        for name, rows in trained.items():
            axes.plot(*smooth(rows, term), color=colors.get(name), label=name)
            if f"{term}_original" in rows[0]:
                original = smooth(rows, f"{term}_original")
                axes.plot(*original, color=colors.get(name), linestyle=":", label=f"{name}: original generator")
        axes.set_title(title)
        axes.set_xlabel("step")
    for name, rows in trained.items():
        right.plot([r["step"] for r in rows], [r["sparsity"] for r in rows], color=colors.get(name), label=name)
    right.set_title("sparsity")
    right.set_xlabel("step")
    right.set_ylim(0, 1)
    left.legend(fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return data_uri(stream.getvalue())
