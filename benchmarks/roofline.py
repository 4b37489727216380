"""Three layers against the limits of one core: counted work, measured time, and the parts of that time.

    cmake --build build/cpython-311 --target inner_loop      (the folder is named after the Python in use)
    python benchmarks/roofline.py [--json benchmarks/results/roofline.json]

The program needs AVX2. It splits a layer's time without a profiler: the same layer with a single kept weight runs
everything but the taps (packing, unpacking, allocating the output, the call). The difference is the time of the taps.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch

from sparsegan.benchmark import LAYERS, LayerCase
from sparsegan.clock import Clock
from sparsegan.nn.layer import SPARSE_CLASSES
from sparsegan.ops import native
from sparsegan.profiling.info import cpu_name
from sparsegan.profiling.layers import interleaved_ms

CASES = (LAYERS[1], LAYERS[4], LAYERS[9])
SPARSITY = 0.9
BUILD = Path("build") / str(sys.implementation.cache_tag)
TAPS = (4, 12, 29, 72, 288)


def stream_gbytes() -> float:
    """GB/s of a copy of 128 MB, counting read and written bytes."""
    source, target = torch.randn(2**25), torch.empty(2**25)
    return 2 * source.numel() * 4 / interleaved_ms(Clock(), [lambda: target.copy_(source)], 1.0)[0] * 1e-6


def measure(case: LayerCase, seconds: float, ceilings: dict[str, Any]) -> dict[str, Any]:
    """One layer: counts, times in milliseconds, and the ceilings as times."""
    torch.manual_seed(0)
    dense, x = case.dense().requires_grad_(False), case.input()
    mask = torch.rand(dense.weight.shape) >= SPARSITY
    one = torch.zeros_like(mask)
    one[0, 0, 0, 0] = True
    layers = [SPARSE_CLASSES[type(dense)].from_dense(dense, mask=m) for m in (mask, one)]
    for layer in layers:
        layer.backend = "sparse"
    y = layers[0](x)
    sites = x if case.transposed else y
    gflop = 2e-9 * layers[0].nnz * case.batch * sites.shape[2] * sites.shape[3]
    whole, without = interleaved_ms(Clock(), [lambda: layers[0](x), lambda: layers[1](x)], seconds)
    tensors = 4 * (x.numel() + y.numel())
    return {
        "layer": str(case),
        "nnz": layers[0].nnz,
        "gflop": gflop,
        "tensor_bytes": tensors,
        "weight_bytes": 8 * layers[0].nnz,
        "at_fma_peak_ms": gflop / ceilings["fma"] * 1e3,
        "at_fma_from_cache_ms": gflop / ceilings["fma_from_cache"] * 1e3,
        "at_stream_ms": tensors / ceilings["stream_gbytes"] * 1e-6,
        "whole_ms": whole,
        "without_taps_ms": without,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent per layer (default: 2)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    library = BUILD / "libinner_loop.so"
    if not library.exists():
        sys.exit(f"{library} is not built: cmake --build {BUILD} --target inner_loop")
    inner = ctypes.CDLL(str(library.resolve()))
    inner.fma_from_cache_gflops.restype = inner.sparse_conv_tile_gflops.restype = ctypes.c_double
    torch.set_num_threads(1)
    native.set_isa("avx2")
    ceilings: dict[str, Any] = {
        "fma": native.fma_gflops(),
        "fma_from_cache": inner.fma_from_cache_gflops(),
        "sparse_conv_tile": {str(taps): inner.sparse_conv_tile_gflops(taps) for taps in TAPS},
        "stream_gbytes": stream_gbytes(),
    }
    with torch.inference_mode():
        rows = [measure(case, options.seconds, ceilings) for case in CASES]
    print(json.dumps({"ceilings": ceilings, "rows": rows}, indent=1))
    if options.json:
        command = "python benchmarks/roofline.py --json benchmarks/results/roofline.json"
        facts = {"machine": cpu_name(), "isa": native.isa(), "torch": torch.__version__}
        report = {"command": command, **facts, "ceilings": ceilings, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
