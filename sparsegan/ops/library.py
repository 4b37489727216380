"""The compiled libraries: ``_cpu.so`` with the schemas and CPU kernels, and ``_cuda.so`` where it was built.

The import of this module loads both libraries. Loading a library registers its ops with torch.
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import native


def cuda_library() -> Path | None:
    """The path of the library of CUDA kernels, or ``None`` where it was not built."""
    library = native.LIBRARY.with_name("_cuda.so")
    return library if library.exists() else None


def _load_cuda_library() -> str | None:
    """Loads the CUDA kernels where torch has CUDA. Returns the error text, or ``None``.

    An error is not raised, because the package works without the CUDA kernels.
    """
    if torch.version.hip is not None:
        return "this torch is for AMD GPUs"
    library = cuda_library()
    if library is None or torch.version.cuda is None:
        return None
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return str(error.__cause__ or error)  # torch's sentence leaves out the reason; the cause has it
    return None


_load_error = _load_cuda_library()


def why_no_cuda() -> str | None:
    """The reason why layers of single weights cannot run sparse on a GPU, or ``None`` where they can."""
    if cuda_library() is None:
        lost = "not built in: _cuda.so is not among the package's files"
        return f"the CUDA kernels were {lost if native.cuda_build.startswith('built') else native.cuda_build}"
    return f"the CUDA kernels did not load: {_load_error}" if _load_error else None
