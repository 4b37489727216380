"""The meaning of modules, functions and methods: one table for both engines and for the analysis of channels.

A caller asks :func:`meaning` about a node of a traced graph and acts on the answer. A node is unknown to the caller if
the node has no meaning, or if the caller has no case for the meaning.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..gans.parts import InstanceNorm2d
from ..nn.layer import DENSE_CLASSES, SparseConv
from ..nn.modulated import ModulatedConv
from ..signals import IMAGE, SIGNAL
from .meanings import (
    Activation,
    Arithmetic,
    AveragePooling,
    Combination,
    Concatenation,
    Convolution,
    Elementwise,
    Expansion,
    FunctionalConvolution,
    Identity,
    Meaning,
    ModulatedConvolution,
    Norm,
    OutputActivation,
    Padding,
    PixelShuffle,
    Pooling,
    Resize,
)
from .tracing import has_hooks


def meaning(node: fx.Node, modules: Mapping[str, nn.Module]) -> Meaning | None:
    """The meaning of a node; None if it is not known, or if hooks on the module may do more than its forward."""
    module = called(node, modules)
    return None if module is not None and has_hooks(module) else meaning_of_forward(node, module)


def meaning_of_forward(node: fx.Node, module: Any) -> Meaning | None:
    """The meaning of a node, with hooks ignored. `module`: the module that the node calls, or None."""
    if not node.op.startswith("call_") or not node.args:
        return None
    if is_without_batch(node, module):
        return None
    if isinstance(module, SparseConv):
        return Convolution()
    rule = RULES.get(node.target if module is None else type(module).forward)
    return None if rule is None else rule(node, module)


def is_without_batch(node: fx.Node, module: Any) -> bool:
    """Whether a node takes its input ``[C, H, W]`` for one image without a batch. No rule here knows such an input: of
    three dimensions, the rules take a batch of signals ``[N, C, L]``."""
    if _rank(node) != SIGNAL:
        return False
    if isinstance(module, SparseConv):
        return module.dims == 2
    if module is None:
        return node.target in (F.conv2d, F.conv_transpose2d, F.pixel_shuffle, F.avg_pool2d)
    return isinstance(module, _IMAGE_MODULES)


def _rank(node: fx.Node) -> int:
    """The number of dimensions of a node's first argument, of the first part if it is a list; 0 if it is no tensor."""
    first: Any = node.args[0]
    first = first[0] if isinstance(first, list | tuple) and first else first
    return int(getattr(first.meta.get("value"), "ndim", 0)) if isinstance(first, fx.Node) else 0


def called(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls; None if the node calls a function or a method."""
    return modules[str(node.target)] if node.op == "call_module" else None


def changes_its_input(node: fx.Node, module: Any) -> bool:
    """Whether a node works in place, by its name or by its arguments. `module`: the module that it calls, or None."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = name_of(node.target)
    return (
        (name.endswith("_") and not name.endswith("__"))
        or node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
        or any(node.kwargs.get(key) not in (None, False) for key in ("inplace", "out"))
    )


def name_of(target: Any) -> str:
    """The name of a function or a method."""
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


# ---------------------------------------------------------------------- arguments

Rule = Callable[[fx.Node, Any], Meaning | None]


def _argument(node: fx.Node, module: Any, place: int, name: str, default: Any) -> Any:
    """An attribute of a module, or the argument of a function by position or by name."""
    if module is not None:
        return getattr(module, name)
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _in_place(node: fx.Node, module: Any, place: int | None = None) -> bool:
    """Whether a node works in place. `place`: the position of the argument ``inplace`` of a function that has one."""
    given = place is not None and module is None and _argument(node, None, place, "inplace", False)
    return changes_its_input(node, module) or bool(given)


def _convolution(node: fx.Node, module: Any) -> Meaning:
    return Convolution()


def _functional_convolution(node: fx.Node, module: Any) -> Meaning:
    transposed = node.target in (F.conv_transpose1d, F.conv_transpose2d)
    last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *last)
    return FunctionalConvolution(transposed, dict(zip(names, node.args, strict=False)) | dict(node.kwargs))


def _modulated_convolution(node: fx.Node, module: Any) -> Meaning | None:
    scales = node.args[1] if len(node.args) == 2 else node.kwargs.get("scales")
    if not isinstance(scales, fx.Node) or has_hooks(module.convolution):
        return None
    return ModulatedConvolution(scales, module.eps if module.demodulate else None)


