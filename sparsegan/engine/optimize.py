"""``optimize_for_inference``: makes the engine for the device of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..calls import Call, positional
from .cpu import Engine
from .gpu import GpuEngine
from .precision import check_precision
from .statistics import check_statistics, other_in_training


def optimize_for_inference(
    model: nn.Module,
    example: Any,
    plans: int = 8,
    *,
    kwargs: Mapping[str, Any] | None = None,
    statistics: str | None = None,
    precision: str | Mapping[str, str] = "float32",
    calibration: Iterable[Any] | None = None,
    least_db: float | None = None,
) -> Engine | GpuEngine:
    """Returns an engine: a copy of a model, compiled as a whole for inference.

    Args:
        model: any module, with sparse layers or pruned dense layers. It is not changed. Wrappers such as
            ``DataParallel`` and ``torch.compile`` are removed first. The engine computes as the model in evaluation
            mode does.
        example: an input, or a tuple or list of positional arguments. (Put a list that is a single argument into a
            tuple.) Tensors may be nested in lists, tuples and dicts, with numbers, strings and None. Calls with other
            shapes, batch sizes or non-tensor values are compiled when they first occur.
        plans: the number of compiled programs that are kept, at least 1.
        kwargs: keyword arguments of the example.
        statistics: ``"stored"``: norms use their stored statistics, as in evaluation mode. ``"batch"``: norms use the
            statistics of each call's inputs, as in training mode, and do not store them; dropout stays off. The default
            is ``"stored"``, with a warning if the model is in training mode and computes something else there.

        precision: of the multiplications in sparse layers on a CPU: ``"float32"``, ``"int16"``, ``"bf16"`` or
            ``"int8"``, or one per pattern of layer names, or ``"auto"``. int16 and bf16 take layers of granularity
            ``"input:2"`` or ``"input:4"``, int8 those of ``"input:4"``; other layers stay in float32. int8 for the
            whole model leaves the first and the last sparse layer in float32. If the machine has no instructions for a
            precision, a layer runs in int16 or float32. One warning names the layers that run otherwise than asked,
            and ``print(engine)`` shows the precision of each. ``"auto"`` takes the narrowest precision for each layer
            that keeps `least_db`. Activations between layers stay in float32. NaN counts as the largest
            input in int16 and int8.
        calibration: inputs of the model, each as `example`, that are like those of later calls. The ranges of the
            layers' inputs are taken from them, and larger inputs are limited to these ranges: twice the largest input
            for int16, and the range of the smallest mean square error for int8. The default is the example alone.
        least_db: for ``precision="auto"``: the smallest ratio, in dB, of the results' energy to the energy of their
            difference from float32, over the calibration.

    On a GPU, batch norms and activations become part of the sparse layers before them. Each shape becomes a CUDA graph,
    whose results are compared with the model's before its first use.

    Random numbers are drawn anew in every call, in the model's order. From the same state of torch's generator, engine
    and model therefore compute the same. Compiling does not change that state.

    Operations without a kernel run in torch. ``engine.fallbacks`` of a CPU engine lists them, and a warning names the
    convolutions among them.

    Raises:
        TypeError: an argument holds something other than tensors, numbers, strings and None.
        ValueError: the forward does something that torch.fx (or, on a GPU, a CUDA graph) does not see, so the results
            differ; on a GPU, the forward waits for the GPU, as a branch on values does; the model is on several
            devices, on a device other than the example's, or on a device that is neither a CPU nor an NVIDIA GPU;
            plans is below 1; statistics is not one of the two words; precision is unknown, or is not float32 on a GPU
            or for a model of another dtype.
    """
    check_precision(precision, least_db)
    if precision == "float32" and calibration is not None:
        raise ValueError("calibration is given and precision is 'float32'; only a short precision is calibrated")
    if plans < 1:
        raise ValueError(f"plans is {plans}; it must be at least 1")
    call = Call.of(positional(example), kwargs or {})
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1 or any(device.type not in ("cpu", "cuda") for device in devices):
        found = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"the model is on {found}; an engine needs one device, a CPU or an NVIDIA GPU")
    if statistics is None:
        statistics = "stored"
        if others := other_in_training(model):
            warnings.warn(
                f"the model is in training mode, and {', '.join(others)} compute something else there; the engine "
                "computes what they do in evaluation. Call model.eval() first if that is meant, or give "
                'statistics="batch" for norms by the statistics of each batch',
                stacklevel=2,
            )
    check_statistics(statistics)
    if any(device.type == "cuda" for device in devices):
        if precision != "float32":
            raise ValueError(f"precision is {precision!r} and the model is on a GPU; there it must be 'float32'")
        return GpuEngine(unwrapped(model), call, plans, statistics)
    engine = Engine(unwrapped(model), call, plans, statistics)
    if precision != "float32":
        calls = [Call.of(positional(one), kwargs or {}) for one in calibration or ()] or [call]
        engine.shorten(precision, calls, least_db)
    return engine


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` wrappers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _compiled_again(model: nn.Module, example: tuple[Any, dict[str, Any]], plans: int, statistics: str) -> Any:
    """Loads engines that were pickled before version 0.1: their pickles name this function."""
    args, kwargs = example
    return optimize_for_inference(model, args, plans, kwargs=kwargs, statistics=statistics)
