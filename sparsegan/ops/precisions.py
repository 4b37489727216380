"""The short precisions in which ``sparse_conv_fused`` can multiply on a CPU (``csrc/cpu/kernels/lanes.h``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import native


@dataclass(frozen=True)
class Precision:
    """A short precision.

    `dtype`: of the weights and the rounded inputs. `lane`: source channels per 32-bit lane; a unit of weights must have
    a multiple of that many. `number`: the DType of csrc/cpu/kernels/dtypes.h. `most`: integers are within ``[-most,
    most]``; 0 for bfloat16. `offset`: what the kernel adds to each input.
    """

    name: str
    dtype: torch.dtype
    lane: int
    number: int
    most: int = 0
    offset: int = 0

    @property
    def native(self) -> bool:
        """Whether the instruction set in use has instructions for this precision. Otherwise the kernel emulates them,
        which is slower than float32."""
        return bool(native.short_precisions() >> (self.number - _FIRST) & 1)


_FIRST = 3
#: Inputs of int16 have 14 bits. The other 17 bits of a sum are left for the weights of an output.
PRECISIONS = {
    one.name: one
    for one in (
        Precision("int16", torch.int16, 2, _FIRST, most=8191),
        Precision("bf16", torch.bfloat16, 2, _FIRST + 1),
        Precision("int8", torch.int8, 4, _FIRST + 2, most=127, offset=128),
    )
}
#: The DType of csrc/cpu/kernels/dtypes.h for tensors in full precision.
FULL = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
