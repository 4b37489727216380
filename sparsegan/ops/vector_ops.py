"""The torch ops ``sparsegan::vector_sparse_conv`` and ``sparsegan::vector_wgrad``: vectors on a GPU's tensor cores.

The two ops compute the same as ``sparsegan::sparse_conv`` and ``sparsegan::wgrad`` (``sparsegan/ops/reference.py`` has
both in PyTorch), with zeros as the only padding and with the plans of ``csrc/core/vector_plan.h``. They have the same
gradients (``sparsegan/ops/autograd.py``). The gradient in x of a wide sparse_conv is a deep sparse_conv, which at
random supports is slower than dense (``kernels/NOTES.md``). Where the plan for this gradient is ``None``, the gradient
runs dense, on the dense weight with zeros at the dropped positions.

On CPU tensors the kernels run in Triton's interpreter, which is of use to tests only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.library import triton_op, wrap_triton

from ..geometry import Direction, Geometry, geometry_of
from ..kernels import DTYPES
from ..kernels.deep import products_kernel, sum_kernel
from ..kernels.sparse_conv import sparse_conv_kernel
from ..kernels.tiling import deep_launches, part_of, sparse_conv_launch, wgrad_launch
from ..kernels.wgrad import wgrad_kernel
from ..renamed import renamed_names
from . import reference
from .autograd import register_gradients
from .flops import register_flops


@triton_op("sparsegan::vector_sparse_conv", mutates_args=())
def vector_sparse_conv(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    negative_slope: float = 1.0,
) -> Tensor:
    """``y[n, o, p] = f(bias[o] + sum over taps (v * x[n, c, p + shift]))``; ``f(z)`` is ``negative_slope * z`` below 0.

    Args:
        x: ``[N, source channels, H, W]``, padded with zeros; float32 (multiplied in TF32 where
            ``torch.backends.cudnn.allow_tf32``), float16 or bfloat16; always accumulated in float32.
        values: ``[units * vector]``, unit by unit, dtype of ``x``.
        bias: ``[target channels]``, dtype of ``x``, or ``None``.
        support: int32 ``[units]``, sorted positions in the geometry's ``unit_shape``.
        plan, adjoint_plan: int32, from :func:`sparsegan.ops.plan.compile_plan`: ``plan`` from fine to coarse,
            ``adjoint_plan`` from coarse to fine. The forward runs on ``adjoint_plan`` if ``adjoint``, else on ``plan``.
            The gradient in ``x`` runs on the other plan, or dense where the other plan is ``None``.
        geometry: the list of :meth:`sparsegan.geometry.Geometry.numbers`.
        adjoint: ``False`` reads the fine grid and writes the coarse grid (a convolution); ``True`` reads the coarse
            grid and writes the fine grid (a transposed convolution).
        output_size: ``[target channels, H', W']``.
        negative_slope: the factor of outputs below 0, from 0 (ReLU) to 1 (no activation), applied while the outputs
            are written.

    Returns:
        ``[N, target channels, H', W']``, contiguous, dtype of ``x``.

    Raises:
        ValueError: shapes, dtypes or a plan's size do not fit each other. The numbers in a plan are not checked,
            because a check would wait for the device. Whatever these numbers are, the kernels read and write nothing
            outside the tensors.
    """
    d = Direction(geometry_of(geometry), adjoint)
    size = (output_size[1], output_size[2])
    _check_images("x", x, d.sources)
    if output_size[0] != d.targets:
        raise ValueError(f"output_size has {output_size[0]} channels; the geometry writes {d.targets}")
    _check_vector("values", values, support.shape[0] * d.geometry.vector, x)
    if bias is not None:
        _check_vector("bias", bias, d.targets, x)
    taps = _check_plan(d, x, support, adjoint_plan if adjoint else plan)
    _check_size("output_size", d.targets * size[0] * size[1])
    run = _wide if d.depth == 1 else _deep
    return run(x.contiguous(), values.contiguous(), bias, taps, d, support.shape[0], size, negative_slope)


def _wide(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    d: Direction,
    units: int,
    size: tuple[int, int],
    slope: float,
) -> Tensor:
    sizes, has_bias = ((x.shape[2], x.shape[3]), size), bias is not None
    launch = _launch(sparse_conv_launch, d, units, x.shape[0], *sizes, x.dtype, _precision(x), has_bias, slope)
    dtype = x.dtype if launch.partial_sums == 1 else torch.float32
    y = x.new_empty(launch.partial_sums, x.shape[0], d.targets, *size, dtype=dtype)
    if launch.programs > 0 and _runs(x):
        tensors = (x, values, values if bias is None else bias.contiguous(), y, taps)
        with _device(x):
            _kernel(sparse_conv_kernel, x)[launch.programs, launch.partial_sums](
                *tensors, *launch.numbers, **launch.constants
            )
    if launch.partial_sums == 1:
        return y.view(x.shape[0], d.targets, *size)
    total = y.sum(0)
    if bias is not None:
        total += bias.view(-1, 1, 1)
    if slope != 1:
        total = F.leaky_relu(total, slope) if slope > 0 else F.relu(total)
    return total.to(x.dtype)


def _deep(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    taps: Tensor,
    d: Direction,
    units: int,
    size: tuple[int, int],
    slope: float,
) -> Tensor:
    sizes, has_bias = ((x.shape[2], x.shape[3]), size), bias is not None
    places = x.shape[2] * x.shape[3]
    part = part_of(x.shape[0], units * places * x.dtype.itemsize)
    y, products = x.new_empty(x.shape[0], d.targets, *size), x.new_empty(units, part, places)
    if not _runs(x) or y.numel() == 0:
        return y
    add = values if bias is None else bias.contiguous()
    for first in range(0, x.shape[0], part) if isinstance(part, int) else (0,):
        images = min(part, x.shape[0] - first) if isinstance(part, int) else part
        multiply, sums = _launch(deep_launches, d, units, images, *sizes, x.dtype, _precision(x), has_bias, slope)
        with _device(x):
            if multiply.programs > 0 and units > 0:
                _kernel(products_kernel, x)[multiply.programs,](
                    x, values, products, taps, first, *multiply.numbers, **multiply.constants
                )
            _kernel(sum_kernel, x)[sums.programs,](products, add, y, taps, first, *sums.numbers, **sums.constants)
    return y


@triton_op("sparsegan::vector_wgrad", mutates_args=())
def vector_wgrad(
    gy: Tensor,
    x: Tensor,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
) -> Tensor:
    """``dv[t] = sum over n, p (gy[n, o, p] * x[n, c, p + shift])`` at the kept positions only.

    Args:
        gy: ``[N, target channels, H', W']``, dtype of ``x``.
        x: ``[N, source channels, H, W]``. The other arguments are those of :func:`vector_sparse_conv`. The op needs
            the plan whose sparse_conv is wide, for either value of ``adjoint``; the other plan may be ``None``.

    Returns:
        ``[units * vector]``, dtype of ``x``; every run gives the same bits.

    Raises:
        ValueError: as in :func:`vector_sparse_conv`.
    """
    d = Direction(geometry_of(geometry), adjoint)
    _check_images("gy", gy, d.targets)
    _check_images("x", x, d.sources)
    if gy.shape[0] != x.shape[0]:
        raise ValueError(f"gy has {gy.shape[0]} images and x has {x.shape[0]}; the two numbers must be equal")
    if gy.dtype != x.dtype or gy.device != x.device:
        raise ValueError(
            f"gy is {gy.dtype} on {gy.device} and x is {x.dtype} on {x.device}; dtype and device must be equal"
        )
    if d.depth > 1:  # the sum is symmetric in sources and targets: exchanged, a deep direction becomes a wide one
        d, gy, x = Direction(d.geometry, not adjoint), x, gy
    taps = _check_plan(d, x, support, adjoint_plan if d.adjoint else plan)
    units = support.shape[0]
    gy, x = gy.contiguous(), x.contiguous()
    sizes = ((x.shape[2], x.shape[3]), (gy.shape[2], gy.shape[3]))
    launch = _launch(wgrad_launch, d, units, x.shape[0], *sizes, x.dtype, _precision(x))
    partial_sums = x.new_empty(launch.partial_sums, units * d.width, dtype=torch.float32)
    if units > 0 and _runs(x):
        with _device(x):
            _kernel(wgrad_kernel, x)[launch.programs,](gy, x, partial_sums, taps, *launch.numbers, **launch.constants)
    return partial_sums.sum(0).to(x.dtype)


# ---------------------------------------------------------------------- how a kernel is run


_kept_launch = functools.lru_cache(maxsize=4096)(lambda make, *arguments: make(*arguments))


def _launch(make: Callable[..., Any], *arguments: Any) -> Any:
    """The launch ``make(*arguments)``, from a cache: computing a launch takes longer than starting the kernel."""
    try:
        return _kept_launch(make, *arguments)
    except TypeError:  # a symbol for a size has no hash
        return make(*arguments)


def _precision(x: Tensor) -> str:
    """The precision of float32 products: that of cuDNN's convolutions."""
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return "tf32" if x.dtype == torch.float32 and conv.fp32_precision == "tf32" else "ieee"


