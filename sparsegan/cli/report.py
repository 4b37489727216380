"""Parts of the HTML pages of the demo and of compress: the page, tables, pictures and curves inside it."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


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


def table(head: list[str], lines: list[list[str]], bold: str | None = None) -> str:
    """An HTML table. `bold`: the first cell of the line that is bold."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=method' if line[0] == bold else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in lines
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def data_uri(png: bytes) -> str:
    """A data: address of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def picture_uri(picture: Tensor) -> str:
    """A data: address of the PNG of a picture, uint8 [H, W, 1 or 3]."""
    from PIL import Image

    array = picture.numpy()
    stream = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(stream, format="PNG")
    return data_uri(stream.getvalue())


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
            panel.plot(*smooth(history, key), linestyle=style, color="#1b6ca8")
        panel.set_title(term)
    panel = axes[len(terms)]
    panel.plot([row["step"] for row in history], [row["sparsity"] for row in history], color="#1b6ca8")
    panel.set_title("sparsity")
    panel.set_ylim(0, 1)
    for unused in axes[len(terms) + 1 :]:
        unused.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return data_uri(stream.getvalue())


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
    return data_uri(stream.getvalue())


def smooth(rows: list[dict[str, float]], key: str, width: int = 10) -> tuple[list[float], list[float]]:
    """The steps at which `rows` have the figure `key`, and the means of the figure over the last `width` rows."""
    steps, values = [], []
    for end in range(len(rows)):
        window = [row[key] for row in rows[max(0, end - width + 1) : end + 1] if key in row]
        if window:
            steps.append(rows[end]["step"])
            values.append(sum(window) / len(window))
    return steps, values
