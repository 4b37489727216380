"""The losses that a compressed generator can minimise.

They are equations 7-9 of self-supervised GAN compression, and the losses that these are compared with: the GAN's own
loss, and distances to the original's images and activations.

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

**Distillation** needs no discriminator and no data. With x_O and x_C the two generators' images from the same noise or
input, Gen the GAN's own weighted generator loss of x_C, and h_k the output of a generator's k-th activation module of K
modules (of its k-th convolution, where it has no activation modules):

    L = own Gen + outputs d(x_C, x_O) + sharpness e(x_C, x_O) + intermediate 1/K sum over k  r(h_k(G_C), h_k(G_O))
        + features L_F

The distance d of two images is one of

    "l1"      mean |x_C - x_O|
    "mse"     mean (x_C - x_O)^2
    "scales"  the sum over s = 1, 2, 4, 8 of mean |A_s x_C - A_s x_O|, where A_s is the mean over squares of s x s
              pixels, plus mean |S x_C - S x_O|, where S gives the horizontal and the vertical Sobel gradient,
              plus 4 mean (x_C - x_O)^2, because absolute values alone leave large errors in a few places

and the distance r of two activations is one of

    "mse"       mean (h_C - h_O)^2
    "relative"  mean (h_C - h_O)^2 / mean h_O^2 + mean |h_C - h_O| / mean |h_O|

The relative distance gives every layer the same weight, whatever the scale of its activations.

A network that regresses to images gives softer images, because details that it cannot represent average out. With E the
sum of (S x)^2 over an image, and R the root mean square of S x over windows of 7 x 7 pixels,

    e = mean |R x_C - R x_O| + 1/10 mean over the images |E x_C - E x_O| / (E x_C + E x_O)

asks for edges of the same strength, in each window and in the whole image, without asking for the same edges.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gans.objective import REDUCTIONS, Objective, Terms

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


class _Stateless:
    def state_dict(self) -> dict[str, float]:
        """An empty dict."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Does nothing."""


@dataclass
class PlainLoss(_Stateless):
    """The GAN's own generator loss: the weighted sum of its generator terms."""

    uses_terms = True
    matches = matches_discriminator_terms = matches_features = matches_intermediate = False

    def __call__(self, objective: Objective, compressed: Scores, original: Scores | None) -> Tensor:
        """The objective's total of the generator terms."""
        return objective.total(compressed.generator)


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


def _nothing(scores: Scores) -> Tensor:
    """A scalar 0 on the device of the scores."""
    terms = (*scores.generator.values(), *scores.discriminator.values(), *scores.images.values())
    found = (*terms, *scores.features, *scores.intermediate)
    return torch.zeros((), device=found[0].device if found else None)


def _only(names: Sequence[str], scores: Scores) -> Scores:
    """Scores that hold only the generator terms with these names."""
    return Scores({name: term for name, term in scores.generator.items() if name in names})


def scales(ours: Tensor, theirs: Tensor) -> Tensor:
    """The distance "scales" of images [N, C, H, W]: at four sizes, and of their edges (see the module's text).

    Sizes below one pixel are left out.
    """
    total = F.l1_loss(ours, theirs) + F.l1_loss(sobel(ours), sobel(theirs)) + 4 * F.mse_loss(ours, theirs)
    for _ in range(3):
        if min(ours.shape[-2:]) < 2:
            break
        ours, theirs = F.avg_pool2d(ours, 2), F.avg_pool2d(theirs, 2)
        total = total + F.l1_loss(ours, theirs)
    return total


def sobel(images: Tensor) -> Tensor:
    """The horizontal and vertical Sobel gradients [N, 2 C, H, W] of images [N, C, H, W], per pixel."""
    across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across, across.T]).unsqueeze(1).repeat(images.shape[1], 1, 1, 1)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")  # zeros would be an edge of the picture
    return F.conv2d(padded, kernels, groups=images.shape[1])


def sharpness(ours: Tensor, theirs: Tensor) -> Tensor:
    """The difference e of the strengths of the edges of images [N, C, H, W] (see the module's text)."""
    squares = [sobel(images).square() for images in (ours, theirs)]
    whole = [one.sum((1, 2, 3)) for one in squares]
    size = min(7, *ours.shape[-2:])
    # The small summand keeps the gradient of the root finite where a window is flat.
    r_ours, r_theirs = ((F.avg_pool2d(one, size, stride=(size + 1) // 2) + 1e-4).sqrt() for one in squares)
    tiny = torch.finfo(theirs.dtype).tiny  # an image may have no edges
    ratio = (whole[0] - whole[1]).abs() / (whole[0] + whole[1]).clamp_min(tiny)
    return F.l1_loss(r_ours, r_theirs) + ratio.mean() / 10


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """The distance "relative" of activations of one shape (see the module's text). All-zero `theirs` counts nothing."""
    gap, least = ours - theirs, torch.finfo(theirs.dtype).tiny
    squares = gap.square().mean() / theirs.square().mean().clamp_min(least)
    return squares + gap.abs().mean() / theirs.abs().mean().clamp_min(least)


Distance = Callable[[Tensor, Tensor], Tensor]
#: Distances of `DistillationLoss` by name. Each takes two tensors of one shape and returns a scalar.
DISTANCES: dict[str, Distance] = {"l1": F.l1_loss, "mse": F.mse_loss, "scales": scales}
ACTIVATION_DISTANCES: dict[str, Distance] = {"mse": F.mse_loss, "relative": relative}


@dataclass
class DistillationLoss(_Stateless):
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
        loss = _nothing(compressed)
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


#: The losses of this package by name.
LOSSES: dict[str, type[SelfSupervisedLoss | DistillationLoss | PlainLoss]] = {
    kind.__name__: kind for kind in (SelfSupervisedLoss, DistillationLoss, PlainLoss)
}
