"""Export to ONNX: the dense twin of a compressed generator as an ONNX file for other runtimes, checked in ONNX Runtime.

No other runtime has sparse convolutions, so the file holds dense weights that include the zeros. The exported generator
is as large and as slow as it was before compression. To serve a model on its compressed weights, pass the model to
`torch.export.export`, which accepts it unchanged.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..atomic_files import write_whole
from ..calls import Call, positional
from ..copying import bake, copy_model
from ..nn.replace import densify
from ..signals import IMAGE, SIGNAL
from .cpu import Engine
from .gpu import GpuEngine

#: ONNX operator set of the files. It is from 2021, so current ONNX runtimes support it.
OPSET = 17
#: Largest difference that is accepted between ONNX Runtime and torch, as a fraction of the output's largest magnitude.
TOLERANCE = 1e-4

Shape = tuple[int | str, ...]
#: Number of dimensions -> names of the axes, from axis 2 on, whose sizes may vary.
Grids = dict[int, tuple[str, ...]]


@dataclass(frozen=True)
class OnnxExport:
    """The inputs and outputs of an ONNX file, and the result of its check. ``str()`` gives a summary.

    ``inputs``: name -> shape, with a name in the place of each size that may vary. ``outputs``: the names of the
    outputs. ``tried``: the input shapes of the check. ``difference``: the largest difference between ONNX Runtime and
    torch over these shapes, as a fraction of the output's largest magnitude; None if ONNX Runtime is not installed.
    """

    path: Path
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]
    tried: tuple[tuple[Shape, ...], ...]
    difference: float | None

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} {_shown(shape)}" for name, shape in self.inputs.items())
        lines = [f"{self.path}: ONNX operator set {OPSET}, {inputs} -> {', '.join(self.outputs)}"]
        if self.difference is None:
            lines.append("not checked: onnxruntime is not installed (pip install onnxruntime)")
        else:
            tried = "; ".join(" and ".join(map(_shown, shapes)) for shapes in self.tried)
            difference = f"{self.difference:.1e} of the largest value (at most {TOLERANCE:.0e} is accepted)"
            lines.append(f"ONNX Runtime agrees with torch on inputs {tried}: largest difference {difference}")
        return "\n".join(lines)


class _Flat(nn.Module):
    """A model whose arguments are the tensors of a call. The call's other arguments are constants of this model."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.call.arguments(tensors)
        return self.model(*args, **kwargs)


