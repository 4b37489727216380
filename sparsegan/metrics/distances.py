"""Distances between real and generated images in the features of a named network, and fidelity of paired images.

A distance depends on the network of the features and on the number of images. Both are therefore always shown with the
distance: "FID (EfficientNet-Lite0, 450 images)", never plain FID. Only distances of the same network and the same
number of images can be compared: few images bias the Fréchet distance upwards, but not the kernel distance.
In a process group (`torchrun`) each process generates and measures a part of the images. All processes get the same
scores. torchmetrics computes the distances and fidelities:

    Fréchet (Heusel et al. 2017, arXiv 1706.08500)   |m_r - m_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2))
    kernel (Binkowski et al. 2018, arXiv 1801.01401) squared maximum mean discrepancy, kernel (x.y / d + 1)^3, unbiased
    PSNR                                             10 log10(4 / mean squared error) dB per image, values in [-1, 1]
    SSIM (Wang et al. 2004)                          Gaussian window of 11, all channels, values scaled to [0, 1]
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..gans.objective import named_views
from ..placement import device_of, moved
from ..progress import track
from ..randomness import seeded
from ..training import ranks
from .features import Features as Features
from .features import load_features as load_features

if TYPE_CHECKING:
    from ..data import Samples
    from ..gans.objective import Objective, View


def distances_between(real: Tensor, fake: Tensor, seed: int = 0) -> tuple[float, float]:
    """The (Fréchet, kernel) distances between features `real` [N, d] and `fake` [M, d], in float64.

    The kernel distance is the mean over 20 subsets of at most 1000 images, which `seed` chooses. Raises ValueError
    where `real` or `fake` has fewer than 2 images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    for name, features in (("fake", fake), ("real", real)):
        if len(features) < 2:
            raise ValueError(f"{name} holds {len(features)} images; a distance needs at least 2")
    given = _Given(real.shape[1])
    alone: dict[str, Any] = {"sync_on_compute": False}  # each process has the features of all processes already
    fid = FrechetInceptionDistance(feature=given, **alone).set_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*large memory footprint")  # here it is a few thousand short rows
        size = min(1000, len(fake), len(real))
        kid = KernelInceptionDistance(feature=given, subsets=20, subset_size=size, **alone)
    for metric in (fid, kid):
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
    with seeded(seed):
        return fid.compute().item(), kid.compute()[0].item()


MOST_PSNR = 10 * math.log10(12 * 255**2)  # 58.9 dB: the error of rounding to 8 bits


def diversity(fake: Tensor, real: Tensor) -> float:
    """The diversity of images by their features, `fake` [N, d], relative to `real` [M, d]; 1 is as diverse.

    It is the mean Euclidean distance between two images of `fake`, divided by that of `real`. The pairs are drawn at
    random with a fixed seed. Raises ValueError where `fake` or `real` has fewer than 2 images.
    """
    distances = []
    for name, features in (("fake", fake), ("real", real)):
        if len(features) < 2:
            raise ValueError(f"{name} holds {len(features)} images; a pair needs 2")
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        first, second = features[order].chunk(2)
        distances.append((first[: len(second)] - second).norm(dim=1).mean().item())
    return distances[0] / distances[1]


def perceptual(fake: Tensor, real: Tensor) -> float:
    """The perceptual distance of images to their targets by their features, `fake` [N, d] and `real` [N, d].

    It is the mean over the images of the Euclidean distance between both features, each scaled to length 1. It is from
    0, for the same direction, to 2.
    """
    return (F.normalize(fake.double()) - F.normalize(real.double())).norm(dim=1).mean().item()


