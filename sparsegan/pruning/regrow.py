"""Regrowth: the smallest kept weights are exchanged for the absent weights with the largest gradients.

The method is RigL (Evci et al., "Rigging the Lottery", arXiv 1911.11134). Weights to drop are chosen by magnitude,
weights to add by the gradient that they would have. The gradient is dense, and is computed only in the steps that
exchange weights. In all other steps, a layer holds nothing for absent weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.granularity import largest
from ..nn.layer import SparseConv
from ..nn.replace import sparse_layers
from .surgery import move_support


def regrowable_layers(network: nn.Module) -> dict[str, SparseConv]:
    """The sparse layers by name. Raises ``ValueError`` if one of them does not have granularity ``"element"``."""
    layers = dict(sparse_layers(network))
    for name, layer in layers.items():
        if layer.granularity != "element":
            raise ValueError(
                f"{_label(name, layer)}: granularity is {layer.granularity!r}; weights grow back one by one, "
                "so it must be 'element'"
            )
    return layers


@contextmanager
def dense_gradients(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within this context, backward passes also sum the gradients of all weights of the sparse layers, absent weights
    included.

    The context yields a dict from a layer's name to its gradient, ``[weight_shape]``, with the dtype and device of the
    layer's ``values``. The gradients start at zero. ``backward()`` adds to them whenever it adds to ``values.grad``,
    also for second derivatives; ``torch.autograd.grad`` does not. Only calls of the network inside the context count.
    Outputs and all other gradients stay the same to the last bit. The tensors may be set to zero in place to start
    again.

    Raises:
        ValueError: a layer is not of granularity ``"element"`` (the text names it).
    """
    layers = regrowable_layers(network)
    gradients = {name: layer.values.new_zeros(layer.weight_shape) for name, layer in layers.items()}
    hooks = []
    for name, layer in layers.items():
        zeros = torch.zeros_like(gradients[name], requires_grad=True)
        zeros.register_post_accumulate_grad_hook(_adding_to(gradients[name]))
        # This hook must run first: hooks of ranks and autocast change the output of the network's outermost layer.
        hooks.append(layer.register_forward_hook(_watching(zeros), prepend=True, with_kwargs=True))
    try:
        yield gradients
    finally:
        for hook in hooks:
            hook.remove()


def _adding_to(total: Tensor) -> Any:
    def add(leaf: Tensor) -> None:
        assert leaf.grad is not None
        total.add_(leaf.grad.detach())
        leaf.grad = None

    return add


def _watching(zeros: Tensor) -> Any:
    def watch(layer: SparseConv, inputs: tuple[Any, ...], named: dict[str, Any], y: Tensor) -> Tensor | None:
        if not y.requires_grad:
            return None
        x: Tensor = inputs[0] if inputs else named["x"]
        x = x if x.dim() == layer.dims + 2 else x.unsqueeze(0)
        if layer.padding_mode != "zeros" or layer.padding == "same":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        return _Watched.apply(y, x, zeros, layer)

    return watch


