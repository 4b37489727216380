"""A generator for other runtimes: the dense twin of a compressed one as an ONNX file, checked in ONNX Runtime.

No other runtime knows sparse convolutions, so the file holds dense weights, zeros in place: it is as large and as slow
as the generator was before. For serving on the compressed weights, `torch.export.export` takes the model as it is.
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

#: ONNX operator set of the files, of 2021: what runs ONNX knows it.
OPSET = 17
#: Largest difference that is accepted between ONNX Runtime and torch, as a fraction of the output's largest magnitude.
TOLERANCE = 1e-4

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxExport:
    """What an ONNX file takes and gives. ``str()`` says it.

    ``inputs``: name -> shape, with a name for each axis along which any number goes. ``outputs``: their names.
    ``difference``: ONNX Runtime's largest from torch, as a fraction of the output's largest magnitude, over the shapes
    that were ``tried``; None where ONNX Runtime is not installed.
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
    """A model that takes the tensors of a call one by one, what else the call holds being part of it."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *tensors: Tensor) -> Any:
        args, kwargs = self.call.arguments(tensors)
        return self.model(*args, **kwargs)


def export_onnx(
    model: nn.Module, example: Any, path: str | os.PathLike[str], *, kwargs: Mapping[str, Any] | None = None
) -> OnnxExport:
    """Write the dense twin of a model as an ONNX file, after ONNX Runtime, where installed, has computed the same.

    Args:
        model: any module in float32, with sparse layers or without; exported as in evaluation, and unchanged.
        example: its input, or a tuple of positional arguments: tensors in float32, integers or bool, the first axis of
            each the batch, in lists, tuples and dicts too. Numbers, strings and None become part of the file. The file
            takes any batch; and any height and width of images ``[N, C, H, W]``, where the model takes another than the
            example's (twice the height, three times the width are tried).
        kwargs: keyword arguments of the example.
        path: written whole or not at all. Inputs have the names of the arguments of ``model.forward``; outputs are
            ``output``, ``output_0``, ..., or the keys of a dictionary. Tensors of a nest are named by the way to them.

    Raises:
        TypeError: an argument holds something else than tensors, numbers, strings and None.
        ValueError: the model or the example is not in float32.
        RuntimeError: torch cannot export the model, or ONNX Runtime computes something else than torch.
    """
    call = Call.of(positional(example), kwargs or {})
    _check_dtypes(model, call.tensors)
    # In torch's plain layout: in channels_last a module may take another way, with the example's sizes in it.
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
        any_size = any(map(_is_image, inputs)) and _accepts(dense, _enlarged(inputs))
        if any_size:
            tried.append(_enlarged(inputs))
        several = sum(map(_is_image, inputs)) > 1
        shapes = {name: _shape(x, any_size, f"{name}_" * several) for name, x in zip(names, inputs, strict=True)}
        made = {name: _shape(y, any_size, f"{name}_") for name, y in outputs.items()}
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
    """A name for each tensor of a call: its argument's, and the keys and numbers that lead to it."""
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


def _shape(x: Tensor, any_size: bool, prefix: str) -> Shape:
    """The shape of an input or output, with a name for each axis along which any number goes."""
    free = {0: "batch"} | ({2: f"{prefix}height", 3: f"{prefix}width"} if any_size and _is_image(x) else {})
    return tuple(free.get(axis, size) for axis, size in enumerate(x.shape))


def onnx_bytes(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    free: Mapping[str, Mapping[int, str]] | None = None,
    outputs: list[str] | None = None,
    checked: bool = True,
    names: Sequence[str] | None = None,
) -> bytes:
    """A dense model as an ONNX file, by torch's exporter that traces: the newer one needs a package, onnxscript.

    Args:
        model: of torch's own layers, float32, on the CPU, in evaluation.
        inputs: what it is traced on; in the file they have the names of the arguments of ``model.forward``.
        free: of inputs and outputs by name, the axes along which any number goes, and what the file calls them.
        outputs: their names.
        names: of the inputs; by default as above.
        checked: the caller compares results, so the exporter's warnings of what a trace may freeze are left out.
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
    """ONNX Runtime's largest difference from torch, as a fraction of the output's largest magnitude."""
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
    """A model's output by name. Raises TypeError where it is something else than tensors."""
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
    """Names of the first `count` arguments of the model's forward."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        several = parameter.kind is parameter.VAR_POSITIONAL
        names += [f"{name}_{at}" for at in range(count - len(names))] if several else [name]
    return names[:count]


def _enlarged(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, images among them twice as high and three times as wide."""
    return tuple(x.repeat_interleave(2, 2).repeat_interleave(3, 3) if _is_image(x) else x for x in inputs)


def _is_image(x: Tensor) -> bool:
    """Noise of one pixel is none."""
    return x.dim() == 4 and x.is_floating_point() and tuple(x.shape[2:]) != (1, 1)


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
