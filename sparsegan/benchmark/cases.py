"""The layers that are timed, and the speed-up over the best dense engine that is asked of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..nn.granularity import check_channels, check_granularity, magnitude_mask

Case = TypeVar("Case")


@dataclass(frozen=True)
class LayerCase:
    """One convolution and its input.

    ``size`` is the input's height and width. ``target`` is the speed-up asked of a forward at 90 % element sparsity, on
    AVX-512.
    """

    c_in: int
    c_out: int
    kernel: int
    stride: int
    padding: int
    size: int
    batch: int
    target: float
    transposed: bool = False
    output_padding: int = 0

    def __str__(self) -> str:
        name = f"{self.c_in}->{self.c_out} {'transposed ' if self.transposed else ''}{self.kernel}x{self.kernel}"
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{name}{stride} @{self.size}x{self.size} batch {self.batch}"

    def dense(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer, freshly initialised."""
        if self.transposed:
            extra = self.output_padding
            return nn.ConvTranspose2d(self.c_in, self.c_out, self.kernel, self.stride, self.padding, extra)
        return nn.Conv2d(self.c_in, self.c_out, self.kernel, self.stride, self.padding)

    def input(self) -> Tensor:
        """Random, float32 ``[batch, c_in, size, size]``."""
        return torch.randn(self.batch, self.c_in, self.size, self.size)

    def mask(self, sparsity: float, granularity: str) -> Tensor:
        """bool, shape of the weight: units at random places."""
        return magnitude_mask(torch.rand(self.dense().weight.shape), sparsity, granularity, self.transposed)


#: Layers of the reference generators: CycleGAN's and pix2pix's, SRGAN's, DCGAN's.
LAYERS = (
    LayerCase(256, 256, 3, 1, 1, 32, 1, target=6),
    LayerCase(256, 256, 3, 1, 1, 32, 16, target=7),
    LayerCase(256, 256, 3, 1, 1, 64, 1, target=6),
    LayerCase(64, 128, 4, 2, 1, 128, 1, target=5),
    LayerCase(64, 128, 3, 2, 1, 256, 1, target=5),
    LayerCase(256, 128, 4, 2, 1, 32, 1, target=6, transposed=True),
    LayerCase(256, 128, 4, 2, 1, 32, 16, target=6, transposed=True),
    LayerCase(256, 128, 3, 2, 1, 64, 1, target=6, transposed=True, output_padding=1),
    LayerCase(512, 512, 4, 2, 1, 8, 1, target=4),
    LayerCase(512, 512, 4, 2, 1, 4, 1, target=4, transposed=True),
    LayerCase(64, 64, 3, 1, 1, 96, 1, target=5.5),
    LayerCase(512, 256, 4, 2, 1, 4, 64, target=5, transposed=True),
    LayerCase(100, 512, 4, 1, 0, 1, 64, target=3, transposed=True),
    LayerCase(3, 64, 7, 1, 3, 256, 1, target=3),
    LayerCase(64, 3, 7, 1, 3, 256, 1, target=3),
)

#: Speed-ups asked of every layer at other sparsities, and of the 256-channel layers (256->256, 256->128) alone.
EVERY_LAYER = {0.5: 1.0, 0.75: 2.2}
WIDE_LAYERS = {0.95: 9.0}
WIDE_VECTORS = {("vector:4", 0.9): 8.0, ("vector:8", 0.9): 8.0, ("vector:16", 0.9): 8.0}
#: Of forward and backward at 90 %: of the 256-channel layers at batch 16, of the others.
TRAINING_WIDE, TRAINING = 4.0, 2.5
#: Share of an AVX-512 target that is asked of each instruction set. Of the scalar kernels nothing is asked.
TARGET_SHARE = {"avx512": 1.0, "avx2": 0.55}


@dataclass(frozen=True)
class Job:
    """One row: a layer at a sparsity and granularity, on so many threads."""

    case: LayerCase
    sparsity: float
    granularity: str
    threads: int

    @property
    def name(self) -> dict[str, str | float | int]:
        """What tells its row from every other one of a run."""
        return {
            "layer": str(self.case),
            "sparsity": self.sparsity,
            "granularity": self.granularity,
            "threads": self.threads,
        }


def named(option: str, parts: str, cases: Sequence[Case]) -> list[Case]:
    """The cases whose name has one of some parts, which commas separate; ``ValueError`` where there is none."""
    found = [case for case in cases if any(part.strip() in str(case) for part in parts.split(","))]
    if not found:
        names = "; ".join(map(str, cases))
        raise ValueError(f"--{option} is {parts!r}; it must be a part of a name, one of: {names}")
    return found


def jobs(
    layers: str, sparsities: list[float], granularities: list[str], threads: list[int]
) -> tuple[list[Job], list[str]]:
    """Every row of a run, and a sentence for each layer that a granularity does not fit.

    Args:
        layers: parts of layer names, separated by commas; the empty one is in every name.

    Raises:
        ValueError: no layer has such a name, or a granularity is not one.
    """
    cases = named("layers", layers, LAYERS)
    fitting: list[tuple[str, LayerCase]] = []
    left_out = []
    for granularity, case in product(map(check_granularity, granularities), cases):
        try:
            check_channels(granularity, case.c_out)
            fitting.append((granularity, case))
        except ValueError:
            left_out.append(f"{case}: left out, its {case.c_out} output channels are no whole vectors of {granularity}")
    rows = product(threads, sparsities, fitting)
    return [Job(case, sparsity, granularity, count) for count, sparsity, (granularity, case) in rows], left_out


def target(job: Job, isa: str, training: bool = False) -> float | None:
    """Speed-up over the best dense engine that is asked of a row; ``None`` where nothing is."""
    case, sparsity, element = job.case, job.sparsity, job.granularity == "element"
    wide = case.c_in == 256
    asked: float | None
    if training:
        asked = (TRAINING_WIDE if wide and case.batch == 16 else TRAINING) if element and sparsity == 0.9 else None
    elif not element:
        asked = WIDE_VECTORS.get((job.granularity, sparsity)) if wide else None
    elif sparsity == 0.9:
        asked = case.target
    else:
        asked = EVERY_LAYER.get(sparsity) or (WIDE_LAYERS.get(sparsity) if wide else None)
    return None if asked is None or isa not in TARGET_SHARE else asked * TARGET_SHARE[isa]