def fidelity(fake: Tensor, real: Tensor) -> tuple[float, float]:
    """(PSNR in dB, SSIM) of images [N, C, H, W] in [-1, 1], H and W at least 11. Both are means over the images.

    The PSNR of an image is limited to `MOST_PSNR`, so that one perfect image does not make the mean infinite.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    fake, real = ((images.clamp(-1, 1) + 1) / 2 for images in (fake, real))  # SSIM is not made for signed values
    psnr = peak_signal_noise_ratio(fake, real, data_range=1.0, dim=(1, 2, 3), reduction="none")
    ssim = structural_similarity_index_measure(fake, real, data_range=1.0)
    assert isinstance(ssim, Tensor)
    return psnr.clamp(max=MOST_PSNR).mean().item(), ssim.item()


#: With fewer images per feature than this, the bias of the Fréchet distance is as large as the differences to be seen.
ENOUGH = 10


@dataclass(frozen=True)
class Score:
    """The score of a generator's images of one view. A figure that was not measured is None.

    `network`: the name of the features for `kid`, `fid` and `perceptual`. `images`: the number of fake images.
    `dimensions`: the number of features of an image. `psnr` (dB), `ssim` and `perceptual`: for paired views.
    `diversity`, `perceptual`: see the functions of these names. `accuracy`: the fraction of images that a classifier
    assigns to the requested domain.
    """

    network: str | None
    images: int
    fid: float | None = None
    kid: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    diversity: float | None = None
    accuracy: float | None = None
    perceptual: float | None = None
    dimensions: int | None = None

    @property
    def headline(self) -> float | None:
        """The figure to judge by: the kernel distance, which few images do not bias."""
        return self.kid

    @property
    def few(self) -> bool:
        """Whether there are fewer than `ENOUGH` images per feature, so that `fid` is biased and only shown beside."""
        return self.dimensions is not None and self.images < ENOUGH * self.dimensions

    def labelled(self) -> dict[str, float]:
        """Full name -> value of each measured figure, the headline first.

        "KID (EfficientNet-Lite0, 450 images)" is such a name. The name of an FID of too few images says so.
        """
        where = f"{self.network}, {self.images} images"
        names = {f"KID ({where})": self.headline, f"FID ({where}{', too few' if self.few else ''})": self.fid}
        names |= {"PSNR (dB)": self.psnr, "SSIM": self.ssim, f"perceptual distance ({self.network})": self.perceptual}
        names |= {f"diversity ({where})": self.diversity, "domain accuracy": self.accuracy}
        return {name: value for name, value in names.items() if value is not None}


def overall(scores: Mapping[str, Score]) -> Score:
    """The mean of each figure over all views. Each view counts the same; `images` is their sum.

    A figure that some view lacks is None. Raises ValueError without scores.
    """
    if not scores:
        raise ValueError("scores is empty; it must hold the score of at least one view")
    first, count = next(iter(scores.values())), len(scores)
    means: dict[str, Any] = {}
    for name in FIGURES:
        values = [value for value in (getattr(score, name) for score in scores.values()) if value is not None]
        means[name] = sum(values) / count if len(values) == count else None
    return replace(first, images=sum(score.images for score in scores.values()), **means)


#: The names of the figures of a score.
FIGURES = ("kid", "fid", "psnr", "ssim", "perceptual", "diversity", "accuracy")


class TaskEvaluator:
    """Scores a task's generators on held-out samples of the task.

    A view "to 2" of a domain's number is scored under the domain's name, where `samples` has names. The features of
    the real images are computed once and kept in `real`, view by view. Batches are moved to the generator's device.

    Args:
        samples: the test or the validation split, as `data.load` gives it.
        objective: `objective.generate` makes one image per sample; `objective.views` says which images are compared.
        features: the network of the distances. With None there are no distances and no diversity.
        batch_size: samples per batch.
        seed: seeds the draws of `generate` and the subsets of the kernel distance.
        quiet: whether to hide the progress bar.
        classifier: from images on the generator's device to logits [N, K] of domains.
        asked: view -> requested domain of its images. A view that is not in `asked` has the domains itself, or none.

    Raises:
        ModuleNotFoundError: torchmetrics is not installed.
    """

    def __init__(
        self,
        samples: Samples,
        objective: Objective,
        features: Features | None,
        batch_size: int = 25,
        seed: int = 0,
        quiet: bool = True,
        classifier: Callable[[Tensor], Tensor] | None = None,
        asked: Mapping[str, int] | None = None,
    ) -> None:
        _need_torchmetrics()
        self.samples = samples
        self.objective = objective
        self.features = features
        self.classifier = classifier
        self.asked = asked or {}
        self.batch_size = batch_size
        self.seed = seed
        self.quiet = quiet
        self.real: dict[str, Tensor] = {}

    def scores(self, generator: nn.Module) -> dict[str, Score]:
        """View -> score, on all samples; of two unpaired sides, on as many of each as the smaller one has.

        The states of torch's random generators do not change. A view with fewer than two generated or real images has
        no distances, and a warning says so. Raises ValueError for a view without real images.
        """
        tallies: dict[str, _Tally] = {}
        device = device_of(generator=generator)
        with seeded(self.seed), torch.no_grad(), ranks.divided(generator, padded=True):
            # StarGAN takes target domains from the batch, so domains are mixed. Repeated images would bias distances.
            order = self.samples.order()[: self.samples.distinct]
            chunks = order.split(self.batch_size)
            for chunk in track(chunks, "scoring", self.quiet or ranks.rank() > 0):
                batch = moved(self.samples.batch(chunk, None), device)
                views = self.objective.views(self.objective.generate(generator, batch), batch)
                for name, view in named_views(views, self.samples.domains).items():
                    self._add(tallies.setdefault(name, _Tally()), name, view)
        return {name: self._score(tally, name) for name, tally in tallies.items()}

    def _add(self, tally: _Tally, name: str, view: View) -> None:
        if view.real is None:
            raise ValueError(f"the objective's view {name!r} has no real images to compare with")
        tally.count += len(view.fake)
        tally.paired = view.paired
        if view.paired:
            psnr, ssim = fidelity(view.fake, view.real)
            tally.psnr.append(psnr * len(view.fake))
            tally.ssim.append(ssim * len(view.fake))
        if self.features is not None:
            features = ranks.each_its_rows(self.features)
            for images, found in ((view.fake, tally.fake), (view.real, tally.real)):
                wanted = images is view.fake or name not in self.real
                found += [features(images).cpu()] if wanted and len(images) else []
        asked = torch.full((len(view.fake),), self.asked[name]) if name in self.asked else view.asked
        if self.classifier is not None and asked is not None and len(asked):
            taken, asked = ranks.each_its_rows(self.classifier)(view.fake).argmax(1).cpu(), asked.cpu()
            tally.right.append((taken == asked)[asked >= 0])

    def _score(self, tally: _Tally, name: str) -> Score:
        score = Score(self.features.network if self.features else None, tally.count)
        if self.features is not None:
            real = self.real.get(name, torch.cat(tally.real) if tally.real else torch.empty(0, 0))
            fake = torch.cat(tally.fake) if tally.fake else torch.empty(0, 0)
            if min(len(fake), len(real)) < 2:
                what = f"view {name!r} has {len(fake)} generated and {len(real)} real images"
                warnings.warn(f"{what}; it has no distances, which need 2 of each", stacklevel=3)
            else:
                self.real[name] = real
                fid, kid = distances_between(real, fake, self.seed)
                score = replace(score, fid=fid, kid=kid, diversity=diversity(fake, real), dimensions=real.shape[1])
                score = replace(score, perceptual=perceptual(fake, real) if tally.paired else None)
        if tally.psnr:
            score = replace(score, psnr=sum(tally.psnr) / tally.count, ssim=sum(tally.ssim) / tally.count)
        if tally.right:
            score = replace(score, accuracy=torch.cat(tally.right).float().mean().item())
        return score


@dataclass
class _Tally:
    """The results of all batches of one view so far. Entries of `psnr` and `ssim` are sums over a batch."""

    count: int = 0
    paired: bool = False
    fake: list[Tensor] = field(default_factory=list)
    real: list[Tensor] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)


def _need_torchmetrics() -> None:
    try:
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "distances come from torchmetrics, which is not installed; pip install sparsegan[demo]"
        ) from None


@dataclass(frozen=True)
class Distances:
    """Mean and spread (sample standard deviation) of the distances over `seeds`. `network` is the features' name."""

    network: str
    samples: int
    seeds: tuple[int, ...]
    fid: float
    fid_spread: float
    kid: float
    kid_spread: float


