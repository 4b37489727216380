"""Modules under the names that they had before 0.1. Each old name can be imported until 0.2, with a warning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .renamed import warn_of_old_name

#: Old name of a module -> the modules that contain its functions and classes now.
MOVED = {
    "allocation": ("pruning.allocation",),
    "averaging": ("pruning.averaging",),
    "classifier": ("metrics.classifier",),
    "compress.loss": ("compress.losses",),
    "compress.own": ("compress.data_free",),
    "dispatch": ("nn.dispatch",),
    "engine.engine": ("engine.cpu", "engine.optimize"),
    "engine.served": ("engine.base", "engine.optimize"),
    "export": ("engine.export",),
    "granularity": ("nn.granularity",),
    "info": ("profiling.info",),
    "kernels.ops": ("ops.vector_ops",),
    "kernels.plan": ("ops.vector_plan", "geometry"),
    "macs": ("profiling.macs",),
    "plan": ("ops.plan", "geometry"),
    "prune": ("pruning.surgery", "nn.replace"),
    "reference": ("ops.reference",),
    "regrow": ("pruning.regrow",),
    "removal": ("pruning.removal",),
    "reorder": ("pruning.reorder",),
    "schedule": ("pruning.schedule",),
    "tracing": ("engine.tracing",),
    "training.outermost": ("outermost",),
    "training.placement": ("placement",),
}
_PACKAGE = __package__


class _MovedModules(MetaPathFinder, Loader):
    """Finds a module by its old name, and makes a module that takes every attribute from the new modules."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        return ModuleSpec(name, self) if package == _PACKAGE and old in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__.partition(".")[2]]
        names = " and ".join(f"{_PACKAGE}.{one}" for one in new)
        warn_of_old_name(module.__name__, names)
        modules = [importlib.import_module(f".{one}", _PACKAGE) for one in new]

        def attribute(name: str) -> Any:
            for one in modules:
                if hasattr(one, name):
                    return getattr(one, name)
            raise AttributeError(f"no module of {names} has an attribute {name!r}")

        module.__getattr__ = attribute  # type: ignore[method-assign]
        module.__doc__ = modules[0].__doc__


def find_moved_modules() -> None:
    """Makes the old names of modules importable."""
    sys.meta_path.append(_MovedModules())
