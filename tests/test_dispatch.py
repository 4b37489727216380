"""The choices of ``auto``, on a CPU and on a simulated H100. Layers on a GPU are traced without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsegan as sg
from sparsegan import kernels
from sparsegan.geometry import Geometry
from sparsegan.nn import dispatch
from sparsegan.nn.dispatch import Call
from sparsegan.ops import library

CUDA = torch.device("cuda", 0)
RESIDUAL = Geometry(256, 256, 1, (3, 3), (1, 1), (1, 1), (1, 1))
WEIGHTS = 256 * 256 * 9


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets dispatch see an H100 for which all kernels are built."""
    monkeypatch.setattr(dispatch, "gpu", lambda device: dispatch.Gpu(132, *dispatch.GPUS[9, 0]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(library, "cuda_library", lambda: Path("_cuda.so"))


def call(density: float, vector: int = 1, **changes: Any) -> Call:
    geometry = Geometry(256, 256, 1, (3, 3), (1, 1), (1, 1), (1, 1), coarse_vector=vector)
    base = Call(geometry, False, round(WEIGHTS * density) // vector, 16, (64, 64), (64, 64), torch.bfloat16, CUDA)
    return base._replace(**changes)


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize(
    ("one", "backend", "words"),
    [
        (call(0.1, 64), "sparse", "model: sparse"),
        (call(0.1, 16), "sparse", "the gradient in the input runs dense"),
        (call(0.01, 64), "sparse", "model: sparse"),
        (call(0.9, 64), "dense", "model: sparse"),
        (call(0.1), "dense", "multiplying"),
        (call(0.1, dtype=torch.float64), "dense", "take float32, float16, bfloat16, not torch.float64"),
        (call(0.1, 64, dtype=torch.float64), "dense", "torch.float64"),
        (call(0.0), "sparse", "nothing to multiply"),
        (call(0.1, device=torch.device("cpu"), dtype=torch.float16), "dense", "take float32, float64, bfloat16"),
        (call(0.05, device=torch.device("cpu"), dtype=torch.float32), "sparse", "Mcycles"),
    ],
)
def test_choices(one: Call, backend: str, words: str) -> None:
    choice = dispatch.choose(one)
    assert choice.backend == backend
    assert words in choice.why
    assert dispatch.choose(one) == choice


@pytest.mark.usefixtures("h100")
def test_tf32_decides_for_a_float32_element_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    for tf32 in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
        chosen.append(dispatch.choose(call(0.15, dtype=torch.float32)).backend)
    assert chosen == ["sparse", "dense"]


def test_either_way_to_set_tf32() -> None:
    """Once torch's newer settings are used, reading the older ``torch.backends.cudnn.allow_tf32`` raises."""
    layer, x = sg.sparsify(nn.Conv2d(4, 8, 3), 0.5), torch.randn(1, 4, 8, 8)
    expected = layer(x)
    rnn, before = torch.backends.cudnn.rnn, torch.backends.cudnn.rnn.fp32_precision
    rnn.fp32_precision = "ieee" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "tf32"
    try:
        assert torch.equal(layer(x), expected)
    finally:
        rnn.fp32_precision = before


@pytest.mark.usefixtures("h100")
def test_the_reason_names_what_a_gpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cuda_library", lambda: None)
    assert "were not built" in dispatch.choose(call(0.1)).why
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    for vector in (1, 64):
        choice = dispatch.choose(call(0.1, vector))
        assert choice.backend == "dense"
        assert "compute capability" in choice.why
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in dispatch.choose(call(0.1, 64)).why


LAYERS = {
    "3x3": nn.Conv2d(16, 32, 3, padding=1),
    "reflect s2": nn.Conv2d(16, 32, 4, 2, 1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose2d(16, 32, 4, 2, 1),
    "transposed 1x1": nn.ConvTranspose2d(16, 32, 4),
}


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("granularity", ["element", "vector:16", "input:4"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", ["sparse", "auto", "dense"])
def test_gpu_layers_trace(name: str, granularity: str, backend: str) -> None:
    """Layers, plans and ops run on fake tensors of a GPU, and no op waits for a number of the GPU.

    Gradients are off, because a torch that was built for CPUs aborts when autograd meets a fake GPU tensor.
    """
    pytest.importorskip("triton")
    real = sg.sparsify(LAYERS[name], 0.9, granularity)
    size = 1 if "1x1" in name else 8
    expected = real(torch.randn(2, 16, size, size)).shape
    calls: list[str] = []

    class Note(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(allow_non_fake_inputs=True):
        layer = type(real).__new__(type(real))
        layer.__dict__.update(real.__getstate__())
        layer._parameters = {
            name: nn.Parameter(torch.empty(p.shape, device="cuda")) for name, p in real._parameters.items()
        }
        layer._buffers = {"support": torch.empty(real.support.shape, dtype=torch.int32, device="cuda")}
        layer.backend = backend
        with Note(), torch.no_grad():
            y = layer(torch.empty(2, 16, size, size, device="cuda"))
        chosen = layer.choose((2, 16, 64, 64), (64, 64))
    assert (y.shape, y.device.type) == (expected, "cuda")
    op = "sparsegan.vector_sparse_conv" if granularity == "vector:16" else "sparsegan.sparse_conv"
    if backend != "auto":
        assert any(op in one for one in calls) == (backend == "sparse")
    assert not any("_local_scalar_dense" in one or "aten.equal" in one for one in calls)
    if granularity == "input:4" and backend == "auto":  # chosen as a layer of as many single weights
        geometry = layer._geometries[False, False].single()
        single = Call(geometry, layer.adjoint, layer.nnz, 2, (64, 64), (64, 64), torch.float32, CUDA)
        assert chosen == dispatch.choose(single)
