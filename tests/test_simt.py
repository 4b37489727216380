"""The CUDA kernels of csrc/cuda on the host, under an executor that reports races, bad accesses and bad barriers.

The executor is tests/native/simt/ (simt.h says what it checks). First it is tested itself, on kernels with planted
mistakes; then the kernels run under it and are compared with their plain-PyTorch twins.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from conftest import Problem, assert_close, problems, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsegan import reference

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / str(sys.implementation.cache_tag)
BIN = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # cmake, ninja

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="the SIMT executor needs a C++ compiler"
)


@pytest.fixture(scope="module")
def simt() -> ctypes.CDLL:
    environment = {**os.environ, "PATH": BIN}
    cmake = shutil.which("cmake", path=BIN)
    assert cmake, "cmake is not in the environment"
    if not (BUILD / "CMakeCache.txt").exists():
        subprocess.run(
            [cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"],
            env=environment,
            check=True,
        )
    subprocess.run([cmake, "--build", BUILD, "--target", "simt"], env=environment, check=True)
    library = ctypes.CDLL(str(BUILD / "libsimt.so"))
    for name in ("simt_example", "simt_conv"):
        if hasattr(library, name):
            getattr(library, name).restype = ctypes.c_char_p
    return library


def explained(error: bytes | None) -> str:
    """An error with places in the library replaced by lines of source, if addr2line is there."""

    def line(match: re.Match[str]) -> str:
        tool = shutil.which("addr2line")
        if tool is None:
            return match[0]
        at = hex(int(match[1], 16) - 1)  # the call before the return address
        found = subprocess.run([tool, "-ipe", BUILD / "libsimt.so", at], capture_output=True, text=True)
        return f"at {' < '.join(re.findall(r'[^/ ]+:[0-9]+', found.stdout))}"

    return re.sub(r"at libsimt\.so\+0x([0-9a-f]+)", line, error.decode()) if error else ""


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None and tensor.numel() else None)


# ---------------------------------------------------------------- the executor itself


def run_example(simt: ctypes.CDLL, name: str, seed: int, n: int) -> tuple[str, Tensor, Tensor]:
    """The error, if any; x and y of ``examples.cu``'s transpose (n a multiple of 32) or sum (of 4)."""
    square = name.startswith("transpose")
    x = torch.randn((n, n) if square else n)
    y = torch.zeros((n, n) if square else (n + 511) // 512)
    error = simt.simt_example(name.encode(), pointer(x), pointer(y), n, ctypes.c_int64(seed))
    return explained(error), x, y


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correct_examples(simt: ctypes.CDLL, seed: int) -> None:
    error, x, y = run_example(simt, "transpose none", seed, 96)
    assert not error
    assert torch.equal(y, x.T)
    error, x, y = run_example(simt, "sum none", seed, 1000)
    assert not error
    torch.testing.assert_close(y, torch.stack([part.sum() for part in x.split(512)]), rtol=1e-5, atol=1e-5)


THREAD = r"thread \(\d+, \d, 0\)"
STAGED = r"4 bytes at .*::staged \+ \d+ bytes, which"
FOUR = r"reads 16 bytes at shared memory \+ \d+ bytes, which"
#: Where threads may come in any order, one of two things goes wrong first.
MISTAKES = {
    "transpose no_barrier": rf"reads {STAGED} (nobody has written|{THREAD} writes with no barrier between)",
    "transpose no_second_barrier": rf"(reads {STAGED} {THREAD} writes|writes {STAGED} {THREAD} reads) with no barrier",
    "transpose unwritten": r"thread \(5, 7, 0\): reads 4 bytes at .*::staged \+ 688 bytes, which nobody has written",
    "transpose global_bounds": r"thread \(0, 0, 0\): reads 4 bytes at x \+ 16384 bytes, which has 16384",
    "transpose write_input": rf"{THREAD}: writes 4 bytes at x \+ \d+ bytes, an input",
    "transpose other_block": rf"{THREAD}: writes 4 bytes at y \+ \d+ bytes, which another block writes",
    "transpose exited": r"waits at __syncthreads \(examples.cu:\d+\), while thread \(9, 3, 0\) has exited",
    "transpose other_barrier": rf"waits at (__syncthreads \(examples.cu):(\d+)\), while {THREAD} waits at \1:(?!\2)",
    "sum shared_bounds": r"thread \(96, 0, 0\): writes 4 bytes at shared memory \+ 2064 bytes, which has 2064",
    "sum array_bounds": r"index 4 is outside its array",
    "sum missing_lane": rf"waits at __shfl_down_sync \(\S+, mask 0xffffffff\), while {THREAD} waits at __syncwarp",
    "sum no_warp_barrier": rf"(reads|writes) 4 bytes at shared memory \+ 20\d\d bytes, which {THREAD} \w+ with no",
    "sum no_wait": rf"{FOUR} ({THREAD} copies there|nobody has written)",
    "sum no_barrier_after_wait": rf"{FOUR} (nobody has written|{THREAD} (writes with no barrier|copies there))",
    "sum misaligned": r"an access at 0x[0-9a-f]+4, not a multiple of its type's alignment",
    "sum too_much_shared": r"49168 bytes of shared memory, 49152 are allowed",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistakes(simt: ctypes.CDLL, name: str) -> None:
    kernel = name.split()[0]
    for seed in range(4):
        error, _, _ = run_example(simt, name, seed, 64 if kernel == "transpose" else 1024)
        assert re.match(rf"kernel void examples::{kernel}<", error), error
        assert re.search(MISTAKES[name], error), error
        if name != "sum too_much_shared":  # not a matter of one thread
            assert re.search(rf"block \([01], 0, 0\), {THREAD}: ", error), error
            assert re.search(r"examples\.cu:\d+", error), error


# ---------------------------------------------------------------- the kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Call(ctypes.Structure):
    """SimtCall of tests/native/simt/conv.cpp."""

    _fields_ = (
        ("geometry", ctypes.c_int64 * 13),
        *((name, ctypes.c_int64) for name in ("adjoint", "dtype", "taps", "images")),
        *((f"{tensor}_{size}", ctypes.c_int64) for tensor in "xy" for size in ("channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("multiprocessors", "seed", "offset", "damage")),
    )


def call(p: Problem, dtype: torch.dtype, taps: int, seed: int, offset: int, damage: int) -> Call:
    c = Call((ctypes.c_int64 * 13)(*p.numbers), p.adjoint, DTYPES.index(dtype), taps, *p.x_shape, *p.y_shape[1:])
    c.multiprocessors, c.seed, c.offset, c.damage = 4, seed, offset, damage
    return c


def gather(
    simt: ctypes.CDLL,
    p: Problem,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    slope: float = 1,
    seed: int = 0,
    offset: int = 0,
    damage: int = 0,
) -> Tensor:
    y = x.new_empty(p.y_shape)
    c = call(p, x.dtype, len(support), seed, offset, damage)
    tensors = [pointer(t) for t in (support, x, values, bias)]
    error = simt.simt_conv(ctypes.byref(c), *tensors, ctypes.c_float(slope), pointer(y), None, None)
    assert not error, explained(error)
    return y


def wgrad(
    simt: ctypes.CDLL,
    p: Problem,
    gy: Tensor,
    x: Tensor,
    support: Tensor,
    seed: int = 0,
    offset: int = 0,
    damage: int = 0,
) -> Tensor:
    dv = x.new_empty(len(support))
    c = call(p, x.dtype, len(support), seed, offset, damage)
    error = simt.simt_conv(
        ctypes.byref(c), pointer(support), pointer(x), None, None, ctypes.c_float(), None, pointer(gy), pointer(dv)
    )
    assert not error, explained(error)
    return dv


def check_gather(simt: ctypes.CDLL, p: Problem, dtype: torch.dtype, bias: bool, seed: int, offset: int) -> None:
    support = p.support()
    x, values = torch.randn(p.x_shape).to(dtype), torch.randn(len(support)).to(dtype)
    b = torch.randn(p.y_shape[1]).to(dtype) if bias else None

    def twin(x: Tensor, values: Tensor, b: Tensor | None) -> Tensor:
        return reference.gather(x, values, b, support, p.geometry, p.adjoint, p.y_shape[1:])

    exact, magnitude = (
        twin(f(x.double()), f(values.double()), None if b is None else f(b.double())) for f in (same, torch.abs)
    )
    assert_close(gather(simt, p, x, values, b, support, 1, seed, offset), exact, twin(x, values, b), magnitude)


def check_wgrad(simt: ctypes.CDLL, p: Problem, dtype: torch.dtype, seed: int, offset: int) -> None:
    support = p.support()
    gy, x = torch.randn(p.y_shape).to(dtype), torch.randn(p.x_shape).to(dtype)

    def twin(gy: Tensor, x: Tensor) -> Tensor:
        return reference.wgrad(gy, x, support, p.geometry, p.adjoint)

    exact, magnitude = (twin(f(gy.double()), f(x.double())) for f in (same, torch.abs))
    assert_close(wgrad(simt, p, gy, x, support, seed, offset), exact, twin(gy, x), magnitude)


def plain(p: Problem) -> Problem:
    """Made one that the CUDA kernels take: single elements, zeros around; few images where each is much work."""
    geometry = replace(p.geometry, coarse_vector=1, fine_vector=1)
    multiplications = prod(geometry.weight_shape) * p.coarse[0] * p.coarse[1]
    images = max(1, min(p.images, 300_000 // multiplications))
    return replace(p, geometry=geometry, images=images, padding_mode="zeros", pad_before=(0, 0))


PLAIN = problems().map(plain)
#: The order of blocks and threads, and where tensors start: on 16 bytes, or one element further.
CIRCUMSTANCES = {"seed": st.integers(0, 3), "offset": st.integers(0, 1)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25)
@given(p=PLAIN, bias=st.booleans(), **CIRCUMSTANCES)
def test_gather(simt: ctypes.CDLL, dtype: torch.dtype, p: Problem, bias: bool, seed: int, offset: int) -> None:
    check_gather(simt, p, dtype, bias, seed, offset)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25)
@given(p=PLAIN, **CIRCUMSTANCES)
def test_wgrad(simt: ctypes.CDLL, dtype: torch.dtype, p: Problem, seed: int, offset: int) -> None:
    check_wgrad(simt, p, dtype, seed, offset)
