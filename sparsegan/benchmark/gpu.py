"""Layers on an NVIDIA GPU against the best dense cuDNN call of the same run, and the ceilings of that GPU.

Each time is that of one call inside a CUDA graph of several calls. The calls use separate buffers, which together are
larger than the second-level cache. A time therefore excludes launches, and a call finds no more data in the cache than
a caller's call would. Dense is torch's own layer, zeros in place, in both memory layouts (its tensors are converted
beforehand) and at every precision, with ``cudnn.benchmark``. Kept units are at random places with random values.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import kernels, ops
from ..nn.granularity import units_of
from ..nn.layer import SPARSE_CLASSES, SparseConv
from .cases import LAYERS, LayerCase
from .engines import Timing
from .results import Row

#: Name -> the dtype of the tensors, and whether float32 products may be rounded to TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, True),
}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

#: CycleGAN's residual block and last-but-one layers at their usual sizes, and first layers of large generators.
_MORE = (
    LayerCase(256, 128, 4, 2, 1, 64, 1, target=0, transposed=True),
    LayerCase(1024, 512, 4, 2, 1, 4, 1, target=0, transposed=True),
    LayerCase(1024, 1024, 3, 1, 1, 8, 1, target=0),
)


def gpu_layers(batches: tuple[int, ...] = (1, 16, 64)) -> list[LayerCase]:
    """The layers of the CPU table and some larger layers, each at every batch size."""
    distinct = dict.fromkeys(replace(case, batch=1, target=0) for case in (*LAYERS, *_MORE))
    return [replace(case, batch=batch) for case in distinct for batch in batches]


@dataclass(frozen=True)
class GpuJob:
    """One row: a layer, a sparsity, a granularity and a precision; forward, or forward and backward."""

    case: LayerCase
    sparsity: float
    granularity: str
    precision: str
    training: bool = False

    @property
    def name(self) -> Row:
        """The fields that identify its row within a run."""
        return {
            "layer": str(self.case),
            "sparsity": self.sparsity,
            "granularity": self.granularity,
            "precision": self.precision,
            "pass": "training" if self.training else "forward",
        }


def gpu_jobs(layers: str = "", batches: tuple[int, ...] = (1, 16, 64)) -> list[GpuJob]:
    """Every row: 90 % in each granularity, and the sparsities that have a target.

    Args:
        layers: parts of layer names, separated by commas; the empty string selects every layer.

    Raises:
        ValueError: no layer's name contains a part.
    """
    parts = [part.strip() for part in layers.split(",")]
    cases = [case for case in gpu_layers(batches) if any(part in str(case) for part in parts)]
    if not cases:
        names = "; ".join(map(str, gpu_layers(batches)))
        raise ValueError(f"--layers is {layers!r}; it must be a part of a layer's name, one of: {names}")
    kinds = [("element", "fp32"), ("element", "bf16"), *((f"vector:{v}", "bf16") for v in (16, 32, 64))]
    jobs = [
        GpuJob(case, 0.9, granularity, precision, training)
        for training in (False, True)
        for case in cases
        for granularity, precision in kinds
    ]
    for case in cases:
        jobs += [GpuJob(case, 0.95, "element", "fp32"), GpuJob(case, 0.75, "vector:64", "bf16")]
    return [job for job in jobs if _fits(job)]


def _fits(job: GpuJob) -> bool:
    """Whether the number of output channels is a multiple of the vector."""
    return job.case.c_out % units_of(job.granularity).outputs == 0


#: The layers for which the vector kernels are made, and their target speed-ups at batch 16.
_VECTOR_LAYERS = ("256->256 3x3 @64x64", "256->256 3x3 @32x32", "256->128 transposed 4x4 s2 @64x64")
_VECTORS = {
    (0.9, "vector:64"): 3.0,
    (0.9, "vector:32"): 2.5,
    (0.9, "vector:16"): 1.8,
    (0.75, "vector:64"): 1.6,
}
_TRAINING_VECTORS = 2.0
#: Target speed-ups of elements at 256 channels and more than 8x8 outputs, against dense of each precision.
_ELEMENTS = {0.9: {"fp32": 3.0, "tf32": 1.0}, 0.95: {"tf32": 1.5}}
#: The target of a generator's first layers (512 channels and more, maps up to 8x8), batch 1, 90 %, same precision.
_EARLY = 2.0


def gpu_targets(job: GpuJob) -> dict[str, float]:
    """The target speed-ups of a row over the best dense call of each precision; empty if the row has no target."""
    case, name = job.case, str(job.case).rpartition(" batch")[0]
    if case.batch == 1 and case.c_in >= 512 and case.size <= 8:
        return {job.precision: _EARLY} if job.sparsity == 0.9 and not job.training else {}
    if job.granularity != "element":
        if case.batch != 16 or name not in _VECTOR_LAYERS:
            return {}
        asked = _VECTORS.get((job.sparsity, job.granularity))
        if job.training and asked is not None:
            asked = _TRAINING_VECTORS if job.sparsity == 0.9 else None
        return {} if asked is None else {"bf16": asked}
    wide = case.c_in >= 256 and case.size > 8 and case.batch == 16
    return _ELEMENTS.get(job.sparsity, {}) if wide and job.precision == "fp32" and not job.training else {}


def _build() -> str:
    """A hash of the kernels: the CUDA object and the Triton sources."""
    files = [ops.cuda_library(), *sorted(Path(kernels.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file is not None)).hexdigest()[:16]


def gpu_facts() -> Row:
    """The facts on which the figures depend. Raises ``RuntimeError`` without a CUDA device."""
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is there; `sparsegan bench gpu` needs one")
    properties = torch.cuda.get_device_properties()
    return {
        "machine": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": importlib.metadata.version("triton"),
        "build": _build(),
    }


@contextmanager
def _precision(name: str) -> Iterator[torch.dtype]:
    """A context in which dense convolutions and matrix products of float32 run at that precision."""
    dtype, tf32 = PRECISIONS[name]
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    try:
        yield dtype
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before


class GraphOfCalls:
    """Several calls in one CUDA graph. ``ms()`` returns the milliseconds of one call."""

    def __init__(self, calls: list[Callable[[], Any]]) -> None:
        self.count = len(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # cuDNN chooses its algorithms, and plans are compiled
            for _ in range(3):
                calls[0]()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for call in calls:
                call()
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def ms(self) -> float:
        self.begin.record()
        self.graph.replay()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end) / self.count


def _buffers(x: Tensor) -> list[Tensor]:
    """Tensors like ``x`` with random numbers, together at least twice the second-level cache; from 2 to 64 of them."""
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    count = min(64, max(2, -(-2 * cache // (x.numel() * x.element_size()))))
    return [torch.randn_like(x) for _ in range(count)]


def _calls(layer: nn.Module, x: Tensor, training: bool) -> list[Callable[[], Any]]:
    """One call per buffer: forward, or forward and backward (gradients in the input and the weights)."""
    if not training:
        return [partial(layer, one) for one in _buffers(x)]
    weight: Any = layer.values if isinstance(layer, SparseConv) else layer.weight
    with torch.no_grad():
        gy = torch.randn_like(layer(x))

    def both(one: Tensor) -> Any:
        return torch.autograd.grad(layer(one), (one, weight), gy)

    return [partial(both, one.requires_grad_()) for one in _buffers(x)]


def time_gpu(job: GpuJob, seconds: float) -> Row:
    """Milliseconds of the sparse layer, and of dense at every precision and layout; ratios and their targets.

    ``sparse_ms`` is the time of the sparse kernel, ``auto_ms`` that of the backend that ``auto`` takes.
    """
    torch.manual_seed(0)
    dense = job.case.dense()
    mask = job.case.mask(job.sparsity, job.granularity)
    with torch.no_grad():
        dense.weight.mul_(mask)
    dense, x = dense.cuda(), job.case.input().cuda()
    assert dense.bias is not None
    dense.bias.requires_grad_(False)
    graphs: dict[str, GraphOfCalls] = {}
    with torch.set_grad_enabled(job.training):
        with _precision(job.precision) as dtype:
            layer = SPARSE_CLASSES[type(dense)].from_dense(dense, granularity=job.granularity, mask=mask.cuda())
            layer, own = layer.to(dtype), x.to(dtype)
            with torch.no_grad():
                y = layer(own)
                check_close(y, copy.deepcopy(dense).double()(own.double()), dtype, job)
            choice = layer.choose(tuple(own.shape), (y.shape[2], y.shape[3]))
            if choice.backend != "sparse":
                graphs["auto"] = GraphOfCalls(_calls(layer, own, job.training))
            layer.backend = "sparse"
            graphs["sparse"] = GraphOfCalls(_calls(layer, own, job.training))
        for name in PRECISIONS:
            with _precision(name) as dtype:
                for layout, memory_format in LAYOUTS.items():
                    other, theirs = copy.deepcopy(dense).to(dtype), x.to(dtype).contiguous(memory_format=memory_format)
                    other.weight.data = other.weight.data.contiguous(memory_format=memory_format)
                    graphs[f"{name} {layout}"] = GraphOfCalls(_calls(other, theirs, job.training))
    timings = dict(zip(graphs, _timed(list(graphs.values()), seconds), strict=True))
    sparse = timings.pop("sparse")
    auto = timings.pop("auto", sparse)
    best = {
        name: min((label for label in timings if label.startswith(name)), key=lambda label: timings[label].median)
        for name in PRECISIONS
    }
    ratios = {name: timings[label].median / sparse.median for name, label in best.items()}
    targets = gpu_targets(job)
    return {
        "sparse_ms": sparse.median,
        "sparse_quartiles_ms": sparse.quartiles,
        "auto_ms": auto.median,
        "dense_ms": {label: timing.median for label, timing in timings.items()},
        "best_dense": best,
        "ratios": ratios,
        "targets": targets,
        "holds": all(ratios[name] >= asked for name, asked in targets.items()) if targets else None,
        "backend": choice.backend,
        "why": choice.why,
        "tflops": 2e-9 * layer.nnz * _sites(job.case, y) * (3 if job.training else 1) / sparse.median,
    }


def _sites(case: LayerCase, y: Tensor) -> int:
    """The number of elements of the coarse grid. Every kept weight meets each of them once."""
    return case.batch * (case.size**2 if case.transposed else y.shape[2] * y.shape[3])


def check_close(ours: Tensor, exact: Tensor, dtype: torch.dtype, job: GpuJob) -> None:
    """Raises ``RuntimeError`` if a layer computes wrong results, so that no wrong layer is timed."""
    error = float((ours.double() - exact).norm() / exact.norm())
    allowed = 1e-2 if dtype == torch.bfloat16 else 2e-3 if job.granularity != "element" else 1e-5
    if not error < allowed:
        raise RuntimeError(f"{job.case}, {job.granularity}: the output differs from float64 by {error:.1e} of its norm")


def _timed(graphs: list[GraphOfCalls], seconds: float) -> list[Timing]:
    """Times every graph in turns, until the time is up and each graph ran at least ten times."""
    times: list[list[float]] = [[] for _ in graphs]
    spent = 0.0
    while len(times[0]) < 10 or spent < seconds:
        for graph, own in zip(graphs, times, strict=True):
            own.append(graph.ms())
            spent += own[-1] * graph.count / 1e3
    timings = []
    for own in times:
        first, middle, third = statistics.quantiles(own, n=4, method="inclusive")
        timings.append(Timing(middle, (first, third)))
    return timings


def gpu_ceilings() -> Row:
    """Measured TB/s of a device-to-device copy (read and written), and measured TFLOP/s of a large matrix product.

    The matrices have 8192 by 8192 random numbers. The product is measured at every precision.
    """

    def median(call: Callable[[], Any]) -> float:
        graph = GraphOfCalls([call])
        return statistics.median(graph.ms() for _ in range(10))

    source, target = torch.randn(2, 2**28, device="cuda")
    report: Row = {"copy_tbytes_s": 2 * source.numel() * 4 / median(partial(target.copy_, source)) / 1e9}
    for name in PRECISIONS:
        with _precision(name) as dtype:
            a, b = torch.randn(2, 8192, 8192, device="cuda").to(dtype)
            report[f"matrix_tflops_{name}"] = 2 * 8192**3 / median(partial(torch.matmul, a, b)) / 1e9
    return report
