"""What the compressed generator minimises: equations 7-9 of self-supervised GAN compression, or what they are compared
with: the GAN's own loss, distances to the original's images and activations.

Chong Yu and Jeff Pool, "Self-Supervised Generative Adversarial Compression", NeurIPS 2020 (arXiv 2007.01491). One
discriminator judges the original generator G_O and the compressed one G_C; G_C is trained until both score the same.
With l_O and l_C the value of one named term for the two generators, and w the term's weight in the GAN:

    (7)  L_GC = sum over generator terms      w |l_O - l_C| / |l_O|         DCGAN: Gen; StarGAN: Gen, Cla, Rec
    (8)  L_DC = sum over discriminator terms  w |l_O - l_C| / |l_O|         DCGAN: Dis; StarGAN: Dis, GP
    (9)  L    = L_GC + lambda L_DC

There is no pixel distance between the two generators' images: scalars are matched.

**The gradient.** l_O does not depend on G_C, so with theta the weights of G_C

    d/dtheta |l_O - l_C| / |l_O|  =  sign(l_C - l_O) / |l_O| * d l_C / dtheta

which is the ordinary gradient of the term, its size divided by |l_O| and its sign flipped as soon as G_C scores better
than G_O: the loss holds G_C at G_O's level where the ordinary GAN loss pushes it past. `one_sided` gives the flipped
part no gradient: w max(l_C - l_O, 0) / |l_O| for a generator term (lower is better for G_C) and
w max(l_O - l_C, 0) / |l_O| for a discriminator term (higher is better for G_C).

**What the paper leaves open**, and the choice here:

- The denominator. A Wasserstein critic's terms cross zero, and a confident DCGAN discriminator's come close to it, so
  1/|l_O| explodes. `denominator="floored"` takes max(|l_O|, floor) of the same batch; `"running"` takes an exponential
  average of |l_O| over the steps, floored too. Both are constants for the gradient.
- Stop-gradient. l_O is detached (`stop_gradient=True`). Without it nothing changes for G_C, because l_O does not depend
  on G_C: only the discriminator would receive a gradient, and it is not trained on this loss. The switch is there to
  show that.
- The detach trap. Discriminator terms must see G_C's images undetached here: in common GAN code `fake.detach()` sits
  inside the discriminator's loss, and L_DC then gives G_C no gradient. The caller hands in undetached images, and
  discriminator terms of which none depends on them are an error, not a silence.
- Sharing. Both generators see the same batch, noise and penalty coefficient (`sparsegan.randomness.Draws`).
- L_DC's gradient. Whether the discriminator terms should move G_C at all: `discriminator_gradient=False` leaves L_DC in
  the loss as a number only, which is what the trap above does unseen.
- What trains D. Minimising L_DC over D would let D make everything equal. D keeps its ordinary loss on G_C's images, or
  is frozen (`CompressionConfig(discriminator_mode=...)`).

**Features, an extension.** A term is one number per batch: very different images can score alike (a frozen D is fooled
exactly so: the curves meet while the images fall apart). D knows more about an image than its last number, and both
generators start from the same noise, so its judgement can be matched layer by layer and image by image. With phi_k the
output of D's k-th activation, |.| its mean absolute value over batch and elements, and K layers:

    L_F = 1/K sum over k  |phi_k(G_O(z)) - phi_k(G_C(z))| / |phi_k(G_O(z))|
    L   = terms (L_GC + lambda L_DC) + features L_F

`features` is 0 in the published method. There is still no pixel distance between the two generators in L_F. With
features and no `terms`, the GAN's distances stay as equation 7 has them, the terms that compare images without a
discriminator (`Objective.distances`: pix2pix's L1, SRGAN's Content): L = features L_F + L_GC over those alone.

**Distillation, which the method is compared with.** With x_O and x_C the two generators' images from the same noise or
input, Gen the GAN's own weighted generator loss of x_C, h_k the output of a generator's k-th activation, K of them:

    L = own Gen + outputs d(x_C, x_O) + intermediate 1/K sum over k  mean (h_k(G_C) - h_k(G_O))^2
    d = mean |x_C - x_O|  ("l1")   or   mean (x_C - x_O)^2  ("mse")

outputs alone is distillation (Hinton, Vinyals and Dean, arXiv 1503.02531) of images; with Gen and "mse" the joint loss
of Aguinaldo et al., "Compressing GANs using Knowledge Distillation" (arXiv 1902.00159); intermediate that of Koratana
et al., "LIT: Learned Intermediate Representation Training" (arXiv 1810.01937), with the difference that every layer of
G_C reads what G_C made, not the original's activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gans.objective import Objective, Terms


@dataclass
class Scores:
    """What one discriminator says of one generator's images: both kinds of terms, and its activations in order.

    And, where a loss asks for them, the `images` by name and the generator's own activations, `intermediate`.
    """

    generator: Terms
    discriminator: Terms = field(default_factory=dict)
    features: list[Tensor] = field(default_factory=list)
    images: dict[str, Tensor] = field(default_factory=dict)
    intermediate: list[Tensor] = field(default_factory=list)


class GeneratorLoss(Protocol):
    """What G_C minimises, and which of the scores it needs."""

    @property
    def uses_terms(self) -> bool:
        """Whether the generator terms are needed: without them no discriminator is."""

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
        """What a resumed run needs."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what `state_dict` gave."""


