"""The C++ library. The import of this module loads the library, which registers the torch ops.

The functions here call those of ``csrc/bindings/c_api.cpp`` through ctypes. ctypes needs no Python header, so one
library serves every version of Python. All arrays are NumPy arrays of int32. A wrong dtype raises TypeError; a number
out of range raises ValueError with a sentence.
"""

from __future__ import annotations

import ctypes
import enum
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: The library of the CPU kernels, the plan compilers and the ops' schemas.
LIBRARY = Path(__file__).parents[1] / "_cpu.so"

if not LIBRARY.exists():
    raise ImportError(
        f"sparsegan's library {LIBRARY.name} is not in {LIBRARY.parent}; install the package with pip, or run "
        "`make venv` in its source tree"
    )
try:
    torch.ops.load_library(LIBRARY)
except OSError as error:
    raise ImportError(
        f"sparsegan's library does not load into torch {torch.__version__}; it needs torch 2.10 or later, and "
        f"the kind of machine that it was built for: {error.__cause__ or error}"
    ) from error
_library = ctypes.CDLL(str(LIBRARY))

_INT64 = np.iinfo(np.int64)
_int32, _int64 = ctypes.c_int32, ctypes.c_int64
_numbers, _positions = ctypes.POINTER(_int64), ctypes.POINTER(_int32)


def _checked(status: int, function: Any, arguments: Any) -> None:
    """Raises the exception that `guarded` in c_api.cpp caught."""
    if status == 2:
        raise MemoryError
    if status:
        raise (ValueError if status == 1 else RuntimeError)(_error().decode())


def _function(name: str, *arguments: Any, result: Any = None) -> Any:
    """A C function that cannot fail."""
    function = getattr(_library, f"sparsegan_{name}")
    function.argtypes, function.restype = arguments, result
    return function


def _fallible(name: str, *arguments: Any) -> Any:
    """A C function that returns a status, which is checked."""
    function = _function(name, *arguments, result=_int32)
    function.errcheck = _checked
    return function


_error = _function("error", result=ctypes.c_char_p)
_isa = _fallible("isa", ctypes.POINTER(ctypes.c_char_p))
_set_isa = _fallible("set_isa", ctypes.c_char_p)
_lanes = _fallible("lanes", _int32, ctypes.POINTER(_int64))
_fma_gflops = _fallible("fma_gflops", ctypes.POINTER(ctypes.c_double))
_short_precisions = _fallible("short_precisions", ctypes.POINTER(_int32))
_workspace_bytes = _function("workspace_bytes", result=_int64)
_part_times = _function("part_times", ctypes.POINTER(_int64))
_plan_size = _fallible("plan_size", _int32, _numbers, _int64, _int32, _int64, ctypes.POINTER(_int64))
_compile_plan = _fallible("compile_plan", _int32, _numbers, _int64, _int32, _positions, _int64, _positions, _positions)
_sparse_conv_cycles = _fallible(
    "sparse_conv_cycles", _numbers, _int64, _int32, _int64, _int64, _numbers, _int32, ctypes.POINTER(ctypes.c_double)
)
_shared_panel = _fallible("shared_panel", _numbers, _int64, _int32, _int64, _int64, _numbers, _int32, _int64, _numbers)
_check_support = _fallible("check_support", _positions, _int64, _int64)
_encode_support = _fallible(
    "encode_support", _positions, _int64, _int64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(_int64)
)
_free = _function("free", ctypes.c_void_p)
_check_support_count = _fallible("check_support_count", _int64, _int64, _int64)
_decode_support = _fallible("decode_support", ctypes.c_char_p, _int64, _int64, _int64, _positions)


def _number(name: str, value: int) -> int:
    """The number, if it fits 64 bits: ctypes would silently drop the other bits. NumPy integers pass, floats do not."""
    value = operator.index(value)
    if not _INT64.min <= value <= _INT64.max:
        raise ValueError(f"{name} is {value}; it must fit 64 bits")
    return value


def _list(name: str, values: Sequence[int]) -> Any:
    """A C array of the values. They are copied first, because the caller's list may change at any time."""
    copied = [_number(name, value) for value in values]
    return (_int64 * len(copied))(*copied)


