"""Equations 7-9 of self-supervised GAN compression, and their extension by the discriminator's features.

Chong Yu and Jeff Pool, "Self-Supervised Generative Adversarial Compression", NeurIPS 2020 (arXiv 2007.01491). One
discriminator D judges the original generator G_O and the compressed generator G_C, and G_C is trained until both score
the same. With l_O and l_C the values of one named term for G_O and G_C, and w the term's weight in the GAN:

    (7)  L_GC = sum over generator terms      w |l_O - l_C| / |l_O|         DCGAN: Gen; StarGAN: Gen, Cla, Rec
    (8)  L_DC = sum over discriminator terms  w |l_O - l_C| / |l_O|         DCGAN: Dis; StarGAN: Dis, GP
    (9)  L    = L_GC + lambda L_DC

The published loss matches scalars. It contains no pixel distance between the two generators' images.

**The gradient.** l_O does not depend on G_C. With theta the weights of G_C, therefore

    d/dtheta |l_O - l_C| / |l_O|  =  sign(l_C - l_O) / |l_O| * d l_C / dtheta

This is the ordinary gradient of the term, divided by |l_O|, and with the opposite sign where G_C scores better than
G_O. The loss thus holds G_C at the level of G_O, where the ordinary GAN loss would push G_C further. `one_sided` gives
no gradient where G_C scores better: it uses w max(l_C - l_O, 0) / |l_O| for a generator term (lower is better for G_C)
and w max(l_O - l_C, 0) / |l_O| for a discriminator term (higher is better for G_C).

**Choices** where the paper leaves a question open:

- The denominator. The terms of a Wasserstein critic cross zero, and those of a confident DCGAN discriminator come close
  to zero, so 1/|l_O| explodes. `denominator="floored"` takes max(|l_O|, floor) of the same batch. `"running"` takes an
  exponential average of |l_O| over the steps, and no less than floor. Both are constants for G_C's gradient.
- The floor. `floor` is one number for all terms, so it is far above a small term (SRGAN's Content is about 0.008) and
  changes the term's weight. With `relative_floor` above 0, the floor of each term is this fraction of the largest |l_O|
  that the run has had for the term. This floor does not follow a term that runs to 0.
- A mean or each sample. The published terms are means over the batch (`match="batch"`): very different images can have
  the same mean. `match="sample"` compares the term of each sample, and `"patch"` that of each patch which the
  discriminator judges, and of each pixel where the term is a distance of images. With i the samples or places,

      w mean over i |l_O,i - l_C,i| / mean over i |l_O,i|

  takes the place of a term of (7) and (8). A term that has no places (StarGAN's Cla and GP) is compared by sample.
- The gradient of l_O. l_O is detached (`stop_gradient=True`). False changes nothing for G_C, because l_O does not
  depend on G_C. Only the discriminator would receive a gradient, and it is not trained on this loss. The setting exists
  to show this.
- The detach trap. In common GAN code the discriminator's loss contains `fake.detach()`, and L_DC then gives G_C no
  gradient. Here the caller passes images that are not detached, and discriminator terms must not detach them. It is an
  error if no discriminator term depends on the images.
- The same random numbers. Both generators see the same batch, noise and penalty coefficient
  (`sparsegan.randomness.Draws`).
- The gradient of L_DC. `discriminator_gradient=False` keeps L_DC in the loss as a number without a gradient. The detach
  trap has the same effect without being noticed.
- The loss of D. If D minimised L_DC, D could make all scores equal. D therefore keeps its ordinary loss on G_C's
  images, or is frozen (`CompressionConfig(discriminator_mode=...)`).

**Features, an extension.** A term is one number per batch, and very different images can have the same score. This
happens with a frozen D: the scores come together while the images get worse. The activations of D hold more about an
image than its score does. Both generators start from the same noise, so these activations can be matched layer by layer
and image by image. With phi_k the output of D's k-th activation, |.| the mean absolute value over batch and elements,
and K layers:

    L_F = 1/K sum over k  |phi_k(G_O(z)) - phi_k(G_C(z))| / |phi_k(G_O(z))|
    L   = terms (L_GC + lambda L_DC) + features L_F

`features` is 0 in the published method. L_F contains no pixel distance between the two generators either. With
`features` above 0 and `terms` 0, L = features L_F + L_GC, where L_GC sums over the GAN's distances only. These are the
generator terms that compare images without a discriminator (`Objective.distances`: pix2pix's L1, SRGAN's Content).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...gans.objective import REDUCTIONS, Objective, Terms
from .scores import FLOOR, Scores, nothing

#: Before the names of terms in the state of a loss: the entry is a term's largest size.
_LARGEST = "largest "


@dataclass
class SelfSupervisedLoss:
    """Equations 7-9, and the extension by features (see the module's text).

    `lam`: lambda of equation 9. `denominator`: "floored" or "running". `floor`: the smallest denominator, above 0.
    `momentum`: the decay of the running average. `stop_gradient`: detach l_O. `discriminator_gradient`: False gives
    L_DC no gradient in G_C. `one_sided`: no gradient where G_C scores better.
    `match`: what a term of G_O and of G_C is compared by: "batch" as published, "sample" or "patch". The last two need
    an objective whose terms functions have an argument `reduce` (see `Objective`), as all reference GANs have.
    `relative_floor`: above 0, the smallest denominator of a term is this fraction of the term's largest |l_O| in the
    run, and `floor` counts only while that is 0. At most 1. L_F has the same floors.
    `terms`: the weight of equation 9. At 0, only the GAN's distances remain of it. `features`: the weight of L_F, 0 in
    the published method.
    Raises ValueError for values out of range, and where the terms of the two generators have different names.
    """

    lam: float = 0.5
    denominator: str = "floored"
    floor: float = FLOOR
    momentum: float = 0.99
    stop_gradient: bool = True
    discriminator_gradient: bool = True
    one_sided: bool = False
    terms: float = 1.0
    features: float = 0.0
    match: str = "batch"
    relative_floor: float = 0.0
    _average: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _largest: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        if self.match not in REDUCTIONS:
            raise ValueError(f"match is {self.match!r}; it must be one of {', '.join(map(repr, REDUCTIONS))}")
        if not 0 <= self.relative_floor <= 1:
            raise ValueError(f"relative_floor is {self.relative_floor}; it must be at least 0 and at most 1")
        if self.floor <= 0:
            raise ValueError(f"floor is {self.floor}; it must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")

    @property
    def matches(self) -> bool:
        """True."""
        return True

    @property
    def matches_discriminator_terms(self) -> bool:
        """Whether equation 8 has a weight above 0."""
        return self.terms > 0 and self.lam > 0

    @property
    def matches_features(self) -> bool:
        """Whether L_F has a weight above 0."""
        return self.features > 0

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """L, a scalar."""
        if original is None:
            raise ValueError("original is None; this loss needs the original generator's scores")
        loss = nothing(compressed)
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
        total = nothing(compressed)
        for name, ours in all_ours.items():
            theirs = all_theirs[name]
            if side == "discriminator" and not self.discriminator_gradient:
                ours = ours.detach()
            if self.stop_gradient:
                theirs = theirs.detach()
            gap = ours - theirs
            if self.one_sided:
                gap = torch.relu(gap if side == "generator" else -gap)
            size = self._denominator(f"{side}.{name}", theirs.abs().mean())
            total = total + objective.weight(name) * gap.abs().mean() / size
        return total

    def _matched_features(self, all_ours: list[Tensor], all_theirs: list[Tensor]) -> Tensor:
        """L_F without its weight."""
        if len(all_ours) != len(all_theirs) or not all_ours:
            raise ValueError(
                f"the discriminator gave {len(all_ours)} activations for the compressed generator and "
                f"{len(all_theirs)} for the original; the numbers must be equal and at least 1"
            )
        total = torch.zeros((), device=all_ours[0].device)
        for index, (ours, theirs) in enumerate(zip(all_ours, all_theirs, strict=True)):
            theirs = theirs.detach()
            gap = (ours - theirs).abs().mean()
            total = total + gap / self._denominator(f"features.{index}", theirs.abs().mean())
        return total / len(all_ours)

    def _denominator(self, key: str, size: Tensor) -> Tensor:
        """The denominator of a term of this size in the batch."""
        floor = self.floor
        if self.relative_floor > 0:
            self._largest[key] = max(size.item(), self._largest.get(key, 0.0))
            floor = self.relative_floor * self._largest[key] or floor
        if self.denominator == "running":
            now = size.item()
            average = self._average.get(key, now)
            self._average[key] = self.momentum * average + (1 - self.momentum) * now
            size = torch.full_like(size, self._average[key])
        return size.clamp_min(floor)

    def state_dict(self) -> dict[str, float]:
        """The running averages by the name of their term, and the largest sizes."""
        return self._average | {f"{_LARGEST}{key}": size for key, size in self._largest.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self._average = {key: size for key, size in state.items() if not key.startswith(_LARGEST)}
        self._largest = {key.removeprefix(_LARGEST): size for key, size in state.items() if key.startswith(_LARGEST)}


def _only(names: Sequence[str], scores: Scores) -> Scores:
    """Scores that hold only the generator terms with these names."""
    return Scores({name: term for name, term in scores.generator.items() if name in names})
