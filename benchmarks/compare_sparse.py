"""Times two other ways to run sparse weights on the same layers at 90 %, forward, on one thread.

    cmake --build build/cpython-311 --target through_memory      (the folder is named after the Python in use)
    python benchmarks/compare_sparse.py [--seconds 1] [--json benchmarks/results/comparison.json]

torch.sparse      the weight in CSR times the columns of F.unfold; a transposed convolution multiplies the image by the
                  weight, then runs F.fold
through memory    the approach of SparseProp: for every kept weight, a row of the output += weight * shifted row of the
                  input, in vectors over neighbouring pixels (native/through_memory.cpp). SparseProp has no transposed
                  convolution.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsegan.benchmark import LAYERS, Job, Results, facts
from sparsegan.benchmark.engines import timed
from sparsegan.benchmark.layers import both_layers, check_same, multiplications
from sparsegan.ops import native

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path("build") / str(sys.implementation.cache_tag)

Dense = nn.Conv2d | nn.ConvTranspose2d


def torch_csr(dense: Dense, x: Tensor) -> Callable[[], Tensor]:
    """The layer as a call of ``torch.sparse``: one sparse product per image."""
    kernel = tuple(dense.kernel_size)
    padding = dense.padding
    stride = tuple(dense.stride)
    assert isinstance(padding, tuple)
    bias = dense.bias
    assert bias is not None
    height, width = dense(x).shape[2:]
    weight = dense.weight.detach().flatten(1)
    transposed = isinstance(dense, nn.ConvTranspose2d)
    csr = (weight.t() if transposed else weight).contiguous().to_sparse_csr()

    def conv() -> Tensor:
        columns = F.unfold(x, kernel, padding=padding, stride=stride)
        y = torch.stack([csr @ image for image in columns]).view(x.shape[0], -1, height, width)
        return y.add_(bias.view(-1, 1, 1))

    def conv_transpose() -> Tensor:
        columns = torch.stack([csr @ image for image in x.flatten(2)])
        y = F.fold(columns, (height, width), kernel, padding=padding, stride=stride)
        return y.add_(bias.view(-1, 1, 1))

    return conv_transpose if transposed else conv


def through_memory(dense: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    """The layer as a call of native/through_memory.cpp."""
    file = ROOT / BUILD / "libthrough_memory.so"
    if not file.exists():
        raise SystemExit(f"{file.name} is not built: cmake --build {BUILD} --target through_memory")
    forward = ctypes.CDLL(str(file)).through_memory_forward
    assert dense.bias is not None
    assert isinstance(dense.padding, tuple)
    bias, padding = dense.bias.detach(), torch.tensor([0, *dense.padding])
    place = dense.weight.detach().nonzero()  # [nnz, 4]: output channel, input channel, kernel row and column
    counts = torch.bincount(place[:, 0], minlength=dense.out_channels)
    rows = F.pad(counts.cumsum(0), (1, 0)).int().numpy()
    taps = (place[:, 1:] - padding).int().contiguous().numpy()
    values = dense.weight.detach()[tuple(place.t())].contiguous()
    shape = dense(x).shape

    def pointer(array: Tensor | np.ndarray[Any, Any]) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data)

    def sizes(*numbers: int) -> list[ctypes.c_int64]:
        return [ctypes.c_int64(number) for number in numbers]

    def conv() -> Tensor:
        y = torch.empty(shape)
        kept = [pointer(array) for array in (bias, rows, taps, values)]
        calls = sizes(dense.stride[0], x.shape[0])
        if forward(pointer(x), *sizes(*x.shape[1:]), *kept, *calls, pointer(y), *sizes(*shape[1:])):
            raise ValueError(f"stride is {dense.stride[0]}; through_memory.cpp has 1 and 2")
        return y

    return conv


def compare(job: Job, seconds: float) -> dict[str, Any]:
    """Milliseconds of each way, timed in turns; ``None`` for a way that does not have the layer."""
    layer, dense, x = both_layers(job)
    with torch.inference_mode():
        y = dense(x)
        ways: dict[str, Callable[[], Tensor]] = {"sparse": lambda: layer(x), "torch_csr": torch_csr(dense, x)}
        if isinstance(dense, nn.Conv2d):
            ways["through_memory"] = through_memory(dense, x)
        for name, way in ways.items():
            check_same(way(), y, f"{job.case}: the output of {name}")
        timings = dict(zip(ways, timed(list(ways.values()), seconds), strict=True))
    row: dict[str, Any] = {}
    for name in ("sparse", "torch_csr", "through_memory"):
        row[f"{name}_ms"] = timings[name].median if name in timings else None
        row[f"{name}_quartiles_ms"] = timings[name].quartiles if name in timings else None
    return {**row, "gflops": 2e-6 * multiplications(layer, x, y) / timings["sparse"].median}


def main() -> None:
    parser = argparse.ArgumentParser(description="Other ways to run sparse weights, at 90 %, forward, on one thread.")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent per layer (default: 1)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    torch.set_num_threads(1)
    command = f"cmake --build {BUILD} --target through_memory && python benchmarks/compare_sparse.py"
    command += f" --seconds {options.seconds:g}" if options.seconds != 1 else ""
    command += f" --json {options.json}" if options.json else ""
    results = Results(command, options.json, facts(), {"fma_peak_gflops_a_core": native.fma_gflops()})
    print(f"{'layer':<43}{'sparse ms':>10}{'torch.sparse ms':>24}{'through memory ms':>24}")
    for job in (Job(case, 0.9, "element", 1) for case in LAYERS):
        row = results.row(job.name, partial(compare, job, options.seconds))
        own, others = row["sparse_ms"], (row["torch_csr_ms"], row["through_memory_ms"])
        cells = "".join(f"{'-' if ms is None else f'{ms:.2f} ({ms / own:.1f}x)':>24}" for ms in others)
        print(f"{row['layer']:<43}{own:>10.2f}{cells}", flush=True)
    results.finish()


if __name__ == "__main__":
    main()
