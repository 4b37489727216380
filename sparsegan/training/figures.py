"""The values of a step's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


class Figures:
    """The named terms of one step. They are read together at its end, because reading a value waits for the GPU."""

    def __init__(self) -> None:
        self._terms: dict[str, list[tuple[Tensor, float]]] = {}

    def add(self, terms: Mapping[str, Tensor], parts: float = 1) -> None:
        """Add scalar terms of the batch, or of one of its parts.

        `parts`: the number of images of the batch divided by that of the part. The value of a term is then its mean
        over all images.
        """
        for name, term in terms.items():
            self._terms.setdefault(name, []).append((term.detach(), parts))

    def read(self, meanwhile: Callable[[], None] | None = None) -> dict[str, float]:
        """Every term's value. `meanwhile` is called first, while the GPU still computes."""
        if meanwhile is not None:
            meanwhile()
        return {name: sum(term.item() / parts for term, parts in added) for name, added in self._terms.items()}