def _support(positions: NDArray[np.int32]) -> NDArray[np.int32]:
    """The positions, contiguous. Arrays of another dtype than int32 are a TypeError and are never converted."""
    if not isinstance(positions, np.ndarray) or positions.dtype != np.int32:
        found = getattr(positions, "dtype", type(positions).__name__)
        raise TypeError(f"support is {found}; it must be a NumPy array of int32")
    if positions.ndim != 1:
        raise ValueError(f"support has {positions.ndim} dimensions; it must have 1")
    return np.ascontiguousarray(positions)


def _at(array: NDArray[np.int32]) -> Any:
    return array.ctypes.data_as(_positions)


# The build and the machine


def _text(name: str) -> str:
    return str(_function(name, result=ctypes.c_char_p)().decode())


#: The compiler and its version.
compiler = _text("compiler")
#: "built by ..." with the CUDA compiler and the architectures, or "not built: ..." with the reason.
cuda_build = _text("cuda_build")
#: Whether the library was built with sanitizers.
sanitized = bool(_function("sanitized", result=_int32)())


def built_isas() -> list[str]:
    """The ISA levels that are compiled in, best first."""
    return _text("built_isas").split(",")


def supported_isas() -> list[str]:
    """The compiled ISA levels that this machine can run, best first."""
    return _text("supported_isas").split(",")


def isa() -> str:
    """The ISA level in use."""
    name = ctypes.c_char_p()
    _isa(name)
    return (name.value or b"").decode()


def set_isa(name: str) -> None:
    """Forces an ISA level by name. An empty name picks the best level."""
    if "\0" in name:
        raise ValueError(f"isa is {name!r}; accepted: {', '.join(supported_isas())}, and an empty name")
    _set_isa(name.encode())


def lanes(float64: bool = False) -> int:
    """The vector lanes of the ISA level in use, for float32 or float64."""
    count = _int64()
    _lanes(bool(float64), count)
    return count.value


def short_precisions() -> int:
    """Whether the instruction set in use has instructions for int16, bfloat16 and int8, as bits 0, 1 and 2."""
    bits = _int32()
    _short_precisions(bits)
    return bits.value


def fma_gflops() -> float:
    """The float32 GFLOP/s that one core reaches on FMAs between registers."""
    gflops = ctypes.c_double()
    _fma_gflops(gflops)
    return gflops.value


def workspace_bytes() -> int:
    """The bytes of scratch memory that all threads hold."""
    return int(_workspace_bytes())


def part_times() -> dict[str, float]:
    """The seconds that all threads have spent in each part of sparse_conv since the process began."""
    parts = (_int64 * 4)()
    _part_times(parts)
    return dict(
        zip(("packing", "multiplying", "unpacking", "ordering values"), (part * 1e-9 for part in parts), strict=True)
    )


# Plans


class PlanKind(enum.IntEnum):
    """Kinds of plans, with the numbers of c_api.cpp. Each header describes the layout of its plans."""

    CPU = 0  #: ``csrc/core/plan.h``
    DIRECT = 1  #: ``csrc/core/plan.h``, for values in the order of the taps
    DEVICE = 2  #: ``csrc/core/device_plan.h``, for single elements on a GPU
    VECTOR = 3  #: ``csrc/core/vector_plan.h``, for vectors on a GPU


def _size(kind: PlanKind, numbers: Any, adjoint: bool, taps: int) -> int:
    size = _int64()
    _plan_size(kind, numbers, len(numbers), bool(adjoint), _number("taps", taps), size)
    return size.value


