"""Copies of other people's models, and layers whose weight is computed: masks, spectral and weight normalisation.

``torch.nn.utils`` computes a weight in two ways: by a hook before each forward, which leaves the result on the module
as an attribute with a graph, or by a parametrization, which makes the module's class another. Here both become plain.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .modes import in_mode

Model = TypeVar("Model", bound=nn.Module)

#: Hooks that compute a parameter.
WEIGHT_HOOKS = (prune.BasePruningMethod, SpectralNorm, WeightNorm)


def copy_model(model: Model) -> Model:
    """``copy.deepcopy`` of a model, also of one that holds tensors with a graph: they are copied without the graph.

    A computed weight is such a tensor after a forward in training; the copy computes it anew at its next forward.
    """
    known: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                for tensor in _tensors(value):
                    if not tensor.is_leaf:
                        known[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(model, known)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _tensors(part)


def computed(module: nn.Module) -> dict[str, str]:
    """The parameters of a module, by name, that are computed at each forward, and by what."""
    found = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            found[hook._tensor_name] = "mask"
        elif isinstance(hook, SpectralNorm | WeightNorm):
            found[hook.name] = "spectral norm" if isinstance(hook, SpectralNorm) else "weight norm"
    if parametrize.is_parametrized(module):
        for name, steps in module.parametrizations.items():  # type: ignore[union-attr, operator]
            kinds = [type(step).__name__.strip("_").lower() for step in steps]
            known = {"spectralnorm": "spectral norm", "weightnorm": "weight norm"}
            found[name] = ", ".join(known.get(kind, f"parametrization {kind}") for kind in kinds)
    return found


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module; of one with a parametrization, the class that it had before."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def bake(model: Model) -> Model:
    """Makes every computed parameter a plain one, with the value that it has in evaluation; in place, returns it."""
    with torch.no_grad(), in_mode(model, False):
        for module in list(model.modules()):
            _bake(module)
    return model


def _bake(module: nn.Module) -> None:
    trained = {
        name: any(
            one.requires_grad
            for own, one in module.named_parameters()
            if own.startswith((f"{name}_", f"parametrizations.{name}."))
        )
        for name in computed(module)
    }
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, SpectralNorm):
            torch.nn.utils.remove_spectral_norm(module, hook.name)
        elif isinstance(hook, WeightNorm):
            torch.nn.utils.remove_weight_norm(module, hook.name)
    if parametrize.is_parametrized(module):
        # Not by torch's own function: copies share the class that it takes the property from.
        values = {name: getattr(module, name).detach().clone() for name in list(module.parametrizations)}  # type: ignore[arg-type]
        module.__class__ = plain_class(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    for name, flag in trained.items():
        getattr(module, name).requires_grad_(flag)


def plain_layer(module: Model) -> Model:
    """The module itself, or, if it computes a parameter, a copy in which that is a plain one."""
    return bake(copy_model(module)) if computed(module) else module


def mask_of(module: nn.Module) -> Tensor | None:
    """bool, shape of the weight: the mask of ``torch.nn.utils.prune``, also where a kept weight is 0; None without."""
    mask = module._buffers.get("weight_mask")
    return None if mask is None or "weight_orig" not in module._parameters else mask.bool()


def plain_weight(module: nn.Module) -> Tensor:
    """A dense layer's weight; a computed one (mask, spectral or weight norm, parametrization) as in evaluation."""
    weight = plain_layer(module)._parameters["weight"]
    assert weight is not None
    return weight
