"""The files that `sparsegan compress` writes about a finished run: report.html and result.json."""

from __future__ import annotations

import argparse
import html
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_files import write_json, write_text
from ..gans.objective import Objective
from ..metrics.likeness import FAR
from ..nn.layer import SparseConv
from ..placement import device_of, moved
from ..profiling.info import info, peak_bytes
from ..profiling.layers import profile
from ..profiling.macs import count_macs
from .loading import NO_DATA, inputs_of
from .report import facts_table, layer_table, page, picture_uri, table, term_curves
from .verdict import Verdict

#: The settings that the report shows.
SETTINGS = (
    *("size", "recipe", "granularity", "allocation", "sparsity", "steps", "batch"),
    *("lr", "discriminator_lr", "warm_up", "seed"),
)


@dataclass(frozen=True)
class Finished:
    """A finished run.

    `task`: the name of the reference GAN. `data`: the data set of the fine-tuning. `generators`: "dense" and
    "compressed". `few`: a batch of inputs for the times of the layers. `scores`: by generator and name, from
    --features. `picture`: uint8 [H, W, 3]. `split`: the data of the picture, in words. `history`: the figures of every
    step.
    """

    task: str
    data: str
    generators: dict[str, nn.Module]
    objective: Objective
    few: Any
    scores: dict[str, dict[str, float]]
    verdict: Verdict
    picture: Tensor
    split: str
    history: list[dict[str, float]] = field(default_factory=list)


def write_result(arguments: argparse.Namespace, finished: Finished) -> None:
    """Write report.html and result.json into the run directory."""
    compressed = finished.generators["compressed"]
    batch = moved(finished.few, device_of(generator=compressed))
    inputs = inputs_of(compressed, lambda: finished.objective.generate(compressed, batch))
    sizes = {name: _size(arguments, name, net, inputs) for name, net in finished.generators.items()}
    facts = {"data": finished.data} | {name: getattr(arguments, name) for name in SETTINGS}
    result = {
        **finished.verdict.to_dict(),
        "generators": {name: size | {"scores": finished.scores[name]} for name, size in sizes.items()},
        "settings": {name: value if _plain(value) else str(value) for name, value in facts.items()},
    }
    write_json(arguments.out / "result.json", result)

    head = ["generator", "sparsity", "weights", "MACs per image", "file", *finished.scores["dense"]]
    lines = [
        [
            name,
            f"{size['sparsity']:.1%}",
            f"{size['weights']:,}",
            f"{size['macs'] / 1e6:,.1f} M",
            f"{size['bytes'] / 1e6:.2f} MB",
            *(f"{value:.4g}" for value in finished.scores[name].values()),
        ]
        for name, size in sizes.items()
    ]
    layers = [asdict(row) for row in profile(compressed, inputs, seconds=0.05).rows]
    device = device_of(generator=finished.generators["dense"])
    running = {"device": device, "threads": torch.get_num_threads()}
    running |= {"peak memory": f"{peak_bytes(device) / 1e6:,.0f} MB"}
    curves = "<p>not fine-tuned</p>"
    if finished.history:
        curves = f'<img class="plot" alt="curves" src="{term_curves(finished.history)}">'
    verdict = finished.verdict
    warned = ' class="far"' if verdict.level == FAR else ""
    body = f"""<p{warned}><strong>{html.escape(verdict.line[0].upper() + verdict.line[1:])}.</strong></p>
<div class="wide">{table(*verdict.rows())}</div>
<p>Each generator is compared with the original on the same {verdict.images} inputs: {html.escape(verdict.inputs)}. The
mean image is the best that a generator which ignores its inputs could give. An edge energy below 1 means softer images
than the original's.</p>
<div class="wide">{table(head, lines)}</div>
<p>Sparsity and weights are those of the convolutions. The size of the dense file is that of its float32 tensors.</p>
<h2>Dense and compressed, from the same inputs ({finished.split} data)</h2>
<img alt="samples" src="{picture_uri(finished.picture)}">
<h2>Terms over the fine-tuning</h2>
{curves}
<p>Solid: the terms of the compressed generator. Dotted: the terms of the original generator, by the same discriminator.
Smoothed over 10 steps.</p>
<h2>Layers of the compressed generator (batch of {len(inputs[0])}, forward)</h2>
<div class="wide">{layer_table(layers)}</div>
<h2>Settings</h2>
{facts_table(facts)}
<h2>Machine</h2>
{facts_table({**info(), **running})}"""
    data = "without data" if finished.data == NO_DATA else f"on {finished.data}"
    title = f"{finished.task} at {arguments.sparsity:.0%} sparsity, {data}"
    write_text(arguments.out / "report.html", page(title, body))


def _size(arguments: argparse.Namespace, name: str, generator: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Sparsity and number of the convolutions' kept weights, MACs of one image, and bytes of the file."""
    weights, kept = (sum(numbers) for numbers in zip(*_weights(generator), strict=True))
    if name == "compressed":
        size = (arguments.out / "generator.safetensors").stat().st_size
    else:
        size = sum(tensor.numel() * tensor.element_size() for tensor in generator.state_dict().values())
    macs = count_macs(generator, tuple(x[:1] for x in inputs)).executed
    return {"sparsity": 1 - kept / weights, "weights": kept, "macs": macs, "bytes": size}


def _weights(generator: nn.Module) -> Iterator[tuple[int, int]]:
    """The pair (number of weights, number of kept weights) of every convolution."""
    for module in generator.modules():
        if isinstance(module, SparseConv):
            yield math.prod(module.weight_shape), module.nnz
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield module.weight.numel(), module.weight.numel()


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | dict)
