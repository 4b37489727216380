"""Finding the sparse layers of a model, and replacing layers of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, overload

from torch import nn

from ..copying import WEIGHT_HOOKS
from .layer import SparseConv, SparseConv1d, SparseConv2d, SparseConvTranspose1d, SparseConvTranspose2d

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
    """(name, layer) of each sparse layer of a model. A layer with several names comes once."""
    for name, module in model.named_modules():
        if isinstance(module, SparseConv):
            yield name, module


@overload
def densify(model: SparseConv1d) -> nn.Conv1d: ...
@overload
def densify(model: SparseConv2d) -> nn.Conv2d: ...
@overload
def densify(model: SparseConvTranspose1d) -> nn.ConvTranspose1d: ...
@overload
def densify(model: SparseConvTranspose2d) -> nn.ConvTranspose2d: ...
@overload
def densify(model: Model) -> Model: ...
def densify(model: nn.Module) -> nn.Module:
    """Replaces each sparse layer of a model by a ``torch.nn`` layer with zeros at the dropped weights, in place.

    Returns the model. If ``model`` is itself a sparse layer, returns a new ``torch.nn`` layer.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for _name, layer in sparse_layers(model):
        replacements[layer] = layer.to_dense()
        move_hooks(layer, replacements[layer])
    return replaced(model, replacements)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Copies the forward and backward hooks of ``old`` to ``new``."""
    for attribute in _HOOKS:
        hooks = getattr(old, attribute)
        # Hooks that compute a weight are left out: from_dense has taken the computed weight.
        mine = {k: h for k, h in hooks.items() if not isinstance(h, WEIGHT_HOOKS)}
        getattr(new, attribute).update(mine)
    new._is_full_backward_hook = old._is_full_backward_hook


def replaced(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replaces modules (original -> replacement) wherever they are children in the model. Returns the model.

    If ``model`` is itself an original, returns its replacement.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)
