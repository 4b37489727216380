"""The numbers and tensors of a generator that a loss compares, and the methods of a loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ...gans.objective import Objective, Terms

#: The smallest denominator of a ratio of scores.
FLOOR = 0.05


@dataclass
class Scores:
    """The numbers and tensors of one generator that a loss compares. Those that no loss asks for are left empty.

    `generator`, `discriminator`: the two kinds of terms, scalars or, where the loss matches samples or patches, tensors
    with one row per sample. `features`: the discriminator's activations, in the order of
    their calls. `images`: the generator's images [N, C, H, W] by name. `intermediate`: the generator's activations.
    """

    generator: Terms
    discriminator: Terms = field(default_factory=dict)
    features: list[Tensor] = field(default_factory=list)
    images: dict[str, Tensor] = field(default_factory=dict)
    intermediate: list[Tensor] = field(default_factory=list)


class GeneratorLoss(Protocol):
    """A loss of the compressed generator, and which scores the loss needs."""

    @property
    def uses_terms(self) -> bool:
        """Whether the generator terms are needed. A loss that needs none of them needs no discriminator."""

    @property
    def matches(self) -> bool:
        """Whether the original's scores are needed."""

    @property
    def matches_discriminator_terms(self) -> bool:
        """Whether the discriminator terms are needed."""

    @property
    def matches_features(self) -> bool:
        """Whether the discriminator's activations are needed."""

    @property
    def matches_intermediate(self) -> bool:
        """Whether the generators' activations are needed."""

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """A scalar from the scores of both generators; `original` is None unless `matches`."""

    def state_dict(self) -> dict[str, float]:
        """The state that a resumed run continues from."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""


class Stateless:
    """A loss that is the same at every step."""

    def state_dict(self) -> dict[str, float]:
        """An empty dict."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Does nothing."""


def nothing(scores: Scores) -> Tensor:
    """A scalar 0 on the device of the scores."""
    terms = (*scores.generator.values(), *scores.discriminator.values(), *scores.images.values())
    found = (*terms, *scores.features, *scores.intermediate)
    return torch.zeros((), device=found[0].device if found else None)
