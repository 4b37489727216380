"""benchmarks/gpu_numbers.py without a GPU: its Triton kernels interpreted and compiled, and its loop of taps by nvcc.

``tests/test_simt.py`` runs the loop of taps.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from sparsegan.kernels.tiling import Launch
from sparsegan.kernels.tuned import DEFAULTS
from test_cuda_build import loop_of_taps, read_kernels
from test_vector_compile import BRAIN, FLOAT, compile_kernel, count
from test_vector_sparse_conv import exact_products, pytestmark  # noqa: F401 # a fixture, and why not to interpret

from sparsegan.ops.vector_ops import _interpreted


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import gpu_numbers

    return gpu_numbers


def test_interpreted(numbers: Any) -> None:
    x = torch.randn(50, numbers.ROW).bfloat16()
    places, sums = torch.randint(50, (2, 3, 16), dtype=torch.int32), torch.empty(2, 16, numbers.ROW)
    _interpreted(numbers.gather_kernel)[2,](x, places, sums, 3, ROW=numbers.ROW, BLOCK_K=16)
    torch.testing.assert_close(sums, x[places.long()].float().sum(1), rtol=1e-4, atol=1e-4)
    x, values, y = torch.randn(16, 32), torch.randn(16, 16), torch.empty(2, 32, 16)
    _interpreted(numbers.product_kernel)[2,](x, values, y, 3, BLOCK_P=32, BLOCK_O=16, BLOCK_K=16)
    torch.testing.assert_close(y, 3 * (x.T @ values).expand(2, 32, 16), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("capability", [80, 90])
def test_compiled(numbers: Any, capability: int) -> None:
    """Rows are read 16 bytes at a time past the first-level cache. Products stay in the loop, with nothing loaded."""
    shape = {"ROW": numbers.ROW, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
    gather = compile_kernel(numbers.gather_kernel, [BRAIN, torch.int32, FLOAT], Launch(1, 1, [64], shape), capability)
    assert gather.spilled == 0
    assert count(r"ld\.global\.cg\.v4|cp\.async\.cg\.shared\.global", gather.ptx) >= 2
    for width in (64, 32, 16):
        blocks = DEFAULTS["sparse_conv", 2, width]
        shape = {"BLOCK_P": blocks.positions, "BLOCK_O": width, "BLOCK_K": blocks.taps}
        shape |= {"num_warps": blocks.warps, "num_stages": 3}
        launch = Launch(1, 1, [4096], shape)
        product = compile_kernel(numbers.product_kernel, [BRAIN, BRAIN, FLOAT], launch, capability)
        kind = "wgmma.mma_async" if capability == 90 else "mma.sync"
        loops = [part for part in product.ptx.split("\n$L__BB") if kind in part]
        assert len(loops) == 1
        loop = loops[0].split("bra")[0]
        assert product.spilled == 0
        assert kind in loop
        assert not re.search(r"ld\.global", loop)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_loop_of_taps_is_that_of_the_kernels(numbers: Any, architecture: str, tmp_path: Path) -> None:
    """nvcc makes the 8 instructions around the FMAs of a tap that ``sparse_conv_tiled`` has, or one more; no spills."""
    library = numbers.build("nvcc", str(tmp_path), architecture)
    kernels = read_kernels(library, r"\d(run_taps)()I((?:Li\d+E)+)E")
    assert len(kernels) == len(numbers.LOOPS)
    for kernel in kernels:
        strip = int(kernel.variant[1])
        loop, cases = loop_of_taps(kernel)
        assert len(loop) + 1 <= numbers.AROUND_A_TAP + 1, (kernel, loop)
        assert {len(case) for case in cases} == {strip + 1}
        assert kernel.resources["STACK"] == 0
        clocks = [text for _, text in kernel.code if "SR_CLOCK" in text]
        assert len(clocks) >= 2, kernel