def _norm(node: fx.Node, module: Any) -> Meaning | None:
    by_batch = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    own_forward = type(module).forward is InstanceNorm2d.forward  # ignores stored statistics
    if module.track_running_stats and module.running_mean is not None and not module.training and not own_forward:
        statistics = "stored"
    elif by_batch and module.training:
        return None  # the forward changes the stored statistics
    else:
        statistics = "batch" if by_batch else "image"
    return Norm(statistics, module.weight, module.bias, module.eps)


def _functional_instance_norm(node: fx.Node, module: Any) -> Meaning | None:
    if not _argument(node, None, 5, "use_input_stats", True):
        return None
    weight, bias = (_argument(node, None, place, name, None) for place, name in ((3, "weight"), (4, "bias")))
    return Norm("image", weight, bias, _argument(node, None, 7, "eps", 1e-5))


def _group_norm(node: fx.Node, module: Any) -> Meaning:
    groups = _argument(node, module, 1, "num_groups", 1)
    weight, bias = (_argument(node, module, place, name, None) for place, name in ((2, "weight"), (3, "bias")))
    return Norm("image", weight, bias, _argument(node, module, 4, "eps", 1e-5), groups)


def _layer_norm(node: fx.Node, module: Any) -> Meaning | None:
    """A layer norm over whole images or signals is a group norm with one group, unless it has a weight per element."""
    shape, rank = _argument(node, module, 1, "normalized_shape", ()), _rank(node)
    weight, bias = (_argument(node, module, place, name, None) for place, name in ((2, "weight"), (3, "bias")))
    if rank not in (SIGNAL, IMAGE) or len(shape) != rank - 1 or weight is not None or bias is not None:
        return None
    return Norm("image", None, None, _argument(node, module, 4, "eps", 1e-5), 1)


def _relu(node: fx.Node, module: Any) -> Meaning:
    return Activation(0.0, _in_place(node, module, 1))


def _leaky_relu(node: fx.Node, module: Any) -> Meaning:
    return Activation(_argument(node, module, 1, "negative_slope", 0.01), _in_place(node, module, 2))


def _prelu(node: fx.Node, module: Any) -> Meaning:
    return Activation(_argument(node, module, 1, "weight", None), False)


def _output_activation(name: str, place: int | None = None) -> Rule:
    return lambda node, module: OutputActivation(name, _in_place(node, module, place))


def _gelu(node: fx.Node, module: Any) -> Meaning | None:
    form = {"none": "gelu", "tanh": "gelu_tanh"}.get(_argument(node, module, 1, "approximate", "none"))
    return None if form is None else OutputActivation(form, False)


def _softplus(node: fx.Node, module: Any) -> Meaning:
    """The kernels have the softplus with torch's default beta and threshold."""
    usual = _argument(node, module, 1, "beta", 1) == 1 and _argument(node, module, 2, "threshold", 20) == 20
    return OutputActivation("softplus", False) if usual else Elementwise(False)


def _elementwise(place: int | None = None) -> Rule:
    return lambda node, module: Elementwise(_in_place(node, module, place))


def _arithmetic(operation: str, affine: Callable[[float, bool], tuple[float, float] | None]) -> Rule:
    """The rule for arithmetic. `affine` maps a number that is one operand, and whether it is the left operand, to scale
    and shift; None if the result is not affine in the tensor."""

    def rule(node: fx.Node, module: Any) -> Meaning | None:
        tensors = [one for one in node.args if isinstance(one, fx.Node)]
        if len(tensors) == len(node.args) == 2 and not node.kwargs:
            return Combination(operation, tensors[0], tensors[1], _in_place(node, None))
        others: list[Any] = [one for one in (*node.args, *node.kwargs.values()) if not isinstance(one, fx.Node)]
        if not all(isinstance(one, int | float) for one in others):
            return None
        pair = None
        if len(node.args) == 2 and not node.kwargs and len(others) == 1:
            pair = affine(float(others[0]), others[0] is node.args[0])
        return Arithmetic(pair, _in_place(node, None))

    return rule


def _negative(node: fx.Node, module: Any) -> Meaning:
    return Arithmetic((-1.0, 0.0), _in_place(node, None))


def _sum(number: float, is_left: bool) -> tuple[float, float] | None:
    return 1.0, number


def _difference(number: float, is_left: bool) -> tuple[float, float] | None:
    return (-1.0, number) if is_left else (1.0, -number)


