"""The CUDA kernels of csrc/cuda, run on the host by an executor that reports races, bad accesses and bad barriers.

The executor is in tests/native/simt/ (simt.h lists its checks). The first tests run it on kernels with planted
mistakes. The others run the CUDA kernels and compare the results with the plain-PyTorch twins.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Problem, assert_close, problems, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsegan.geometry import Geometry
from sparsegan.ops import reference

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
    return loaded(BUILD / "libsimt.so")


def loaded(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    texts = (library.simt_example, library.simt_conv, library.simt_launched, library.simt_loop, library.simt_taps)
    for function in texts:
        function.restype = ctypes.c_char_p
    library.simt_bytes_read.restype = ctypes.c_int64
    return library


def explained(error: bytes | None) -> str:
    """The error text, with addresses in the library replaced by lines of source where addr2line is installed."""

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
    """The error text and x, y of a kernel of ``examples.cu``: transpose (n % 32 == 0) or sum (n % 4 == 0)."""
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
UNORDERED = rf"(nobody has written|{THREAD} writes with no barrier between)"
#: The reported error of each planted mistake. Alternatives are there where the order of threads decides.
MISTAKES = {
    "transpose no_barrier": f"reads {STAGED} {UNORDERED}",
    "transpose warp_barrier": f"reads {STAGED} {UNORDERED}",
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
        if name != "sum too_much_shared":  # no single thread causes it
            assert re.search(rf"block \([01], 0, 0\), {THREAD}: ", error), error
            assert re.search(r"examples\.cu:\d+", error), error


# ---------------------------------------------------------------- the kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Call(ctypes.Structure):
    """The struct SimtCall of tests/native/simt/conv.cpp."""

    _fields_ = (
        ("geometry", ctypes.c_int64 * 13),
        *((name, ctypes.c_int64) for name in ("adjoint", "dtype", "taps", "images")),
        *((f"{tensor}_{size}", ctypes.c_int64) for tensor in "xy" for size in ("channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("multiprocessors", "wgrad", "seed", "offset", "damage")),
    )


@dataclass(frozen=True)
class Circumstances:
    """Settings that must not change a result, except `damage`; see ``SimtCall``."""

    seed: int = 1
    offset: int = 0
    multiprocessors: int = 4
    damage: int = 0


def call(p: Problem, dtype: torch.dtype, support: Tensor, wgrad: bool, how: Circumstances) -> Call:
    shapes = (*p.x_shape, *p.y_shape[1:])
    fixed = (p.adjoint, DTYPES.index(dtype), len(support), *shapes, how.multiprocessors, wgrad)
    return Call((ctypes.c_int64 * 13)(*p.numbers), *fixed, how.seed, how.offset, how.damage)


def sparse_conv(
    simt: ctypes.CDLL,
    p: Problem,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    how: Circumstances,
    slope: float = 1,
) -> Tensor:
    y, error = tried_sparse_conv(simt, p, x, values, bias, support, how, slope)
    assert not error, explained(error)
    return y


def tried_sparse_conv(
    simt: ctypes.CDLL,
    p: Problem,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    how: Circumstances,
    slope: float = 1,
) -> tuple[Tensor, bytes | None]:
    """The result and the error text."""
    y = x.new_empty(p.y_shape)
    tensors = (pointer(t) for t in (support, x, values, bias))
    c = call(p, x.dtype, support, False, how)
    error = simt.simt_conv(ctypes.byref(c), *tensors, ctypes.c_float(slope), pointer(y), None, None)
    return y, error


def wgrad(simt: ctypes.CDLL, p: Problem, gy: Tensor, x: Tensor, support: Tensor, how: Circumstances) -> Tensor:
    dv = x.new_empty(len(support))
    c = call(p, x.dtype, support, True, how)
    unused = (None, None, ctypes.c_float(), None)
    error = simt.simt_conv(ctypes.byref(c), pointer(support), pointer(x), *unused, pointer(gy), pointer(dv))
    assert not error, explained(error)
    return dv


def check_sparse_conv(simt: ctypes.CDLL, p: Problem, dtype: torch.dtype, bias: bool, how: Circumstances) -> None:
    support = p.support()
    x, values = torch.randn(p.x_shape).to(dtype), torch.randn(len(support)).to(dtype)
    b = torch.randn(p.y_shape[1]).to(dtype) if bias else None

    def twin(x: Tensor, values: Tensor, b: Tensor | None) -> Tensor:
        return reference.sparse_conv(x, values, b, support, p.geometry, p.adjoint, p.y_shape[1:])

    exact, magnitude = (
        twin(f(x.double()), f(values.double()), None if b is None else f(b.double())) for f in (same, torch.abs)
    )
    assert_close(sparse_conv(simt, p, x, values, b, support, how), exact, twin(x, values, b), magnitude)


def check_wgrad(simt: ctypes.CDLL, p: Problem, dtype: torch.dtype, how: Circumstances) -> None:
    support = p.support()
    gy, x = torch.randn(p.y_shape).to(dtype), torch.randn(p.x_shape).to(dtype)

    def twin(gy: Tensor, x: Tensor) -> Tensor:
        return reference.wgrad(gy, x, support, p.geometry, p.adjoint)

    exact, magnitude = (twin(f(gy.double()), f(x.double())) for f in (same, torch.abs))
    assert_close(wgrad(simt, p, gy, x, support, how), exact, twin(gy, x), magnitude)


def plain(p: Problem) -> Problem:
    """The problem in a form that the CUDA kernels take: single weights, zero padding, few images if large."""
    geometry = replace(p.geometry, coarse_vector=1, fine_vector=1)
    multiplications = prod(geometry.weight_shape) * p.coarse[0] * p.coarse[1]
    images = max(1, min(p.images, 300_000 // multiplications))
    return replace(p, geometry=geometry, images=images, padding_mode="zeros", pad_before=(0, 0))


PLAIN = problems().map(plain)
#: Tensors start at a multiple of 256 bytes or one element later. The GPU has 1 or 132 multiprocessors.
CIRCUMSTANCES = st.builds(Circumstances, st.integers(0, 3), st.integers(0, 1), st.sampled_from([1, 132]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40)
@given(p=PLAIN, bias=st.booleans(), how=CIRCUMSTANCES)
def test_sparse_conv(simt: ctypes.CDLL, dtype: torch.dtype, p: Problem, bias: bool, how: Circumstances) -> None:
    check_sparse_conv(simt, p, dtype, bias, how)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40)
@given(p=PLAIN, how=CIRCUMSTANCES)
def test_wgrad(simt: ctypes.CDLL, dtype: torch.dtype, p: Problem, how: Circumstances) -> None:
    check_wgrad(simt, p, dtype, how)


def layer(
    coarse: tuple[int, int, int],
    fine: tuple[int, int, int],
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    images: int = 1,
    sparsity: float = 0.9,
) -> Problem:
    """A problem from fine to coarse. Sizes are (channels, height, width)."""
    kernels, strides, paddings, dilations = ((n, n) for n in (kernel, stride, padding, dilation))
    geometry = Geometry(coarse[0], fine[0], groups, kernels, strides, paddings, dilations)
    return Problem(geometry, False, images, coarse[1:], fine[1:], sparsity, False)


#: Together these layers run every kernel of a dtype.
LAYERS = {
    "3x3": layer((24, 40, 33), (20, 40, 33), 3, padding=1),
    "stride 2": layer((24, 17, 20), (20, 33, 40), 3, 2, 1, images=2),
    "4x4 stride 2": layer((20, 16, 18), (24, 32, 36), 4, 2, 1, images=2),
    "tall, stride 2": layer((20, 17, 4), (24, 34, 8), 4, 2, 1, images=2),
    "wide, stride 2": layer((20, 8, 64), (24, 16, 128), 4, 2, 1),
    "stride 3": layer((9, 14, 12), (10, 41, 36), 5, 3, 2),
    "dilation 4": layer((12, 20, 24), (12, 20, 24), 3, 1, 4, 4),
    "7x7": layer((3, 40, 40), (16, 40, 40), 7, 1, 3),
    "wider than a window": layer((5, 24, 25), (4, 24, 25), 13, 1, 6),
    "groups of two": layer((18, 12, 12), (18, 12, 12), 3, 1, 1, groups=9, images=3, sparsity=0.2),
    "1x1": layer((70, 15, 17), (9, 15, 17), 1, images=2),
    "many sources": layer((8, 12, 16), (300, 12, 16), 3, 1, 1),
    "early 4x4": layer((256, 4, 4), (128, 8, 8), 4, 2, 1),
    "early 8x8": layer((64, 8, 8), (32, 16, 16), 4, 2, 1),
    "from noise": layer((100, 1, 1), (32, 4, 4), 4, images=2),
    "one pixel": layer((512, 1, 1), (64, 1, 1), 1, sparsity=0.1),
    "6x6": layer((64, 6, 6), (32, 6, 6), 3, 1, 1),
    "10x10 sparse": layer((16, 10, 10), (5, 10, 10), 5, 1, 2, sparsity=0.98),
    "4x4, many images": layer((16, 4, 4), (16, 4, 4), 3, 1, 1, images=31, sparsity=0.1),
    "4x4 stride 2, many images": layer((16, 4, 4), (16, 8, 8), 4, 2, 1, images=31, sparsity=0.1),
    "nothing kept": layer((9, 30, 30), (5, 30, 30), 3, 1, 1, sparsity=1.0),
    "nothing kept, one pixel": layer((9, 1, 1), (5, 1, 1), 1, sparsity=1.0),
    "no images": layer((9, 8, 8), (5, 8, 8), 3, 1, 1, images=0),
}
NAMES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kernel(simt: ctypes.CDLL, dtype: torch.dtype) -> None:
    tiled = [f"{strip}, {step}" for strip, step in ((4, 1), (4, 2), (8, 1), (8, 2), (16, 1))]
    expected = {f"sparse_conv_tiled {s}" for s in tiled} | {f"wgrad_tiled {s}" for s in tiled}
    expected |= {f"sparse_conv_small {pixels}" for pixels in (1, 2, 4)} | {"wgrad_small", "add_parts", "add_tiles"}
    launched = set()
    for p in LAYERS.values():
        for adjoint, how in ((False, Circumstances(multiprocessors=1)), (True, Circumstances(2, 0, 132))):
            for check in (partial(check_sparse_conv, bias=True), check_wgrad):
                check(simt, replace(p, adjoint=adjoint), dtype, how=how)
                found = re.findall(r"(\w+)<(\w+)(?:, )?([\d, ]*)>\(", simt.simt_launched().decode())
                assert all(name == NAMES[dtype] for _, name, _ in found)
                launched |= {f"{kernel} {numbers}".strip() for kernel, _, numbers in found}
    assert launched == expected


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_activation(simt: ctypes.CDLL, slope: float) -> None:
    """Every kernel that writes an output applies the activation as torch does, also to infinities and NaN."""
    for name, multiprocessors in (("3x3", 1), ("3x3", 132), ("early 4x4", 1), ("4x4 stride 2", 1)):
        for adjoint in (False, True):
            p, how = replace(LAYERS[name], adjoint=adjoint), Circumstances(multiprocessors=multiprocessors)
            support = p.support()
            x, values = torch.randn(p.x_shape), torch.randn(len(support))
            x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
            plain = sparse_conv(simt, p, x, values, None, support, how)
            active = sparse_conv(simt, p, x, values, None, support, how, slope)
            expected = torch.nn.functional.leaky_relu(plain, slope) if slope else plain.relu()
            torch.testing.assert_close(active, expected, rtol=0, atol=0, equal_nan=True)


def run_ptx(text: str, numbers: dict[str, Any], memory: dict[int, Any]) -> None:
    """Runs the PTX of a loop, from its start to the label `leave`.

    ``numbers``: of the operands and registers. ``memory``: by address in bytes; each entry is 4 bytes.
    """
    lines = [line for line in re.split(r"[\n;]\s*", text.strip().strip("{}")) if line and not line.startswith(".reg")]
    table = next(line for line in lines if line.startswith("table:")).split(".branchtargets ")[1].split(", ")
    labels = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}

    def value(operand: str) -> Any:
        return 0.0 if operand == "0f00000000" else int(operand) if operand.isdigit() else numbers[operand]

    at = 0
    while at != labels["leave"]:
        operation, _, rest = lines[at].partition(" ")
        operands = [one.strip("{[]} ") for one in rest.split(",")]
        at += 1
        if operation.startswith("mov."):
            numbers[operands[0]] = value(operands[1])
        elif operation == "xor.b32":
            assert value(operands[2]) == 0
            numbers[operands[0]] = value(operands[1])
        elif operation in ("add.u32", "add.f32"):
            numbers[operands[0]] = value(operands[1]) + value(operands[2])
        elif operation == "fma.rn.f32":
            numbers[operands[0]] = value(operands[1]) * value(operands[2]) + value(operands[3])
        elif operation == "ld.shared.v2.b32":
            address = value(operands[2])
            numbers[operands[0]], numbers[operands[1]] = memory[address], memory[address + 4]
        elif operation == "st.shared.f32":
            memory[value(operands[0])] = value(operands[1])
        elif operation == "bra.uni":
            at = labels[operands[0]]
        elif operation == "brx.idx.uni":
            at = labels[table[value(operands[0])]]
        else:
            assert operation == "table:" or operation.endswith(":"), operation


#: Strip, step and slots of each pair of loops, as in csrc/cuda/steps.h.
LOOPS = [(16, 1, 8), (8, 1, 16), (8, 2, 16), (4, 1, 16), (4, 2, 16)]


@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize(("strip", "step", "slots"), LOOPS)
def test_the_ptx_of_the_loops(simt: ctypes.CDLL, strip: int, step: int, slots: int, dots: bool) -> None:
    """Each tap selects the sums and columns of its slot and column. (The host itself runs the loops in C++.)"""
    text = simt.simt_loop(ctypes.c_int64(strip), ctypes.c_int64(step), ctypes.c_int64(dots)).decode()
    draw = random.Random(strip + step)
    columns, sums = ([float(draw.randrange(-9, 10)) for _ in range(n)] for n in (24, slots * strip))
    taps = [(float(draw.randrange(1, 9)), which) for which in range(8 * slots)]
    draw.shuffle(taps)
    steps = [number for tap in [*taps, (-1.0, 8 * slots + 1), (0.0, 0)] for number in tap]
    memory: dict[int, Any] = {4 * at: number for at, number in enumerate(steps)}
    first_dot = 4 * len(steps)
    numbers: dict[str, Any] = {f"%{at}": number for at, number in enumerate(columns)}
    numbers |= {f"%{30 + at}": number for at, number in enumerate(sums)}
    numbers |= {"%25": steps[0], "%26": steps[1], "%27": 8, "%28": first_dot if dots else 0}
    run_ptx(text, numbers, memory)
    assert numbers["%29"] == 0
    assert numbers["%24"] == -1
    assert numbers["%27"] == first_dot  # the step after the last one was read ahead
    for at, (value, which) in enumerate(taps):
        column, slot = divmod(which, slots)
        products = [sums[slot * strip + i] * columns[column + i * step] for i in range(strip)]
        if dots:
            assert memory[first_dot + 132 * at] == sum(products)
        else:
            for i in range(strip):
                sums[slot * strip + i] += value * columns[column + i * step]
    assert [numbers[f"%{30 + at}"] for at in range(slots * strip)] == sums


@settings(max_examples=100)
@given(p=PLAIN, damage=st.integers(1, 2**31))
def test_damaged_plan(simt: ctypes.CDLL, p: Problem, damage: int) -> None:
    """A damaged plan or support gives wrong numbers, but no access outside the tensors and no kernel that hangs."""
    support, how = p.support(), Circumstances(damage=damage)
    x, values = torch.randn(p.x_shape), torch.randn(len(support))
    sparse_conv(simt, p, x, values, None, support, how)
    wgrad(simt, p, torch.randn(p.y_shape), x, support, how)


# ---------------------------------------------------------------- mistakes planted in the kernels

#: Name -> file, text, and the text with a mistake. Each must be found in the results or by the executor.
LOOP_MISTAKES = {
    "steps written while the last round runs": (
        "sparse_conv.cu",
        "      __syncwarp();\n      write_steps",
        "      if (!wrong) __syncwarp();\n      write_steps",
    ),
    "steps run before they are written": (
        "sparse_conv.cu",
        "      __syncwarp();\n      tap_ =",
        "      if (!wrong) __syncwarp();\n      tap_ =",
    ),
    "a stage read before its copies": ("sparse_conv.cu", "    wait_copies();", "    if (!wrong) wait_copies();"),
    "a stage read before other threads copied": (
        "sparse_conv.cu",
        "    __syncthreads();  // this stage",
        "    if (!wrong) __syncthreads();  // this stage",
    ),
    "one stage instead of two": (
        "sparse_conv.cu",
        "copy(next, half_size - half)",
        "copy(next, wrong ? half : half_size - half)",
    ),
    "warps that share steps": (
        "sparse_conv.cu",
        "slices + warp * kMaxSteps",
        "slices + warp * (wrong ? 1 : kMaxSteps)",
    ),
    "a value outside the tensor": (
        "sparse_conv.cu",
        "min(static_cast<unsigned>(index_), t_.plan.taps - 1u)",
        "(wrong ? static_cast<unsigned>(index_) : min(static_cast<unsigned>(index_), t_.plan.taps - 1u))",
    ),
    "the step that is only read ahead is missing": ("steps.h", "kRow + 1, me < 2)", "kRow + 1, me < (wrong ? 1 : 2))"),
    "a row outside the stage": (
        "steps.h",
        "min(offset, static_cast<unsigned>(t.row_limit))",
        "(wrong ? offset : min(offset, static_cast<unsigned>(t.row_limit)))",
    ),
    "no new row": (
        "steps.h",
        "before == 0 || code_before / kRowCodes != code / kRowCodes",
        "before == 0 || (!wrong && code_before / kRowCodes != code / kRowCodes)",
    ),
    "the outer columns not read": (
        "steps.h",
        "(greatest_column >= column_step + 4 ? kAfterLast : 0)",
        "(!wrong && greatest_column >= column_step + 4 ? kAfterLast : 0)",
    ),
    "a row's last tap not found": (
        "steps.h",
        "last_code / kSlots % kReach)",
        "(wrong ? code : last_code) / kSlots % kReach)",
    ),
    "the slot of another tap": (
        "steps.h",
        "* kTapSlots + code % kTapSlots",
        "* kTapSlots + (code + wrong) % kTapSlots",
    ),
    "the taps of the other half of a bundle": (
        "window.h",
        "return kParts == 1 ||",
        "return wrong || kParts == 1 ||",
    ),
}


@pytest.fixture(scope="module")
def wrong_simt(simt: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The executor with kernels that have all of :data:`LOOP_MISTAKES`; ``set_mistake`` chooses one of them or none.

    The kernels are built as the ones of ``simt`` are, for float32 only.
    """
    root = tmp_path_factory.mktemp("wrong")
    shutil.copytree(ROOT / "csrc", root / "csrc")
    for number, (name, right, wrong) in enumerate(LOOP_MISTAKES.values()):
        file = root / "csrc" / "cuda" / name
        source = file.read_text()
        assert source.count(right) == 1, (name, right)
        file.write_text(source.replace(right, re.sub(r"\bwrong\b", f"(mistake() == {number})", wrong)))
    kernels = root / "csrc" / "cuda" / "sparse_conv.cu"
    source = kernels.read_text()
    every = "with_type(c.dtype, [&](auto zero) { run<decltype(zero)>("
    assert every in source
    source = source.replace(every, "([&](auto zero) { run<decltype(zero)>(").replace(
        "stream); });", "stream); })(0.0f);"
    )
    (root / "kernels.cpp").write_text(
        'extern "C" int mistake();\n' + source.replace('#include "', '#include "csrc/cuda/')
    )
    # This file is not instrumented, so that the executor does not see the choice.
    (root / "choice.cpp").write_text(
        "static int chosen;\n"
        'extern "C" int mistake() { return chosen; }\n'
        'extern "C" void set_mistake(int number) { chosen = number; }\n'
    )
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    (command,) = (one for one in commands if one["file"].endswith("simt/csrc/cuda/sparse_conv.cu.cpp"))
    compiler, *flags = command["command"].split(" -o ")[0].split()
    include = f"-I{root}"
    subprocess.run([compiler, *flags, include, "-w", "-c", root / "kernels.cpp", "-o", root / "kernels.o"], check=True)
    objects = [one for one in (BUILD / "CMakeFiles").glob("simt*.dir/**/*.o") if one.name != "sparse_conv.cu.cpp.o"]
    library = ["-shared", "-fPIC", "-o", root / "libwrong.so", root / "choice.cpp", root / "kernels.o", *objects]
    subprocess.run([compiler, *library], check=True)
    return loaded(root / "libwrong.so")


