"""The demo's table on the terminal, and the HTML reports of the demo and of compress, with all pictures inside."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .pictures import grid

COLORS = {"pruned, plain GAN loss": "#d95f02", "self-supervised": "#1b6ca8"}


def columns(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the demo's table: one line per generator."""
    network = results["network"]
    head = [
        "generator",
        f"FID ({network})",
        f"KID ({network})",
        "sparsity",
        "MACs per image",
        "file",
        "training state",
        "forward, dense",
        "forward, sparse",
        "training, dense",
        "training, sparse",
    ]
    lines = []
    for title, row in results["rows"].items():
        lines.append(
            [
                title,
                _mean_spread(row["fid"], row["fid_spread"]),
                _mean_spread(row["kid"], row["kid_spread"]),
                f"{row['sparsity']:.1%}",
                f"{row['macs'] / 1e6:.1f} M",
                f"{row['file_bytes'] / 1e6:.2f} MB",
                f"{row['training_bytes'] / 1e6:.2f} MB",
                *(
                    f"{row[key]:.1f} ms" if title != "dense" or key.endswith("dense") else "-"
                    for key in ("forward_ms_dense", "forward_ms", "train_ms_dense", "train_ms")
                ),
            ]
        )
    return head, lines


def _mean_spread(mean: float, spread: float) -> str:
    return f"{mean:.0f} ± {spread:.0f}" if abs(mean) >= 100 else f"{mean:.1f} ± {spread:.1f}"


def where(results: dict[str, Any]) -> str:
    """The device of the run; for a CPU, its number of threads."""
    machine = results["machine"]
    return f"{machine['threads']} thread(s)" if machine.get("device", "cpu") == "cpu" else machine["device"]


def note(results: dict[str, Any]) -> str:
    """A paragraph that explains the figures of the table."""
    row = results["rows"]["dense"]
    settings, made = results["settings"], results["rows_made"]
    return (
        "FID and KID are the Fréchet and kernel distances to the 5,000 real digits, in the features of this project's "
        f"{results['network']}: mean ± spread over {len(row['sample_seeds'])} seeds of {row['samples']:,} samples. "
        f"Both fine-tuned generators had {settings['steps']} steps of {settings['batch']} images and the same learning "
        "rates. They were pruned by magnitude within each layer and reached the target at half of the run. The last "
        f"layer, {results['last_layer']}, is dense in every generator. Plain GAN loss: "
        f"{made['pruned, plain GAN loss']}. Self-supervised: {made['self-supervised']}. Times are medians in "
        "milliseconds for a batch of 64, of a forward pass and of a forward with a backward pass (training), on "
        f"{where(results)}. Dense is the faster of torch's two layouts, with the zeros in place. Sparse is the "
        "compressed generator. The training state is parameters, gradients, Adam's moments, support and plans."
    )


def show_table(results: dict[str, Any]) -> None:
    """Print the table and its note."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, lines = columns(results)
    # One column per generator: the table then fits into 80 characters.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        longest_word = max(map(len, line[0].split()))
        style = "bold" if line[0] == "self-supervised" else None
        table.add_column(line[0], justify="right", style=style, min_width=longest_word)
    for index, name in enumerate(head[1:], start=1):
        table.add_row(name, *(line[index] for line in lines))
    console = Console()
    console.print(table)
    console.print(note(results), highlight=False)


def report(results: dict[str, Any], samples: dict[str, Tensor], histories: dict[str, list[dict[str, float]]]) -> str:
    """The demo's HTML page. `samples`: images [N, C, H, W] in [-1, 1] of each generator from the same noise."""
    head, lines = columns(results)
    figures = "".join(
        f"<figure><img src='{_picture(images)}' alt='samples'><figcaption>{html.escape(title)}</figcaption></figure>"
        for title, images in samples.items()
    )
    sparsity = results["settings"]["sparsity"]
    body = f"""<div class="wide">{table(head, lines)}</div>
<p>{html.escape(note(results))}</p>
<h2>Samples from the same noise</h2>
<div class="grids">{figures}</div>
<h2>Losses and sparsity over the fine-tuning</h2>
<img class="plot" alt="curves" src="{_curves(histories)}">
<p>Left and middle: the generator's and the discriminator's term on the compressed generator's images, smoothed over 10
steps. Dotted: the original generator's score by the same discriminator. The self-supervised generator is compared with
the original image by image, and its discriminator is not trained.</p>
<h2>Layers of the self-supervised generator (batch of 64, forward)</h2>
<div class="wide">{layer_table(results["layers"])}</div>
<h2>Machine</h2>
{facts_table(results["machine"])}"""
    return page(f"A DCGAN's generator at {sparsity:.0%} element sparsity, on real digits", body)


def page(title: str, body: str) -> str:
    """An HTML page that needs no other file. `title`: plain text. `body`: HTML."""
    title = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sparsegan: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.5em; }} h2 {{ font-size: 1.15em; margin-top: 2em; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }}