def export_onnx(
    model: nn.Module | Engine | GpuEngine,
    example: Any,
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
) -> OnnxExport:
    """Writes the dense twin of a model as an ONNX file. If ONNX Runtime is installed, its results must agree with torch
    before the file is written.

    Args:
        model: any float32 module, with or without sparse layers. It is exported in evaluation mode and not changed.
            For an engine, its model is exported.
        example: an input, or a tuple of positional arguments. Tensors are float32, integers or bool, the first axis of
            each is the batch, and they may be nested in lists, tuples and dicts. Numbers, strings and None become
            constants of the file. The file accepts any batch size. It accepts any height and width of images
            ``[N, C, H, W]``, and any length of signals ``[N, C, L]`` of a model with 1-D convolutions, if the model
            accepts twice the height and three times the width or length of the example.
        kwargs: keyword arguments of the example.
        path: written whole or not at all. Inputs have the names of the arguments of ``model.forward``. Outputs are
            named ``output``, or ``output_0``, ..., or by the keys of a dictionary. The name of a nested tensor joins
            the argument's name and the keys and indices that lead to the tensor.

    Raises:
        TypeError: an argument holds something other than tensors, numbers, strings and None.
        ValueError: the model or the example is not in float32, or an engine has ``statistics="batch"``.
        RuntimeError: torch cannot export the model, or ONNX Runtime and torch compute different results.
    """
    call = Call.of(positional(example), kwargs or {})
    if isinstance(model, Engine | GpuEngine):
        if model.statistics != "stored":
            raise ValueError(
                f"the engine has statistics={model.statistics!r}, and the exporter has no norms by the statistics of "
                'each batch; export an engine with statistics="stored", or the model itself'
            )
        model = model.model
    _check_dtypes(model, call.tensors)
    # A model in channels_last may run other code, whose trace contains the example's sizes as constants.
    dense = densify(bake(copy_model(model))).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    dense.eval()
    inputs = tuple(x.detach().cpu().contiguous() for x in call.tensors)
    plain = not kwargs and len(inputs) == len(positional(example)) and all(call.places)
    names = _arguments(dense, len(inputs)) if plain and not _nested(call) else _names(dense, call)
    if not plain or _nested(call):
        dense = _Flat(dense, call).eval()
    with torch.no_grad():
        outputs = _named(dense(*inputs))
        tried = [inputs, tuple(torch.cat([x, x[:1]]) for x in inputs)]
        kinds = _grids(dense)
        growing = sum(x.dim() in kinds and _is_grid(x) for x in inputs)
        if growing and _accepts(dense, _enlarged(inputs, kinds)):
            tried.append(_enlarged(inputs, kinds))
        else:
            kinds = {}
        shapes = {name: _shape(x, kinds, f"{name}_" * (growing > 1)) for name, x in zip(names, inputs, strict=True)}
        made = {name: _shape(y, kinds, f"{name}_") for name, y in outputs.items()}
        free = {
            name: {axis: label for axis, label in enumerate(shape) if isinstance(label, str)}
            for name, shape in (shapes | made).items()
        }
        content = onnx_bytes(dense, inputs, free, list(outputs), checked=_can_check(), names=names)
        difference = _difference(content, dense, names, tried) if _can_check() else None
    write_whole(Path(path), lambda temporary: _write(temporary, content))
    sizes = tuple(tuple(tuple(x.shape) for x in one) for one in tried)
    return OnnxExport(Path(path), shapes, tuple(outputs), sizes, difference)


def _nested(call: Call) -> bool:
    """Whether an argument is more than one tensor or number."""
    return call.structure.num_leaves != len(call.structure.child(0).children()) + call.structure.child(1).num_leaves


def _names(model: nn.Module, call: Call) -> list[str]:
    """A name for each tensor of a call: the name of its argument, then the keys and indices that lead to the tensor."""
    args, kwargs = call.arguments(call.tensors)
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    paths, _ = pytree.tree_flatten_with_path(dict(given))
    where = {id(leaf): path for path, leaf in paths if isinstance(leaf, Tensor)}
    words = [re.sub(r"\W+", "_", pytree.keystr(where[id(tensor)])).strip("_") for tensor in call.tensors]
    return [word if words.count(word) == 1 else f"{word}_{index}" for index, word in enumerate(words)]


def _check_dtypes(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    for x in inputs:
        if (x.is_floating_point() and x.dtype != torch.float32) or x.is_complex() or not x.dim():
            raise ValueError(
                f"example has a tensor of dtype {x.dtype}, {x.dim()}-dimensional; tensors must be float32, integers or "
                "bool, with a batch as their first axis"
            )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"the model's {name} has dtype {tensor.dtype}; float32 is accepted: use model.float()")


def _shape(x: Tensor, kinds: Grids, prefix: str) -> Shape:
    """The shape of an input or output, with a name in the place of each size that may vary."""
    axes = kinds.get(x.dim(), ()) if _is_grid(x) else ()
    return ("batch", *x.shape[1:2], *(f"{prefix}{axis}" for axis in axes), *x.shape[2 + len(axes) :])


