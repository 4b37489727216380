"""Measures block sizes on this machine's GPU and rewrites ``tuned_table.py``.

    python -m sparsegan.benchmark.tune_kernels --seconds 420

The program tunes the layers of ``sparsegan bench gpu`` at 90 % with vectors of 16, 32 and 64, the largest layer first,
and writes the table after each layer. If it was stopped or ran out of time, the next call continues there; ``--again``
starts over.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from sparsegan import nn
from sparsegan.atomic_files import write_text
from sparsegan.benchmark.gpu import gpu_layers

from ..geometry import Direction
from ..kernels import tuned_table
from ..kernels.sparse_conv import sparse_conv_kernel
from ..kernels.tiling import call_key, sparse_conv_launch, wgrad_launch
from ..kernels.tuned import Blocks, Key
from ..kernels.wgrad import wgrad_kernel
from ..ops.vector_plan import compile_plan

VECTORS = (64, 32, 16)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

#: The block sizes to try, by op. They are few, because each is compiled for each layer.
CHOICES = {
    "sparse_conv": [
        Blocks(256, 32, 4, 3, 1),
        Blocks(256, 32, 8, 3, 2),
        Blocks(256, 16, 8, 3, 4),
        Blocks(256, 16, 8, 2, 8),
        Blocks(128, 32, 4, 3, 1),
        Blocks(128, 32, 4, 3, 2),
        Blocks(128, 16, 4, 3, 4),
        Blocks(64, 64, 4, 3, 1),
    ],
    "wgrad": [
        Blocks(64, 64, 4, 3),
        Blocks(128, 64, 4, 3),
        Blocks(64, 128, 8, 3),
        Blocks(64, 32, 4, 4),
        Blocks(32, 32, 2, 4),
    ],
}


@dataclass(frozen=True)
class Case:
    """One call to tune: an op, and everything on which its launch depends."""

    op: str
    d: Direction
    support: torch.Tensor
    images: int
    sizes: tuple[tuple[int, int], tuple[int, int]]  # of the source, of the target
    dtype: torch.dtype

    @property
    def key(self) -> Key:
        return call_key(self.op, self.d, self.support.shape[0], self.images, self.sizes[1], self.dtype)

    @property
    def work(self) -> int:
        (rows, width), vector = self.sizes[1], self.d.geometry.vector
        return self.images * rows * width * self.support.shape[0] * vector

    def run(self) -> Callable[[Blocks], Callable[[], Any]]:
        """Makes the tensors, and returns a function from block sizes to a call."""
        d, units = self.d, self.support.shape[0]
        plan = compile_plan(self.support.cuda(), d.geometry, d.adjoint)
        x = torch.randn(self.images, d.sources, *self.sizes[0], device="cuda", dtype=self.dtype)
        y = torch.randn(self.images, d.targets, *self.sizes[1], device="cuda", dtype=self.dtype)
        values = torch.randn(units * d.width, device="cuda", dtype=self.dtype)
        common = (d, units, self.images, *self.sizes, self.dtype, "tf32")

        def sparse_conv(blocks: Blocks) -> Callable[[], Any]:
            launch = sparse_conv_launch(*common, False, 1.0, blocks)
            if launch.partial_sums == 1:
                tensors = (x, values, values, y, plan)
                return lambda: sparse_conv_kernel[launch.programs, 1](*tensors, *launch.numbers, **launch.constants)
            partial_sums = torch.empty(launch.partial_sums, *y.shape, device="cuda")

            def call() -> Any:
                tensors = (x, values, values, partial_sums, plan)
                sparse_conv_kernel[launch.programs, launch.partial_sums](*tensors, *launch.numbers, **launch.constants)
                return partial_sums.sum(0)

            return call

        def wgrad(blocks: Blocks) -> Callable[[], Any]:
            launch = wgrad_launch(*common, blocks)
            partial_sums = torch.empty(launch.partial_sums, units * d.width, device="cuda")

            def call() -> Any:
                wgrad_kernel[launch.programs,](y, x, partial_sums, plan, *launch.numbers, **launch.constants)
                return partial_sums.sum(0)

            return call

        return sparse_conv if self.op == "sparse_conv" else wgrad


def cases(dtype: torch.dtype) -> Iterator[Case]:
    """Both ops of every layer of the GPU benchmark whose output channels are a multiple of the vector."""
    for layer in gpu_layers():
        for vector in VECTORS:
            if layer.c_out % vector:
                continue
            dense = layer.dense()
            kind = nn.SparseConvTranspose2d if layer.transposed else nn.SparseConv2d
            sparse = kind.from_dense(dense, mask=layer.mask(0.9, f"vector:{vector}"), granularity=f"vector:{vector}")
            source = (layer.size, layer.size)
            rows, width = dense.to("meta")(torch.empty(1, layer.c_in, *source, device="meta")).shape[2:]
            coarse = source if sparse.adjoint else (rows, width)
            d = Direction(sparse.geometry.for_coarse_size(*coarse), sparse.adjoint)
            for op in CHOICES:
                yield Case(op, d, sparse.support, layer.batch, (source, (rows, width)), dtype)


def fastest(case: Case) -> Blocks | None:
    """The fastest block sizes, or ``None`` if none fit the GPU."""
    run, times = case.run(), {}
    for blocks in CHOICES[case.op]:
        try:
            times[blocks] = triton.testing.do_bench(run(blocks), warmup=10, rep=50, return_mode="median")
        except OutOfResources:
            continue
    return min(times, key=lambda blocks: times[blocks], default=None)


def write(table: dict[Key, tuple[int, int, int, int, int]]) -> None:
    """Rewrites ``tuned_table.py``."""
    source = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    head = Path(tuned_table.__file__).read_text(encoding="utf-8").split("#: Where the figures")[0]
    rows = "".join(f"    {of}: {tuple(blocks)},\n" for of, blocks in sorted(table.items())).replace("'", '"')
    write_text(
        Path(tuned_table.__file__),
        f'{head}#: Where the figures come from.\nSOURCE = "{source}"\n'
        "#: (op, channels per block, bytes an element, positions, taps) -> (positions, taps, warps, stages, together)\n"
        f"TABLE: dict[tuple[str, int, int, int, int], tuple[int, int, int, int, int]] = {{\n{rows}}}\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=420, help="begin no layer after this time (default: 420)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="fp16 uses the same rows of the table as bf16")
    parser.add_argument("--again", action="store_true", help="also measure the layers that the table has already")
    arguments = parser.parse_args()
    start, table = time.monotonic(), {} if arguments.again else dict(tuned_table.TABLE)
    torch.manual_seed(0)
    todo = {case.key: case for case in sorted(cases(DTYPES[arguments.dtype]), key=lambda case: case.work)}
    for of, case in sorted(todo.items(), key=lambda item: -item[1].work):
        if of in table:
            continue
        if time.monotonic() - start > arguments.seconds:
            print(f"out of time: {len(todo.keys() - table.keys())} of {len(todo)} left, call again")
            break
        if (best := fastest(case)) is not None:
            table[of] = best
            write(table)
            print(f"{of}: {best}", flush=True)


if __name__ == "__main__":
    main()
