"""What a GAN is to this package: how it makes an image, and its named loss terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Terms = dict[str, Tensor]
TermsFunction = Callable[[nn.Module, nn.Module, Any, Any], Terms]


@dataclass(frozen=True)
class Objective:
    """A GAN's losses as two functions, each returning named scalar terms.

    `generator_terms(generator, discriminator, fake, batch) -> {"gen": t, ...}`: what the generator minimises.
    `discriminator_terms(generator, discriminator, fake, batch) -> {"dis": t, ...}`: what the discriminator minimises.
        It must not detach `fake`: whoever trains the discriminator hands in a detached one.
    `generate(generator, batch) -> fake`: one image a sample of the batch; draws its noise from torch's generator.
    `weights`: a term's weight; 1 where a term is not named.

    `batch` is whatever the loader gives. Random numbers drawn inside the three functions (noise, a gradient penalty's
    interpolation) come out the same for two generators under comparison: the caller rewinds torch's generator.
    """

    generator_terms: TermsFunction
    discriminator_terms: TermsFunction
    generate: Callable[[nn.Module, Any], Any]
    weights: Mapping[str, float] = field(default_factory=dict)

    def weight(self, term: str) -> float:
        """The weight of a term, 1 where none was given."""
        return self.weights.get(term, 1.0)

    def total(self, terms: Terms) -> Tensor:
        """The weighted sum of `terms`: the GAN's ordinary loss."""
        if not terms:
            raise ValueError("there are no terms; a terms function must return at least one named scalar")
        return sum((self.weight(name) * term for name, term in terms.items()), start=next(iter(terms.values())) * 0)
