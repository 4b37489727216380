"""Fréchet and kernel distances between real and generated images, in the features of a named network.

A distance depends on the network that makes the features, so it is always shown with that network's name: with the
digit classifier of this module it is "FID (digit classifier)", never plain FID, and compares only with distances from
the same classifier and the same number of samples. The distances themselves are torchmetrics':

    Fréchet (Heusel et al. 2017, arXiv 1706.08500)   |m_r - m_g|^2 + tr(C_r + C_g - 2 (C_r C_g)^(1/2))
    kernel (Binkowski et al. 2018, arXiv 1801.01401) squared maximum mean discrepancy, kernel (x.y / d + 1)^3, unbiased
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .engine.files import write_tensors


class DigitClassifier(nn.Module):
    """Images float32 [N, 1, 64, 64] in [-1, 1] -> logits [N, 10]; `features` gives the 64 values before them."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in (16, 32, 48, 64):  # 64x64 -> 4x4
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, 10)

    def features(self, images: Tensor) -> Tensor:  # [N, 1, 64, 64] -> [N, 64]
        """The penultimate layer's values, at least 0."""
        if images.dim() != 4 or images.shape[1:] != (1, 64, 64):
            raise ValueError(f"images has shape {tuple(images.shape)}; the digit classifier takes [N, 1, 64, 64]")
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def train_digit_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 12,
    batch_size: int = 100,
    held_out: int = 1000,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[DigitClassifier, float]:
    """Train a classifier on `images` [N, 1, 64, 64] and `labels` [N]; returns it and its held-out accuracy.

    `held_out` images, drawn with `seed`, are never trained on. Adam 2e-3 with cosine decay; every batch is shifted by
    up to 3 pixels. `progress(epoch, loss)` is called after each epoch.
    """
    if not 1 <= held_out < len(images):
        raise ValueError(f"held_out is {held_out}; it must be from 1 to {len(images) - 1}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        test, train = order[:held_out], order[held_out:]
        model = DigitClassifier()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):
            total = 0.0
            chunks = train[torch.randperm(len(train))].split(batch_size)
            for chosen in chunks:
                down, right = torch.randint(-3, 4, (2,)).tolist()
                batch = torch.roll(images[chosen], (down, right), (2, 3))  # the border is black: nothing wraps visibly
                loss = F.cross_entropy(model(batch), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            scheduler.step()
            if progress:
                progress(epoch, total / len(chunks))
    model.eval()
    with torch.no_grad():
        right_answers = sum((model(images[c]).argmax(1) == labels[c]).sum().item() for c in test.split(500))
    return model, right_answers / held_out


def save_digit_classifier(model: DigitClassifier, path: str | Path) -> None:
    """Write the classifier's weights to a safetensors file."""
    write_tensors(Path(path), model.state_dict())


def load_digit_classifier(path: str | Path) -> DigitClassifier:
    """Read a classifier that `save_digit_classifier` wrote, ready for evaluation."""
    from safetensors.torch import load_file

    model = DigitClassifier()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


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
        try:
            import torchmetrics  # noqa: F401
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "distances come from torchmetrics, which is not installed; pip install sparsegan[demo]"
            ) from None
        self.features = features
        self.network = network
        self.batch_size = batch_size
        self._real = self._features_of(real)

    def _features_of(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.features(part).double() for part in images.split(self.batch_size)])

    def compare(self, fake: Tensor, seed: int = 0) -> tuple[float, float]:
        """(Fréchet, kernel) distance of images `fake`; `seed` chooses the kernel distance's subsets."""
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        made = self._features_of(fake)
        if len(made) < 2:
            raise ValueError(f"fake holds {len(made)} images; a distance needs at least 2")
        given = _Given(made.shape[1])
        fid = FrechetInceptionDistance(feature=given).set_dtype(torch.float64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*large memory footprint")  # a few thousand short rows
            kid = KernelInceptionDistance(feature=given, subsets=20, subset_size=min(1000, len(made), len(self._real)))
        for metric in (fid, kid):
            metric.update(self._real, real=True)
            metric.update(made, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return fid.compute().item(), kid.compute()[0].item()

    def distances(
        self, sample: Callable[[int], Tensor], samples: int = 2500, seeds: Sequence[int] = (0, 1, 2)
    ) -> Distances:
        """Distances of a generator: `sample(n)` gives n images, drawing from torch's generator, seeded here."""
        results = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seed)
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
