"""Optimizers that follow their parameters: state of the size of a layer's values moves along when its support changes.

Which tensors of a state belong to the values is told by their shape: moments, momenta, sums of squares and step sizes
have the shape of the values; step counts have one element. Anything else has no place to go, and is refused before
anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

#: What ``shrink`` and ``move_support`` take: an optimizer, what holds one, several, or none.
Optimizers = Any


def optimizers_of(given: Optimizers) -> list[Optimizer]:
    """The torch optimizers in an argument ``optimizer``.

    Raises TypeError for what is none, ValueError for one whose state is not kept parameter by parameter.
    """
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return [one for part in given for one in optimizers_of(part)]
    inner = given
    while not _is_optimizer(inner):
        inner = getattr(inner, "optimizer", None)  # a learning-rate schedule's, a wrapper's
        if inner is None:
            raise TypeError(
                f"optimizer is a {type(given).__name__}; it must be a torch.optim.Optimizer, what holds one as "
                "`.optimizer`, a list of these, or None"
            )
    if isinstance(inner, torch.optim.LBFGS):
        raise ValueError(
            "optimizer is LBFGS, whose history is one vector over all parameters and cannot be cut; shrink without it, "
            "then make a new one"
        )
    return [inner]


def _is_optimizer(one: Any) -> bool:
    return isinstance(getattr(one, "state", None), Mapping) and isinstance(getattr(one, "param_groups", None), list)


def check_held(parameters: Mapping[str, Tensor], optimizers: Iterable[Optimizer]) -> None:
    """Raises ValueError where an optimizer is given and a parameter that requires a gradient is in none of them."""
    optimizers = list(optimizers)
    held = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    missing = [name for name, one in parameters.items() if one.requires_grad and id(one) not in held]
    if optimizers and missing:
        raise ValueError(
            f"optimizer does not hold the values of {', '.join(missing)}, so their state would be lost; give every "
            "optimizer that does, as a list, or freeze what is not trained with requires_grad_(False)"
        )


def check_movable(name: str, values: Tensor, optimizers: Iterable[Optimizer]) -> None:
    """Raises ValueError where a state of these values has a tensor that is neither of their shape nor one number."""
    for optimizer in optimizers:
        for key, tensor in _tensors(optimizer.state.get(values, {})):
            if tensor.shape != values.shape and tensor.numel() > 1:
                raise ValueError(
                    f"{name}: {type(optimizer).__name__} keeps {key!r} of shape {tuple(tensor.shape)} for values of "
                    f"shape {tuple(values.shape)}, and it is not known how that follows a support; shrink without the "
                    "optimizer, then make a new one"
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
    """Replaces each tensor of ``shape``, which the values had before, in their states by what ``moved`` gives."""

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
