"""The four numbers on which the design of the GPU kernels rests, measured before everything else.

python benchmarks/gpu_numbers.py [--json benchmarks/results/gpu_numbers.json]

The numbers are: bytes per second that programs gather from the second-level cache (L2), the rate of the tensor cores at
the shapes of the Triton kernels, clocks per tap in the loop of the CUDA kernels, and the time of a launch. Each row has
the number that the notes assume (csrc/cuda/NOTES.md, kernels/NOTES.md). A run that was stopped continues.

The clocks per tap come from benchmarks/native/tap_clocks.cu, which nvcc builds. Without nvcc these rows are left out,
and a line says so.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import shutil
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from sparsegan.kernels.tuned import DEFAULTS, Blocks
from torch import Tensor

from sparsegan.benchmark.gpu import GraphOfCalls, gpu_facts
from sparsegan.benchmark.results import Results, Row

SOURCE = Path(__file__).parent / "native" / "tap_clocks.cu"
#: What the notes assume of an H100: bytes per second from L2, the fraction of the matrix peak, instructions around the
#: FMAs of a tap, and seconds per launch.
L2_TBYTES, MATRIX_TFLOPS, AROUND_A_TAP, LAUNCH_US = 5.5, 0.6 * 989, 8, 3.0
#: Elements of a gathered row, and rows: 24 MiB in bfloat16, which L2 holds.
ROW, ROWS = 256, 24 * 2**20 // 512
#: Strip and step of the loops of csrc/cuda/steps.h, and the slots of the warp.
LOOPS = {(16, 1): 8, (8, 1): 16, (8, 2): 16}
TAPS = 512


@triton.jit
def gather_kernel(x, places, sums, steps, ROW: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds ``steps`` times ``BLOCK_K`` rows of ``x`` at the program's ``places``, past the first-level cache."""
    position, k = tl.arange(0, ROW), tl.arange(0, BLOCK_K)
    total = tl.full((BLOCK_K, ROW), 0.0, tl.float32)
    for step in range(steps):
        place = tl.load(places + (tl.program_id(0) * steps + step) * BLOCK_K + k)
        total += tl.load(x + place[:, None] * ROW + position[None, :], cache_modifier=".cg").to(tl.float32)
    tl.store(sums + (tl.program_id(0) * BLOCK_K + k[:, None]) * ROW + position[None, :], total)


@triton.jit
def product_kernel(  # type: ignore[no-untyped-def]
    x, values, y, steps, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr
):
    """``y = steps * (x @ values)``, with all operands in shared memory. x is [taps, positions], as in the kernels."""
    p, o, k = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_K)
    a = tl.load(x + k[None, :] * BLOCK_P + p[:, None])
    b = tl.load(values + k[:, None] * BLOCK_O + o[None, :])
    total = tl.full((BLOCK_P, BLOCK_O), 0.0, tl.float32)
    for _ in range(steps):
        total = tl.dot(a, b, total)
    place = tl.program_id(0) * BLOCK_P * BLOCK_O
    tl.store(y + place + p[:, None] * BLOCK_O + o[None, :], total)


@triton.jit
def empty_kernel(y):  # type: ignore[no-untyped-def]
    """Writes one element."""
    tl.store(y, 1.0)


def steps_of(taps: list[tuple[float, int]], slots: int) -> bytes:
    """The steps of taps (value, column * slots + slot), as csrc/cuda/steps.h lays them out, with their two ends."""
    return b"".join(struct.pack("<fI", *step) for step in [*taps, (0.0, 8 * slots + 1), (0.0, 8 * slots + 1)])


def random_taps(slots: int) -> list[tuple[float, int]]:
    """Taps in a random order of cases, with small whole numbers as values."""
    draw = random.Random(0)
    return [(float(draw.randrange(1, 9)), draw.randrange(8 * slots)) for _ in range(TAPS)]


def sums_of(taps: list[tuple[float, int]], strip: int, step: int, repeats: int) -> Tensor:
    """The sums [32 lanes, slots, strip] that ``tap_clocks`` must give."""
    slots = LOOPS[strip, step]
    columns = torch.arange(32.0)[:, None] + torch.arange(24.0)
    sums = torch.zeros(32, slots, strip)
    for value, which in taps:
        column, slot = divmod(which, slots)
        sums[:, slot] += repeats * value * columns[:, column : column + strip * step : step]
    return sums


def median_ms(call: Callable[[], Any], calls: int = 1) -> float:
    """Median milliseconds of one of ``calls`` calls within a CUDA graph."""
    graph = GraphOfCalls([call] * calls)
    return statistics.median(graph.ms() for _ in range(20))


def programs() -> int:
    """Eight programs per multiprocessor."""
    return 8 * torch.cuda.get_device_properties().multi_processor_count


