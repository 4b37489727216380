"""The built CUDA kernels for sm_80 and sm_90, without a GPU: registers, spills, shared memory and instructions."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / str(sys.implementation.cache_tag)
BIN = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # cmake, ninja

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="building the CUDA kernels needs nvcc")

ARCHITECTURES = ("sm_80", "sm_90")
TYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
#: The registers per thread that a kernel's __launch_bounds__ allow, of 65536 per multiprocessor. Other kernels: 64.
MOST_REGISTERS = {"sparse_conv_tiled": 168, "wgrad_tiled": 168, "sparse_conv_small": 80, "wgrad_small": 255}

#: The targets of a warp, by the strip.
SLOTS = {"16": 8, "8": 16, "4": 16}
#: Instructions per tap besides the FMAs, and bytes that a thread may spill.
MOST_AROUND_A_TAP, MOST_SPILLED = 8, 32


def cuobjdump() -> str:
    """The path of CUDA's disassembler, on PATH or in the package of Triton."""
    if found := shutil.which("cuobjdump"):
        return found
    if (triton := importlib.util.find_spec("triton")) and triton.submodule_search_locations:
        for tool in Path(triton.submodule_search_locations[0]).glob("**/cuobjdump"):
            return str(tool)
    pytest.skip("reading what nvcc built needs cuobjdump, of the CUDA toolkit or of triton")


@dataclass
class Kernel:
    architecture: str
    name: str
    variant: tuple[str, ...]  # dtype, then the integer template arguments
    resources: dict[str, int]  # REG, STACK, SHARED, LOCAL
    instructions: Counter[str] = field(repr=False)
    code: list[tuple[int, str]] = field(repr=False)  # address and text of each instruction


def build() -> Path:
    """Builds _cuda.so if a source changed, in a separate directory if the usual one is configured without CUDA."""
    cache = BUILD / "CMakeCache.txt"
    settings = cache.read_text() if cache.exists() else ""
    usual = "CMAKE_CUDA_COMPILER:" in settings and re.search(r"SPARSEGAN_CUDA:STRING=1?$", settings, re.M)
    directory = BUILD if usual else ROOT / "build" / f"cuda-{sys.implementation.cache_tag}"
    environment, cmake = {**os.environ, "PATH": BIN}, shutil.which("cmake", path=BIN)
    assert cmake, "cmake is not in the environment"
    if not usual:
        configure = ["-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", "-DSPARSEGAN_CUDA=1"]
        subprocess.run([cmake, "-S", ROOT, "-B", directory, *configure], env=environment, check=True)
    subprocess.run([cmake, "--build", directory, "--target", "_cuda"], env=environment, check=True)
    return directory / "_cuda.so"


def functions(library: Path, option: str) -> dict[tuple[str, str], list[str]]:
    """The lines that cuobjdump prints for each function, by (architecture, mangled name)."""
    found: dict[tuple[str, str], list[str]] = {}
    architecture = ""
    lines: list[str] = []
    output = subprocess.run([cuobjdump(), option, library], capture_output=True, text=True, check=True).stdout
    for line in output.splitlines():
        if at := re.match(r"arch = (\w+)", line):
            architecture, lines = at[1], []
        elif at := re.match(r"\s*Function\s*:?\s*(_Z\w+)", line):
            lines = found.setdefault((architecture, at[1]), [])
        else:
            lines.append(line)
    return found


@pytest.fixture(scope="module")
def library() -> Path:
    return build()


#: In the mangled name, the name of the file (sparse_conv_cu) can stand before the name of the function.
NAME = r"\d((?!sparse_conv_cu)[a-z]+(?:_[a-z]+)+)(?:I(f|6__half|13__nv_bfloat16)((?:Li\d+E)*)E)"


