"""The installed dense engines, and the timing of calls in turns.

The engines are torch NCHW, torch channels_last (its tensors are converted beforehand, which favours it), ONNX Runtime
and OpenVINO (``pip install sparsegan[bench]``), at fixed sizes. For whole models torch.compile is added, with frozen
weights, if a C++ compiler is there. All engines get the same weights, with zeros in place. The last two also run in
short precisions.
"""

from __future__ import annotations

import copy
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..clock import Clock
from ..engine.export import onnx_bytes
from ..profiling.layers import interleaved_times

Engine = Callable[[], Any]
Inputs = tuple[Tensor, ...]


def dense_engines(model: nn.Module, inputs: Inputs, threads: int) -> dict[str, Engine]:
    """Every installed dense engine except torch.compile, ready to run ``model`` on ``inputs``."""
    return {name: make(model, inputs, threads) for name, make in makers(whole=False).items()}


def willing_engines(model: nn.Module, inputs: Inputs, threads: int) -> tuple[dict[str, Engine], dict[str, str]]:
    """Every installed dense engine that runs a whole ``model`` on ``inputs``, and the reasons of all others by name.

    Each engine has run once. Raises what torch itself raises: without torch there is nothing to compare with.
    """
    found: dict[str, Engine] = {}
    refused: dict[str, str] = {}
    for name, make in makers(whole=True).items():
        try:
            call = make(model, inputs, threads)
            call()
        except Exception as error:
            if name == "torch":
                raise
            refused[name] = _reason(error)
        else:
            found[name] = call
    return found, refused


def _reason(error: Exception) -> str:
    """The class of an error and the first line of its message, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])[:200]


def makers(whole: bool) -> dict[str, Callable[[nn.Module, Inputs, int], Engine]]:
    """The dense engines by name, as functions (model, inputs, threads) -> a call that runs the model."""
    found: dict[str, Callable[[nn.Module, Inputs, int], Engine]] = {"torch": _torch, "torch channels_last": _last}
    if whole and (which("g++") or which("clang++")):
        found["torch.compile"] = _compiled
    for name, make in (("onnxruntime", _onnxruntime), ("openvino", _openvino)):
        if find_spec(name) is not None:
            found[name] = make
    return found


def output_of(result: Any) -> Tensor:
    """The result of a call of any engine, as a tensor."""
    return result if isinstance(result, Tensor) else torch.as_tensor(result[0])


def _torch(model: nn.Module, inputs: Inputs, threads: int) -> Engine:
    return lambda: model(*inputs)


def _last(model: nn.Module, inputs: Inputs, threads: int) -> Engine:
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    converted = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    return lambda: last(*converted)


def _compiled(model: nn.Module, inputs: Inputs, threads: int) -> Engine:
    torch._dynamo.reset()  # forget the last model and the last thread count
    compiled = torch.compile(copy.deepcopy(model), options={"freezing": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about deprecated parts of its own
        compiled(*inputs)
    return lambda: compiled(*inputs)


def short_engines(model: nn.Module, inputs: Inputs, threads: int) -> dict[str, Engine]:
    """ONNX Runtime and OpenVINO, if they are installed, with short dense weights and activations.

    The int8 models are made by two quantisations: that of ONNX Runtime, and that of OpenVINO's own tool (NNCF), if it
    is installed. Both have one scale per output channel, and one per activation from ``inputs``. OpenVINO runs in
    bfloat16 too where the machine has the instructions; it would do so by default.
    """
    found: dict[str, Engine] = {}
    if find_spec("onnx") is None:
        return found
    if find_spec("onnxruntime") is not None:
        data = _quantised(model, inputs)
        found["onnxruntime int8"] = _onnxruntime(model, inputs, threads, data)
        if find_spec("openvino") is not None:
            found["openvino int8, quantised by onnxruntime"] = _openvino(model, inputs, threads, data)
    if find_spec("openvino") is not None:
        import openvino

        if find_spec("nncf") is not None:
            found["openvino int8"] = _openvino(model, inputs, threads, _quantised_by_nncf(model, inputs))
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            found["openvino bf16"] = _openvino(model, inputs, threads, precision="bf16")
    return found


def _quantised_by_nncf(model: nn.Module, inputs: Inputs) -> Any:
    import nncf
    import openvino

    with disabled_logging():
        source = openvino.Core().read_model(onnx_bytes(model, inputs))
        return nncf.quantize(source, nncf.Dataset([[x.numpy() for x in inputs]]), subset_size=1)


def _quantised(model: nn.Module, inputs: Inputs) -> bytes:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, names: list[str]) -> None:
            self.left = [dict(zip(names, (x.numpy() for x in inputs), strict=True))]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(onnx_bytes(model, inputs))
        import onnx

        names = [given.name for given in onnx.load(source).graph.input]
        with disabled_logging():
            quantization.quantize_static(str(source), str(target), Reader(names), per_channel=True)
        return target.read_bytes()


@contextmanager
def disabled_logging() -> Iterator[None]:
    """Without the messages of the root logger: the quantisation asks for a preparation that changes no speed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _onnxruntime(model: nn.Module, inputs: Inputs, threads: int, data: bytes | None = None) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # ONNX Runtime's threads may spin while it works, but must not spin during the next engine's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        data or onnx_bytes(model, inputs), options, providers=["CPUExecutionProvider"]
    )
    feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


