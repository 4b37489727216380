"""The arguments of a model's call, whatever their structure: tensors, and everything else that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: What stays as it is from call to call, and is part of what a program is compiled for.
_CONSTANTS = (
    bool | int | float | complex | str | bytes | None | torch.dtype | torch.device | torch.memory_format | torch.Size
)


@dataclass(frozen=True)
class Call:
    """Positional and keyword arguments: the tensors in them, wherever they are nested, and the rest.

    Lists, tuples, named tuples, dicts and what else ``torch.utils._pytree`` knows are looked into.
    """

    tensors: tuple[Tensor, ...]
    constants: tuple[Any, ...]
    places: tuple[bool, ...]  # of all leaves in order: whether it is a tensor
    structure: pytree.TreeSpec

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Raises TypeError for a leaf that is neither a tensor nor a number, a string, None or the like."""
        leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
        places = tuple(isinstance(leaf, Tensor) for leaf in leaves)
        for leaf, is_tensor in zip(leaves, places, strict=True):
            if not is_tensor and not isinstance(leaf, _CONSTANTS):
                raise TypeError(
                    f"an argument holds a {type(leaf).__name__}; tensors, numbers, strings and None are accepted, in "
                    "lists, tuples and dicts"
                )
        tensors = tuple(leaf for leaf, is_tensor in zip(leaves, places, strict=True) if is_tensor)
        constants = tuple(leaf for leaf, is_tensor in zip(leaves, places, strict=True) if not is_tensor)
        return cls(tensors, constants, places, structure)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that one program serves; 1, 1.0 and True are three, as numbers and as keys of a dict."""
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in self.tensors)
        # By how they are written: so -0.0 and nan are told apart too, and the keys of dicts in the structure.
        constants = tuple((type(one), repr(one)) for one in self.constants)
        return shapes, constants, self.places, self.structure, repr(self.structure)

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with others in the place of the tensors."""
        own, others = iter(tensors), iter(self.constants)
        leaves = [next(own) if is_tensor else next(others) for is_tensor in self.places]
        return pytree.tree_unflatten(leaves, self.structure)

    def copies(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with copies of the tensors: a forward may change them in place."""
        return self.arguments([tensor.clone() for tensor in self.tensors])

    def changed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with other tensors."""
        return Call(tuple(map(change, self.tensors)), self.constants, self.places, self.structure)


def positional(example: Any) -> tuple[Any, ...]:
    """The positional arguments that an ``example`` stands for: a tuple's or a list's parts, or itself."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)
