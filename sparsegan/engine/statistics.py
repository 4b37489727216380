"""The choice between stored statistics and batch statistics of norms, and modules that differ in training mode."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

STATISTICS = ("stored", "batch")


def check_statistics(statistics: str) -> str:
    """Returns `statistics`. Raises ``ValueError`` if it is not one of :data:`STATISTICS`."""
    if statistics not in STATISTICS:
        raise ValueError(f"statistics is {statistics!r}; it must be one of {', '.join(map(repr, STATISTICS))}")
    return statistics


def by_batch(model: nn.Module) -> nn.Module:
    """A copy of a model whose norms use the statistics of their input and store none. The copy uses the model's
    parameters."""
    shared: dict[int, Any] = {id(one): one for one in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    for module in _with_statistics(copied):
        module.running_mean = module.running_var = module.num_batches_tracked = None
        module.track_running_stats = False
    return copied


def other_in_training(model: nn.Module) -> list[str]:
    """The modules in training mode that compute something else in evaluation mode, each as ``name (class)``."""
    norms = set(_with_statistics(model))
    return [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and (module in norms or (getattr(module, "p", 0) and isinstance(module, _DROPOUTS)))
    ]


_DROPOUTS = (nn.modules.dropout._DropoutNd,)


def _with_statistics(model: nn.Module) -> list[Any]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    return [one for one in model.modules() if isinstance(one, kinds) and one.track_running_stats]
