"""The sparse layers of a model, and layers put in the place of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, overload

from torch import nn

from ..copying import WEIGHT_HOOKS
from .layer import SparseConv, SparseConv2d, SparseConvTranspose2d

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


@overload
def densify(model: SparseConv2d) -> nn.Conv2d: ...
@overload
def densify(model: SparseConvTranspose2d) -> nn.ConvTranspose2d: ...
@overload
def densify(model: Model) -> Model: ...
def densify(model: nn.Module) -> nn.Module:
    """Back to ``torch.nn`` layers, zeros in place; in place, returns the model (a new layer for a bare one)."""
    replacements: dict[nn.Module, nn.Module] = {}
    for _name, layer in sparse_layers(model):
        replacements[layer] = layer.to_dense()
        move_hooks(layer, replacements[layer])
    return replaced(model, replacements)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    for attribute in _HOOKS:
        hooks = getattr(old, attribute)
        # Those that compute a weight have done so: from_dense has taken it.
        mine = {k: h for k, h in hooks.items() if not isinstance(h, WEIGHT_HOOKS)}
        getattr(new, attribute).update(mine)
    new._is_full_backward_hook = old._is_full_backward_hook


def replaced(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Puts each replacement wherever its original is a child; one that is there twice is replaced twice."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)
