"""Old names of functions, classes and attributes, from before 0.1. Each works until 0.2, with a warning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Packages whose lines never are the line of the program that uses an old name.
_INSIDE = ("sparsegan", "torch", "importlib", "_frozen_importlib", "_frozen_importlib_external")


def warn_of_old_name(old: str, new: str) -> None:
    """A DeprecationWarning that ``old`` is ``new`` now, at the line of the program that uses ``old``."""
    warn_at_caller(f"{old} is {new} now; the old name goes in 0.2")


def warn_at_caller(message: str) -> None:
    """A DeprecationWarning at the line of the program that called this package.

    Python shows it by default only where that line is in ``__main__``, so it must not be a line of torch or of this
    package.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__", "<unknown>"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def renamed_names(module: str, **names: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module`` that finds old names. ``names``: old name = new name."""

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_of_old_name(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return attribute


def renamed_keywords(**names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A decorator for a function whose keywords had other names. ``names``: old name = new name."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old in names.keys() & kwargs.keys():
                warn_of_old_name(f"{function.__name__}({old}=)", f"{function.__name__}({names[old]}=)")
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_attribute(old: str, new: str) -> Any:
    """A property for the class attribute ``old`` that reads and writes the attribute ``new``."""

    def get(self: Any) -> Any:
        warn_of_old_attribute(self, old, new)
        return getattr(self, new)

    def put(self: Any, value: Any) -> None:
        warn_of_old_attribute(self, old, new)
        setattr(self, new, value)

    return property(get, put)


def warn_of_old_attribute(owner: object, old: str, new: str) -> None:
    """Warns that the attribute ``old`` of ``owner`` is named ``new`` now."""
    name = type(owner).__name__
    warn_of_old_name(f"{name}.{old}", f"{name}.{new}")


def with_new_names(written: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a pickled layer, profile or step under their present names."""
    old = {"kernel": "backend", "_derived": "_cache"}
    return {old.get(name, name): value for name, value in written.items()}
