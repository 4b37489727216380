"""The build, the machine and the kernels in use, as ``sparsegan info`` shows them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import torch

from .. import ops
from ..gans import GANS
from ..kernels import tuned_table
from ..ops import native
from ..progress import peak_memory


def info() -> dict[str, Any]:
    """Versions, ISA levels, threads, the state of CUDA and Triton, and the GANs, as plain values.

    A GAN of another package is a fact of its own, which names the package, or says why the GAN cannot be used.
    """
    return {
        "sparsegan": importlib.metadata.version("sparsegan"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": cpu_name(),
        "compiler": native.compiler,
        "cpu isa built": ", ".join(native.built_isas()),
        "cpu isa supported": ", ".join(native.supported_isas()),
        "cpu isa in use": native.isa(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda kernels": cuda_kernels(),
        "cuda device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "triton": triton_version(),
        "triton block sizes": tuned_table.SOURCE,
        **gans(),
    }


def gans() -> dict[str, str]:
    """The GANs of this package in one fact, and a fact for each GAN of another package."""
    own = [name for name in GANS if GANS.distribution(name) == "sparsegan"]
    facts = {"gans": ", ".join(own)}
    for name in GANS:
        if name not in own:
            try:
                facts[f"gan {name}"] = f"{GANS[name].text}; of {GANS.distribution(name)}"
            except ValueError as error:
                facts[f"gan {name}"] = str(error)
    return facts


def cuda_kernels() -> str:
    """The compiler of the CUDA kernels and whether they are loaded, or the reason why they are not there."""
    if why := ops.why_no_cuda():
        return why.removeprefix("the CUDA kernels ").removeprefix("were ")
    loaded = "loaded" if torch.version.cuda is not None else "not loaded: this torch has no CUDA"
    return f"{native.cuda_build}; {loaded}"


def triton_version() -> str:
    """The version of the distribution that has the module triton."""
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    names = importlib.metadata.packages_distributions().get("triton", [])
    return importlib.metadata.version(names[0]) if names else "installed, of no known version"


def peak_bytes(device: torch.device) -> int:
    """The peak memory in bytes: torch's allocations on a GPU, else the process's resident memory; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory() or 0


def cpu_name() -> str:
    """The processor's name, or the architecture if the system does not give the name."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def main() -> None:
    """Prints :func:`info`, one line per fact."""
    facts = info()
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name:<{width}}{value}")
