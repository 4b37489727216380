"""The verdict of a compression: how near the compressed generator is to the original, in figures and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..compress import BlankBatches, recalibrate_batch_norm
from ..compress.statistics import batch_norms
from ..copying import copy_model
from ..data import Samples
from ..gans import store
from ..metrics.likeness import ALIKE_PSNR, CLOSE, CLOSE_EDGES, FAR, Likeness, OriginalImages, worst
from ..nn.replace import sparse_layers
from ..placement import device_of, moved
from ..pruning.prunable import prunable_layers
from ..pruning.surgery import sparsify
from ..randomness import seeded
from ..training import endless

#: Images of at most 128x128 pixels that are compared. Of larger images there are fewer, with as many pixels together.
IMAGES = 256
#: Added to the run's seed, so that the compared images come from other noise than the training's.
UNSEEN = 2**61
#: The same for the images of a validation, which the reported figures do not see.
VALIDATED = 2**60
#: Names of the generators that are compared with the original.
COMPRESSED, PRUNED, REESTIMATED = "compressed", "pruned", "pruned, batch norms re-estimated"


@dataclass(frozen=True)
class Verdict:
    """The likeness of the compressed generator, and of the original pruned at once to the same sparsities.

    `likeness`: from the name of a generator to its figures by kind of image; `PRUNED` and `REESTIMATED` were not
    fine-tuned. `REESTIMATED` is missing where no norm has statistics. `images`: the number of images of each kind.
    `inputs`: the origin of the inputs, in words. `real`: whether the run has real images.
    """

    likeness: dict[str, dict[str, Likeness]]
    images: int
    inputs: str
    real: bool

    @property
    def level(self) -> str:
        """The verdict: `metrics.likeness.FAR`, `PARTLY` or `CLOSE`."""
        return worst(self.likeness[COMPRESSED])[1].verdict

    @property
    def line(self) -> str:
        """The verdict in one line, with the figures of the kind of image that decided it."""
        kind, found = worst(self.likeness[COMPRESSED])
        named = f" in {kind}" if len(self.likeness[COMPRESSED]) > 1 else ""
        before = f"pruned, not fine-tuned: {self.likeness[PRUNED][kind].psnr:.1f} dB"
        if REESTIMATED in self.likeness:
            before += f", batch norms re-estimated: {self.likeness[REESTIMATED][kind].psnr:.1f} dB"
        figures = f"{found.psnr:.1f} dB{named} ({before}; mean image: {found.mean_image:.1f} dB)"
        if found.mean_image > ALIKE_PSNR:
            figures += ", but all images of the original are alike"
        if not 1 / CLOSE_EDGES <= found.edges <= CLOSE_EDGES:
            how = "softer" if found.edges < 1 else "rougher"
            figures += f", {how}: {found.edges:.2g} of the original's edge energy"
        if found.verdict == CLOSE:
            return f"close to the original: {figures}"
        if found.verdict == FAR:
            unless = " unless scores on real images (--features) are good" if self.real else ""
            return f"FAR from the original: {figures}; do not ship this{unless}; try --steps, --sparsity"
        return f"partly like the original: {figures}; more --steps or a lower --sparsity come nearer"

    def to_dict(self) -> dict[str, Any]:
        """All figures, as values that JSON can hold."""
        return {
            "verdict": self.level,
            "line": self.line,
            "images": self.images,
            "inputs": self.inputs,
            "likeness": {
                name: {kind: asdict(found) | {"verdict": found.verdict} for kind, found in kinds.items()}
                for name, kinds in self.likeness.items()
            },
        }

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The head and the lines of a table of all figures."""
        head = ["generator", "images", "PSNR", "mean difference", "edge energy", "PSNR of the mean image", "verdict"]
        lines = [
            [
                name,
                kind,
                f"{found.psnr:.1f} dB",
                f"{found.difference:.3f}",
                f"{found.edges:.2f}",
                f"{found.mean_image:.1f} dB",
                found.verdict,
            ]
            for name, kinds in self.likeness.items()
            for kind, found in kinds.items()
        ]
        return head, lines


def original_images(
    gan: store.Gan, unseen: Samples | None, size: int, seed: int, purpose: int = UNSEEN
) -> OriginalImages:
    """The dense generator's images of inputs that the training does not see.

    `unseen`: samples that are not trained on. A generator from noise needs none: it gets noise of another seed, which
    `purpose` decides.
    """
    count = max(16, min(IMAGES, IMAGES * 128**2 // size**2))
    batches: Iterable[Any]
    if gan.from_noise or unseen is None:
        batches = BlankBatches(16, gan.channels or 3, size, count // 16)
    else:
        order = unseen.order(shuffled=False)
        chosen = order[torch.linspace(0, len(order) - 1, min(count, len(order))).long()]
        # StarGAN takes its target domains from the batch, so the domains have to be mixed.
        mixed = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
        batches = [unseen.batch(part, None) for part in mixed.split(16)]
    return OriginalImages(gan.generator, gan.objective, batches, (seed + purpose) % 2**63)


def likenesses(
    gan: store.Gan,
    compressed: nn.Module,
    original: OriginalImages,
    loader: Iterable[Any],
    sparsity: float,
    granularity: str | Mapping[str, str],
    seed: int,
) -> dict[str, dict[str, Likeness]]:
    """The field `likeness` of a `Verdict`.

    `loader`: batches of the training, for the statistics of batch norms. `sparsity`, `granularity`: how the original is
    pruned where the compressed generator has no sparse layers of the same names.
    """
    pruned = _pruned_alike(gan.generator, compressed, sparsity, granularity)
    found = {COMPRESSED: original.compare(compressed), PRUNED: original.compare(pruned)}
    if any(norm.track_running_stats for norm in batch_norms(pruned)):
        device = device_of(generator=pruned)
        batches = islice(endless(loader, seed), 20)
        with seeded(seed):
            recalibrate_batch_norm(pruned, lambda: gan.objective.generate(pruned, moved(next(batches), device)))
        found[REESTIMATED] = original.compare(pruned)
    return found


def _pruned_alike(
    generator: nn.Module, compressed: nn.Module, sparsity: float, granularity: str | Mapping[str, str]
) -> nn.Module:
    """A copy of `generator`, pruned at once to the sparsities of the layers of `compressed`."""
    layers, sparse = prunable_layers(generator), dict(sparse_layers(compressed))
    if not sparse or not sparse.keys() <= layers.keys():
        return sparsify(copy_model(generator), sparsity, granularity)
    return sparsify(
        copy_model(generator),
        {name: layer.sparsity for name, layer in sparse.items()},
        {name: layer.granularity for name, layer in sparse.items()},
        exclude=layers.keys() - sparse.keys(),
    )
