"""Which backend runs a layer, and why.

Two backends can run a sparse layer: ``sparse`` is the kernels of this package, ``dense`` is torch's convolution on the
values scattered into a dense buffer. ``auto`` models the time of both for a shape and a mask, and takes the faster. It
measures nothing, so the same model and input choose the same backend in every run. :func:`sparsegan.tune` measures both
backends instead, and sets the faster on each layer.

On a CPU the model (``csrc/cpu/cost_model.cpp``) counts cycles of the inner loops and is fitted to measured times.
On a GPU the model counts products, loads and bytes (``csrc/cuda/NOTES.md``, ``kernels/NOTES.md``). Until a result file
of ``sparsegan bench gpu`` exists, the constants for GPUs are calculated, not measured.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch

from .. import kernels, ops
from ..geometry import Geometry
from ..kernels.tiling import power_of_2
from ..kernels.tuned import DEFAULTS as BLOCKS
from ..ops import native
from ..renamed import renamed_names, warn_of_old_attribute

#: The possible values of a layer's ``backend``.
BACKENDS = ("auto", "sparse", "dense")
#: The dtypes that the sparse kernels take, by kind of device.
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
#: The lowest compute capability that the kernels are built for.
LEAST_CAPABILITY = (8, 0)

#: Fraction of the FMA peak that a dense convolution reaches on large layers.
DENSE_EFFICIENCY = {"cpu": 0.85, "cuda": 0.6}
#: Output channels that a CPU's dense convolution computes together. Fewer channels take as much time as this number.
DENSE_CHANNELS = 16
#: Time of a CPU's dense transposed convolution, relative to a convolution with as many multiplications.
DENSE_TRANSPOSED = 1.2
#: Bytes per cycle at which dense weights are read in a layer that is too small to reuse them.
WEIGHT_BYTES_PER_CYCLE = 8.0
#: Cycles to write one kept weight into the dense buffer.
SCATTER_CYCLES = 10.0
#: The sparsity from which on a layer runs sparse under torch.compile and torch.export, where shapes may be symbols.
BREAK_EVEN_SPARSITY = 0.6


class Choice(NamedTuple):
    """A decision and the sentence that explains it."""

    backend: str
    why: str

    @property
    def kernel(self) -> str:
        """``backend`` under its old name."""
        warn_of_old_attribute(self, "kernel", "backend")
        return self.backend


# Made here, because with dynamic=True torch.compile takes numbers for symbols, which it cannot format.
_TRACED_SPARSE = Choice("sparse", f"traced: the sparsity is not below the break-even, taken as {BREAK_EVEN_SPARSITY}")
_TRACED_DENSE = Choice("dense", f"traced: the sparsity is below the break-even, taken as {BREAK_EVEN_SPARSITY}")


class Call(NamedTuple):
    """One forward of a layer: its geometry and direction, kept units, batch size, (height, width) of input and output,
    and the tensors' dtype and device."""

    geometry: Geometry
    adjoint: bool
    units: int
    images: int
    x_size: tuple[int, int]
    y_size: tuple[int, int]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    @property
    def sites(self) -> int:
        """Elements of the coarse grid in all images. Each weight meets each of these elements once."""
        return self.images * math.prod(self.x_size if self.adjoint else self.y_size)

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.geometry.fine_channels if self.adjoint else self.geometry.coarse_channels


