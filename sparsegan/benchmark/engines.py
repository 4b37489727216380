"""The dense engines that are installed, and how calls are timed in turns.

They are torch NCHW, torch channels_last (its tensors converted beforehand, which favours it), and ONNX Runtime and
OpenVINO (``pip install sparsegan[bench]``). All get the same weights, zeros in place.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..profiling import interleaved_times

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


class Timing(NamedTuple):
    """Milliseconds of a call: the median, and the quartile on either side of it."""

    median: float
    quartiles: tuple[float, float]


def timed(functions: list[Engine], seconds: float) -> list[Timing]:
    """Times each function, in turns; each timed call after a pause and a warm one."""
    timings = []
    for own in interleaved_times(functions, seconds, rest=0.005):
        first, middle, third = statistics.quantiles(own, n=4, method="inclusive")
        timings.append(Timing(middle, (first, third)))
    return timings


def against_dense(sparse: Engine, dense: dict[str, Engine], seconds: float) -> dict[str, Any]:
    """Times the sparse call against every dense engine: the fields of a row, and the ratio to the best of them."""
    timings = timed([sparse, *dense.values()], seconds)
    own, others = timings[0], dict(zip(dense, timings[1:], strict=True))
    best = min(others, key=lambda name: others[name].median)
    return {
        "sparse_ms": own.median,
        "sparse_quartiles_ms": own.quartiles,
        "dense_ms": {name: timing.median for name, timing in others.items()},
        "best_dense": best,
        "best_dense_quartiles_ms": others[best].quartiles,
        "ratio": others[best].median / own.median,
    }