def _compiled(
    kind: PlanKind, support: NDArray[np.int32], geometry: list[int], adjoint: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A plan, and the value index of each tap. The second array is empty unless the plan is a direct plan."""
    support = _support(support)
    taps, numbers = len(support), _list("geometry", geometry)
    plan = np.empty(_size(kind, numbers, adjoint, taps), np.int32)
    value_index = np.empty(taps if kind == PlanKind.DIRECT else 0, np.int32)
    _compile_plan(kind, numbers, len(numbers), bool(adjoint), _at(support), taps, _at(plan), _at(value_index))
    return plan, value_index


def compile_plan(
    support: NDArray[np.int32], geometry: list[int], adjoint: bool, kind: PlanKind = PlanKind.CPU
) -> NDArray[np.int32]:
    """The plan of a sorted support for a geometry."""
    return _compiled(kind, support, geometry, adjoint)[0]


def plan_size(geometry: list[int], adjoint: bool, taps: int, kind: PlanKind = PlanKind.CPU) -> int:
    """The length of the plan that :func:`compile_plan` returns for a support of ``taps`` positions."""
    return _size(kind, _list("geometry", geometry), adjoint, taps)


def compile_direct_plan(
    support: NDArray[np.int32], geometry: list[int], adjoint: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(a direct plan, the value index of each of its taps) for a sorted support."""
    return _compiled(PlanKind.DIRECT, support, geometry, adjoint)


def _sizes(x_size: Sequence[int], y_size: Sequence[int]) -> Any:
    """Height and width of x, then of y, as a C array."""
    sizes = _list("sizes", [*x_size, *y_size])
    if len(sizes) != 4:
        raise ValueError(f"x_size and y_size have {len(sizes)} numbers; they must have a height and a width each")
    return sizes


def sparse_conv_cycles(
    geometry: list[int],
    adjoint: bool,
    taps: int,
    images: int,
    x_size: Sequence[int],
    y_size: Sequence[int],
    float64: bool,
) -> dict[str, float]:
    """The modelled cycles of one sparse_conv on one core, part by part; see csrc/cpu/cost_model.h."""
    sizes = _sizes(x_size, y_size)
    cycles = (ctypes.c_double * 6)()
    numbers = _list("geometry", geometry)
    taps, images = _number("taps", taps), _number("images", images)
    _sparse_conv_cycles(numbers, len(numbers), bool(adjoint), taps, images, sizes, bool(float64), cycles)
    parts = ("multiplying", "reading taps", "changing targets", "packing", "unpacking", "ordering values")
    return dict(zip(parts, cycles, strict=True))


def shared_panel(
    geometry: list[int],
    adjoint: bool,
    taps: int,
    images: int,
    x_size: Sequence[int],
    y_size: Sequence[int],
    dtype: int,
    channels: int,
) -> tuple[tuple[int, int], int]:
    """The tile (height, width) and the bytes of a panel of `channels` channels that several sparse_convs share; see
    SharedPanel in csrc/cpu/conv.h. The tile is the best one for this sparse_conv. `dtype`: a DType of
    csrc/cpu/kernels/dtypes.h, as a number."""
    numbers, sizes, found = _list("geometry", geometry), _sizes(x_size, y_size), (_int64 * 3)()
    taps, images, channels = _number("taps", taps), _number("images", images), _number("channels", channels)
    _shared_panel(numbers, len(numbers), bool(adjoint), taps, images, sizes, dtype, channels, found)
    return (found[0], found[1]), found[2]


# The codec


def encode_support(positions: NDArray[np.int32], size: int) -> bytes:
    """Sorted, unique positions in [0, size), coded as bytes: Golomb-Rice codes of the gaps."""
    positions = _support(positions)
    code, length = ctypes.c_void_p(), _int64()
    _encode_support(_at(positions), len(positions), _number("size", size), code, length)
    try:
        return ctypes.string_at(code, length.value)
    finally:
        _free(code)


def decode_support(code: bytes, size: int, count: int) -> NDArray[np.int32]:
    """The positions that `encode_support` coded. Raises ValueError for bytes that `encode_support` does not write."""
    code, size = bytes(code), _number("size", size)
    if _number("count", count) < 0:
        raise ValueError(f"count is {count}; a support has at least 0 positions")
    _check_support_count(len(code), size, count)
    positions = np.empty(count, np.int32)
    _decode_support(code, len(code), size, count, _at(positions))
    return positions


def check_support(positions: NDArray[np.int32], size: int) -> None:
    """Raises ValueError, with index and value, unless the positions are sorted, unique and in [0, size)."""
    positions = _support(positions)
    _check_support(_at(positions), len(positions), _number("size", size))