def _kernel(kernel: Any, x: Tensor) -> Any:
    """``kernel`` as it is run on tensors that are where ``x`` is."""
    return _interpreted(kernel) if x.device.type == "cpu" else wrap_triton(kernel)


@functools.cache
def _interpreted(kernel: Any) -> Any:
    """``kernel`` for Triton's interpreter, and with it the functions that it calls, which stand in the same module."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    names = dict(kernel.fn.__globals__)
    for name, value in kernel.fn.__globals__.items():
        if isinstance(value, JITFunction):
            names[name] = InterpretedFunction(FunctionType(value.fn.__code__, names, name))
    return names[kernel.fn.__name__]


def _runs(x: Tensor) -> bool:
    """Whether to launch a kernel: always, except in Triton's interpreter while the op is only traced."""
    return x.device.type != "cpu" or not isinstance(x, (FakeTensor, FunctionalTensor))


def _device(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which ``x``'s GPU is the current device, where Triton launches.

    While an op is traced the context does nothing, because there may be no GPU.
    """
    traced = isinstance(x, (FakeTensor, FunctionalTensor))
    return torch.cuda.device(x.device) if x.is_cuda and not traced else nullcontext()


# ---------------------------------------------------------------------- checks


def _check_images(name: str, x: Tensor, channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be [N, {channels}, height, width]")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {x.dtype}; accepted: {', '.join(map(str, DTYPES))}")
    _check_size(name, x.shape[1] * x.shape[2] * x.shape[3])


def _check_size(name: str, elements: int) -> None:
    if elements >= 2**31:
        raise ValueError(f"{name} has {elements} elements per image; at most 2147483647 are possible")


def _check_vector(name: str, vector: Tensor, size: int, x: Tensor) -> None:
    if tuple(vector.shape) != (size,):
        raise ValueError(f"{name} has shape {tuple(vector.shape)}; it must be ({size},)")
    if vector.dtype != x.dtype or vector.device != x.device:
        raise ValueError(f"{name} is {vector.dtype} on {vector.device}; it must be {x.dtype} on {x.device}, as x is")


def _check_plan(d: Direction, x: Tensor, support: Tensor, plan: Tensor | None) -> Tensor:
    if support.device != x.device:
        raise ValueError(f"support is on {support.device}; it must be on {x.device}, as x is")
    name, size = "adjoint_plan" if d.adjoint else "plan", d.plan_size(support.shape[0])
    if plan is None:
        raise ValueError(f"{name} is None; this call needs the plan")
    if plan.dtype != torch.int32 or tuple(plan.shape) != (size,) or plan.device != support.device:
        raise ValueError(
            f"{name} is {plan.dtype} {tuple(plan.shape)} on {plan.device}; it must be torch.int32 ({size},) on "
            f"{support.device}, from sparsegan.ops.plan for the same support and geometry"
        )
    if support.shape[0] * d.geometry.vector >= 2**31:
        raise ValueError(f"support has {support.shape[0]} units; at most 2147483647 values are possible")
    return plan.contiguous()


# ---------------------------------------------------------------------- gradients

_sparse_conv = torch.ops.sparsegan.vector_sparse_conv.default
_wgrad = torch.ops.sparsegan.vector_wgrad.default


def _sparse_conv_or_dense(x: Tensor, values: Tensor, taps: tuple[Any, ...], adjoint: bool, size: list[int]) -> Tensor:
    """A sparse_conv on the plan of its direction, or dense where that plan is ``None``."""
    support, plan, adjoint_plan, geometry = taps
    if (adjoint_plan if adjoint else plan) is None:
        return _dense(x, values, support, geometry_of(geometry), adjoint, (size[0], size[1], size[2]))
    return _sparse_conv(x, values, None, support, plan, adjoint_plan, geometry, adjoint, size)


def _dense(
    x: Tensor, values: Tensor, support: Tensor, g: Geometry, adjoint: bool, size: tuple[int, int, int]
) -> Tensor:
    """A sparse_conv on the dense weight: one torch convolution where torch's paddings can give the sizes, else the twin
    in ``reference.py``."""
    coarse, fine = (x.shape[2:], size[1:]) if adjoint else (size[1:], x.shape[2:])
    extra = g.output_padding(coarse, fine)
    if not all(0 <= e < s for e, s in zip(extra, g.stride, strict=True)):
        return reference.sparse_conv(x, values, None, support, g, adjoint, size)
    weight = reference.dense_weight(values, support, g)
    if adjoint:
        return F.conv_transpose2d(x, weight, None, g.stride, g.padding, extra, g.groups, g.dilation)
    return F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)


register_gradients(_sparse_conv, _wgrad, _sparse_conv_or_dense)
register_flops(torch.ops.sparsegan.vector_sparse_conv, torch.ops.sparsegan.vector_wgrad)


__getattr__ = renamed_names(__name__, vector_gather="vector_sparse_conv")