def _product(number: float, is_left: bool) -> tuple[float, float] | None:
    return number, 0.0


def _quotient(number: float, is_left: bool) -> tuple[float, float] | None:
    return None if is_left or number == 0 else (1 / number, 0.0)


def _pad_module(mode: str) -> Rule:
    def rule(node: fx.Node, module: Any) -> Meaning | None:
        return _padding(node, mode, module.padding, getattr(module, "value", 0.0))

    return rule


def _functional_pad(node: fx.Node, module: Any) -> Meaning | None:
    mode, border = _argument(node, None, 2, "mode", "constant"), _argument(node, None, 3, "value", None)
    mode = "zeros" if mode == "constant" else mode
    return _padding(node, mode, _argument(node, None, 1, "pad", ()), border or 0.0)


def _padding(node: fx.Node, mode: str, sizes: Any, border: Any) -> Meaning | None:
    """The meaning of a padding; None if it pads other axes than rows and columns, or the length of a signal, or if the
    forward computes its sizes or its border."""
    if len(sizes) == 2:
        sizes = (*sizes, 0, 0)
    elif _rank(node) == SIGNAL:
        return None
    if len(sizes) != 4 or not all(isinstance(size, int) for size in sizes) or isinstance(border, fx.Node):
        return None
    return Padding(mode, (sizes[0], sizes[1], sizes[2], sizes[3]), float(border))


def _resize(node: fx.Node, module: Any) -> Meaning:
    mode = _argument(node, module, 3, "mode", "nearest")
    return Resize(mode, _argument(node, module, 2, "scale_factor", None))


def _pooling(node: fx.Node, module: Any) -> Meaning:
    return Pooling()


def _average_pooling(node: fx.Node, module: Any) -> Meaning | None:
    """None if the number of elements of a mean is not that of its window, or if a size is computed in each run."""
    kernel = _argument(node, module, 1, "kernel_size", None)
    stride = _argument(node, module, 2, "stride", None)  # the kernel's, if not given
    padding, dims = _argument(node, module, 3, "padding", 0), _rank(node) - 2
    sizes = [
        tuple(one) if isinstance(one, list | tuple) and len(one) > 1 else _one_of(one) * dims
        for one in (kernel, stride or kernel, padding)
    ]
    if any(len(one) != dims or not all(isinstance(size, int) for size in one) for one in sizes):
        return None
    counted = _argument(node, module, 5, "count_include_pad", True) or not any(sizes[2])
    has_divisor = module is None or isinstance(module, nn.AvgPool2d)
    divisor = _argument(node, module, 6, "divisor_override", None) if has_divisor else None
    if _argument(node, module, 4, "ceil_mode", False) or not counted or divisor is not None:
        return None
    return AveragePooling(*sizes)


def _one_of(size: Any) -> tuple[Any]:
    return (size[0],) if isinstance(size, list | tuple) else (size,)


def _pixel_shuffle(node: fx.Node, module: Any) -> Meaning:
    return PixelShuffle(_argument(node, module, 1, "upscale_factor", 1))


def _concatenation(node: fx.Node, module: Any) -> Meaning | None:
    parts, dim = node.args[0], _argument(node, None, 1, "dim", 0)
    return Concatenation(tuple(parts)) if dim in (1, 1 - _rank(node)) and isinstance(parts, list | tuple) else None


def _expansion(node: fx.Node, module: Any) -> Meaning:
    return Expansion()


def _identity(node: fx.Node, module: Any) -> Meaning:
    return Identity()


def _contiguous(node: fx.Node, module: Any) -> Meaning | None:
    """Engines hold images contiguous. A tensor of three dimensions may be another's view, and no signal."""
    return None if _rank(node) == SIGNAL else Identity()


def _cast(node: fx.Node, module: Any) -> Meaning | None:
    """A cast to the dtype that the tensor has returns the tensor itself."""
    own, source = node.meta.get("value"), getattr(node.args[0], "meta", {}).get("value")
    same = isinstance(own, Tensor) and isinstance(source, Tensor) and own.dtype == source.dtype
    return Identity() if same and node.meta.get("view") else None


def _dropout(node: fx.Node, module: Any) -> Meaning | None:
    return None if _argument(node, module, 2, "training", True) else Identity()


# ---------------------------------------------------------------------- the table