def check_backend(backend: str) -> str:
    """Returns ``backend``. Raises ``ValueError`` unless it is one of :data:`BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; accepted: {', '.join(map(repr, BACKENDS))}")
    return backend


def choose(call: Call) -> Choice:
    """The backend that is faster for one forward, by the model of the device."""
    if call.units == 0 or call.images == 0 or 0 in call.x_size or 0 in call.y_size:
        return Choice("sparse", "nothing to multiply")
    if missing := why_not_sparse(call):
        return Choice("dense", missing)
    return _choose_on_gpu(call) if call.device.type == "cuda" else _choose_on_cpu(call)


def why_not_sparse(call: Call) -> str | None:
    """The reason why the sparse kernels cannot run a call, or ``None``."""
    kind, accepted = call.device.type, DTYPES.get(call.device.type, ())
    if kind == "cuda" and call.geometry.vector > 1:
        missing = kernels.why_not(call.geometry, call.dtype, call.device)
        return missing and f"the vector kernels cannot run it: {missing}"
    if call.dtype not in accepted:
        return _wrong_dtype(kind, accepted, call.dtype)
    if kind == "cpu":
        return None
    if (capability := torch.cuda.get_device_capability(call.device)) < LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability}; the kernels are built for {LEAST_CAPABILITY} and later"
    return ops.why_no_cuda()


def _wrong_dtype(kind: str, accepted: tuple[torch.dtype, ...], dtype: torch.dtype) -> str:
    names = ", ".join(str(one).removeprefix("torch.") for one in accepted)
    return f"the sparse kernels of a {kind} device take {names or 'nothing'}, not {dtype}"


def choose_by_sparsity(sparsity: float, dtype: torch.dtype, device: torch.device) -> Choice:
    """The backend while a graph is traced: by sparsity only, because shapes may be symbols."""
    if dtype not in (accepted := DTYPES.get(device.type, ())):
        return Choice("dense", _wrong_dtype(device.type, accepted, dtype))
    return _TRACED_SPARSE if sparsity >= BREAK_EVEN_SPARSITY else _TRACED_DENSE


def _choose_on_cpu(call: Call) -> Choice:
    """The backend with fewer modelled cycles of one core."""
    geometry, float64 = call.geometry, call.dtype == torch.float64
    weights, outputs = math.prod(geometry.weight_shape), call.outputs // geometry.groups
    padded = -(-outputs // DENSE_CHANNELS) * DENSE_CHANNELS / outputs
    dense = padded * weights * call.sites / (2 * native.lanes(float64) * DENSE_EFFICIENCY["cpu"])
    dense *= DENSE_TRANSPOSED if call.adjoint else 1
    dense += weights * call.dtype.itemsize / WEIGHT_BYTES_PER_CYCLE + call.units * geometry.vector * SCATTER_CYCLES
    sizes = (list(call.x_size), list(call.y_size))
    parts = native.sparse_conv_cycles(geometry.numbers(), call.adjoint, call.units, call.images, *sizes, float64)
    sparse, most = sum(parts.values()), max(parts, key=lambda part: parts[part])
    backend = "sparse" if sparse <= dense else "dense"
    where = f"{parts[most] / sparse:.0%} {most}"
    return Choice(backend, f"model: sparse {sparse / 1e6:.2f} Mcycles, {where}; dense {dense / 1e6:.2f}")


class Gpu(NamedTuple):
    """The numbers of a GPU that the model uses.

    ``hertz``: clocks per second. ``memory``, ``cache``: bytes per second of the GPU's memory and of its L2 cache.
    ``fp32``, ``tf32``, ``half``: FMAs per clock of one multiprocessor.
    """

    multiprocessors: int
    hertz: float
    memory: float
    cache: float
    fp32: int
    tf32: int
    half: int


#: Compute capability -> :class:`Gpu` without the multiprocessors. The rows are A100 and H100 (SXM), from their data
#: sheets; the cache is from kernels/NOTES.md. A GPU of another capability takes the last row that is not above it.
GPUS = {
    (8, 0): (1.41e9, 1.94e12, 4.0e12, 64, 512, 1024),
    (9, 0): (1.755e9, 3.35e12, 5.5e12, 128, 1024, 2048),
}
#: Multiply-accumulates per clock of one multiprocessor in the kernel for single weights, predicted in
#: csrc/cuda/NOTES.md.
ELEMENT_RATE = 28
#: Fraction of the tensor cores' rate that the vector kernels reach, and bytes per clock of one multiprocessor's shared
#: memory.
VECTOR_EFFICIENCY, SHARED_BYTES = 0.48, 128
#: Passes of a vector kernel through shared memory per element of x that it gathers (from the first-level cache, to
#: shared memory, to the tensor core), and bytes per output each time that the sums move by a kernel column.
VECTOR_PASSES, MOVED_BYTES = 3, 12
#: Seconds of one kernel launch, and launches of the dense backend: zeros, scatter, convolution.
LAUNCH, DENSE_LAUNCHES = 3e-6, 3
#: Bytes of a plan for a GPU per kept unit.
PLAN_BYTES = 12


@cache
def gpu(device: torch.device) -> Gpu:
    """The model's numbers for a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    row = max((c for c in GPUS if c <= capability), default=min(GPUS))
    return Gpu(properties.multi_processor_count, *GPUS[row])


