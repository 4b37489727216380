"""Triton kernels for NVIDIA GPUs, for units that are vectors, on tensor cores. ``NOTES.md`` explains their design.

Importing this package does not import Triton. ``sparsegan.ops.vector_ops`` has the torch ops and imports it: call
:func:`why_not` first.
"""

from __future__ import annotations

import importlib.util

import torch

from sparsegan.geometry import Geometry

#: The most weights per unit that the kernels take.
MOST_VECTOR = 64
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_not(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reason why the vector kernels cannot run a layer, as the end of a sentence, or ``None`` if they can."""
    if not 2 <= geometry.vector <= MOST_VECTOR:
        return f"units have {geometry.vector} weights, not 2 to {MOST_VECTOR}"
    if dtype not in DTYPES:
        return f"dtype {dtype} is none of {', '.join(map(str, DTYPES))}"
    if device.type != "cuda":
        return f"the tensors are on {device}, not on an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, not 8.0 or above"
    return None