def read_kernels(library: Path, pattern: str = NAME) -> list[Kernel]:
    """The kernels of a library. The pattern's groups: the kernel, its type, its integer template arguments."""
    usage, found = functions(library, "--dump-resource-usage"), []
    for (architecture, name), lines in functions(library, "--dump-sass").items():
        short = re.search(pattern, name)
        assert short, name
        resources = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", " ".join(usage[architecture, name]))
        instructions = (re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ +)?([A-Z][^\s;]*)", line) for line in lines)
        texts = (re.match(r"\s*/\*([0-9a-f]+)\*/\s+([^;]*?) *;", line) for line in lines)
        found.append(
            Kernel(
                architecture,
                short[1],
                (TYPES.get(short[2], ""), *re.findall(r"\d+", short[3])),
                {key: int(value) for key, value in resources},
                Counter(match[1] for match in instructions if match),
                [(int(match[1], 16), match[2]) for match in texts if match],
            )
        )
    return found


@pytest.fixture(scope="module")
def kernels(library: Path) -> list[Kernel]:
    return read_kernels(library)


def test_every_kernel_is_built(kernels: list[Kernel]) -> None:
    tiled = [("4", "1"), ("4", "2"), ("8", "1"), ("8", "2"), ("16", "1")]
    templates = {"sparse_conv_tiled": tiled, "wgrad_tiled": tiled, "sparse_conv_small": [*"124"]}
    templates |= {name: [()] for name in ("wgrad_small", "add_parts", "add_tiles")}
    wanted = {
        (architecture, name, (dtype, *variant))
        for architecture in ARCHITECTURES
        for dtype in TYPES.values()
        for name, variants in templates.items()
        for variant in variants
    }
    assert {(k.architecture, k.name, k.variant) for k in kernels} == wanted