th, td {{ padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
tr.method td {{ font-weight: 600; }}
.far {{ color: #a00; }}
.facts th, .facts td {{ text-align: left; }}
.grids {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1em; }}
figure {{ margin: 0; }} figure img {{ width: 100%; }} figcaption {{ font-size: 13px; color: #555; }}
img.plot {{ width: 100%; }}
.wide {{ overflow-x: auto; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def facts_table(facts: Mapping[str, Any]) -> str:
    """An HTML table of names and values."""
    rows = ((html.escape(str(name)), html.escape(str(value))) for name, value in facts.items())
    return (
        f'<table class="facts">{"".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)}</table>'
    )


def layer_table(layers: list[dict[str, Any]]) -> str:
    """An HTML table of layers. `layers`: rows of `profiling.LayerProfile` as dicts."""
    head = ["layer", "geometry", "kept weights", "sparsity", "MACs dense", "executed"]
    head += ["backend", "why", "dense ms", "sparse ms"]
    lines = [
        [
            layer["name"],
            layer["geometry"],
            f"{layer['nnz']:,}",
            f"{layer['sparsity']:.1%}",
            f"{layer['dense_macs'] / 1e6:,.1f} M",
            f"{layer['executed_macs'] / 1e6:,.1f} M",
            layer["backend"],
            layer["why"],
            f"{layer['dense_ms']:.2f}",
            f"{layer['sparse_ms']:.2f}",
        ]
        for layer in layers
    ]
    return table(head, lines)


def table(head: list[str], lines: list[list[str]]) -> str:
    """An HTML table in which the row "self-supervised" is bold."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=method' if line[0] == 'self-supervised' else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in lines
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _picture(images: Tensor) -> str:
    return picture_uri(grid(images, columns=10))


def picture_uri(picture: Tensor) -> str:
    """A data: address of the PNG of a picture, uint8 [H, W, 1 or 3]."""
    from PIL import Image

    array = picture.numpy()
    stream = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(stream, format="PNG")
    return _data_uri(stream.getvalue())


def _curves(histories: dict[str, list[dict[str, float]]]) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for axes, term, title in ((left, "gen", "generator term"), (middle, "dis", "discriminator term")):
        for name, rows in histories.items():
            if not rows:
                continue
            axes.plot(*_smooth(rows, term), color=COLORS.get(name), label=name)
            if f"{term}_original" in rows[0]:
                original = _smooth(rows, f"{term}_original")
                axes.plot(*original, color=COLORS.get(name), linestyle=":", label=f"{name}: original generator")
        axes.set_title(title)
        axes.set_xlabel("step")
    for name, rows in histories.items():
        if rows:
            right.plot([r["step"] for r in rows], [r["sparsity"] for r in rows], color=COLORS.get(name), label=name)
    right.set_title("sparsity")
    right.set_xlabel("step")
    right.set_ylim(0, 1)
    left.legend(fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return _data_uri(stream.getvalue())


def term_curves(history: list[dict[str, float]]) -> str:
    """A picture as a data: address: one plot per term and one of the sparsity.

    Solid lines are the compressed generator's terms, dotted lines the original's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    skipped = ("step", "loss", "sparsity")
    names = {key.removesuffix("_original").removesuffix("_compressed") for row in history for key in row}
    terms = sorted(names.difference(skipped))
    figure = Figure(figsize=(12, 3.0 * -(-(len(terms) + 1) // 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(-(-(len(terms) + 1) // 3), 3, squeeze=False).flat)
    for panel, term in zip(axes, terms, strict=False):
        compressed = f"{term}_compressed" if any(f"{term}_compressed" in row for row in history) else term
        for key, style in ((compressed, "-"), (f"{term}_original", ":")):
            panel.plot(*_smooth(history, key), linestyle=style, color="#1b6ca8")
        panel.set_title(term)
    panel = axes[len(terms)]
    panel.plot([row["step"] for row in history], [row["sparsity"] for row in history], color="#1b6ca8")
    panel.set_title("sparsity")
    panel.set_ylim(0, 1)
    for unused in axes[len(terms) + 1 :]:
        unused.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return _data_uri(stream.getvalue())


def score_curve(
    points: list[tuple[float, float]], name: str, over: str, chosen: float | None = None, limit: float | None = None
) -> str:
    """A picture as a data: address: a score over steps or sparsities.

    `points`: pairs of place and score, of which those that are not finite are left out. `chosen`: the place that gets a
    mark. `limit`: a score that gets a dashed line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(place, score) for place, score in points if math.isfinite(score)]
    figure = Figure(figsize=(8, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([place for place, _ in shown], [score for _, score in shown], marker=".", color="#1b6ca8")
    for place, score in shown:
        if place == chosen:
            axes.plot([place], [score], marker="o", markersize=10, color="#d95f02", label="chosen")
    if limit is not None:
        axes.axhline(limit, linestyle="--", color="#888888", label="bound")
    if chosen is not None or limit is not None:
        axes.legend(fontsize=8)
    axes.set_xlabel(over)
    axes.set_ylabel(name)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return _data_uri(stream.getvalue())


def _smooth(rows: list[dict[str, float]], key: str, width: int = 10) -> tuple[list[float], list[float]]:
    steps, values = [], []
    for end in range(len(rows)):
        window = [row[key] for row in rows[max(0, end - width + 1) : end + 1] if key in row]
        if window:
            steps.append(rows[end]["step"])
            values.append(sum(window) / len(window))
    return steps, values
