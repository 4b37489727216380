"""The torch ops ``sparsegan::sparse_conv`` and ``sparsegan::wgrad``, and the functions that call them.

``csrc/`` has their kernels for CPUs and, for single weights, for NVIDIA GPUs. Vectors on a GPU run on the Triton ops of
``sparsegan/ops/vector_ops.py``, which take the same arguments. The functions :func:`sparse_conv` and :func:`wgrad`
choose the op by device and geometry. ``sparsegan/ops/reference.py`` has plain-PyTorch twins of the ops,
``sparsegan/ops/autograd.py`` their gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .autograd import register_gradients
from .flops import register_flops
from .library import why_no_cuda  # loads the libraries, which registers the ops
from .padding import padded, padding_number
from .plan import is_vector


def _require_cuda(x: Tensor) -> None:
    """Raises RuntimeError where the CUDA kernels are not there for ``x``. Fake tensors need no kernels."""
    if not isinstance(x, FakeTensor) and (why := why_no_cuda()):
        raise RuntimeError(
            f"x is on {x.device}, and {why}; set the layer's backend to 'dense', or move the model to a CPU"
        )


_sparse_conv = torch.ops.sparsegan.sparse_conv.default
_wgrad = torch.ops.sparsegan.wgrad.default

#: The output activations of the engine's ops. An op takes the index in this tuple.
OUTPUT_ACTIVATIONS = ("none", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "hardswish", "softplus")


def sparse_conv(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    padding_mode: str = "zeros",
    pad_before: tuple[int, int] = (0, 0),
    negative_slope: float = 1.0,
) -> Tensor:
    """``y[n, o, p] = f(bias[o] + sum over taps (v * x[n, c, p + shift]))``; ``f(z)`` is ``negative_slope * z`` below 0.

    Args:
        x: ``[N, source channels, H, W]``; float32, float64 or bfloat16 (accumulated in float32).
        values: ``[units * vector]``, unit by unit, dtype of ``x``.
        bias: ``[target channels]``, dtype of ``x``, or ``None``.
        support: int32 ``[units]``, sorted positions in the geometry's ``unit_shape``.
        plan, adjoint_plan: int32, from :func:`sparsegan.ops.plan.compile_plan`: ``plan`` from fine to coarse,
            ``adjoint_plan`` from coarse to fine. The forward runs on ``adjoint_plan`` if ``adjoint``, else on ``plan``.
            The gradient in ``x`` runs on the other plan, which may be ``None`` where that gradient is not taken.
        geometry: the list of :meth:`sparsegan.geometry.Geometry.numbers`.
        adjoint: ``False`` reads the fine grid and writes the coarse grid (a convolution); ``True`` reads the coarse
            grid and writes the fine grid (a transposed convolution).
        output_size: ``[target channels, H', W']``.
        padding_mode: one of :data:`sparsegan.ops.padding.PADDING_MODES`; must be ``"zeros"`` where ``adjoint``.
        pad_before: rows and columns of padding before ``x`` for the modes other than ``"zeros"``, where the geometry's
            padding is 0; ``(0, 0)`` for ``"zeros"``. The padding after ``x`` follows from ``output_size``.
        negative_slope: the factor of outputs below 0, from 0 (ReLU) to 1 (no activation), applied while the outputs
            are written.

    Returns:
        ``[N, target channels, H', W']``, contiguous, dtype of ``x``.

    Raises:
        RuntimeError: shapes, dtypes, devices or the plan do not fit each other.
        ValueError: ``padding_mode`` is unknown.
    """
    mode, before = padding_number(padding_mode), list(pad_before)
    taps = (support, plan, adjoint_plan, geometry)
    if x.is_cuda:  # the GPU kernels pad with zeros only
        x, mode, before = padded(x, geometry, output_size[1:], mode, before), 0, [0, 0]
        if is_vector(geometry):
            return vector_ops().vector_sparse_conv(x, values, bias, *taps, adjoint, output_size, negative_slope)
        _require_cuda(x)
    return _sparse_conv(x, values, bias, *taps, adjoint, output_size, mode, before, negative_slope)


def wgrad(
    gy: Tensor,
    x: Tensor,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    padding_mode: str = "zeros",
    pad_before: tuple[int, int] = (0, 0),
) -> Tensor:
    """``dv[t] = sum over n, p (gy[n, o, p] * x[n, c, p + shift])`` at the kept positions only.

    Args:
        gy: ``[N, target channels, H', W']``.
        x: ``[N, source channels, H, W]``, dtype of ``gy``. The other arguments are those of :func:`sparse_conv`.

    Returns:
        ``[units * vector]``, dtype of ``x``.

    Raises:
        RuntimeError, ValueError: as in :func:`sparse_conv`.
    """
    mode, before = padding_number(padding_mode), list(pad_before)
    taps = (support, plan, adjoint_plan, geometry)
    if x.is_cuda:
        x, mode, before = padded(x, geometry, gy.shape[2:], mode, before), 0, [0, 0]
        if is_vector(geometry):
            return vector_ops().vector_wgrad(gy, x, *taps, adjoint)
        _require_cuda(x)
    return _wgrad(gy, x, *taps, adjoint, mode, before)


def vector_ops() -> Any:
    """The module of the Triton ops, which is loaded at the first call. Raises RuntimeError where Triton is missing."""
    try:
        from . import vector_ops as triton_ops
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"vectors on a GPU run on Triton, which cannot be imported ({error}): install triton, or set the layer's "
            "backend to 'dense'"
        ) from error
    return triton_ops


def _check_one_device(*args: Any) -> None:
    """Raises RuntimeError where the arguments are on several devices.

    One tensor on the meta device is enough for torch to call a fake implementation. Without this check, a call that
    mixes real and meta tensors would return a result without numbers.
    """
    if len(devices := {arg.device for arg in args if isinstance(arg, Tensor)}) > 1:
        raise RuntimeError(f"tensors are on {' and '.join(sorted(map(str, devices)))}; they must be on one device")


@torch.library.register_fake("sparsegan::sparse_conv")
def _(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    padding_mode: int = 0,
    pad_before: Any = (0, 0),
    negative_slope: float = 1.0,
) -> Tensor:
    _check_one_device(x, values, bias, support, plan, adjoint_plan)
    return torch.empty((x.shape[0], *output_size), dtype=x.dtype, device=x.device)


@torch.library.register_fake("sparsegan::wgrad")
def _(
    gy: Tensor,
    x: Tensor,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    padding_mode: int = 0,
    pad_before: Any = (0, 0),
) -> Tensor:
    _check_one_device(gy, x, support, plan, adjoint_plan)
    return torch.empty((support.shape[0] * geometry[-1] * geometry[-2],), dtype=x.dtype, device=x.device)


@torch.library.register_fake("sparsegan::sparse_conv_fused")
@torch.library.register_fake("sparsegan::pointwise")
def _(*args: Any) -> None:
    """Both ops return nothing and write into their arguments, so only the devices are checked."""
    _check_one_device(*args)


def _run(x: Tensor, values: Tensor, taps: tuple[Any, ...], adjoint: bool, size: list[int], *padding: Any) -> Tensor:
    """A sparse_conv without a bias: ``run`` of :func:`sparsegan.ops.autograd.register_gradients`."""
    return _sparse_conv(x, values, None, *taps, adjoint, size, *padding)


register_gradients(_sparse_conv, _wgrad, _run)
register_flops(torch.ops.sparsegan.sparse_conv, torch.ops.sparsegan.wgrad)
