"""Plain-PyTorch twins of the ops: the shortest description of their results. Tests compare the ops with the twins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Geometry
from ..renamed import renamed_names


def dense_weight(values: Tensor, support: Tensor, geometry: Geometry) -> Tensor:
    """The dense weight: ``values`` at ``support``, zeros elsewhere. Differentiable in ``values``."""
    units, kernel = geometry.unit_shape[:2], geometry.unit_shape[2:]
    flat = values.new_zeros(torch.Size(geometry.unit_shape).numel(), geometry.vector)
    flat = flat.index_put((support.long(),), values.view(-1, geometry.vector))
    # [coarse units, fine units, kh, kw, coarse in unit, fine in unit] -> the channels of a unit next to each other
    boxes = flat.view(*units, *kernel, geometry.coarse_vector, geometry.fine_vector)
    return boxes.permute(0, 4, 1, 5, 2, 3).reshape(geometry.weight_shape)


def sparse_conv(
    x: Tensor,  # [N, source channels, H, W]
    values: Tensor,  # [units * vector]
    bias: Tensor | None,  # [target channels]
    support: Tensor,  # [units] int32
    geometry: Geometry,
    adjoint: bool,
    output_size: tuple[int, int, int],  # [target channels, H', W']
    padding_mode: str = "zeros",
    pad_before: tuple[int, int] = (0, 0),  # rows, columns
) -> Tensor:  # [N, target channels, H', W']
    """``y[n, o, p] = bias[o] + sum over taps (v * x[n, c, p + shift])``, with ``x`` padded by ``padding_mode``.

    Without ``adjoint``, this is a convolution; ``output_size`` determines its padding after the last row and column.
    With ``adjoint``, this is a transposed convolution that is cut or extended to ``output_size``.
    """
    g, weight = geometry, dense_weight(values, support, geometry)
    if not adjoint:
        extent = g.extent(output_size[1:])
        after = [n - p - b - h for n, p, b, h in zip(extent, g.padding, pad_before, x.shape[2:], strict=True)]
        if padding_mode != "zeros":
            around = [max(0, n) for n in after]
            x = F.pad(x, (pad_before[1], around[1], pad_before[0], around[0]), padding_mode)
            after = [a - n for a, n in zip(after, around, strict=True)]
        x = F.pad(x, (g.padding[1], after[1], g.padding[0], after[0]))
        return F.conv2d(x, weight, bias, g.stride, 0, g.dilation, g.groups)
    y = F.conv_transpose2d(x, weight, None, g.stride, 0, 0, g.groups, g.dilation)
    after = [n + p - h for n, p, h in zip(output_size[1:], g.padding, y.shape[2:], strict=True)]
    y = F.pad(y, (-g.padding[1], after[1], -g.padding[0], after[0]))
    return y if bias is None else y + bias.view(-1, 1, 1)


def wgrad(
    gy: Tensor,  # [N, target channels, H', W']
    x: Tensor,  # [N, source channels, H, W]
    support: Tensor,  # [units] int32
    geometry: Geometry,
    adjoint: bool,
    padding_mode: str = "zeros",
    pad_before: tuple[int, int] = (0, 0),
) -> Tensor:  # [units * vector]
    """``dv[t] = sum over n, p (gy[n, o, p] * x[n, c, p + shift])``, the gradient in the values."""
    values = gy.new_zeros(support.shape[0] * geometry.vector, requires_grad=True)
    with torch.enable_grad():
        size = (gy.shape[1], gy.shape[2], gy.shape[3])
        y = sparse_conv(x, values, None, support, geometry, adjoint, size, padding_mode, pad_before)
    return torch.autograd.grad(y, values, gy)[0]


__getattr__ = renamed_names(__name__, gather="sparse_conv")
