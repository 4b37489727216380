"""The GAN's own generator loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...gans.objective import Objective
from .scores import Scores, Stateless


@dataclass
class PlainLoss(Stateless):
    """The GAN's own generator loss: the weighted sum of its generator terms."""

    uses_terms = True
    matches = matches_discriminator_terms = matches_features = matches_intermediate = False

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """The objective's total of the generator terms."""
        return objective.total(compressed.generator)
