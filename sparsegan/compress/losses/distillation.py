"""Distillation: distances to the original's images and activations, and the GAN's own loss.

Distillation needs no discriminator and no data. With x_O and x_C the two generators' images from the same noise or
input, Gen the GAN's own weighted generator loss of x_C, and h_k the output of a generator's k-th activation module of K
modules (of its k-th convolution, where it has no activation modules):

    L = own Gen + outputs d(x_C, x_O) + sharpness e(x_C, x_O) + intermediate 1/K sum over k  r(h_k(G_C), h_k(G_O))
        + features L_F

`distances.py` has the distances d, e and r, and `self_supervised.py` has L_F.

`outputs` alone is distillation (Hinton, Vinyals and Dean, arXiv 1503.02531) of images. `outputs` with Gen and "mse" is
the joint loss of Aguinaldo et al., "Compressing GANs using Knowledge Distillation" (arXiv 1902.00159). `intermediate`
with "mse" is the loss of Koratana et al., "LIT: Learned Intermediate Representation Training" (arXiv 1810.01937), with
one difference: each layer of G_C reads the activations of G_C, where LIT feeds it the original's activations. A student
of images and activations without a discriminator is also the idea of Ren et al., "Online Multi-Granularity Distillation
for GAN Compression" (arXiv 2108.06908). L_F, alone or beside these distances, is distillation through the
discriminator's features; Hu et al., "Discriminator-Cooperated Feature Map Distillation for GAN Compression" (arXiv
2212.14169), compare the generators' own activations through the discriminator too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...gans.objective import Objective
from .distances import ACTIVATION_DISTANCES, DISTANCES, Distance, sharpness
from .scores import FLOOR, Scores, Stateless, nothing


@dataclass
class DistillationLoss(Stateless):
    """Distances to the original generator's images and activations, and the GAN's own loss (see the module's text).

    `own`: the weight of the GAN's generator loss. At 0 no generator terms are computed. `outputs`: the weight of the
    distance of the images, averaged over the kinds of images that a GAN makes. `distance`: "l1", "mse" or "scales", for
    images. `sharpness`: the weight of the difference of the edges' strengths, averaged in the same way.
    `intermediate`: the weight of the distance of the activations. `activations`: "mse" or "relative", for activations.
    `features`: the weight of L_F, the distance of the discriminator's activations.
    A discriminator is needed where `own` or `features` is above 0. Raises ValueError for values out of range, and where
    images or activations of the two generators differ in shape.
    """

    own: float = 0.0
    outputs: float = 1.0
    distance: str = "l1"
    sharpness: float = 0.0
    intermediate: float = 0.0
    activations: str = "mse"
    features: float = 0.0

    matches: ClassVar[bool] = True
    matches_discriminator_terms: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("own", "outputs", "sharpness", "intermediate", "features"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.outputs == self.intermediate == self.features == 0:
            raise ValueError("outputs, intermediate and features are all 0; at least one must be above 0")
        for name, known in (("distance", DISTANCES), ("activations", ACTIVATION_DISTANCES)):
            if getattr(self, name) not in known:
                accepted = ", ".join(map(repr, known))
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {accepted}")

    @property
    def uses_terms(self) -> bool:
        """Whether the GAN's own loss or L_F has a weight above 0."""
        return self.own > 0 or self.features > 0

    @property
    def matches_features(self) -> bool:
        """Whether L_F has a weight above 0."""
        return self.features > 0

    @property
    def matches_intermediate(self) -> bool:
        """Whether the activations have a weight above 0."""
        return self.intermediate > 0

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """L, a scalar."""
        if original is None:
            raise ValueError("original is None; this loss needs the original generator's images")
        loss = nothing(compressed)
        if self.own > 0:
            loss = loss + self.own * objective.total(compressed.generator)
        pairs = [(images, original.images.get(name)) for name, images in compressed.images.items()]
        if self.outputs > 0:
            loss = loss + self.outputs * _mean_distance(pairs, DISTANCES[self.distance], "images")
        if self.sharpness > 0:
            loss = loss + self.sharpness * _mean_distance(pairs, sharpness, "images")
        if self.intermediate > 0:
            both = list(zip_longest(compressed.intermediate, original.intermediate))
            distance = ACTIVATION_DISTANCES[self.activations]
            loss = loss + self.intermediate * _mean_distance(both, distance, "activations")
        if self.features > 0:
            both = list(zip_longest(compressed.features, original.features))
            loss = loss + self.features * _mean_distance(both, _scaled, "features")
        return loss


def _scaled(ours: Tensor, theirs: Tensor) -> Tensor:
    """The distance of one layer in L_F, with the floor that `SelfSupervisedLoss` has by default."""
    return F.l1_loss(ours, theirs) / theirs.abs().mean().clamp_min(FLOOR)


def _mean_distance(pairs: Sequence[tuple[Tensor | None, Tensor | None]], distance: Distance, what: str) -> Tensor:
    total = torch.zeros((), device=next((ours.device for ours, _ in pairs if ours is not None), None))
    for ours, theirs in pairs:
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = [None if one is None else tuple(one.shape) for one in (ours, theirs)]
            raise ValueError(
                f"{what} of the compressed generator have shape {shapes[0]}, of the original {shapes[1]}; the shapes "
                "must be equal"
            )
        total = total + distance(ours, theirs.detach())
    if not pairs:
        raise ValueError(f"the generators gave no {what} to compare")
    return total / len(pairs)
