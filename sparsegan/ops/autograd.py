"""The gradients of sparse_conv and wgrad. Every pair of ops that computes the two has the same formulas.

``y = sparse_conv(x, v)`` is bilinear in ``x`` and ``v``. Its gradients are

    dL/dx = sparse_conv over the adjoint plan (gy, v)        dL/dv = wgrad(gy, x)

``wgrad`` is bilinear in ``gy`` and ``x``. Both of its gradients are sparse convolutions. The gradients therefore call
no other op than these two, and double backward needs no further code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .padding import extents, folded


def register_gradients(sparse_conv: Any, wgrad: Any, run: Callable[..., Tensor]) -> None:
    """Registers the gradients of a pair of ops.

    Args:
        sparse_conv, wgrad: the ops. They take the arguments of ``sparsegan::sparse_conv`` and ``sparsegan::wgrad``.
            Both ops may leave out ``padding_mode`` and ``pad_before``: the padding is then zeros.
        run: a differentiable function ``run(x, values, taps, adjoint, size, *padding)`` that computes a sparse_conv
            without a bias. ``taps`` are support, plan, adjoint plan and geometry; ``size`` is a list.
    """

    def sparse_conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, _bias, support, plan, adjoint_plan, ctx.geometry, ctx.adjoint, _size, *padding, slope = inputs
        ctx.padding, ctx.slope = padding, slope
        ctx.save_for_backward(x, values, support, plan, adjoint_plan, None if slope == 1 else output)

    def sparse_conv_backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        x, values, support, plan, adjoint_plan, y = ctx.saved_tensors
        gx = gv = gb = None
        if y is not None:  # the slope is at least 0, so y is above 0 exactly where the sum is
            gy = torch.where(y > 0, gy, gy * ctx.slope)
        taps = (support, plan, adjoint_plan, ctx.geometry)
        if ctx.needs_input_grad[0]:
            gx = source_gradient(gy, values, taps, ctx, x.shape)
        if ctx.needs_input_grad[1]:
            gv = wgrad(gy, x, *taps, ctx.adjoint, *ctx.padding)
        if ctx.needs_input_grad[2]:
            gb = gy.sum((0, 2, 3))
        return gx, gv, gb, *[None] * (7 + len(ctx.padding))

    def wgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gy, x, support, plan, adjoint_plan, ctx.geometry, ctx.adjoint, *ctx.padding = inputs
        ctx.save_for_backward(gy, x, support, plan, adjoint_plan)

    def wgrad_backward(ctx: Any, gv: Tensor) -> tuple[Any, ...]:
        gy, x, *plans = ctx.saved_tensors
        taps = (*plans, ctx.geometry)
        ggy = gx = None
        if ctx.needs_input_grad[0]:
            ggy = run(x, gv, taps, ctx.adjoint, list(gy.shape[1:]), *ctx.padding)
        if ctx.needs_input_grad[1]:
            gx = source_gradient(gy, gv, taps, ctx, x.shape)
        return ggy, gx, *[None] * (5 + len(ctx.padding))

    def source_gradient(gy: Tensor, values: Tensor, taps: tuple[Any, ...], ctx: Any, x_shape: torch.Size) -> Tensor:
        """The gradient in ``x``: the adjoint sparse_conv over the padded extent, then the adjoint of the padding."""
        channels, *size = x_shape[1:]
        mode, before = ctx.padding or (0, (0, 0))
        if mode == 0:
            return run(gy, values, taps, not ctx.adjoint, [channels, *size])
        pads = extents(ctx.geometry, size, gy.shape[2:], before)
        size = [n + sum(pad) for n, pad in zip(size, pads, strict=True)]
        return folded(run(gy, values, taps, not ctx.adjoint, [channels, *size]), pads, mode)

    torch.library.register_autograd(sparse_conv, sparse_conv_backward, setup_context=sparse_conv_setup)
    torch.library.register_autograd(wgrad, wgrad_backward, setup_context=wgrad_setup)
