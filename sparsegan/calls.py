"""The arguments of a call of a model, nested in any way: the tensors, and the constants beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: Types of constants. A program is compiled for given constants: they are part of a call's key.
_CONSTANTS = (
    bool | int | float | complex | str | bytes | None | torch.dtype | torch.device | torch.memory_format | torch.Size
)


@dataclass(frozen=True)
class Call:
    """Positional and keyword arguments, taken apart into tensors and constants.

    Tensors are found inside lists, tuples, named tuples, dicts and every other container that ``torch.utils._pytree``
    knows.
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
        """Equal for calls that one program serves. 1, 1.0 and True differ, as numbers and as keys of a dict."""
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in self.tensors)
        # Text tells -0.0 from 0.0 and finds nan equal to nan, also among the keys of dicts in the structure.
        constants = tuple((type(one), repr(one)) for one in self.constants)
        return shapes, constants, self.places, self.structure, repr(self.structure)

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the same structure, with ``tensors`` in the place of the call's own."""
        own, others = iter(tensors), iter(self.constants)
        leaves = [next(own) if is_tensor else next(others) for is_tensor in self.places]
        return pytree.tree_unflatten(leaves, self.structure)

    def copies(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with copies of the tensors, for a forward that may change its inputs in place."""
        return self.arguments([tensor.clone() for tensor in self.tensors])

    def changed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with ``change`` of each tensor."""
        return Call(tuple(map(change, self.tensors)), self.constants, self.places, self.structure)


def positional(example: Any) -> tuple[Any, ...]:
    """The positional arguments that ``example`` stands for: the parts of a tuple or list, or ``example`` alone."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)
