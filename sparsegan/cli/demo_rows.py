"""The rows of `sparsegan demo`: the recipe and learning rates of each, the digits of each split, one row's fine-tuning.

`sparsegan demo --sweep` finds the learning rates and the bands in `ROWS` (see demo_sweep.py).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data
from ..atomic_files import write_json
from ..checkpoint import load, save
from ..compress import RECIPES, Compressor, RunConfig, baseline, match_contrast
from ..compress.baselines import DEFAULT
from ..compress.statistics import recalibrate_batch_norm
from ..data.layouts import unit
from ..gans import dcgan, store
from ..metrics import distances as metrics
from ..metrics.classifier import find_classifier
from .loading import placed


@dataclass(frozen=True)
class DemoRow:
    """One pruned generator of the demo's table.

    `recipe`: a name of `RECIPES`. `generator_lr`, `discriminator_lr`: Adam's learning rates; None where nothing is
    trained.
    `repaired`: after the recipe, batch norms that have not kept their stored statistics get averages over fresh noise,
    and the last layer is scaled to the original's contrast. Neither needs a real image.
    `band`: where the kernel distance of another run should lie: the mean ± three sample standard deviations over the
    training seeds of the sweep. None where nothing is trained.
    """

    recipe: str
    generator_lr: float | None = None
    discriminator_lr: float | None = None
    repaired: bool = True
    band: tuple[float, float] | None = None


#: From the name of a row to its recipe and rates, in the order of the table. The main row comes last.
ROWS = {
    "pruned, not fine-tuned": DemoRow("one-shot", repaired=False),
    "pruned, statistics repaired": DemoRow("one-shot"),
    "pruned, plain GAN loss": DemoRow("gan-loss", 5e-4, 2e-4),
    "distillation": DemoRow(DEFAULT, 4e-3),
}
MAIN = list(ROWS)[-1]

#: The last layer stays dense. A tenth of its 512 weights is too few for an image, and of the generator's 1,098,240
#: weights, pruning this layer would save almost nothing.
LAST_LAYER = "main.12"
#: Seeds of the noise that is scored. No training uses them.
VALIDATION_NOISE, REPORTED_NOISE = (30_000, 30_001, 30_002), (20_000, 20_001, 20_002)


@dataclass(frozen=True)
class Setting:
    """The pruning and fine-tuning of every row. `sparsity`: of the whole generator, its dense last layer included.
    `batch`: images per step. `samples`: generated images per measurement of a distance."""

    sparsity: float = 0.9
    steps: int = 900
    batch: int = 16
    samples: int = 2000


@dataclass(frozen=True)
class Digits:
    """Disjoint sets of real digits, float32 [N, 1, 64, 64] in [-1, 1]. The SHA-256 of a digit's number decides its set.

    `validation`: a fifth of `images`; learning rates are chosen by the distance to these. `reported`: two fifths; the
    table has the distances to these. `rest`: two fifths, whose own distance to `reported` is the floor of the table.
    """

    images: Tensor
    validation: Tensor
    reported: Tensor
    rest: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Digits:
        """The three sets of `images` [N, 1, 64, 64]."""
        count = len(images)
        order = torch.tensor(sorted(range(count), key=lambda index: unit(f"mnist/{index}")))
        validation, reported, rest = order.tensor_split((count // 5, count // 5 + 2 * count // 5))
        return cls(images, images[validation], images[reported], images[rest])


class Stage:
    """The trained GAN, the digits and the features that all rows share.

    `checkpoints`: the folder with the GAN and the digit classifier. Raises FileNotFoundError where they are missing.
    """

    def __init__(self, checkpoints: Path, setting: Setting, device: torch.device, quiet: bool) -> None:
        self.setting, self.quiet = setting, quiet
        self.gan = placed(store.load(checkpoints / "dcgan-mnist"), device)
        self.features = metrics.load_features(find_classifier("mnist", checkpoints), device)
        self.digits = Digits.of(data.labelled("mnist")[0])

    def evaluator(self, real: Tensor) -> metrics.Evaluator:
        """What measures distances to the images `real` [N, 1, 64, 64]."""
        return metrics.Evaluator(real, self.features, self.features.network)

    def distances(self, generator: nn.Module, evaluator: metrics.Evaluator, noise: Sequence[int]) -> metrics.Distances:
        """The distances of a generator's images. `noise`: seeds of the noise, one measurement each."""
        return evaluator.distances(lambda n: generator(dcgan.noise(self.gan.generator, n)), self.setting.samples, noise)

    def compressor(self, row: DemoRow, folder: Path, title: str, seed: int) -> Compressor:
        """The compression of a row. The run is in `folder` and continues where it was stopped."""
        rates: dict[str, Any] = {"generator_lr": row.generator_lr, "discriminator_lr": row.discriminator_lr}
        return baseline(
            row.recipe,
            self.gan.generator,
            self.gan.discriminator,
            self.gan.objective,
            steps=self.setting.steps,
            sparsity=self._target(),
            exclude=(LAST_LAYER,),
            decay=not RECIPES[row.recipe].settings.get("cosine", False),  # either way the rates fall to 0
            contrast=False,  # `repair` matches the contrast of every row alike
            every=5,
            seed=seed,
            run=RunConfig(
                folder,
                resume=True,
                checkpoint_every=50,
                settings={"batch": self.setting.batch},
                title=f"{title:<27}",
                quiet=self.quiet,
            ),
            **{name: rate for name, rate in rates.items() if rate is not None},
        )

    def fine_tuned(self, row: DemoRow, folder: Path, title: str, seed: int) -> nn.Module:
        """The generator of a row, in evaluation mode. Its file in `folder` is read where it is there already.

        Raises training.Diverged where a term of the loss is not finite.
        """
        compressor = self.compressor(row, folder, title, seed)
        file = folder / "generator.safetensors"
        if not file.exists():
            begun = time.perf_counter()
            generator = compressor.fit(data.Batches(self.digits.images, self.setting.batch)).generator
            if row.repaired:
                self._repair(generator, compressor.config.stored_statistics, seed)
            save(generator, file)
            write_json(folder / "seconds.json", round(time.perf_counter() - begun, 1))
        return load(copy.deepcopy(self.gan.generator), file).eval()

    def _repair(self, generator: nn.Module, stored_statistics: bool, seed: int) -> None:
        """Re-estimates the statistics of batch norms unless the recipe kept them, then matches the contrast."""
        original, generator = self.gan.generator, generator.eval()
        if not stored_statistics:
            parts = iter(dcgan.noise(original, 20 * 64, seed).split(64))
            recalibrate_batch_norm(generator, lambda: generator(next(parts)))
        noise = dcgan.noise(original, 256, seed)
        match_contrast(generator, original, lambda network: network(noise))

    def _target(self) -> float:
        """The sparsity of the pruned layers that gives the generator, with its dense last layer, the asked sparsity."""
        modules = self.gan.generator.named_modules()
        weights = {name: module.weight.numel() for name, module in modules if isinstance(module, nn.ConvTranspose2d)}
        total = sum(weights.values())
        return self.setting.sparsity * total / (total - weights[LAST_LAYER])


def slug(title: str) -> str:
    """The name of a row's folder and file."""
    return title.replace(", ", " ").replace(" ", "-")


def trains_discriminator(row: DemoRow) -> bool:
    """Whether the recipe of a row trains the discriminator, so that the discriminator's learning rate matters."""
    return RECIPES[row.recipe].discriminator_mode == "updated" and row.generator_lr is not None
