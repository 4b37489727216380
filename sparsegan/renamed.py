"""Old names of functions, classes and attributes, from before 0.1. Each works until 0.2, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any


def renamed_names(module: str, **names: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module`` that finds old names. ``names``: old name = new name."""

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        message = f"{module}.{name} is {module}.{names[name]} now; the old name goes in 0.2"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return attribute


def renamed_attribute(old: str, new: str) -> Any:
    """A property for the class attribute ``old`` that reads and writes the attribute ``new``."""

    def get(self: Any) -> Any:
        warn_of_old_name(self, old, new)
        return getattr(self, new)

    def put(self: Any, value: Any) -> None:
        warn_of_old_name(self, old, new)
        setattr(self, new, value)

    return property(get, put)


def warn_of_old_name(owner: object, old: str, new: str) -> None:
    """Warns, at the line that uses the attribute ``old`` of ``owner``, that the attribute is named ``new`` now."""
    name = type(owner).__name__
    message = f"{name}.{old} is {name}.{new} now; the old name goes in 0.2"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