def _openvino(model: nn.Module, inputs: Inputs, threads: int, data: Any = None, precision: str = "f32") -> Engine:
    import openvino

    core = openvino.Core()
    if data is None or isinstance(data, bytes):
        data = core.read_model(data or onnx_bytes(model, inputs))
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(data, "CPU", options)
    request = compiled.create_infer_request()
    feed = [x.numpy() for x in inputs]
    return lambda: request.infer(feed, share_inputs=True)


class Timing(NamedTuple):
    """Milliseconds of a call: the median, and the first and third quartile."""

    median: float
    quartiles: tuple[float, float]


def timed(functions: list[Engine], seconds: float, *used: Any) -> list[Timing]:
    """Times the functions in turns. Each timed call follows a pause and an untimed call of the same function.

    ``used``: the modules and tensors on a GPU that the functions work with, as for :class:`sparsegan.clock.Clock`.
    """
    timings = []
    for own in interleaved_times(Clock(*used), functions, seconds, rest=0.005):
        first, middle, third = statistics.quantiles(own, n=4, method="inclusive")
        timings.append(Timing(middle, (first, third)))
    return timings


def against_dense(
    sparse: Engine,
    dense: dict[str, Engine],
    seconds: float,
    layers: Engine | None = None,
    beside: dict[str, Engine] | None = None,
) -> dict[str, Any]:
    """Times the sparse call against every dense engine: the fields of a row, with the ratio to the fastest of them.

    ``layers`` is a second sparse call. It and the calls ``beside`` are timed in the same turns.
    """
    more = {} if layers is None else {"layers": layers}
    more |= beside or {}
    timings = timed([sparse, *dense.values(), *more.values()], seconds)
    own, others = timings[0], dict(zip(dense, timings[1:], strict=False))
    found = dict(zip(more, timings[1 + len(dense) :], strict=True))
    best = min(others, key=lambda name: others[name].median)
    row = {
        "sparse_ms": own.median,
        "sparse_quartiles_ms": own.quartiles,
        "dense_ms": {name: timing.median for name, timing in others.items()},
        "best_dense": best,
        "best_dense_quartiles_ms": others[best].quartiles,
        "ratio": others[best].median / own.median,
    }
    if layers is not None:
        row |= {"layers_ms": found["layers"].median, "layers_quartiles_ms": found["layers"].quartiles}
    if beside:
        row["beside_ms"] = {name: found[name].median for name in beside}
    return row
