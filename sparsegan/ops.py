"""The torch ops ``sparsegan::gather`` and ``sparsegan::wgrad``: shapes, gradients, autocast and FLOPs.

Their CPU code is in ``csrc/``; ``sparsegan/reference.py`` has plain-PyTorch twins. The two are closed under
differentiation: with ``y = gather(x, v)`` bilinear in ``x`` and ``v``,

    dL/dx = gather over the adjoint plan (gy, v)        dL/dv = wgrad(gy, x)

and ``wgrad`` is bilinear in ``gy`` and ``x`` with both gradients gathers again. So double backward needs nothing more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _native  # noqa: F401  (importing it registers the ops)

_gather = torch.ops.sparsegan.gather.default
_wgrad = torch.ops.sparsegan.wgrad.default


def gather(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
) -> Tensor:
    """``y[n, o, p] = bias[o] + sum over taps (v * x[n, c, p + shift])``.

    Args:
        x: ``[N, source channels, H, W]``; float32, float64 or bfloat16 (accumulated in float32).
        values: ``[nnz]``, dtype of ``x``.
        bias: ``[target channels]``, dtype of ``x``, or ``None``.
        plan, adjoint_plan: int32, from :func:`sparsegan.plan.compile_plan`, fine to coarse and coarse to fine. The one
            that ``adjoint`` selects runs forward; the other serves the gradient in ``x``, or is ``None`` without one.
        geometry: :meth:`sparsegan.plan.Geometry.numbers`.
        adjoint: ``False`` reads the fine grid and writes the coarse one (a convolution), ``True`` the other way round.
        output_size: ``[target channels, H', W']``.

    Returns:
        ``[N, target channels, H', W']``, contiguous, dtype of ``x``.

    Raises:
        RuntimeError: shapes, dtypes, devices or the plan do not fit each other.
    """
    return _gather(x, values, bias, plan, adjoint_plan, geometry, adjoint, output_size)


def wgrad(
    gy: Tensor,
    x: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    nnz: int,
) -> Tensor:
    """``dv[t] = sum over n, p (gy[n, o, p] * x[n, c, p + shift])`` at the kept positions only.

    Args:
        gy: ``[N, target channels, H', W']``.
        x: ``[N, source channels, H, W]``, dtype of ``gy``.
        nnz: number of kept weights. The other arguments are those of :func:`gather`.

    Returns:
        ``[nnz]``, dtype of ``x``.
    """
    return _wgrad(gy, x, plan, adjoint_plan, geometry, adjoint, nnz)


@torch.library.register_fake("sparsegan::gather")
def _(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
) -> Tensor:
    return torch.empty((x.shape[0], *output_size), dtype=x.dtype, device=x.device)


@torch.library.register_fake("sparsegan::wgrad")
def _(
    gy: Tensor,
    x: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    nnz: int,
) -> Tensor:
    return torch.empty((nnz,), dtype=x.dtype, device=x.device)


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _bias, plan, adjoint_plan, ctx.geometry, ctx.adjoint, _size = inputs
    ctx.save_for_backward(x, values, plan, adjoint_plan)


def _gather_backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
    x, values, plan, adjoint_plan = ctx.saved_tensors
    gx = gv = gb = None
    if ctx.needs_input_grad[0]:
        gx = gather(gy, values, None, plan, adjoint_plan, ctx.geometry, not ctx.adjoint, list(x.shape[1:]))
    if ctx.needs_input_grad[1]:
        gv = wgrad(gy, x, plan, adjoint_plan, ctx.geometry, ctx.adjoint, values.shape[0])
    if ctx.needs_input_grad[2]:
        gb = gy.sum((0, 2, 3))
    return gx, gv, gb, None, None, None, None, None


def _wgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gy, x, plan, adjoint_plan, ctx.geometry, ctx.adjoint, _nnz = inputs
    ctx.save_for_backward(gy, x, plan, adjoint_plan)


def _wgrad_backward(ctx: Any, gv: Tensor) -> tuple[Any, ...]:
    gy, x, plan, adjoint_plan = ctx.saved_tensors
    ggy = gx = None
    if ctx.needs_input_grad[0]:
        ggy = gather(x, gv, None, plan, adjoint_plan, ctx.geometry, ctx.adjoint, list(gy.shape[1:]))
    if ctx.needs_input_grad[1]:
        gx = gather(gy, gv, None, plan, adjoint_plan, ctx.geometry, not ctx.adjoint, list(x.shape[1:]))
    return ggy, gx, None, None, None, None, None


torch.library.register_autograd("sparsegan::gather", _gather_backward, setup_context=_gather_setup)
torch.library.register_autograd("sparsegan::wgrad", _wgrad_backward, setup_context=_wgrad_setup)


def macs(nnz: int, images: int, coarse_height: int, coarse_width: int) -> int:
    """Multiply-accumulates of either op: each kept weight meets every element of the coarse grid once.

    Positions that fall into the padding are counted, as in torch's own formula for a dense convolution.
    """
    return nnz * images * coarse_height * coarse_width


@register_flop_formula(torch.ops.sparsegan.gather)
def _gather_flops(
    x_shape: Any,
    values_shape: Any,
    bias_shape: Any,
    plan_shape: Any,
    adjoint_plan_shape: Any,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    coarse = x_shape[2:] if adjoint else output_size[1:]
    return 2 * macs(values_shape[0], x_shape[0], *coarse)


@register_flop_formula(torch.ops.sparsegan.wgrad)
def _wgrad_flops(
    gy_shape: Any,
    x_shape: Any,
    plan_shape: Any,
    adjoint_plan_shape: Any,
    geometry: list[int],
    adjoint: bool,
    nnz: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    coarse = x_shape[2:] if adjoint else gy_shape[2:]
    return 2 * macs(nnz, x_shape[0], *coarse)
