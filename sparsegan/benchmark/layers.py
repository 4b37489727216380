"""One forward of a layer against the best dense engine of the same run.

Sparse is the drop-in layer, from NCHW tensor to NCHW tensor, with packing and unpacking, as ``auto`` runs it. The kept
units are at random places with random values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn.layer import SPARSE_CLASSES, SparseConv
from ..ops import native
from .cases import Job, target
from .engines import against_dense, dense_engines
from .results import verdict


def both_layers(job: Job) -> tuple[SparseConv, nn.Conv2d | nn.ConvTranspose2d, Tensor]:
    """A row's layer, sparse and dense with zeros in place, and its input. All are the same on every run."""
    torch.manual_seed(0)
    dense, x = job.case.dense(), job.case.input()
    mask = job.case.mask(job.sparsity, job.granularity)
    with torch.no_grad():
        dense.weight.mul_(mask)
    return SPARSE_CLASSES[type(dense)].from_dense(dense, granularity=job.granularity, mask=mask), dense, x


def multiplications(layer: SparseConv, x: Tensor, y: Tensor) -> int:
    """Multiply-accumulates of one forward at kept weights."""
    sites = x if layer.transposed else y
    return layer.nnz * x.shape[0] * sites.shape[2] * sites.shape[3]


def check_same(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Raises ``RuntimeError`` if two results differ, so that nothing is timed that computes something else."""
    error = float((ours - theirs).norm() / theirs.norm())
    if not error < 1e-4:
        raise RuntimeError(f"{what} differs from the dense layer's by {error:.1e} of its norm")


def time_layer(job: Job, seconds: float) -> dict[str, Any]:
    """Milliseconds of every engine, the ratio to the best dense engine, its target, and GFLOP/s on kept weights."""
    layer, dense, x = both_layers(job)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(job.threads)
        with torch.inference_mode():
            y = dense(x)
            check_same(layer(x), y, f"{job.case}: the output")
            row = against_dense(lambda: layer(x), dense_engines(dense, (x,), job.threads), seconds)
    finally:
        torch.set_num_threads(before)
    choice = layer.choose(tuple(x.shape), (y.shape[2], y.shape[3]))
    return {
        **row,
        **verdict(row["ratio"], target(job, native.isa())),
        "backend": choice.backend,
        "why": choice.why,
        "gflops": 2e-6 * multiplications(layer, x, y) / row["sparse_ms"],
    }
