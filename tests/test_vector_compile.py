"""The Triton kernels, compiled without a GPU for given GPUs, and traced as by ``torch.compile``."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from sparsegan.geometry import Direction, Geometry
from sparsegan.ops.vector_plan import plan_size

pytest.importorskip("triton")

import triton
from sparsegan.kernels.deep import products_kernel, sum_kernel
from sparsegan.kernels.sparse_conv import sparse_conv_kernel
from sparsegan.kernels.tiling import Launch, deep_launches, sparse_conv_launch, wgrad_launch
from sparsegan.kernels.wgrad import wgrad_kernel
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from sparsegan.ops import vector_ops as ops

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

#: Bytes of shared memory per multiprocessor, for all programs on it, by compute capability.
SHARED = {80: 163 * 1024, 90: 227 * 1024}
#: Registers of a multiprocessor.
REGISTERS = 65536
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32"}


@dataclass(frozen=True)
class Compiled:
    ptx: str
    shared: int  # bytes
    registers: int  # per thread
    spilled: int  # bytes of spill stores and loads
    warps: int  # per program


def compile_kernel(kernel: Any, tensors: list[torch.dtype], launch: Launch, capability: int) -> Compiled:
    """Compiles ``kernel`` as for a launch on 16-byte aligned tensors of these dtypes, with known multiples of 16."""
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
    return Compiled(compiled.asm["ptx"], compiled.metadata.shared, registers, spilled, options["num_warps"])


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers per thread and spilled bytes, as reported by the ptxas of Triton."""
    arch = f"sm_{capability}{'a' if capability == 90 else ''}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={arch}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    registers = re.findall(r"Used (\d+) registers", said)
    assert len(registers) == 1, said
    return int(registers[0]), sum(map(int, spills))


def conv(vector: int, stride: int = 1) -> Direction:
    return Direction(Geometry(256, 256, 1, (3, 3), (stride, stride), (1, 1), (1, 1), vector, 1), False)


def transposed(vector: int) -> Direction:
    return Direction(Geometry(256, 128, 1, (4, 4), (2, 2), (1, 1), (1, 1), 1, vector), True)


def compile_case(op: str, d: Direction, dtype: torch.dtype, capability: int) -> Compiled:
    """Compiles for 16 images, a coarse grid of 64 x 64, 90 % sparsity, no bias: only x, gy, values, plan are loaded."""
    g = d.geometry
    fine = (64 * g.stride[0], 64 * g.stride[1])
    sizes = ((64, 64), fine) if d.adjoint else (fine, (64, 64))
    units = torch.Size(g.unit_shape).numel() // 10
    if op == "sparse_conv":
        launch = sparse_conv_launch(d, units, 16, *sizes, dtype, "tf32", False, 1.0)
        return compile_kernel(sparse_conv_kernel, [*[dtype] * 4, torch.int32], launch, capability)
    launch = wgrad_launch(d, units, 16, *sizes, dtype, "tf32")
    return compile_kernel(wgrad_kernel, [dtype, dtype, torch.float32, torch.int32], launch, capability)


def count(pattern: str, ptx: str) -> int:
    return len(re.findall(pattern, ptx))


HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32


CASES = {
    "sparse_conv, vector:16, bfloat16, sm_90": ("sparse_conv", conv(16), BRAIN, 90),
    "sparse_conv, vector:32, float16, sm_80": ("sparse_conv", conv(32), HALF, 80),
    "sparse_conv, vector:64, bfloat16, sm_90": ("sparse_conv", conv(64), BRAIN, 90),
    "sparse_conv, vector:64, float32, sm_80": ("sparse_conv", conv(64), FLOAT, 80),
    "sparse_conv, vector:16, float32, sm_90": ("sparse_conv", conv(16), FLOAT, 90),
    "transposed sparse_conv, vector:32, bfloat16, sm_80": ("sparse_conv", transposed(32), BRAIN, 80),
    "transposed sparse_conv, vector:64, float16, sm_90": ("sparse_conv", transposed(64), HALF, 90),
    "wgrad, vector:16, bfloat16, sm_90": ("wgrad", conv(16), BRAIN, 90),
    "wgrad, vector:64, float32, sm_90": ("wgrad", conv(64), FLOAT, 90),
    "transposed wgrad, vector:32, float16, sm_80": ("wgrad", transposed(32), HALF, 80),
}


@pytest.mark.parametrize(("op", "d", "dtype", "capability"), CASES.values(), ids=CASES)
def test_wide(op: str, d: Direction, dtype: torch.dtype, capability: int) -> None:
    compiled = compile_case(op, d, dtype, capability)
    assert compiled.spilled == 0
    # Programs of 8 warps are alone on a multiprocessor, of which they need all registers; others are two.
    programs = 1 if compiled.warps == 8 else 2
    assert programs * compiled.shared <= SHARED[capability]
    assert programs * compiled.warps * 32 * compiled.registers <= REGISTERS
    kind = {HALF: "f16", BRAIN: "bf16", FLOAT: "tf32"}[dtype]
    product = rf"wgmma\.mma_async\S*\.{kind}" if capability == 90 else rf"mma\.sync\S*\.{kind}"
    assert count(product, compiled.ptx) >= 2
    if dtype != FLOAT or op == "wgrad":
        # Most bytes that are read are of x. They are copied to shared memory 16 at a time, without registers.
        assert count(r"cp\.async\.c[ag]\.shared\.global \S*\s*\[[^\]]*\], \[[^\]]*\], 0x10", compiled.ptx) >= 4
    if op == "sparse_conv":
        assert count(r"shfl", compiled.ptx) < 32  # sums move through shared memory, not by shuffles