def test_spills_and_occupancy(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        tiled = kernel.name.endswith("_tiled")
        # csrc/cuda/NOTES.md: the tiled kernels with 128 sums may spill a few numbers, outside of the loop of the taps.
        assert kernel.resources["STACK"] <= (MOST_SPILLED if tiled else 0), kernel
        most = 128 if tiled and kernel.variant[1] == "4" else MOST_REGISTERS.get(kernel.name, 64)
        assert kernel.resources["REG"] <= most, kernel
        # Tiled kernels use dynamic shared memory: csrc/cuda/tiling.cpp keeps it below the 48 KiB that every launch may
        # have. From sm_90 on, CUDA reserves 1 KiB per block.
        assert kernel.resources["SHARED"] <= 1024 + (0 if tiled else 4096), kernel


def test_tiled_kernels_use_async_copies_and_wide_loads(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        if not kernel.name.endswith("_tiled"):
            continue
        found, wide = kernel.instructions, "128" if kernel.variant[0] == "float32" else "64"
        assert any(i.startswith("LDGSTS") and wide in i for i in found), f"cp.async of four columns in {kernel}"
        assert any(i.startswith("LDS") and wide in i for i in found), f"loads of four columns in {kernel}"


def loop_of_taps(kernel: Kernel) -> tuple[list[str], list[list[str]]]:
    """The loop of the taps up to and with its jump, and its cases, each up to and with the branch back to the loop."""
    jumps = [at for at, (_, text) in enumerate(kernel.code) if text.startswith("BRX")]
    assert len(jumps) == 1, f"one jump in {kernel}"
    at = jumps[0] + 1
    head = next(text.split()[1] for _, text in kernel.code[at:] if text.startswith("BRA "))
    start = next(i for i, (address, _) in enumerate(kernel.code) if address == int(head, 16))
    cases: list[list[str]] = [[]]
    for _, text in kernel.code[at:]:
        cases[-1].append(text)
        if text.startswith("BRA "):
            if text.split()[1] != head or len(cases) == 8 * SLOTS[kernel.variant[1]]:
                break
            cases.append([])
    return [text for _, text in kernel.code[start:at]], cases


def test_a_tap_takes_few_instructions_and_the_registers_of_its_case(kernels: list[Kernel]) -> None:
    """The counts of csrc/cuda/NOTES.md. The sums and columns of the cases fit together as slots and columns do."""
    for kernel in kernels:
        if kernel.name != "sparse_conv_tiled":
            continue
        loop, cases = loop_of_taps(kernel)
        strip, step = int(kernel.variant[1]), int(kernel.variant[2])
        assert len(loop) + 1 <= MOST_AROUND_A_TAP, (kernel, loop)
        assert not any(text.startswith(("LDL", "STL", "BSSY", "BSYNC")) for text in loop), (kernel, loop)
        slots: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for case in cases:
            fmas = [re.fullmatch(r"FFMA (\w+), (\w+), (\w+), (\w+)", text.replace(".reuse", "")) for text in case[:-1]]
            assert len(case) == strip + 1, (kernel, case)
            assert all(fmas), (kernel, case)
            numbers = sorted(match.groups() for match in fmas if match)
            factors = Counter(factor for _, a, b, _ in numbers for factor in (a, b))
            value = max(factors, key=lambda factor: factors[factor])
            assert factors[value] == strip, (kernel, case)
            assert all(to == addend for to, _, _, addend in numbers), (kernel, case)
            columns = tuple(a if b == value else b for _, a, b, _ in numbers)
            slots.setdefault(tuple(to for to, *_ in numbers), []).append(columns)
        assert len(slots) == SLOTS[kernel.variant[1]], kernel
        sums = [register for slot in slots for register in slot]
        assert len(set(sums)) == len(sums) == len(slots) * strip, kernel
        for of_slot in slots.values():  # each slot has a case for each of the eight columns
            assert len(set(of_slot)) == 8, kernel
            assert len({column for case in of_slot for column in case}) == (strip - 1) * step + 8, kernel


#: Loads _cuda.so with ``torch.ops.load_library``. Torch loads its own CUDA library with RTLD_LOCAL, so _cuda.so finds
#: the symbols only if it names that library as a dependency. A stub replaces the library where torch has none.
LOAD = """
import ctypes, sys, torch, sparsegan
if torch.version.cuda is None:
    stub = ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_LOCAL)
    torch.ops.load_library(sys.argv[1])
for op in ("sparsegan::sparse_conv", "sparsegan::wgrad"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), op
"""


def test_torch_loads_the_library(library: Path) -> None:
    stub = library.parent / "stub" / "libtorch_cuda.so"
    subprocess.run([sys.executable, "-c", LOAD, library, stub], check=True, cwd=ROOT)


def test_a_broken_library_leaves_the_cpu_working(library: Path, tmp_path: Path) -> None:
    """Where torch has CUDA and _cuda.so is broken, the package still imports, runs on the CPU and names the error."""
    copy = tmp_path / "sparsegan"
    ignored = shutil.ignore_patterns("__pycache__", "_cuda.so")
    shutil.copytree(ROOT / "sparsegan", copy, ignore=ignored)
    shutil.copytree(ROOT / "kernels", copy / "kernels", ignore=ignored)
    (copy / "_cuda.so").write_bytes(b"no object at all")
    program = """
import torch
torch.version.cuda = "13.0"
import sparsegan as sg
from sparsegan.profiling.info import info
y = sg.sparsify(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), 0.5)(torch.ones(1, 3, 8, 8))
print(info()["cuda kernels"])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert re.match(r"did not load: .*_cuda\.so: (file too short|invalid ELF header)", ran.stdout), ran.stdout


#: A program that prints the version of an nvcc and compiles nothing.
FAKE_NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 11.8, V11.8.89" ;;
  *) echo "nvcc fatal   : Unsupported gpu architecture" >&2; exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("version", "why"),
    [("11.8", "nvcc 11.8.89 is too old: 12.0 or later is wanted"), ("12.9", "nvcc 12.9.89 does not compile")],
)
def test_a_compiler_that_cannot_build_is_no_error_unless_asked_for(version: str, why: str, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(FAKE_NVCC.replace("11.8", version))
    nvcc.chmod(0o755)
    environment = {**os.environ, "PATH": BIN, "CUDACXX": str(nvcc)}
    for asked in ("", "1"):
        command = ["cmake", "-S", ROOT, "-B", tmp_path / asked, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        command.append(f"-DSPARSEGAN_CUDA={asked}")
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        said = " ".join((ran.stdout + ran.stderr).split())
        assert why in said, said
        assert (ran.returncode == 0) == (asked == ""), said
        assert ("CUDA kernels cannot be built" in said) == (asked == "1"), said
