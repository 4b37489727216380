"""Options that are made from the fields of dataclasses: one option per field, so that a new field has its option."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def add_field(
    parser: argparse.ArgumentParser, kind: type, name: str, flags: Iterable[str], dest: str, text: str, **more: Any
) -> None:
    """Add an option for the field `name` of the dataclass `kind`. Without the option, its value is None.

    The type, the choices and the number of values follow from the field's annotation. `more`: arguments of
    `add_argument` that go before these. Raises TypeError for an annotation that no option can hold.
    """
    how = _option_of(get_type_hints(kind)[name], f"{kind.__name__}.{name}") | more
    parser.add_argument(*flags, dest=dest, help=text.replace("%", "%%"), default=None, **how)


def names_of(kind: Any) -> list[str]:
    """The names of the fields that a dataclass takes as arguments."""
    return [one.name for one in fields(kind) if one.init]


def documented(kind: type, name: str) -> str:
    """What the docstring of a class says about the field `name`: the text from its name to the next field's name."""
    paragraphs = [" ".join(one.split()) for one in (kind.__doc__ or "").split("\n\n")]
    for paragraph in paragraphs:
        _, found, after = paragraph.partition(f"`{name}`: ")
        if found:
            return re.split(r" `\w+`(?:, `\w+`)*: | Raises ", after)[0].rstrip(".").replace("`", "")
    return f"the field {name} of {kind.__name__}"


def default_of(value: Any) -> str:
    """A default value in the words of a command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def given_fields(arguments: argparse.Namespace, dests: Mapping[str, str]) -> dict[str, Any]:
    """From the name of a field to the value of its option, without those that were not given."""
    found = {name: getattr(arguments, dest) for name, dest in dests.items()}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not None
    }


def _option_of(hint: Any, field: str) -> dict[str, Any]:
    """The arguments of `add_argument` for an annotation."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint in (int, float, str):
        return {"type": hint}
    if origin is Literal:
        return {"choices": list(inside)}
    if origin is tuple and inside[-1] is Ellipsis:
        return {"type": inside[0], "nargs": "*"}
    if origin is tuple:
        return {"type": inside[0], "nargs": len(inside)}
    if origin in (Union, UnionType):
        options = [one for one in inside if one is not NoneType]
        return {"type": str} if str in options else _option_of(options[0], field) if len(options) == 1 else {}
    if isinstance(hint, type):  # torch.dtype: the caller names the choices
        return {}
    raise TypeError(f"{field} has the annotation {hint}; no option can hold it")