def gather(block: int, steps: int = 256) -> Row:
    """TB/s of rows of 512 bytes at random places of 24 MiB."""
    x = torch.randn(ROWS, ROW, device="cuda").bfloat16()
    places = torch.randint(ROWS, (programs(), steps, block), device="cuda", dtype=torch.int32)
    sums = torch.empty(programs(), block, ROW, device="cuda")
    call = partial(gather_kernel[(programs(),)], x, places, sums, steps, ROW=ROW, BLOCK_K=block, num_warps=4)
    call()
    torch.testing.assert_close(sums[0], x[places[0].long()].float().sum(0), rtol=1e-3, atol=1e-2)
    return {"tbytes_s": places.numel() * ROW * 2 / median_ms(call) / 1e9, "assumed": L2_TBYTES}


def products(blocks: Blocks, width: int, steps: int = 4096) -> Row:
    """TFLOP/s of one tile of the vector kernels per program, in bfloat16."""
    p, k = blocks.positions, blocks.taps
    x, values = (torch.randn(k, n, device="cuda").bfloat16() for n in (p, width))
    y = torch.empty(programs(), p, width, device="cuda")
    shape = {"BLOCK_P": p, "BLOCK_O": width, "BLOCK_K": k, "num_warps": blocks.warps}
    call = partial(product_kernel[(programs(),)], x, values, y, steps, **shape)
    call()
    torch.testing.assert_close(y[0] / steps, x.float().T @ values.float(), rtol=1e-2, atol=1e-2)
    rate = 2 * programs() * steps * p * width * k / median_ms(call) / 1e9
    return {"tflops": rate, "assumed": MATRIX_TFLOPS}


def build(nvcc: str, folder: str, architecture: str = "native") -> Path:
    """Compiles ``tap_clocks.cu`` to a library. Without -jtd, nvcc compares where the loop should jump."""
    library = Path(folder) / "tap_clocks.so"
    options = ["-std=c++17", "-O3", f"-arch={architecture}", "-jtd=1", "-shared", "-Xcompiler=-fPIC"]
    subprocess.run([nvcc, *options, SOURCE, "-o", library], check=True)
    return library


def tap(library: ctypes.CDLL, strip: int, step: int, blocks: int, repeats: int = 256) -> Row:
    """Clocks per tap. With ``blocks`` blocks per multiprocessor, so many warps share one scheduler."""
    slots, count = LOOPS[strip, step], blocks * torch.cuda.get_device_properties().multi_processor_count
    taps = random_taps(slots)
    steps = torch.frombuffer(bytearray(steps_of(taps, slots)), dtype=torch.int64).cuda()
    sums = torch.zeros(count, 4, 32, slots, strip, device="cuda")
    clocks = torch.zeros(count, 4, device="cuda", dtype=torch.int64)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (steps, sums, clocks)]
    torch.cuda.synchronize()
    for _ in range(2):  # the first call loads the code
        error = library.tap_clocks(strip, step, pointers[0], len(steps), repeats, count, *pointers[1:])
        if error:
            raise RuntimeError(f"tap_clocks: {error.decode()}")
        torch.cuda.synchronize()
    torch.testing.assert_close(sums[-1, -1].cpu(), sums_of(taps, strip, step, repeats), rtol=1e-5, atol=0)
    per_tap = float(clocks.double().median()) / (repeats * TAPS * blocks)
    return {"clocks": per_tap, "beyond_the_fmas": per_tap - strip, "assumed": strip + AROUND_A_TAP}


def launches(graph: bool) -> Row:
    """Microseconds per launch of an empty kernel: from Python one after the other, or as nodes of a CUDA graph."""
    y = torch.empty(1, device="cuda")
    call = partial(empty_kernel[(1,)], y, num_warps=1)
    if graph:
        return {"us": 1e3 * median_ms(call, 500), "assumed": LAUNCH_US}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(20):
        begin.record()
        for _ in range(500):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 500)
    return {"us": 1e3 * statistics.median(times), "assumed": LAUNCH_US}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    command = "python benchmarks/gpu_numbers.py" + (f" --json {options.json}" if options.json else "")
    results = Results(command, options.json, gpu_facts(), {})

    def measure(name: Row, function: Callable[..., Row], *arguments: Any) -> None:
        row = results.row(name, partial(function, *arguments))
        print(", ".join(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in row.items()), flush=True)  # fmt: skip

    for block in (16, 32, 64):
        measure({"number": "gather from L2", "rows at a time": block}, gather, block)
    for width in (64, 32, 16):
        blocks = DEFAULTS["sparse_conv", 2, width]
        measure({"number": "tensor cores", "vector": width, "positions": blocks.positions}, products, blocks, width)
    for graph in (False, True):
        measure({"number": "launch", "in a graph": graph}, launches, graph)
    if nvcc := shutil.which("nvcc"):
        with tempfile.TemporaryDirectory() as folder:
            library = ctypes.CDLL(str(build(nvcc, folder)))
            library.tap_clocks.restype = ctypes.c_char_p
            for (strip, step), warps in ((loop, warps) for loop in LOOPS for warps in (1, 3)):
                name = {"number": "tap", "strip": strip, "step": step, "warps per scheduler": warps}
                measure(name, tap, library, strip, step, warps)
    else:
        print("gpu_numbers.py: there is no nvcc on PATH; the clocks per tap are left out")
    results.finish()


if __name__ == "__main__":
    main()
