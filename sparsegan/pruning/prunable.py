"""The layers of a model that can be pruned, and the modules that resemble a convolution but cannot be pruned."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..copying import plain_class
from ..nn.layer import DENSE_CLASSES, SPARSE_CLASSES, SparseConv


def prunable_layers(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, nn.Module]:
    """The convolutions of a model, dense and sparse, by name, without those that ``exclude`` matches.

    Subclasses of torch.nn convolutions are left out, because their forward may be different. A convolution whose weight
    is computed (masks, spectral and weight normalisation, other parametrizations) is included.

    Raises:
        ValueError: the model has no such convolution, not even an excluded one; the text names the modules that
            resemble a convolution, with the reasons why they cannot be pruned. Or a pattern of ``exclude`` matches
            nothing.
    """
    chosen = _Patterns(exclude)
    layers = {name: module for name, module in model.named_modules() if _is_prunable(module) and not chosen.match(name)}
    for name, _ in model.named_modules():
        chosen.match(name)
    if chosen.unused:
        raise ValueError(f"exclude has {sorted(chosen.unused)}, which no module's name matches")
    if not layers and not any(map(_is_prunable, model.modules())):
        others = left_dense(model, exclude)
        if others:
            found = "; ".join(f"{name} {why}" for name, why in others.items())
            raise ValueError(f"{type(model).__name__} has no layer that can be pruned: {found}")
        raise ValueError(
            f"{type(model).__name__} has no convolution; torch.nn's Conv1d, Conv2d, ConvTranspose1d and "
            "ConvTranspose2d can be pruned"
        )
    return layers


def left_dense(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, str]:
    """The modules that resemble a convolution but cannot be pruned: a dict from name to reason.

    Names that ``exclude`` matches are left out.
    """
    chosen, found = _Patterns(exclude), {}
    inside: tuple[str, ...] = ()  # prefixes of modules that are found already, or can be pruned
    for name, module in model.named_modules():
        if (name.startswith(inside) and inside) or chosen.match(name):
            continue
        why = _why_not(module)
        if why is not None:
            found[name or type(module).__name__] = why
            if not name:
                return found
        if name and (why is not None or _is_prunable(module)):
            inside += (f"{name}.",)
    return found


class _Patterns:
    """Names and glob patterns. ``unused``: the patterns that have matched nothing so far."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self.unused = set(self.patterns)

    def match(self, name: str) -> bool:
        matching = {pattern for pattern in self.patterns if fnmatchcase(name, pattern)}
        self.unused -= matching
        return bool(matching)


def _is_prunable(module: nn.Module) -> bool:
    if isinstance(module, SparseConv):
        return True
    lazy = any(isinstance(one, UninitializedParameter) for one in module.parameters(recurse=False))
    return plain_class(module) in SPARSE_CLASSES and not lazy


def _why_not(module: nn.Module) -> str | None:
    """The reason why a module that resembles a convolution cannot be pruned; None for all other modules."""
    kind = type(module)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _is_prunable(module):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        kinds = {getattr(one, "original_name", "") for one in module.modules()}
        return "is scripted; prune it before torch.jit.script" if any("Conv" in one for one in kinds) else None
    if any(isinstance(one, UninitializedParameter) for one in module.parameters(recurse=False)):
        return f"is a {kind.__name__} that has seen no input; call the model once first" if "Conv" in name else None
    if isinstance(module, DENSE_CLASSES):
        return f"is a {name}, not torch.nn's own layer: its forward may be different"
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        return f"is a {kind.__name__}; there are kernels for one and two dimensions"
    if "Conv" in kind.__name__ and next(module.children(), None) is None and _weights(module, least=1):
        return f"is a {name}, which is no layer of torch.nn"
    held = _weights(module, least=3)
    if held and not isinstance(module, nn.LayerNorm | nn.Linear | nn.Bilinear | nn.Embedding):
        parameter, shape = next(iter(held.items()))
        why = f"holds {parameter} of shape {shape}, which no convolution layer of torch.nn does"
        if getattr(module, parameter).dim() == len(shape) + 1:
            why += "; a modulated convolution can be pruned as sparsegan.ModulatedConv around a torch.nn convolution"
        return why
    return None


def _weights(module: nn.Module, least: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's own parameters that may be weights of convolutions, by name.

    `least`: the smallest number of dimensions. A first dimension of 1 is taken for the batch dimension of a constant.
    """
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    shapes = {name: tuple(one.shape) for name, one in own.items() if least <= one.dim() <= 5}
    if least == 1:  # a quantized layer keeps its weight elsewhere
        return shapes or {"weight": ()}
    # The weight of a modulated convolution has an additional first dimension for the images.
    shapes = {name: shape[1:] if len(shape) == 5 and shape[0] == 1 else shape for name, shape in shapes.items()}
    return {name: shape for name, shape in shapes.items() if shape[0] > 1 and shape[1] > 1}
