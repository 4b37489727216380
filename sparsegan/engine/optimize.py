"""``optimize_for_inference``: the engine for the device that a model is on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..calls import Call, positional
from .cpu import Engine
from .gpu import GpuEngine
from .statistics import check_statistics, other_in_training


def optimize_for_inference(
    model: nn.Module,
    example: Any,
    plans: int = 8,
    *,
    kwargs: Mapping[str, Any] | None = None,
    statistics: str | None = None,
) -> Engine | GpuEngine:
    """A copy of a model, compiled for inference: whole, with activations kept between fused steps.

    Args:
        model: any module, sparse layers or pruned dense ones in it; unchanged. ``DataParallel`` and its kind and
            ``torch.compile`` are taken off first. The engine computes what the model computes in evaluation.
        example: an input, or a tuple (or list) of positional arguments; a list that is one argument goes into a tuple.
            Tensors may be nested in lists, tuples and dicts, beside numbers, strings and None. Other shapes, batch
            sizes and values of what is no tensor are compiled when they come.
        plans: how many of these are kept compiled.
        kwargs: keyword arguments of the example.
        statistics: ``"stored"``: batch norms use the statistics that they keep, as in evaluation. ``"batch"``: norms
            use the statistics of each call's inputs, as in training, and keep none; dropout stays off. By default the
            former, with a warning where the model is in training mode and computes something else there.

    On a GPU batch norms and activations become part of the sparse layers before them, and each shape a CUDA graph,
    which is compared with the model before its first use.

    Random numbers are drawn anew at every call, in the model's order: from the same state of torch's
    generator an engine computes what the model computes. Compiling leaves that state as it was.

    Operations without a kernel run in torch: ``engine.fallbacks`` lists them, and a warning names convolutions among
    them.

    Raises:
        TypeError: an argument holds something else than tensors, numbers, strings and None.
        ValueError: the model computes something for the example that torch.fx (or, on a GPU, a CUDA graph) does not
            see; on a GPU, its forward waits for the GPU, as a branch on values does; it is on several devices, on
            another than the example, or on one that is neither a CPU nor an NVIDIA GPU; plans is below 1; statistics
            is another word.
    """
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
        return GpuEngine(unwrapped(model), call, plans, statistics)
    return Engine(unwrapped(model), call, plans, statistics)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``DataParallel`` and its kind and ``torch.compile``."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _compiled_again(model: nn.Module, example: tuple[Any, dict[str, Any]], plans: int, statistics: str) -> Any:
    """Engines that were pickled before 0.1 name this function."""
    args, kwargs = example
    return optimize_for_inference(model, args, plans, kwargs=kwargs, statistics=statistics)