class _Stateless:
    def state_dict(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing to take over."""


@dataclass
class PlainLoss(_Stateless):
    """The GAN's own generator loss, the weighted sum of its terms: what fine-tuning without a method minimises."""

    uses_terms = True
    matches = matches_discriminator_terms = matches_features = matches_intermediate = False

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """The objective's total of the generator terms."""
        return objective.total(compressed.generator)


@dataclass
class SelfSupervisedLoss:
    """Equations 7-9, and features (see the module's text).

    `lam`: lambda of equation 9. `denominator`: "floored" or "running". `floor`: the smallest denominator, above 0.
    `momentum`: of the running average. `stop_gradient`: detach l_O. `discriminator_gradient`: let L_DC move G_C.
    `one_sided`: no gradient where G_C scores better.
    `terms`: the weight of equation 9; at 0, its distances alone. `features`: the weight of L_F, 0 as published.
    Raises ValueError for values out of range, and when the two generators' terms differ in name.
    """

    lam: float = 0.5
    denominator: str = "floored"
    floor: float = 0.05
    momentum: float = 0.99
    stop_gradient: bool = True
    discriminator_gradient: bool = True
    one_sided: bool = False
    terms: float = 1.0
    features: float = 0.0
    _average: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    uses_terms: ClassVar[bool] = True
    matches_intermediate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.denominator not in ("floored", "running"):
            raise ValueError(f'denominator is {self.denominator!r}; it must be "floored" or "running"')
        for name in ("lam", "terms", "features"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.terms == 0 and self.features == 0:
            raise ValueError("terms and features are both 0; at least one must be above 0")
        if self.floor <= 0:
            raise ValueError(f"floor is {self.floor}; it must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")

    @property
    def matches(self) -> bool:
        """Always."""
        return True

    @property
    def matches_discriminator_terms(self) -> bool:
        """Where equation 8 has a weight."""
        return self.terms > 0 and self.lam > 0

    @property
    def matches_features(self) -> bool:
        """Where L_F has a weight."""
        return self.features > 0

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """L, a scalar."""
        if original is None:
            raise ValueError("original is None; this loss needs the original generator's scores")
        loss = _nothing(compressed)
        if self.terms > 0:
            loss = loss + self.terms * self._matched(objective, "generator", compressed, original)
        elif objective.distances:
            both = (_only(objective.distances, scores) for scores in (compressed, original))
            loss = loss + self._matched(objective, "generator", *both)
        if self.matches_discriminator_terms:
            loss = loss + self.terms * self.lam * self._matched(objective, "discriminator", compressed, original)
        if self.matches_features:
            loss = loss + self.features * self._matched_features(compressed.features, original.features)
        return loss

    def _matched(self, objective: Objective, side: str, compressed: Scores, original: Scores) -> Tensor:
        """Equation 7 (side "generator") or 8 (side "discriminator")."""
        all_ours: Terms = getattr(compressed, side)
        all_theirs: Terms = getattr(original, side)
        if all_ours.keys() != all_theirs.keys() or not all_ours:
            raise ValueError(
                f"the {side} terms are {sorted(all_ours)} for the compressed generator and {sorted(all_theirs)} for "
                "the original; they must have the same names, at least one"
            )
        total = _nothing(compressed)
        for name, ours in all_ours.items():
            theirs = all_theirs[name]
            if side == "discriminator" and not self.discriminator_gradient:
                ours = ours.detach()
            if self.stop_gradient:
                theirs = theirs.detach()
            gap = ours - theirs
            if self.one_sided:
                gap = torch.relu(gap if side == "generator" else -gap)
            total = total + objective.weight(name) * gap.abs() / self._denominator(f"{side}.{name}", theirs.abs())
        return total

    def _matched_features(self, all_ours: list[Tensor], all_theirs: list[Tensor]) -> Tensor:
        """L_F without its weight."""
        if len(all_ours) != len(all_theirs) or not all_ours:
            raise ValueError(
                f"the discriminator gave {len(all_ours)} activations for the compressed generator and "
                f"{len(all_theirs)} for the original; there must be equally many, at least one"
            )
        total = torch.zeros((), device=all_ours[0].device)
        for index, (ours, theirs) in enumerate(zip(all_ours, all_theirs, strict=True)):
            theirs = theirs.detach()
            gap = (ours - theirs).abs().mean()
            total = total + gap / self._denominator(f"features.{index}", theirs.abs().mean())
        return total / len(all_ours)

    def _denominator(self, key: str, size: Tensor) -> Tensor:
        if self.denominator == "running":
            now = size.item()
            average = self._average.get(key, now)
            self._average[key] = self.momentum * average + (1 - self.momentum) * now
            size = torch.full_like(size, self._average[key])
        return size.clamp_min(self.floor)

    def state_dict(self) -> dict[str, float]:
        """The running averages."""
        return dict(self._average)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what `state_dict` gave."""
        self._average = dict(state)


def _nothing(scores: Scores) -> Tensor:
    """0, where the scores are."""
    terms = (*scores.generator.values(), *scores.discriminator.values(), *scores.images.values())
    found = (*terms, *scores.features, *scores.intermediate)
    return torch.zeros((), device=found[0].device if found else None)


def _only(names: Sequence[str], scores: Scores) -> Scores:
    """The generator terms of these names."""
    return Scores({name: term for name, term in scores.generator.items() if name in names})


#: Distances of `DistillationLoss` by name: two tensors of one shape to a scalar.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss}


@dataclass
class DistillationLoss(_Stateless):
    """Distances to the original generator, and the GAN's own loss beside them (see the module's text).

    `own`: the weight of the GAN's generator loss; at 0 no discriminator is asked. `outputs`: the weight of the images'
    distance, averaged over the kinds of images that a GAN makes. `distance`: "l1" or "mse". `intermediate`: the weight
    of the activations' distance. Raises ValueError for values out of range, and when images or activations of the two
    generators differ in shape.
    """

    own: float = 0.0
    outputs: float = 1.0
    distance: str = "l1"
    intermediate: float = 0.0

    matches: ClassVar[bool] = True
    matches_discriminator_terms: ClassVar[bool] = False
    matches_features: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("own", "outputs", "intermediate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.outputs == 0 and self.intermediate == 0:
            raise ValueError("outputs and intermediate are both 0; at least one must be above 0")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance is {self.distance!r}; it must be one of {', '.join(map(repr, DISTANCES))}")

    @property
    def uses_terms(self) -> bool:
        """Where the GAN's own loss has a weight."""
        return self.own > 0

    @property
    def matches_intermediate(self) -> bool:
        """Where the activations have a weight."""
        return self.intermediate > 0

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """L, a scalar."""
        if original is None:
            raise ValueError("original is None; this loss needs the original generator's images")
        loss = _nothing(compressed)
        if self.own > 0:
            loss = loss + self.own * objective.total(compressed.generator)
        if self.outputs > 0:
            pairs = [(images, original.images.get(name)) for name, images in compressed.images.items()]
            loss = loss + self.outputs * _mean_distance(pairs, DISTANCES[self.distance], "images")
        if self.intermediate > 0:
            both = zip_longest(compressed.intermediate, original.intermediate)
            loss = loss + self.intermediate * _mean_distance(list(both), F.mse_loss, "activations")
        return loss


def _mean_distance(
    pairs: Sequence[tuple[Tensor | None, Tensor | None]], distance: Callable[[Tensor, Tensor], Tensor], what: str
) -> Tensor:
    total = torch.zeros((), device=next((ours.device for ours, _ in pairs if ours is not None), None))
    for ours, theirs in pairs:
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = [None if one is None else tuple(one.shape) for one in (ours, theirs)]
            raise ValueError(f"{what} of the compressed generator have shape {shapes[0]}, of the original {shapes[1]}")
        total = total + distance(ours, theirs.detach())
    if not pairs:
        raise ValueError(f"the generators gave no {what} to compare")
    return total / len(pairs)


#: The losses of this package by name.
LOSSES: dict[str, type[SelfSupervisedLoss | DistillationLoss | PlainLoss]] = {
    kind.__name__: kind for kind in (SelfSupervisedLoss, DistillationLoss, PlainLoss)
}
