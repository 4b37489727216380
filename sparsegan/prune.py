"""Model surgery: dense layers to sparse ones and back, and shrinking a support during training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .granularity import check_granularity, check_sparsity, kept, largest, magnitudes
from .nn import SPARSE_CLASSES, SparseConv, plain_weight

Model = TypeVar("Model", bound=nn.Module)

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, SparseConv]]:
    """(name, layer) of every sparse layer, each once."""
    for name, module in model.named_modules():
        if isinstance(module, SparseConv):
            yield name, module


def sparsify(
    model: Model, sparsity: float | None = None, granularity: str = "element", exclude: Iterable[str] = ()
) -> Model:
    """Makes every ``Conv2d`` and ``ConvTranspose2d`` of a model sparse, in place.

    Args:
        model: any module; a bare layer too (then the sparse layer is returned).
        sparsity: share of units to drop a layer, smallest L2 norm first, in [0, 1). ``None`` keeps each layer's
            nonzeros as they are.
        granularity: what is dropped as one: ``"element"``, or ``"vector:V"`` for V consecutive output channels.
        exclude: names (as in ``named_modules``) or glob patterns of layers to leave dense.

    Returns:
        The model. Hooks, training flags and ``requires_grad`` move to the new layers. Layers that are sparse already
        are pruned further, each by its own granularity, never revived. A subclass of a torch.nn convolution stays
        dense, with a warning.

    Raises:
        ValueError: an argument is out of range, an ``exclude`` matches nothing, two layers share one weight, a weight
            is computed by a parametrization, or a layer's output channels are not whole vectors (the text names the
            layer). The model is unchanged then.
    """
    check_granularity(granularity)
    if sparsity is not None:
        check_sparsity(sparsity)
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    unused = set(patterns)
    owners: dict[int, str] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        matching = {p for p in patterns if fnmatchcase(name, p)}
        unused -= matching
        if matching or not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        weight = plain_weight(module)
        if type(module) not in SPARSE_CLASSES:  # its forward may be its own
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            warnings.warn(f"{name} is a {kind}, not torch.nn's own layer: it stays dense", stacklevel=2)
            continue
        if id(weight) in owners:
            raise ValueError(f"{name} and {owners[id(weight)]} share one weight; exclude both, or give each its own")
        owners[id(weight)] = name
        try:
            sparse = SPARSE_CLASSES[type(module)].from_dense(module, sparsity, granularity)
        except ValueError as error:
            raise ValueError(f"{name or type(module).__name__}: {error}") from error
        _move_hooks(module, sparse)
        replacements[module] = sparse
    if unused:
        raise ValueError(f"exclude has {sorted(unused)}, which no module's name matches")
    already = [layer for name, layer in sparse_layers(model) if not any(fnmatchcase(name, p) for p in patterns)]
    if sparsity is not None:
        for layer in already:
            shrink_layer(layer, sparsity)
    return _replace(model, replacements)


def densify(model: Model) -> Model:
    """Back to ``torch.nn`` layers, zeros in place; in place, returns the model (a new layer for a bare one)."""
    replacements: dict[nn.Module, nn.Module] = {}
    for _name, layer in sparse_layers(model):
        replacements[layer] = layer.to_dense()
        _move_hooks(layer, replacements[layer])
    return _replace(model, replacements)


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    for attribute in _HOOKS:
        hooks = getattr(old, attribute)
        # torch.nn.utils.prune computes its weight in a hook; from_dense has applied the mask.
        mine = {k: h for k, h in hooks.items() if type(h).__module__ != "torch.nn.utils.prune"}
        getattr(new, attribute).update(mine)
    new._is_full_backward_hook = old._is_full_backward_hook


def _replace(model: Model, replacements: dict[nn.Module, nn.Module]) -> Model:
    """Puts each replacement wherever its original is a child; one that is there twice is replaced twice."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return cast(Model, replacements.get(model, model))


def shrink(model: nn.Module, sparsity: float, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Drops the smallest units of every sparse layer until it is as sparse as asked; nothing is ever revived.

    Args:
        model: its sparse layers are changed in place; a layer that is at least so sparse already stays as it is.
        sparsity: share of units to drop a layer, smallest L2 norm first, in [0, 1).
        optimizer: its state for each ``values`` (moments of Adam, momentum of SGD) and any gradient are cut to the
            surviving values. The Parameter objects stay, so its parameter groups stay valid.
    """
    check_sparsity(sparsity)
    for _name, layer in sparse_layers(model):
        shrink_layer(layer, sparsity, optimizer)


def shrink_layer(layer: SparseConv, sparsity: float, optimizer: torch.optim.Optimizer | None = None) -> None:
    """:func:`shrink` for one layer."""
    values, vector = layer.values, layer.geometry.vector
    keep = kept(math.prod(layer.geometry.unit_shape), sparsity)
    if keep >= layer.support.shape[0]:
        return
    survivors = largest(magnitudes(values.detach().view(-1, vector)), keep).nonzero().flatten()

    def cut(tensor: Tensor) -> Tensor:
        return tensor.view(-1, vector)[survivors].flatten()

    grad, state = values.grad, optimizer.state.get(values, {}) if optimizer is not None else {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.shape == values.shape:
            state[name] = cut(tensor)
    layer.set_support(layer.support[survivors], cut(values.detach()))
    if grad is not None:
        values.grad = cut(grad)
