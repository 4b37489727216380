"""A model's parameters in the form that an engine's steps read. They are made once for all programs of the engine."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import Geometry
from ..nn.dense_path import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from ..nn.layer import DENSE_CLASSES, SPARSE_CLASSES, SparseConv, dense_class_of
from ..nn.modulated import square_sums
from ..ops.plan import compile_direct_plan
from .precision import Precisions, Short, shortened


class Weights(NamedTuple):
    """values ``[nnz]`` and bias ``[out_channels]`` of a layer, with the batch norm that follows folded in."""

    values: Tensor
    bias: Tensor | None


class Taps(NamedTuple):
    """A layer's values in the order of a direct plan, and that plan."""

    values: Tensor
    plan: Tensor


class Layers:
    """The convolutions of a model as sparse layers. A dense convolution keeps its nonzero weights."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._layers: dict[str, SparseConv | None] = {}
        self._made: list[tuple[Any, Tensor, Tensor | None, SparseConv | None]] = []
        self._weights: dict[tuple[SparseConv, str | None], Weights] = {}
        self._taps: dict[tuple[SparseConv, str | None, tuple[int, ...]], Taps] = {}
        self._short: dict[tuple[SparseConv, str | None, tuple[int, ...], str], Short | None] = {}
        self._dense: dict[tuple[SparseConv, int], Tensor] = {}
        self.precisions = Precisions()
        self._squares: dict[SparseConv, Tensor] = {}

    def bytes(self) -> int:
        """The bytes of all values, biases, supports and plans."""
        layers = [*self._layers.values(), *(one[-1] for one in self._made)]
        supports = [layer.support for layer in layers if layer is not None]
        weights = [one for pair in list(self._weights.values()) for one in pair if one is not None]
        taps = [one for pair in list(self._taps.values()) for one in pair]
        taps += [one for short in list(self._short.values()) if short is not None for one in (short.values, short.plan)]
        made = [*list(self._dense.values()), *list(self._squares.values())]
        tensors = {tensor.data_ptr(): tensor for tensor in [*supports, *weights, *taps, *made]}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def constant(self, name: str) -> Tensor:
        """A parameter or buffer of the model."""
        found = operator.attrgetter(name)(self._model)
        return found.detach() if isinstance(found, Tensor) else found

    def layer(self, name: str) -> SparseConv | None:
        """A module as a sparse layer; None if the kernels do not accept the module's weight."""
        if name not in self._layers:
            module: Any = self._modules[name]
            sparse: SparseConv | None = module if isinstance(module, SparseConv) else _as_sparse(module)
            self._layers[name] = sparse
        return self._layers[name]

    def made(self, weight: Tensor, bias: Tensor | None, transposed: bool, options: dict[str, Any]) -> SparseConv | None:
        """A layer for a functional convolution with constant weights; None as for :meth:`layer`.

        Calls with equal weights and options have one layer, in whichever program they are.
        """
        kind = (transposed, options)
        for known, *tensors, layer in self._made:
            if known == kind and all(map(_equal, tensors, (weight, bias))):
                return layer
        dense_class = next(
            one
            for one in DENSE_CLASSES
            if SPARSE_CLASSES[one].dims + 2 == weight.dim() and SPARSE_CLASSES[one].adjoint == transposed
        )
        groups = options.get("groups", 1)
        outside, inside = weight.shape[0], weight.shape[1] * groups
        if transposed:
            outside, inside = inside, outside
        kernel: Any = tuple(weight.shape[2:])
        module = nn.utils.skip_init(dense_class, inside, outside, kernel, bias=bias is not None, **options)
        module.weight = nn.Parameter(weight.detach())
        module.bias = None if bias is None else nn.Parameter(bias.detach())
        layer = _as_sparse(module)
        self._made.append((kind, weight, bias, layer))
        return layer

    def weights(self, layer: SparseConv, norm: str | None) -> Weights:
        """The weights of a layer with the batch norm that follows folded in: ``y * scale + shift`` per channel."""
        key = (layer, norm)
        if key not in self._weights:
            values = layer.values.detach()
            bias = None if layer.bias is None else layer.bias.detach()
            if norm is not None:
                scale, shift = self.running_map(norm)
                exact = values.double() * scale[_output_channels(layer)]
                bias = (shift if bias is None else bias.double() * scale + shift).to(values.dtype)
                values = exact.to(values.dtype)
            self._weights[key] = Weights(values, bias)
        return self._weights[key]

    def taps(self, layer: SparseConv, norm: str | None, geometry: Geometry) -> Taps:
        """The layer's values with the norm folded in, in the order in which a forward with a geometry reads them."""
        key = (layer, norm, tuple(geometry.numbers()))
        if key not in self._taps:
            plan, order = compile_direct_plan(layer.support, geometry, layer.adjoint)
            values = self.weights(layer, norm).values
            if layer.adjoint:  # otherwise the taps are in the order of the support
                values = values.view(len(order), -1)[order].flatten()
            self._taps[key] = Taps(values, plan)
        return self._taps[key]

    def short(self, layer: SparseConv, norm: str | None, geometry: Geometry, name: str) -> Short | None:
        """What :meth:`taps` gives, in the short precision of the layer; None where it runs in float32. `name`: of the
        layer in `precisions`."""
        precision = self.precisions.of(name)
        if precision is None:
            return None
        key = (layer, norm, tuple(geometry.numbers()), name)
        if key not in self._short:
            plan, order = compile_direct_plan(layer.support, geometry, layer.adjoint)
            values = self.weights(layer, norm).values.view(len(order), -1)[order]
            channels = _output_channels(layer).view(len(order), -1)[order, 0]
            limit = self.precisions.ranges.get(name, 0.0)
            self._short[key] = shortened(values, plan, channels, layer.out_channels, precision, limit)
        return self._short[key]

    def without_levels(self) -> set[str]:
        """The layers whose integer weights would have too few levels, so that they run in float32; of the programs
        so far."""
        return {name for (*_, name), short in self._short.items() if short is None}

    def use(self, precisions: Precisions) -> None:
        """Sets the precisions of the layers for later programs."""
        self.precisions = precisions
        self._short.clear()
        self._taps.clear()  # values in float32 that layers in a short precision no longer need

    def square_sums(self, layer: SparseConv) -> Tensor:
        """:func:`sparsegan.nn.modulated.square_sums` of a layer, computed once."""
        if layer not in self._squares:
            self._squares[layer] = square_sums(layer).detach().contiguous()
        return self._squares[layer]

    def running_map(self, name: str) -> tuple[Tensor, Tensor]:
        """scale and shift, float64 ``[C]`` each, of a norm that uses its running statistics."""
        norm: Any = self._modules[name]
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach().double()
        shift = -norm.running_mean.double() * scale
        return scale, shift if norm.bias is None else shift + norm.bias.detach().double()

    def dense_call(
        self, layer: SparseConv, weights: Weights, y_size: tuple[int, ...], x_shape: tuple[int, ...]
    ) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        """torch's function for the dense convolution, and its arguments after x."""
        key = (layer, id(weights))
        if key not in self._dense:
            self._dense[key] = layer.scattered(weights.values)
        weight, padding = self._dense[key], layer.padding
        if layer.adjoint:
            extra = layer.output_padding_for(x_shape[2:], y_size)
            args: tuple[Any, ...] = (weight, weights.bias, layer.stride, padding, extra, layer.groups, layer.dilation)
            return TRANSPOSED_CONVOLUTIONS[layer.dims], args
        args = (weight, weights.bias, layer.stride, padding, layer.dilation, layer.groups)
        if layer.padding_mode == "zeros":
            return CONVOLUTIONS[layer.dims], args
        pads, mode, convolution = layer._reversed_padding_repeated_twice, layer.padding_mode, CONVOLUTIONS[layer.dims]

        def padded(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, _: Any, *more: Any) -> Tensor:
            return convolution(F.pad(x, pads, mode=mode), weight, bias, stride, 0, *more)

        return padded, args


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))


def _as_sparse(module: Any) -> SparseConv | None:
    """A dense convolution as a sparse layer that keeps its nonzero weights; None if the kernels do not accept it."""
    if not isinstance(module, DENSE_CLASSES):
        return None
    dense_class = dense_class_of(module)
    plain = dense_class.__new__(dense_class)
    nn.Module.__init__(plain)
    for name, one in vars(module).items():
        if not name.startswith("_") or name == "_reversed_padding_repeated_twice":
            setattr(plain, name, one)
    plain.weight = nn.Parameter(module.weight.detach())  # a parametrization may have computed the weight
    plain.bias = None if module.bias is None else nn.Parameter(module.bias.detach())
    try:
        return SPARSE_CLASSES[dense_class].from_dense(plain)
    except (TypeError, ValueError):
        return None


def _output_channels(layer: SparseConv) -> Tensor:
    """int64 ``[nnz]``: the output channel of each value."""
    first, second, *kernel = layer.weight_shape
    area = math.prod(kernel)
    positions = layer.positions()
    if not layer.adjoint:
        return positions // (second * area)
    group = positions // (second * area) // (first // layer.groups)
    return group * second + positions // area % second
