"""Measured time of every layer, sparse and dense, and the backend that ``auto`` takes for it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..nn.layer import SparseConv
from ..renamed import renamed_attribute, with_new_names
from ..signals import IMAGE
from .macs import layer_macs, visit_layers


@dataclass(frozen=True)
class LayerProfile:
    """One sparse layer: its geometry, its cost, and what runs. Times are milliseconds per forward of the example."""

    name: str
    kind: str
    geometry: str
    nnz: int
    sparsity: float
    dense_macs: int
    executed_macs: int
    backend: str
    why: str
    dense_ms: float
    sparse_ms: float
    kernel = renamed_attribute("kernel", "backend")

    def __setstate__(self, written: dict[str, Any]) -> None:
        self.__dict__.update(with_new_names(written))

    @property
    def faster(self) -> str:
        """The faster backend, as measured."""
        return "sparse" if self.sparse_ms <= self.dense_ms else "dense"


@dataclass
class ProfileReport:
    """One row per layer, the machine's thread count, and the model's device. ``str()`` is a table."""

    threads: int
    rows: list[LayerProfile] = field(default_factory=list)
    device: str = "cpu"

    def __str__(self) -> str:
        head = f"{'layer':<14}{'kind':<23}{'geometry':<40}{'nnz':>9}{'sparsity':>9}{'dense ms':>10}{'sparse ms':>10}"
        lines = [f"{head}  backend"]
        for r in self.rows:
            lines.append(
                f"{r.name:<14}{r.kind:<23}{r.geometry:<40}{r.nnz:>9,}{r.sparsity:>9.3f}"
                f"{r.dense_ms:>10.3f}{r.sparse_ms:>10.3f}  {r.backend} ({r.why})"
            )
        where = f"{self.threads} thread(s)" if self.device == "cpu" else self.device
        lines.append(f"{where}; medians of interleaved runs")
        return "\n".join(lines)


def interleaved_ms(
    clock: Clock, functions: Sequence[Callable[[], Any]], seconds: float = 0.2, least: int = 5, rest: float = 0.0
) -> list[float]:
    """Median milliseconds of each function, timed as :func:`interleaved_times` does."""
    return [statistics.median(own) for own in interleaved_times(clock, functions, seconds, least, rest)]


def interleaved_times(
    clock: Clock, functions: Sequence[Callable[[], Any]], seconds: float = 0.2, least: int = 5, rest: float = 0.0
) -> list[list[float]]:
    """Milliseconds of every call of each function. The functions run in turns, so that a change of the machine's clock
    rate affects all of them alike.

    ``clock`` knows the devices on which the functions queue work: each call is timed until the devices have done it.

    With a ``rest`` (seconds) each timed call follows a pause and an untimed call of the same function. The thread pools
    of other engines spin for a while after their work; the pause lets them release the cores.
    """
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    end = clock.seconds() + seconds
    while len(times[0]) < least or clock.seconds() < end:
        for function, own in zip(functions, times, strict=True):
            if rest:
                time.sleep(rest)
                function()
            own.append(clock.ms(function))
    return times


def profile(model: nn.Module, example: Any, seconds: float = 0.2) -> ProfileReport:
    """Times every sparse layer of a model on the inputs it gets, with the sparse kernels and as a dense torch layer.

    Args:
        model: any module with sparse layers; it is not changed.
        example: the model's input, a tensor or a tuple of arguments.
        seconds: time spent per layer.

    Dense time is that of the faster of torch's NCHW and channels_last convolution, without the layout's conversion; a
    signal has one layout. On
    a GPU a time is that of a single call with its launches; in a CUDA graph small layers take less.
    """
    report = ProfileReport(torch.get_num_threads())

    def visit(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        if not isinstance(module, SparseConv) or x.dim() != module.dims + 2:
            return
        choice = module.choose(tuple(x.shape), tuple(y.shape[2:]))
        x = x.contiguous()
        report.device = str(x.device)
        dense = [partial(module.to_dense(), x)]
        if x.dim() == IMAGE:
            last: Any = module.to_dense()
            last.to(memory_format=torch.channels_last)
            dense.append(partial(last, x.contiguous(memory_format=torch.channels_last)))
        # The copy has no hooks: the layer itself would call this visitor again.
        layer = copy.deepcopy(module)
        layer._forward_hooks.clear()
        layer.backend = "sparse"
        times = interleaved_ms(Clock(layer, x), [partial(layer, x), *dense], seconds)
        dense_macs, executed = layer_macs(module, x, y)
        report.rows.append(
            LayerProfile(
                name or type(module).__name__,
                type(module).__name__,
                _describe(module, x),
                module.nnz,
                module.sparsity,
                dense_macs,
                executed,
                choice.backend,
                choice.why,
                min(times[1:]),
                times[0],
            )
        )

    visit_layers(model, example, visit)
    return report


def tune(model: nn.Module, example: Any, seconds: float = 0.2) -> ProfileReport:
    """Measures every sparse layer as :func:`profile` does and pins the faster backend on it (``layer.backend``)."""
    report = profile(model, example, seconds)
    layers = dict(model.named_modules())
    for row in report.rows:
        layer = layers.get(row.name, model)
        assert isinstance(layer, SparseConv)
        layer.backend = row.faster
    return report


def _describe(module: SparseConv, x: Tensor) -> str:
    kernel, stride = ("x".join(map(str, pair)) for pair in (module.kernel_size, module.stride))
    size = "x".join(map(str, x.shape[2:]))
    text = f"{module.in_channels}->{module.out_channels} {kernel} s{stride} @{size} batch {x.shape[0]}"
    return text + (f" groups {module.groups}" if module.groups > 1 else "") + _dilation(module)


def _dilation(module: SparseConv) -> str:
    return f" dilation {module.dilation}" if math.prod(module.dilation) > 1 else ""
