"""Compiles a Triton kernel for a GPU that need not be there, and says what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from sparsegan.kernels.tiling import Launch

#: Bytes of shared memory that one program may have.
SHARED = {80: 163 * 1024, 90: 227 * 1024}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32"}


@dataclass(frozen=True)
class Compiled:
    ptx: str
    shared: int  # bytes
    registers: int  # a thread
    spilled: int  # bytes, stores and loads


def compile_kernel(kernel: Any, tensors: list[torch.dtype], launch: Launch, capability: int) -> Compiled:
    """Compiles ``kernel`` as its launch on tensors of these dtypes would: 16-byte aligned, multiples of 16 known."""
    arguments: dict[str, Any] = dict(zip(kernel.arg_names, [*tensors, *launch.numbers], strict=False))
    signature, constants, attrs = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        given = arguments.get(name, launch.constants.get(name))
        if name not in arguments or given == 1:
            signature[name], constants[place,] = "constexpr", given
        elif isinstance(given, torch.dtype):
            signature[name], attrs[place,] = f"*{TYPES[given]}", [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(given, float) else "i32"
            if isinstance(given, int) and given % 16 == 0:
                attrs[place,] = [["tt.divisibility", 16]]
    options = {name: launch.constants[name] for name in ("num_warps", "num_stages")}
    source = ASTSource(kernel, signature, constants, attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _assemble(compiled.asm["ptx"], capability)
    return Compiled(compiled.asm["ptx"], compiled.metadata.shared, registers, spilled)


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """What ptxas, which comes with Triton, says of registers and spills."""
    arch = f"sm_{capability}{'a' if capability == 90 else ''}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={arch}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    registers = re.findall(r"Used (\d+) registers", said)
    assert spills and registers, said
    return int(registers[0]), sum(map(int, spills))
