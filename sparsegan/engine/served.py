"""What an engine answers where code expects a module: it works, or a sentence says what to do instead."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

Self = TypeVar("Self", bound="Served")


class Served:
    """What engines share. `model`: the engine's own copy; `example`: its positional and keyword arguments."""

    device_type: ClassVar[str]

    model: nn.Module
    example: tuple[tuple[Any, ...], dict[str, Any]]
    statistics: str
    _plans: int

    def __reduce__(self) -> Any:
        """Copies and pickles hold the model and the example; they compile again."""
        return _compiled_again, (self.model, self.example, self._plans, self.statistics)

    def eval(self: Self) -> Self:
        """Itself: an engine computes what a model computes in evaluation."""
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Raises ``RuntimeError``, but for ``mode=False``."""
        if mode:
            raise RuntimeError("an engine only infers; train the model, then call optimize_for_inference again")
        return self

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Itself where that is no change; else ``RuntimeError``: move the model and compile it again."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        own = next((one.dtype for one in self.model.parameters() if one.is_floating_point()), dtype)
        if (device is not None and device.type != self.device_type) or dtype not in (None, own):
            raise RuntimeError(
                f"an engine is compiled for one device and dtype and cannot go to {device or dtype}; move the model "
                "and call optimize_for_inference again"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        kind = type(self).__name__
        if name.startswith("_") or not hasattr(nn.Module, name):
            raise AttributeError(f"{kind} has no attribute {name!r}")
        raise AttributeError(f"{kind} is no torch.nn.Module and has no {name!r}; its model is `engine.model`")


def _compiled_again(model: nn.Module, example: tuple[Any, dict[str, Any]], plans: int, statistics: str) -> Any:
    from . import optimize_for_inference  # which imports the engines, which import this

    args, kwargs = example
    return optimize_for_inference(model, args, plans, kwargs=kwargs, statistics=statistics)