@pytest.mark.parametrize(("vector", "expected"), [(64, 2 / 64 + 2 / 256), (32, 2 / 32), (16, 2 / 16)])
def test_bytes_per_multiply_accumulate(vector: int, expected: float) -> None:
    """Counts the 16-byte copies and the products in the loop of the compiled kernel.

    They are the 2/V of x in kernels/NOTES.md, and at V=64 the 2/T of the values; smaller tiles of values are copied in
    smaller pieces.
    """
    compiled = compile_case("sparse_conv", conv(vector), BRAIN, 90)
    loops = [b for b in compiled.ptx.split("\n$L__BB") if "wgmma.mma_async" in b and "cp.async" in b]
    assert len(loops) == 1
    copied = 16 * count(r"cp\.async\.c[ag]\.shared\.global \S*\s*\[[^\]]*\], \[[^\]]*\], 0x10", loops[0])
    shapes = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m(\d+)n(\d+)k(\d+)", loops[0])
    products = sum(int(m) * int(n) * int(k) for m, n, k in shapes) / 128  # per thread: a warp group multiplies together
    assert copied / products == pytest.approx(expected)


def test_deep() -> None:
    d = Direction(conv(64).geometry, True)
    units = torch.Size(d.geometry.unit_shape).numel() // 10
    multiply, sums = deep_launches(d, units, 3, (64, 64), (64, 64), BRAIN, "tf32", False, 1.0)
    first = [torch.int32]  # the plan; first_image, a number, comes before the launch's numbers
    for kernel, tensors, launch in (
        (products_kernel, [BRAIN, BRAIN, BRAIN, *first], multiply),
        (sum_kernel, [BRAIN, BRAIN, BRAIN, *first], sums),
    ):
        with_image = Launch(launch.programs, 1, [32, *launch.numbers], launch.constants)
        compiled = compile_kernel(kernel, tensors, with_image, 90)
        assert compiled.spilled == 0
        assert 4 * compiled.shared <= SHARED[90]
        assert 4 * compiled.warps * 32 * compiled.registers <= REGISTERS
        if kernel is products_kernel:
            assert count(r"wgmma\.mma_async\S*\.bf16", compiled.ptx) >= 2
            assert count(r"st\.global\S*\.v4", compiled.ptx) >= 2  # products leave 16 bytes at a time


def test_strided() -> None:
    compiled = compile_case("sparse_conv", conv(16, stride=2), HALF, 80)
    assert compiled.spilled == 0
    assert 2 * compiled.shared <= SHARED[80]
    assert count(r"mma\.sync", compiled.ptx) >= 2


def test_sizes_of_one() -> None:
    """Triton treats an integer argument of 1 as a constant."""
    g = Geometry(2, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), 2, 1)
    launch = sparse_conv_launch(Direction(g, False), 1, 1, (1, 1), (1, 1), HALF, "ieee", False, 1.0)
    compile_kernel(sparse_conv_kernel, [*[HALF] * 4, torch.int32], launch, 80)
    for kernel, launch in zip(
        (products_kernel, sum_kernel),
        deep_launches(Direction(g, True), 1, 1, (1, 1), (1, 1), HALF, "ieee", False, 1.0),
        strict=True,
    ):
        with_image = Launch(1, 1, [1, *launch.numbers], launch.constants)
        compile_kernel(kernel, [*[HALF] * 3, torch.int32], with_image, 80)
    launch = wgrad_launch(Direction(g, False), 1, 1, (1, 1), (1, 1), HALF, "ieee")
    compile_kernel(wgrad_kernel, [HALF, HALF, torch.float32, torch.int32], launch, 80)


class NoGpu:
    """A driver that gives Triton a target where there is no GPU."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("op", ["sparse_conv", "wgrad"])
def test_traced_to_one_kernel_that_writes_only_its_result(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", NoGpu())
    g, units = conv(16).geometry, 60
    graphs: list[Any] = []

    def keep(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def call(x: torch.Tensor, gy: torch.Tensor, values: torch.Tensor, support: torch.Tensor, plan: torch.Tensor) -> Any:
        taps = (support, plan, None, g.numbers(), False)
        if op == "wgrad":
            return ops.vector_wgrad(gy, x, *taps)
        return ops.vector_sparse_conv(x, values, None, *taps, [256, 16, 16])

    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(2, 256, 16, 16, device="cuda", dtype=BRAIN)
        integers = (torch.empty(n, device="cuda", dtype=torch.int32) for n in (units, plan_size(g, False, units)))
        aot_function(call, fw_compiler=keep)(images, images, images.new_empty(units * 16), *integers)
    (kernel,) = (node for node in graphs[0].graph.nodes if "triton_kernel" in str(node.target))
    assert kernel.kwargs["tensors_to_clone"] == ["y" if op == "sparse_conv" else "partial_sums"]


def test_sizes_may_be_symbols() -> None:
    g, units = conv(16).geometry, 60
    shapes, free = ShapeEnv(), DimDynamic.DYNAMIC
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    symbols = StatelessSymbolicContext([free, DimDynamic.STATIC, free, free])
    n, _channels, rows, width = mode.from_tensor(torch.empty(2, 256, 16, 16), symbolic_context=symbols).shape
    with mode:
        x = torch.empty(n, 256, rows, width, device="cuda", dtype=BRAIN)
        values = torch.empty(units * 16, device="cuda", dtype=BRAIN)
        support, plan = (torch.empty(k, device="cuda", dtype=torch.int32) for k in (units, plan_size(g, False, units)))
        taps = (support, plan, None, g.numbers(), False)
        y = ops.vector_sparse_conv(x, values, None, *taps, [256, rows, width])
        assert y.shape == x.shape
        assert ops.vector_wgrad(y, x, *taps).shape == values.shape
    assert not shapes.replacements.keys() & {n.node.expr, rows.node.expr}  # no size was fixed