def onnx_bytes(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    free: Mapping[str, Mapping[int, str]] | None = None,
    outputs: list[str] | None = None,
    checked: bool = True,
    names: Sequence[str] | None = None,
) -> bytes:
    """The content of an ONNX file for a dense model, made by torch's tracing exporter. The newer exporter would need
    the package onnxscript.

    Args:
        model: made of torch's own layers, float32, on the CPU, in evaluation mode.
        inputs: the tensors on which the model is traced.
        free: for inputs and outputs by name, the axes whose size may vary, each with its name in the file.
        outputs: the names of the outputs.
        checked: the caller compares results, so the exporter's warnings are suppressed, including those about values
            that a trace may turn into constants.
        names: the names of the inputs; by default, the names of the arguments of ``model.forward``.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Warning if checked else DeprecationWarning)
        torch.onnx.export(
            model,
            inputs,
            stream,  # type: ignore[arg-type]  # this exporter takes it
            dynamo=False,
            opset_version=OPSET,
            input_names=_arguments(model, len(inputs)) if names is None else list(names),
            output_names=outputs,
            dynamic_axes=free,
        )
    return stream.getvalue()


def _can_check() -> bool:
    return find_spec("onnxruntime") is not None


def _difference(content: bytes, dense: nn.Module, names: list[str], tried: list[tuple[Tensor, ...]]) -> float:
    """The largest difference between ONNX Runtime and torch, as a fraction of the output's largest magnitude.

    Raises RuntimeError where shapes differ, or where the difference is above :data:`TOLERANCE`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for inputs in tried:
        wanted = _named(dense(*inputs)).values()
        made = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        for theirs, ours in zip(map(torch.from_numpy, made), wanted, strict=True):
            shapes = " and ".join(_shown(x.shape) for x in inputs)
            if theirs.shape != ours.shape:
                what = f"makes {_shown(theirs.shape)} where torch makes {_shown(ours.shape)}"
                raise RuntimeError(f"ONNX Runtime {what} of inputs {shapes}; nothing was written")
            fraction = float((theirs - ours).abs().max() / ours.abs().max().clamp_min(1e-30))
            if not fraction <= TOLERANCE:
                what = f"differs from torch by {fraction:.1e} of the largest value, more than {TOLERANCE:.0e}"
                raise RuntimeError(f"ONNX Runtime {what}, on inputs {shapes}; nothing was written")
            worst = max(worst, fraction)
    return worst


def _named(output: Any) -> dict[str, Tensor]:
    """The tensors of a model's output by name. Raises TypeError if the output holds anything else."""
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, Mapping):
        named = dict(output)
    else:
        named = {f"output_{at}": one for at, one in enumerate(output if isinstance(output, tuple | list) else [output])}
    for name, one in named.items():
        if not isinstance(one, Tensor):
            raise TypeError(
                f"the model's {name} is a {type(one).__name__}; tensors are accepted, alone, in a tuple or dict"
            )
    return named


def _arguments(model: nn.Module, count: int) -> list[str]:
    """The names of the first `count` arguments of the model's forward."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        several = parameter.kind is parameter.VAR_POSITIONAL
        names += [f"{name}_{at}" for at in range(count - len(names))] if several else [name]
    return names[:count]


def _grids(model: nn.Module) -> Grids:
    """The kinds of tensors whose sizes may vary. A tensor of three dimensions is a signal only where a 1-D convolution
    is in the model: elsewhere it may be anything."""
    signals = any(isinstance(one, nn.Conv1d | nn.ConvTranspose1d) for one in model.modules())
    return {IMAGE: ("height", "width")} | ({SIGNAL: ("length",)} if signals else {})


def _enlarged(inputs: tuple[Tensor, ...], kinds: Grids) -> tuple[Tensor, ...]:
    """The inputs, with every image made twice as high and three times as wide, and every signal three times as long."""

    def enlarged(x: Tensor) -> Tensor:
        if x.dim() not in kinds or not _is_grid(x):
            return x
        x = x.repeat_interleave(3, -1)
        return x.repeat_interleave(2, 2) if x.dim() == IMAGE else x

    return tuple(map(enlarged, inputs))


def _is_grid(x: Tensor) -> bool:
    """Whether a tensor is an image ``[N, C, H, W]`` or a signal ``[N, C, L]``, by its dimensions. Noise
    ``[N, C, 1, 1]`` is none."""
    return x.dim() in (SIGNAL, IMAGE) and x.is_floating_point() and any(size > 1 for size in x.shape[2:])


def _accepts(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        model(*inputs)
    except (RuntimeError, ValueError):
        return False
    return True


def _shown(shape: Any) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