def _choose_on_gpu(call: Call) -> Choice:
    """The backend with fewer modelled seconds on the whole GPU."""
    g, geometry, size = gpu(call.device), call.geometry, call.dtype.itemsize
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    tensor_rate = g.half if size == 2 else g.tf32 if conv.fp32_precision == "tf32" else g.fp32
    clocks = g.multiprocessors * g.hertz
    weights, nnz = math.prod(geometry.weight_shape), call.units * geometry.vector
    sources = geometry.coarse_channels if call.adjoint else geometry.fine_channels
    moved = size * call.images * (sources * math.prod(call.x_size) + call.outputs * math.prod(call.y_size))
    dense = max(
        weights * call.sites / (clocks * tensor_rate * DENSE_EFFICIENCY["cuda"]),
        (3 * weights * size + nnz * (size + 8) + moved) / g.memory,
    )
    if geometry.vector == 1:
        parts = {"multiplying": nnz * call.sites / (clocks * ELEMENT_RATE)}
    else:
        padded = max(16, geometry.vector) * call.units
        parts = {"multiplying": padded * call.sites / (clocks * tensor_rate * VECTOR_EFFICIENCY)}
        gathered, distinct, values = vector_bytes(call, sources)
        strided = 2 if not call.adjoint and geometry.stride[1] > 1 else 1  # reads the elements between, too
        parts["loading the input"] = (strided * distinct + values) / g.cache
        outputs = call.images * call.outputs * math.prod(call.y_size)
        moves = (geometry.kernel[1] - 1) // (geometry.stride[1] if call.adjoint else 1)
        shifted = MOVED_BYTES * moves * outputs if strided == 1 else 0
        parts["moving in shared memory"] = (VECTOR_PASSES * gathered + shifted) / (clocks * SHARED_BYTES)
    parts["memory"] = (nnz * size + call.units * PLAN_BYTES + moved) / g.memory
    most = max(parts, key=lambda part: parts[part])
    sparse, dense = parts[most] + LAUNCH, dense + DENSE_LAUNCHES * LAUNCH
    backend = "sparse" if sparse <= dense else "dense"
    why = f"model: sparse {sparse * 1e6:.1f} us, most of it {most}; dense {dense * 1e6:.1f}"
    if backend == "sparse" and geometry.vector > 1 and not vector_gradient_pays(geometry, call.adjoint, call.units):
        why += "; the gradient in the input runs dense"
    return Choice(backend, why)


def vector_bytes(call: Call, sources: int) -> tuple[float, float, float]:
    """The bytes of x that the vector kernel gathers, those of them that are not in the first-level cache, and the bytes
    of values that it reads.

    A program computes some blocks side by side. Per kernel column it reads a row of x from beyond the first-level cache
    once if any of its blocks keeps a tap there. The rows at the edges of its tile are read by fewer kernel rows.
    """
    geometry, size = call.geometry, call.dtype.itemsize
    blocks = BLOCKS["sparse_conv", size, max(16, power_of_2(geometry.vector))]
    groups = -(-call.outputs // (geometry.vector * blocks.together))
    phases, (kernel_h, kernel_w) = math.prod(geometry.stride) if call.adjoint else 1, geometry.kernel
    if call.adjoint:
        kernel_h, kernel_w = -(-kernel_h // geometry.stride[0]), -(-kernel_w // geometry.stride[1])
    width = call.x_size[1] if call.adjoint else call.y_size[1]
    rows = max(1, blocks.positions // max(1, width))
    density = call.units * geometry.vector / math.prod(geometry.weight_shape)
    together = min(blocks.together, call.outputs // geometry.vector)
    chances = together * kernel_h * rows / (rows + kernel_h - 1)
    read = groups * phases * kernel_w * sources * (rows + kernel_h - 1) / rows * (1 - (1 - density) ** chances)
    gathered = size * call.units * call.sites
    return gathered, size * min(call.units, read) * call.sites, gathered * geometry.vector / blocks.positions


#: Bytes that an H100 reads from its second-level cache in the time of one multiply-accumulate of cuDNN, at 16 bits. On
#: an A100 they are more, and at 32 bits twice as many, as are the bytes of the gradient.
BYTES_PER_PRODUCT = 0.0193


def vector_gradient_pays(geometry: Geometry, adjoint: bool, units: int) -> bool:
    """Whether the gradient in the input of a vector layer on a GPU is faster sparse than dense; see kernels/NOTES.md.

    ``adjoint``: whether the layer is a transposed convolution; ``units``: the kept units. The gradient writes and reads
    one product per kept unit and position of the layer's output.
    """
    steps = math.prod(geometry.stride)
    products = 2 * units * (steps if adjoint else 1)
    bytes_per_site = 2 * (products + geometry.coarse_channels + geometry.fine_channels * steps)
    return bytes_per_site < BYTES_PER_PRODUCT * math.prod(geometry.weight_shape)


__getattr__ = renamed_names(__name__, KERNELS="BACKENDS", check_kernel="check_backend")