class _Given(nn.Identity):
    """The feature extractor for torchmetrics: returns its input, which are features already.

    The features are computed once and used for both distances.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class Evaluator:
    """Measures distances between generated images and the images `real` [N, C, H, W].

    `features(images) -> [N, d]` gets batches of at most `batch_size`. `network`: the name of the features, which is
    shown with every distance. Raises ModuleNotFoundError where torchmetrics is not installed.
    """

    def __init__(self, real: Tensor, features: Callable[[Tensor], Tensor], network: str, batch_size: int = 250) -> None:
        _need_torchmetrics()
        self.features = features
        self.network = network
        self.batch_size = batch_size
        self._real = self._features_of(real)

    def _features_of(self, images: Tensor) -> Tensor:
        features = ranks.each_its_rows(self.features)
        with torch.no_grad():
            return torch.cat([features(part).double().cpu() for part in images.split(self.batch_size)])

    def compare(self, fake: Tensor, seed: int = 0) -> tuple[float, float]:
        """The (Fréchet, kernel) distances of images `fake`. `seed` chooses the subsets of the kernel distance."""
        return distances_between(self._real, self._features_of(fake), seed)

    def distances(
        self, sample: Callable[[int], Tensor], samples: int = 2500, seeds: Sequence[int] = (0, 1, 2)
    ) -> Distances:
        """The distances of a generator. `sample(n)` returns n images.

        `sample` draws from torch's random generator, which is seeded anew with each of `seeds`.
        """
        results = []
        for seed in seeds:
            with seeded(seed), torch.no_grad():
                left, images = samples, []
                while left > 0:
                    images.append(sample(min(left, self.batch_size)))
                    left -= len(images[-1])
            results.append(self.compare(torch.cat(images), seed))
        fids, kids = zip(*results, strict=True)
        spread = statistics.stdev if len(results) > 1 else lambda values: 0.0
        return Distances(
            self.network,
            samples,
            tuple(seeds),
            statistics.mean(fids),
            spread(fids),
            statistics.mean(kids),
            spread(kids),
        )
