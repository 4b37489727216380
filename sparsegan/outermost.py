"""Hooks around those calls of a network that come from outside it, whichever of its modules is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Outermost:
    """Hooks of one network.

    `enter(inputs, named) -> (inputs, named)` sees the arguments of a call from outside and may change them.
    `leave(output) -> output` sees the output of that call and may change it. `remove()` removes the hooks.
    """

    def __init__(
        self, network: nn.Module, enter: Callable[[Any, Any], tuple[Any, Any]], leave: Callable[[Any], Any]
    ) -> None:
        self.enter, self.leave = enter, leave
        self.depth = 0
        self.hooks: list[Any] = []
        for module in network.modules():
            self.hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, module: nn.Module, inputs: Any, named: Any) -> Any:
        self.depth += 1
        return self.enter(inputs, named) if self.depth == 1 else None

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self.depth -= 1
        return self.leave(output) if self.depth == 0 else None

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` applied to each tensor in it, also inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        make = getattr(type(value), "_make", type(value))  # a named tuple takes its fields one by one
        return make(mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    return value


@contextmanager
def autocast(dtype: torch.dtype | None, *networks: nn.Module | None) -> Iterator[None]:
    """Within it the networks run under torch.autocast to `dtype` and return float32: losses have full precision.

    `None` leaves them as they are.
    """
    if dtype is None:
        yield
        return
    hooks = []
    for network in networks:
        if network is not None:
            context = torch.autocast(next(network.parameters()).device.type, dtype)
            hooks.append(Outermost(network, *_within(context)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _within(context: torch.autocast) -> tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]:
    def enter(inputs: Any, named: Any) -> tuple[Any, Any]:
        context.__enter__()
        return inputs, named

    def leave(output: Any) -> Any:
        context.__exit__(None, None, None)
        return mapped(output, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    return enter, leave
