"""The layers that are timed, and the target speed-up of each over the best dense engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..nn.granularity import check_channels, check_granularity, magnitude_mask, units_of

Case = TypeVar("Case")


@dataclass(frozen=True)
class LayerCase:
    """One convolution and its input.

    ``size`` is the input's height and width. ``target`` is the target speed-up of a forward at 90 % element sparsity,
    on AVX-512.
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
        """A random float32 input of shape ``[batch, c_in, size, size]``."""
        return torch.randn(self.batch, self.c_in, self.size, self.size)

    def mask(self, sparsity: float, granularity: str) -> Tensor:
        """A bool mask of the weight's shape that keeps units at random places."""
        return magnitude_mask(torch.rand(self.dense().weight.shape), sparsity, granularity, self.transposed)


#: Layers of the reference generators: CycleGAN and pix2pix, SRGAN, DCGAN.
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

#: Target speed-ups at other sparsities: of every layer, and of the 256-channel layers (256->256, 256->128) only.
EVERY_LAYER = {0.5: 1.0, 0.75: 2.2}
WIDE_LAYERS = {0.95: 9.0}
WIDE_VECTORS = {("vector:4", 0.9): 8.0, ("vector:8", 0.9): 8.0, ("vector:16", 0.9): 8.0}
#: Target speed-ups of forward and backward at 90 %: of the 256-channel layers at batch 16, and of all other layers.
TRAINING_WIDE, TRAINING = 4.0, 2.5
#: The fraction of an AVX-512 target that each instruction set must reach. The scalar kernels have no target.
TARGET_SHARE = {"avx512": 1.0, "avx2": 0.55}


@dataclass(frozen=True)
class Job:
    """One row: a layer, a sparsity, a granularity and a number of threads."""

    case: LayerCase
    sparsity: float
    granularity: str
    threads: int

    @property
    def name(self) -> dict[str, str | float | int]:
        """The fields that identify its row within a run."""
        return {
            "layer": str(self.case),
            "sparsity": self.sparsity,
            "granularity": self.granularity,
            "threads": self.threads,
        }


def named(option: str, parts: str, cases: Sequence[Case]) -> list[Case]:
    """The cases whose name contains one of the comma-separated parts. Raises ``ValueError`` if there is none."""
    found = [case for case in cases if any(part.strip() in str(case) for part in parts.split(","))]
    if not found:
        names = "; ".join(map(str, cases))
        raise ValueError(f"--{option} is {parts!r}; it must be a part of a name, one of: {names}")
    return found


def jobs(
    layers: str, sparsities: list[float], granularities: list[str], threads: list[int]
) -> tuple[list[Job], list[str]]:
    """Every row of a run, and a sentence for each layer that does not fit a granularity.

    Args:
        layers: parts of layer names, separated by commas; the empty string selects every layer.

    Raises:
        ValueError: no layer's name contains a part, or a granularity is not known.
    """
    cases = named("layers", layers, LAYERS)
    fitting: list[tuple[str, LayerCase]] = []
    left_out = []
    for granularity, case in product(map(check_granularity, granularities), cases):
        try:
            check_channels(granularity, case.c_in, case.c_out)
            fitting.append((granularity, case))
        except ValueError:
            whole = f"{case.c_out} output channels are no whole vectors"
            if units_of(granularity).inputs > 1:
                whole = f"{case.c_in} input channels are no whole units"
            left_out.append(f"{case}: left out, its {whole} of {granularity}")
    rows = product(threads, sparsities, fitting)
    return [Job(case, sparsity, granularity, count) for count, sparsity, (granularity, case) in rows], left_out


def target(job: Job, isa: str, training: bool = False) -> float | None:
    """The target speed-up of a row over the best dense engine; ``None`` if the row has no target."""
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
