"""The compiled libraries: ``_cpu.so`` with the schemas and CPU kernels, and ``_cuda.so`` where it was built.

Importing this module loads both, which registers the ops with torch.
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import native


def cuda_library() -> Path | None:
    """The shared object of the CUDA kernels, where they were built."""
    library = native.LIBRARY.with_name("_cuda.so")
    return library if library.exists() else None


def _load_cuda_library() -> str | None:
    """Loads the CUDA kernels where torch has CUDA. Returns the error, if any: the package works without them."""
    if torch.version.hip is not None:
        return "this torch is for AMD GPUs"
    library = cuda_library()
    if library is None or torch.version.cuda is None:
        return None
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return str(error.__cause__ or error)  # torch's own sentence leaves out the reason
    return None


_load_error = _load_cuda_library()


def why_no_cuda() -> str | None:
    """Why single elements cannot run sparse on a GPU, or ``None``."""
    if cuda_library() is None:
        lost = "not built in: _cuda.so is not among the package's files"
        return f"the CUDA kernels were {lost if native.cuda_build.startswith('built') else native.cuda_build}"
    return f"the CUDA kernels did not load: {_load_error}" if _load_error else None