#: The forward methods of the norms. torch has one forward for signals and images.
NORM_FORWARDS: tuple[Any, ...] = (nn.BatchNorm2d.forward, nn.InstanceNorm2d.forward, InstanceNorm2d.forward)
#: The functions that convolve.
FUNCTIONAL_CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv_transpose1d, F.conv_transpose2d)
#: Modules that take an input of three dimensions for one image without a batch.
_IMAGE_MODULES = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d),
    *(nn.PixelShuffle, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)

#: The rule for each kind of call. The key is the forward of a module class, a function, or the name of a method.
RULES: dict[Any, Rule] = {
    **dict.fromkeys((one.forward for one in DENSE_CLASSES), _convolution),
    **dict.fromkeys(FUNCTIONAL_CONVOLUTIONS, _functional_convolution),
    ModulatedConv.forward: _modulated_convolution,
    **dict.fromkeys(NORM_FORWARDS, _norm),
    F.instance_norm: _functional_instance_norm,
    **dict.fromkeys((nn.GroupNorm.forward, F.group_norm, torch.group_norm), _group_norm),
    **dict.fromkeys((nn.LayerNorm.forward, F.layer_norm, torch.layer_norm), _layer_norm),
    **dict.fromkeys((nn.ReLU.forward, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((nn.LeakyReLU.forward, F.leaky_relu, F.leaky_relu_), _leaky_relu),
    **dict.fromkeys((nn.PReLU.forward, F.prelu, torch.prelu), _prelu),
    **dict.fromkeys((nn.Tanh.forward, F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), _output_activation("tanh")),
    **dict.fromkeys((nn.Sigmoid.forward, F.sigmoid, torch.sigmoid), _output_activation("sigmoid")),
    **dict.fromkeys((torch.sigmoid_, "sigmoid", "sigmoid_"), _output_activation("sigmoid")),
    **dict.fromkeys((nn.SiLU.forward, F.silu), _output_activation("silu", 1)),
    **dict.fromkeys((nn.GELU.forward, F.gelu), _gelu),
    **dict.fromkeys((nn.Hardswish.forward, F.hardswish), _output_activation("hardswish", 1)),
    **dict.fromkeys((nn.Softplus.forward, F.softplus), _softplus),
    **dict.fromkeys((nn.ReLU6.forward, nn.ELU.forward, nn.SELU.forward, nn.Mish.forward), _elementwise()),
    **dict.fromkeys((nn.Hardtanh.forward, nn.Hardsigmoid.forward), _elementwise()),
    **dict.fromkeys((F.selu, F.mish), _elementwise(1)),
    F.elu: _elementwise(2),
    F.hardtanh: _elementwise(3),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _arithmetic("+", _sum)),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), _arithmetic("-", _difference)),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _arithmetic("*", _product)),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _arithmetic("/", _quotient)),
    **dict.fromkeys((operator.neg, torch.neg, "neg", "neg_"), _negative),
    nn.ReflectionPad2d.forward: _pad_module("reflect"),
    nn.ReplicationPad2d.forward: _pad_module("replicate"),
    nn.CircularPad2d.forward: _pad_module("circular"),
    nn.ConstantPad2d.forward: _pad_module("zeros"),
    F.pad: _functional_pad,
    **dict.fromkeys((nn.Upsample.forward, F.interpolate), _resize),
    **dict.fromkeys((nn.MaxPool1d.forward, nn.MaxPool2d.forward), _pooling),
    **dict.fromkeys((nn.AdaptiveAvgPool1d.forward, nn.AdaptiveAvgPool2d.forward), _pooling),
    **dict.fromkeys((nn.AvgPool1d.forward, F.avg_pool1d, nn.AvgPool2d.forward, F.avg_pool2d), _average_pooling),
    **dict.fromkeys((nn.PixelShuffle.forward, F.pixel_shuffle), _pixel_shuffle),
    **dict.fromkeys((torch.cat, torch.concat), _concatenation),
    **dict.fromkeys((torch.broadcast_to, "broadcast_to", "expand", "expand_as"), _expansion),
    **dict.fromkeys((nn.Identity.forward, "detach"), _identity),
    "contiguous": _contiguous,
    **dict.fromkeys(("to", "type", "type_as", "float", "double", "half", "bfloat16"), _cast),
    **dict.fromkeys((nn.Dropout.forward, nn.Dropout1d.forward, nn.Dropout2d.forward), _dropout),
    **dict.fromkeys((nn.AlphaDropout.forward, F.dropout, F.dropout1d, F.dropout2d), _dropout),
}
