"""The torch ops ``sparsegan::sparse_conv`` and ``sparsegan::wgrad``, and the functions that call them.

Their code for CPUs and, single elements, for NVIDIA GPUs is in ``csrc/``; vectors on a GPU are the Triton ops of
``sparsegan/ops/vector_ops.py``, with the same arguments: :func:`sparse_conv` and :func:`wgrad` here choose by device
and geometry. ``sparsegan/ops/reference.py`` has plain-PyTorch twins, ``sparsegan/ops/autograd.py`` the gradients.
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
    """Raises RuntimeError where ``x`` is on a GPU that the CUDA kernels cannot serve. Fake tensors need no kernels."""
    if not isinstance(x, FakeTensor) and (why := why_no_cuda()):
        raise RuntimeError(
            f"x is on {x.device}, and {why}; set the layer's backend to 'dense', or move the model to a CPU"
        )


_sparse_conv = torch.ops.sparsegan.sparse_conv.default
_wgrad = torch.ops.sparsegan.wgrad.default

#: What may be done to the outputs of the engine's ops; an op gets the index.
OUTPUT_ACTIVATIONS = ("none", "tanh", "sigmoid")


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
        plan, adjoint_plan: int32, from :func:`sparsegan.ops.plan.compile_plan`, fine to coarse and coarse to fine. The
            one that ``adjoint`` selects runs forward; the other serves the gradient in ``x``, or is ``None`` without
            one.
        geometry: :meth:`sparsegan.geometry.Geometry.numbers`.
        adjoint: ``False`` reads the fine grid and writes the coarse one (a convolution), ``True`` the other way round.
        output_size: ``[target channels, H', W']``.
        padding_mode: what lies around ``x``, one of :data:`sparsegan.ops.PADDING_MODES`; ``"zeros"`` where ``adjoint``.
        pad_before: rows and columns of it before ``x``, where the geometry's padding is 0; ``(0, 0)`` for ``"zeros"``.
            What follows the last element is as much as ``output_size`` asks for.
        negative_slope: from 0 (ReLU) to 1 (nothing is activated), applied while the result is written.

    Returns:
        ``[N, target channels, H', W']``, contiguous, dtype of ``x``.

    Raises:
        RuntimeError: shapes, dtypes, devices or the plan do not fit each other.
        ValueError: an unknown ``padding_mode``.
    """
    mode, before = padding_number(padding_mode), list(pad_before)
    taps = (support, plan, adjoint_plan, geometry)
    if x.is_cuda:  # the GPU kernels know zeros only
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
    """The module of the Triton ops, loaded when the first call needs them."""
    try:
        from . import vector_ops as triton_ops
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"vectors on a GPU run on Triton, and it is not here ({error}): install triton, or set the layer's backend "
            "to 'dense'"
        ) from error
    return triton_ops


def _check_one_device(*args: Any) -> None:
    """One tensor on the meta device is enough for torch to run a fake: real ones beside it would get no numbers."""
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
    """They write into what they are given."""
    _check_one_device(*args)


def _run(x: Tensor, values: Tensor, taps: tuple[Any, ...], adjoint: bool, size: list[int], *padding: Any) -> Tensor:
    """A sparse_conv without a bias, as :func:`sparsegan.ops.autograd.register_gradients` calls it."""
    return _sparse_conv(x, values, None, *taps, adjoint, size, *padding)


register_gradients(_sparse_conv, _wgrad, _run)
register_flops(torch.ops.sparsegan.sparse_conv, torch.ops.sparsegan.wgrad)