def found(simt: ctypes.CDLL, p: Problem, how: Circumstances) -> bool:
    """Whether the executor reports an error or, without damage, the result is not that of the twin."""
    support = p.support()
    x, values = torch.randn(p.x_shape), torch.randn(len(support))
    y, error = tried_sparse_conv(simt, p, x, values, None, support, how)
    if error or how.damage:
        return bool(error)
    twin = reference.sparse_conv(x, values, None, support, p.geometry, p.adjoint, p.y_shape[1:])
    return not torch.allclose(y, twin, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [None, *LOOP_MISTAKES])
def test_mistakes_in_the_kernels_are_found(wrong_simt: ctypes.CDLL, name: str | None) -> None:
    wrong_simt.set_mistake(-1 if name is None else list(LOOP_MISTAKES).index(name))
    cases = [
        (LAYERS[layer], Circumstances(seed, 0, 1, damage))
        for damage in ((0, 1, 2, 3) if name is not None else (0, 1))
        for seed in (1, 2)
        for layer in ("3x3", "7x7", "many sources")
    ]
    caught = any(found(wrong_simt, p, how) for p, how in cases)
    assert caught == (name is not None)


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(("strip", "step"), [(16, 1), (8, 1), (8, 2)])
def test_the_program_that_counts_clocks_runs_the_taps(
    simt: ctypes.CDLL, strip: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/native/tap_clocks.cu gives the sums that benchmarks/gpu_numbers.py compares on a GPU."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_numbers

    slots = gpu_numbers.LOOPS[strip, step]
    taps = gpu_numbers.random_taps(slots)
    steps, sums = gpu_numbers.steps_of(taps, slots), torch.empty(4, 32, slots, strip)
    error = simt.simt_taps(strip, step, steps, len(steps) // 8, 3, pointer(sums))
    assert not error, explained(error)
    for of_warp in sums:
        torch.testing.assert_close(of_warp, gpu_numbers.sums_of(taps, strip, step, 3), rtol=1e-5, atol=0)


#: The small maps of csrc/cuda/NOTES.md, batch 1.
READ_ONCE = {
    "one pixel": layer((512, 1, 1), (64, 1, 1), 1, sparsity=0.9),
    "4x4": layer((128, 4, 4), (64, 8, 8), 4, 2, 1),
    "8x8": layer((64, 8, 8), (64, 8, 8), 3, 1, 1),
    "16x16": layer((32, 16, 16), (64, 16, 16), 3, 1, 1),
}


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", READ_ONCE)
def test_small_maps_read_each_value_once(simt: ctypes.CDLL, name: str, adjoint: bool) -> None:
    p = replace(READ_ONCE[name], adjoint=adjoint)
    support = p.support()
    values = torch.randn(len(support))
    sparse_conv(simt, p, torch.randn(p.x_shape), values, None, support, Circumstances(multiprocessors=132))
    assert simt.simt_bytes_read(b"values") == values.numel() * 4, simt.simt_launched()