class _Watched(torch.autograd.Function):
    """Returns a layer's output unchanged. Its backward also computes the gradient of `zeros`, as if these were a dense
    weight that is added to the layer's weight.

    `x`: ``[N, C, H, W]`` or ``[N, C, L]``, padded already if ``aten::convolution`` cannot do this padding.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, zeros: Tensor, layer: SparseConv) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, zeros, y if layer.negative_slope != 1 else None)
        return y.clone()  # with y itself, an in-place activation after the layer would fail

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gy,), layer = gradients, ctx.layer
        x, zeros, y = ctx.saved_tensors
        g = gy if y is None else torch.where(y > 0, gy, gy * layer.negative_slope)
        g = g if g.dim() == layer.dims + 2 else g.unsqueeze(0)
        padding, extra = [0] * layer.dims, [0] * layer.dims
        if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            padding = list(layer.padding)
        if layer.transposed:
            extra = list(layer.output_padding_for(x.shape[2:], g.shape[2:]))
        # The contribution of `zeros` to the gradient of x is zero, but a second backward needs its derivative.
        again = torch.is_grad_enabled() and ctx.needs_input_grad[1]
        # In float16 the sum over all pixels of a batch can overflow even if the gradients of the kept weights do not.
        dtype = torch.float32 if g.dtype == torch.float16 else g.dtype
        gx, gw, _ = torch.ops.aten.convolution_backward(
            g.to(dtype),
            x.to(dtype),
            zeros.to(dtype),
            None,
            layer.stride,
            padding,
            layer.dilation,
            layer.transposed,
            extra,
            layer.groups,
            (again, True, False),
        )
        return gy, gx.to(x.dtype) if again else None, gw.to(zeros.dtype), None


@torch.no_grad()
def regrow(
    network: nn.Module,
    gradients: Mapping[str, Tensor],
    share: float,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Exchanges a fraction of the weights of every sparse layer for absent weights. The number of weights stays.

    A layer with nnz weights drops the ``round(share * nnz)`` weights of smallest magnitude, and adds as many absent
    weights of largest absolute gradient, with value 0. If fewer weights are absent, the dropped weights of largest
    absolute gradient return, with their old values and optimizer state. Among equal weights, the first by position
    stays or is added.

    A frozen layer is not changed, because added weights would stay 0.

    Args:
        network: its sparse layers are changed in place.
        gradients: the gradients ``[weight_shape]`` by layer name, as :func:`dense_gradients` yields them.
        share: the fraction of the kept weights to exchange, in [0, 1).
        optimizer: its state for each ``values`` (moments of Adam, momentum of SGD) and any gradient move along with
            the weights. The state of added weights starts at 0. The Parameter objects stay the same.

    Raises:
        ValueError: ``share`` is out of range, a layer does not have granularity ``"element"``, a layer's gradient is
            missing, has another shape or contains NaN, or a layer's values contain NaN (the text names the layer). The
            network is then unchanged.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must be at least 0 and below 1")
    layers = regrowable_layers(network)
    exchanges = {}
    for name, layer in layers.items():  # all checks come before the first change
        if not layer.values.requires_grad:
            continue
        gradient = gradients.get(name)
        label = _label(name, layer)
        if gradient is None or tuple(gradient.shape) != layer.weight_shape:
            found = "nothing" if gradient is None else f"shape {tuple(gradient.shape)}"
            raise ValueError(f"{label}: gradients has {found} for it; it must have shape {layer.weight_shape}")
        if bool(gradient.isnan().any()):
            raise ValueError(f"{label}: its gradient contains NaN, which has no order; it must be numbers")
        try:
            exchanges[layer] = _exchange(layer, gradient.flatten().abs(), share)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
    for layer, exchange in exchanges.items():
        if exchange is not None:
            move_support(layer, *exchange, optimizer)


def _label(name: str, layer: SparseConv) -> str:
    """The name of a layer in a message. A layer that is the whole network has no name, so its class is used."""
    return name or type(layer).__name__


def _exchange(layer: SparseConv, slope: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """The new support, and the index of the old value for each of its positions (-1 for new positions); None if nothing
    changes."""
    dropped = round(share * layer.nnz)
    absent = (~layer.mask()).flatten().nonzero().flatten()
    new = min(dropped, len(absent))
    if new == 0:
        return None
    stays, positions = largest(layer.values.abs(), layer.nnz - dropped), layer.positions()
    if new < dropped:
        gone = (~stays).nonzero().flatten()
        stays[gone[largest(slope[positions[gone]], dropped - new)]] = True
    source = torch.full_like(slope, -1, dtype=torch.int64)
    source[positions] = torch.arange(layer.nnz, device=slope.device)
    support = torch.cat([positions[stays], absent[largest(slope[absent], new)]]).sort().values
    return support.int(), source[support]
