"""Names that a module had before 0.1: each still works, with a warning, until 0.2."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any


def renamed_names(module: str, **names: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module`` that knows old names; ``names`` has the new name of each."""

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        message = f"{module}.{name} is {module}.{names[name]} now; the old name goes in 0.2"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return attribute
