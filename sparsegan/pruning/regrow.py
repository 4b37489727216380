"""Regrowth: absent weights that the loss asks for most change places with the smallest kept ones.

RigL (Evci et al., "Rigging the Lottery", arXiv 1911.11134): what is dropped is chosen by magnitude, what comes in by
the gradient that it would have. That gradient is dense, and is taken only in the steps that exchange; in all others a
layer holds what it keeps and nothing else.
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
    """Every sparse layer by its name; ``ValueError`` where one is not of granularity ``"element"``."""
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
    """Within it, backward passes also sum the gradient of every weight of the sparse layers, of absent ones too.

    Gives a dict, layer's name to ``[weight_shape]``, dtype and device of the layer's ``values``: zeros at first, then
    whatever ``backward()`` adds, exactly where it adds to ``values.grad`` (second derivatives included, and
    ``torch.autograd.grad`` not). Only calls of the network inside the context count. Outputs and all other gradients
    keep their bits. The tensors may be zeroed in place, to start again.

    Raises:
        ValueError: a layer is not of granularity ``"element"`` (the text names it).
    """
    layers = regrowable_layers(network)
    gradients = {name: layer.values.new_zeros(layer.weight_shape) for name, layer in layers.items()}
    hooks = []
    for name, layer in layers.items():
        zeros = torch.zeros_like(gradients[name], requires_grad=True)
        zeros.register_post_accumulate_grad_hook(_adding_to(gradients[name]))
        # First of all hooks: those of ranks and autocast change what the network's outermost layer puts out.
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
        x = x if x.dim() == 4 else x.unsqueeze(0)
        if layer.padding_mode != "zeros" or layer.padding == "same":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        return _Watched.apply(y, x, zeros, layer)

    return watch


class _Watched(torch.autograd.Function):
    """A layer's output as it is; on the way back it also gives a dense weight of zeros, added to the layer's own, its
    gradient. `x`: ``[N, C, H, W]``, padded where ``aten::convolution`` does not do it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, zeros: Tensor, layer: SparseConv) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, zeros, y if layer.negative_slope != 1 else None)
        return y.clone()  # not y itself: an activation that works in place could not follow

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gy,), layer = gradients, ctx.layer
        x, zeros, y = ctx.saved_tensors
        g = gy if y is None else torch.where(y > 0, gy, gy * layer.negative_slope)
        g = g if g.dim() == 4 else g.unsqueeze(0)
        padding, extra = [0, 0], [0, 0]
        if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            padding = list(layer.padding)
        if layer.transposed:
            extra = list(layer.geometry.output_padding(x.shape[2:], g.shape[2:]))
        # The zeros' part of the gradient in x is nothing, but its own derivative is not: only for a second backward.
        again = torch.is_grad_enabled() and ctx.needs_input_grad[1]
        # A sum over all pixels of a batch overflows in float16, where the gradients of the kept weights may not.
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
    """Exchanges a share of every sparse layer's weights for absent ones; each layer keeps as many as it had.

    Of a layer's nnz weights the ``round(share * nnz)`` of smallest magnitude go, and as many absent ones of largest
    absolute gradient come in, at 0. Where fewer are absent, the places left go back to those that were just dropped, by
    gradient too, with the value and the state that they had. Of equal ones the first by position stays, or comes in.

    A frozen layer keeps its weights: what came in would stay 0.

    Args:
        network: its sparse layers are changed in place.
        gradients: layer's name to ``[weight_shape]``, as :func:`dense_gradients` gives them.
        share: of the kept weights, in [0, 1).
        optimizer: its state for each ``values`` (moments of Adam, momentum of SGD) and any gradient move along with
            the weights; what comes in starts at 0 there too. The Parameter objects stay.

    Raises:
        ValueError: the share is out of range, a layer is not of granularity ``"element"``, or a layer's gradient is
            missing, of another shape, or has NaN, or its values have (the text names the layer). The network is
            unchanged then.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must be at least 0 and below 1")
    layers = regrowable_layers(network)
    exchanges = {}
    for name, layer in layers.items():  # all of them before the first change: one may be refused
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
    """What a message calls a layer; a bare one has no name."""
    return name or type(layer).__name__


def _exchange(layer: SparseConv, slope: Tensor, share: float) -> tuple[Tensor, Tensor] | None:
    """The new support, and which of the old values each of it is, -1 where it is new; None where nothing changes."""
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
