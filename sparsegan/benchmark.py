"""Layers timed against the best dense engine of the same run: what ``sparsegan bench layers`` prints.

A row is one layer and batch. Every engine gets the same weights (zeros in place for the dense ones) and an NCHW tensor,
and all run in turns, each timed call after a pause and a warm one. Dense is the best of torch NCHW, torch channels_last
(its tensors converted beforehand, which favours it), and ONNX Runtime and OpenVINO where they are installed
(``pip install sparsegan[bench]``). Sparse is the drop-in layer, from NCHW tensor to NCHW tensor, packing and unpacking
included.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import _native
from .info import cpu_name
from .nn import SPARSE_CLASSES
from .profiling import interleaved_ms


@dataclass(frozen=True)
class LayerCase:
    """One convolution and its input: ``size`` is the input's height and width."""

    c_in: int
    c_out: int
    kernel: int
    stride: int
    padding: int
    size: int
    batch: int
    transposed: bool = False
    output_padding: int = 0

    def __str__(self) -> str:
        name = f"{self.c_in}->{self.c_out} {'transposed ' if self.transposed else ''}{self.kernel}x{self.kernel}"
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"{name}{stride} @{self.size}x{self.size} batch {self.batch}"

    def dense(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """The layer, freshly initialised."""
        if self.transposed:
            extra = self.output_padding
            return nn.ConvTranspose2d(self.c_in, self.c_out, self.kernel, self.stride, self.padding, extra)
        return nn.Conv2d(self.c_in, self.c_out, self.kernel, self.stride, self.padding)

    def input(self) -> Tensor:
        """Random, ``[batch, c_in, size, size]``."""
        return torch.randn(self.batch, self.c_in, self.size, self.size)


#: Layers of the reference generators: CycleGAN's and pix2pix's, SRGAN's, DCGAN's.
LAYERS = (
    LayerCase(256, 256, 3, 1, 1, 32, 1),
    LayerCase(256, 256, 3, 1, 1, 32, 16),
    LayerCase(256, 256, 3, 1, 1, 64, 1),
    LayerCase(64, 128, 4, 2, 1, 128, 1),
    LayerCase(64, 128, 3, 2, 1, 256, 1),
    LayerCase(256, 128, 4, 2, 1, 32, 1, transposed=True),
    LayerCase(256, 128, 4, 2, 1, 32, 16, transposed=True),
    LayerCase(256, 128, 3, 2, 1, 64, 1, transposed=True, output_padding=1),
    LayerCase(512, 512, 4, 2, 1, 8, 1),
    LayerCase(512, 512, 4, 2, 1, 4, 1, transposed=True),
    LayerCase(64, 64, 3, 1, 1, 96, 1),
    LayerCase(512, 256, 4, 2, 1, 4, 64, transposed=True),
    LayerCase(100, 512, 4, 1, 0, 1, 64, transposed=True),
    LayerCase(3, 64, 7, 1, 3, 256, 1),
    LayerCase(64, 3, 7, 1, 3, 256, 1),
)

Engine = Callable[[], Any]


def dense_engines(layer: nn.Module, x: Tensor, threads: int) -> dict[str, Engine]:
    """Every dense engine that is installed, ready to run ``layer`` on ``x``."""
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_last = x.contiguous(memory_format=torch.channels_last)
    engines: dict[str, Engine] = {"torch": lambda: layer(x), "torch channels_last": lambda: last(x_last)}
    if importlib.util.find_spec("onnx") is None:
        return engines
    model = _onnx_model(layer, x)
    if importlib.util.find_spec("onnxruntime") is not None:
        engines["onnxruntime"] = _onnxruntime(model, x, threads)
    if importlib.util.find_spec("openvino") is not None:
        engines["openvino"] = _openvino(model, x, threads)
    return engines


def _onnx_model(layer: nn.Module, x: Tensor) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    assert isinstance(layer.padding, tuple)
    assert layer.bias is not None
    kind: dict[str, Any] = {
        "kernel_shape": layer.kernel_size,
        "strides": layer.stride,
        "pads": [*layer.padding, *layer.padding],
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    if isinstance(layer, nn.ConvTranspose2d):
        kind["output_padding"] = layer.output_padding
    op = "ConvTranspose" if isinstance(layer, nn.ConvTranspose2d) else "Conv"
    node = helper.make_node(op, ["x", "w", "b"], ["y"], **kind)
    with torch.no_grad():
        shape = list(layer(x).shape)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(layer.weight.detach().numpy(), "w"),
            numpy_helper.from_array(layer.bias.detach().numpy(), "b"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _onnxruntime(model: bytes, x: Tensor, threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads spin while it works, but not into the next engine's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)


def _openvino(model: bytes, x: Tensor, threads: int) -> Engine:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    request = compiled.create_infer_request()
    feed = {"x": x.numpy()}
    return lambda: request.infer(feed, share_inputs=True)


def time_layer(case: LayerCase, sparsity: float, threads: int, seconds: float) -> dict[str, Any]:
    """One row: milliseconds of every engine, the best dense one, the ratio, GFLOP/s at kept weights.

    The kept weights are at random places with random values. ``auto`` may run the layer dense: then the row says so.
    """
    torch.manual_seed(0)
    dense, x = case.dense().requires_grad_(False), case.input()
    mask = torch.rand(dense.weight.shape) >= sparsity
    dense.weight.mul_(mask)
    layer = SPARSE_CLASSES[type(dense)].from_dense(dense, mask=mask)
    expected = dense(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)
    engines = dense_engines(dense, x, threads)
    times = interleaved_ms([lambda: layer(x), *engines.values()], seconds, rest=0.005)
    dense_ms = dict(zip(engines, times[1:], strict=True))
    best = min(dense_ms, key=lambda name: dense_ms[name])
    sites = x if case.transposed else expected
    executed = layer.nnz * case.batch * sites.shape[2] * sites.shape[3]
    choice = layer.choose(tuple(x.shape), (expected.shape[2], expected.shape[3]))
    return {
        "layer": str(case),
        "sparsity": sparsity,
        "threads": threads,
        "sparse_ms": times[0],
        "dense_ms": dense_ms,
        "best_dense": best,
        "ratio": dense_ms[best] / times[0],
        "kernel": choice.kernel,
        "gflops": 2e-6 * executed / times[0],
    }


def bench_layers(
    sparsities: list[float], threads: list[int], seconds: float, progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Every layer of :data:`LAYERS` at every sparsity and thread count; ``progress`` sees each row at once."""
    before = torch.get_num_threads()
    rows = []
    try:
        with torch.inference_mode():
            for count in threads:
                torch.set_num_threads(count)
                for sparsity in sparsities:
                    for case in LAYERS:
                        rows.append(time_layer(case, sparsity, count, seconds))
                        progress(rows[-1])
    finally:
        torch.set_num_threads(before)
    return {
        "machine": cpu_name(),
        "isa": _native.isa(),
        "torch": torch.__version__,
        "fma_peak_gflops_a_core": _native.fma_gflops(),
        "rows": rows,
    }
