"""Copies of models, and computed weights (masks, spectral and weight normalisation) that become plain parameters.

``torch.nn.utils`` computes a weight in two ways. A hook before each forward leaves the result on the module, as an
attribute with a graph. A parametrization gives the module another class. The functions here treat both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
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
    """``copy.deepcopy`` of a model, which may hold tensors with a graph: these are copied without the graph.

    A computed weight is such a tensor after a forward in training. The copy computes it anew at its next forward.
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
    """The parameters of a module that are computed at each forward: name to the kind of computation."""
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


@contextmanager
def computed_as_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Within it, the model's computed parameters are computed as in evaluation: each call finds the same values.

    In training mode, each call of a spectral norm changes the norm's vectors, and so the next call's weights.
    """
    modules = [module for module in model.modules() if computed(module)]
    for module in list(filter(parametrize.is_parametrized, modules)):
        modules += module.parametrizations.modules()  # type: ignore[union-attr]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, own in zip(modules, modes, strict=True):
            module.training = own


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module. A parametrized module has another class: the answer is the class that it had before."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def bake(model: Model) -> Model:
    """Makes every computed parameter plain, with its value in evaluation. Changes the model in place and returns it."""
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
        # torch's own function would take the property from a class that copies of the module have in common.
        values = {name: getattr(module, name).detach().clone() for name in list(module.parametrizations)}  # type: ignore[arg-type]
        module.__class__ = plain_class(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    for name, flag in trained.items():
        getattr(module, name).requires_grad_(flag)


def plain_layer(module: Model) -> Model:
    """The module itself or, where it computes a parameter, a copy with plain parameters."""
    return bake(copy_model(module)) if computed(module) else module


def mask_of(module: nn.Module) -> Tensor | None:
    """The mask of ``torch.nn.utils.prune``, bool, shape of the weight; None where the module has no such mask."""
    mask = module._buffers.get("weight_mask")
    return None if mask is None or "weight_orig" not in module._parameters else mask.bool()


def plain_weight(module: nn.Module) -> Tensor:
    """A dense layer's weight; a computed one (mask, spectral or weight norm, parametrization) as in evaluation."""
    weight = plain_layer(module)._parameters["weight"]
    assert weight is not None
    return weight
