"""Optimizer state that follows a layer's values when the layer's support changes.

The shape of a state tensor shows whether it belongs to the values. Moments, momenta, sums of squares and step sizes
have the shape of the values; step counts have one element. A tensor of any other shape cannot follow the values, and is
refused before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

#: The argument ``optimizer`` of ``shrink`` and ``move_support``: an optimizer, an object that holds one as
#: ``.optimizer``, a list or tuple of these, or None.
Optimizers = Any


def optimizers_of(given: Optimizers) -> list[Optimizer]:
    """The torch optimizers in an argument ``optimizer``.

    Raises TypeError for any other object, and ValueError for LBFGS, whose state is not kept per parameter.
    """
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return [one for part in given for one in optimizers_of(part)]
    inner = given
    while not _is_optimizer(inner):
        inner = getattr(inner, "optimizer", None)  # the given object may be a learning-rate schedule or a wrapper
        if inner is None:
            raise TypeError(
                f"optimizer is a {type(given).__name__}; it must be a torch.optim.Optimizer, an object that holds one "
                "as `.optimizer`, a list of these, or None"
            )
    if isinstance(inner, torch.optim.LBFGS):
        raise ValueError(
            "optimizer is LBFGS, whose history is one vector over all parameters and cannot be cut; shrink without the "
            "optimizer, then make a new one"
        )
    return [inner]


def _is_optimizer(one: Any) -> bool:
    return isinstance(getattr(one, "state", None), Mapping) and isinstance(getattr(one, "param_groups", None), list)


def check_held(parameters: Mapping[str, Tensor], optimizers: Iterable[Optimizer]) -> None:
    """Raises ValueError if optimizers are given and none of them holds a parameter that requires a gradient."""
    optimizers = list(optimizers)
    held = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    missing = [name for name, one in parameters.items() if one.requires_grad and id(one) not in held]
    if optimizers and missing:
        raise ValueError(
            f"optimizer does not hold the values of {', '.join(missing)}, so their state would be lost; give all "
            "optimizers as a list, or freeze values that are not trained with requires_grad_(False)"
        )


def check_movable(name: str, values: Tensor, optimizers: Iterable[Optimizer]) -> None:
    """Raises ValueError if the state for `values` holds a tensor that has neither their shape nor one element."""
    for optimizer in optimizers:
        for key, tensor in _tensors(optimizer.state.get(values, {})):
            if tensor.shape != values.shape and tensor.numel() > 1:
                raise ValueError(
                    f"{name}: {type(optimizer).__name__} keeps {key!r} of shape {tuple(tensor.shape)} for values of "
                    f"shape {tuple(values.shape)}; a tensor of another shape cannot follow the support, so shrink "
                    "without the optimizer, then make a new one"
                )


def _tensors(state: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield key, state
    elif isinstance(state, Mapping):
        for name, one in state.items():
            yield from _tensors(one, f"{key}.{name}" if key else str(name))
    elif isinstance(state, list | tuple):
        for index, one in enumerate(state):
            yield from _tensors(one, f"{key}.{index}")


def move_state(
    values: Tensor, shape: torch.Size, optimizers: Iterable[Optimizer], moved: Callable[[Tensor], Tensor]
) -> None:
    """Replaces each tensor of shape ``shape`` in the optimizers' states for ``values`` by ``moved(tensor)``.

    `shape`: the shape of the values before the change of the support.
    """

    def new(one: Any) -> Any:
        if isinstance(one, Tensor):
            return moved(one) if one.shape == shape else one
        if isinstance(one, dict):
            return {key: new(part) for key, part in one.items()}
        if isinstance(one, list | tuple):
            return type(one)(new(part) for part in one)
        return one

    for optimizer in optimizers:
        state = optimizer.state.get(values)
        if state:
            for key in list(state):
                state[key] = new(state[key])
