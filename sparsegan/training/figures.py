"""What a step's terms came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


class Figures:
    """The named terms of one step, read together at its end: on a GPU reading waits for all that was begun before."""

    def __init__(self) -> None:
        self._terms: dict[str, list[tuple[Tensor, float]]] = {}

    def add(self, terms: Mapping[str, Tensor], parts: float = 1) -> None:
        """Scalars, or those of one part of a batch: what is read of all parts is their mean over images."""
        for name, term in terms.items():
            self._terms.setdefault(name, []).append((term.detach(), parts))

    def read(self, meanwhile: Callable[[], None] | None = None) -> dict[str, float]:
        """Every term's value. `meanwhile` is called first, while a GPU still works."""
        if meanwhile is not None:
            meanwhile()
        return {name: sum(term.item() / parts for term, parts in added) for name, added in self._terms.items()}
