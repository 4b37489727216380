"""Modulated convolutions (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958,
section 2.2) on dense or kept weights.

The paper scales the weights per image: ``w'[n, o, i, k] = s[n, i] * w[o, i, k]``, and demodulation divides them by the
norm of each filter (its equations 1 and 3). One weight per image would undo the compression. A convolution is linear,
so both scales move to the images:

    y[n, o] = d[n, o] * conv(x * s)[n, o]          d[n, o] = 1 / sqrt(sum over i, k ((s[n, i] * w[o, i, k])^2) + eps)
                                                           = 1 / sqrt(sum over i (s[n, i]^2 * q[o, i]) + eps)

``q[o, i]`` is the sum of the squares of the weights between input channel i and output channel o. A sparse layer
computes it from its kept values.
"""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from .kept_weights import DenseConv
from .layer import DENSE_CLASSES, SparseConv


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled per image, with demodulation.

    Args:
        convolution: a ``Conv1d``, ``Conv2d``, ``ConvTranspose1d`` or ``ConvTranspose2d`` of torch.nn without bias, or
            a sparse layer without bias. It stays an ordinary child module, so :func:`sparsegan.sparsify` and everything
            else that knows convolutions finds it.
        demodulate: whether each filter is divided by its norm.
        eps: added to the squared norm.

    Raises:
        TypeError: ``convolution`` is another module.
        ValueError: ``convolution`` has a bias, which demodulation would scale; or ``eps`` is negative.
    """

    def __init__(self, convolution: DenseConv | SparseConv, demodulate: bool = True, eps: float = 1e-8) -> None:
        super().__init__()
        if not isinstance(convolution, (*DENSE_CLASSES, SparseConv)):
            raise TypeError(
                f"convolution is a {type(convolution).__name__}; it must be a convolution of torch.nn with one or two "
                "dimensions, or a sparse layer"
            )
        if convolution.bias is not None:
            raise ValueError(
                "convolution has a bias, which demodulation would scale; make it with bias=False and add a bias after"
            )
        if not eps >= 0:
            raise ValueError(f"eps is {eps}; it must be at least 0")
        self.convolution = convolution
        self.demodulate, self.eps = demodulate, eps

    def forward(self, x: Tensor, scales: Tensor) -> Tensor:
        """``x``: ``[N, in_channels, *size]``. ``scales``: one number per image and input channel, ``[N, in_channels]``
        or ``[1, in_channels]``. Returns ``[N, out_channels, *size']``.

        Raises ValueError for scales of another shape.
        """
        recorded: Any = x
        if isinstance(recorded, fx.Proxy):  # torch.fx records this module as one node, as it does sparse layers
            tracer: Any = recorded.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, scales), {})
        layer = self.convolution
        wanted = {(len(x), layer.in_channels), (1, layer.in_channels)}
        if not torch.jit.is_tracing() and tuple(scales.shape) not in wanted:  # sizes are no numbers while torch traces
            raise ValueError(
                f"scales has shape {tuple(scales.shape)}; for {len(x)} image(s) it must be "
                f"({len(x)}, {layer.in_channels}) or (1, {layer.in_channels})"
            )
        grid = (None,) * (x.dim() - 2)
        y = layer(x * scales[(..., *grid)])
        if not self.demodulate:
            return y
        # autocast would square in half precision, which overflows; the meta device has no autocast
        autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
            factors = demodulation(scales, square_sums(layer), self.eps)
        return y * factors[(..., *grid)].to(y.dtype)

    def extra_repr(self) -> str:
        """The settings, as torch.nn prints them."""
        return f"demodulate={self.demodulate}, eps={self.eps}"


def square_sums(layer: DenseConv | SparseConv) -> Tensor:
    """The numbers ``q`` of a layer, ``[groups, in / groups, out / groups]``, differentiable in the weights.

    Half precision is summed in float32. Dropped weights take no memory.
    """
    if isinstance(layer, SparseConv):
        first, second, *kernel = layer.weight_shape
        squares = _wide(layer.values).square()
        places = layer.positions() // math.prod(kernel)
        sums = squares.new_zeros(first * second).index_add(0, places, squares).view(first, second)
    else:
        # Summed one after another, as above, so that a layer that keeps all weights has the same sums to the last bit.
        sums = functools.reduce(torch.add, _wide(layer.weight).square().flatten(2).unbind(2))
    sums = sums.unflatten(0, (layer.groups, -1))
    return sums if layer.transposed else sums.transpose(1, 2)


def demodulation(scales: Tensor, sums: Tensor, eps: float) -> Tensor:
    """The factors ``d``, ``[N, out_channels]``, of ``scales`` ``[N, in_channels]`` and the result of `square_sums`."""
    squares = scales.to(sums.dtype).square().unflatten(1, (len(sums), -1)).transpose(0, 1)
    return (torch.matmul(squares, sums) + eps).rsqrt().transpose(0, 1).flatten(1)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
