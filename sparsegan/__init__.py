"""sparsegan: compress a trained GAN's generator, and run and train it on its compressed weights.

``import sparsegan`` loads torch and registers the ops. Every other module is loaded when one of its names is first
used: a program that serves a generator never loads the training loop. ``__init__.pyi`` lists the public names.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from . import ops as ops  # registers the torch ops
from ._moved import find_moved_modules

__version__ = importlib.metadata.version("sparsegan")


def _modules_of_names() -> dict[str, str]:
    """Public name -> the module that has it. The stub is the only list of these names; type checkers read it too."""
    stub = ast.parse(Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
    imports = [statement for statement in stub.body if isinstance(statement, ast.ImportFrom)]
    return {alias.name: "." + (statement.module or "") for statement in imports for alias in statement.names}


find_moved_modules()
_MODULES = _modules_of_names()
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name, ".")
    if module != ".":
        value = getattr(importlib.import_module(module, __name__), name)
    elif (
        name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None
    ):
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
