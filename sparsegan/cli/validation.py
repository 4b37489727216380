"""The validation of `sparsegan compress`: scores of the generator during a run, with a picture and a file per look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..atomic_files import write_json
from ..compress import Look, Validation
from ..data import Samples
from ..metrics.classifier import CLASSIFIERS, find_classifier
from ..metrics.distances import TaskEvaluator, overall
from ..metrics.features import load_features
from ..metrics.likeness import worst
from ..metrics.measures import measured
from ..progress import announce
from ..training import ranks
from .common import find_checkpoints, need
from .compress_job import Job
from .pictures import comparison, write_png
from .verdict import VALIDATED, original_images

#: Windows of sound that a look at a run is scored on.
WINDOWS = 64


class Scorer:
    """Scores generators on the validation split, by kernel distance or by likeness to the original.

    It is the first figure of the GAN's own (`Objective.measures`) where the GAN has any and the run has real samples.
    It is the kernel distance where there are real images and a feature network: that of --features, or this
    repository's classifier of the data set. Otherwise, and with `likeness`, it is the PSNR to the original on fixed
    inputs, of the kind of image that is least like the original's.
    """

    def __init__(self, job: Job, likeness: bool = False) -> None:
        self._score: Callable[[nn.Module], float | None]
        samples, features = job.held_out(), None if likeness else _features_of(job)
        self.samples = samples
        measures = job.gan.objective.measures is not None and not likeness and not job.arguments.data_free
        self.higher = not measures and (features is None or samples is None)
        if measures and samples is not None:
            self.name, _ = next(iter(self._measured(job, samples, job.gan.generator).items()))
            self.name += f" ({min(len(samples), WINDOWS)} windows)"
            self._score = lambda generator: next(iter(self._measured(job, samples, generator).values()))
        elif features is not None and samples is not None:
            need("torchmetrics")
            network = load_features(features, job.device)
            evaluator = TaskEvaluator(samples, job.gan.objective, network, seed=job.arguments.seed)
            self._score = lambda generator: overall(evaluator.scores(generator)).headline
            self.name = f"kernel distance ({network.network}, {samples.distinct} images)"
        else:
            images = original_images(job.gan, samples, job.arguments.size, job.arguments.seed, VALIDATED)
            self._score = lambda generator: worst(images.compare(generator))[1].psnr
            self.name = f"PSNR to the original ({images.count} images)"

    @staticmethod
    def _measured(job: Job, samples: Samples, generator: nn.Module) -> dict[str, float]:
        return measured(generator, job.gan.objective, samples, WINDOWS, seed=job.arguments.seed)

    def __call__(self, generator: nn.Module) -> float:
        score = self._score(generator)
        if score is None:
            raise ValueError(f"the validation split gives no {self.name}; it needs at least two images of each kind")
        return score

    def text(self, score: float) -> str:
        """The score with its unit."""
        return f"{score:.1f} dB" if self.higher else f"{score:.4g}"


def _features_of(job: Job) -> str | Path | None:
    """The feature network to compare with, as `load_features` takes it; None where there is none."""
    arguments = job.arguments
    if arguments.features:
        return str(arguments.features)
    if arguments.data_free or not job.reference.from_noise or arguments.data not in CLASSIFIERS:
        return None
    try:
        return find_classifier(arguments.data, find_checkpoints())
    except FileNotFoundError:
        return None


@dataclass
class Watch:
    """Writes OUT/validation: a picture per look, and scores.json with all looks so far.

    `folder`: the folder OUT/validation. `title`: the name of the run in messages.
    """

    job: Job
    scorer: Scorer
    folder: Path
    title: str = ""
    looks: list[Look] = field(default_factory=list)

    def validation(self, every: int, patience: int = 0) -> Validation:
        """The looks at a run every `every` steps, as `Compressor` takes them."""
        return Validation(self.scorer, every, self.scorer.higher, patience, self.seen)

    def seen(self, look: Look, generator: nn.Module) -> None:
        """Write the files of a look, and a message."""
        job, step = self.job, look["step"]
        batch = job.batch(self.scorer.samples, 16 if job.reference.from_noise else 8)
        generators = {"dense": job.gan.generator, "compressed": generator}
        picture = comparison(generators, job.gan.objective, batch, job.arguments.seed, job.domains)
        self.looks = [*(one for one in self.looks if one["step"] < step), look]
        if ranks.rank() == 0:  # only rank 0 writes; the picture needs the generators of all ranks
            write_png(self.folder / f"step-{step:07d}.png", picture)
            write_json(self.folder / "scores.json", {"score": self.scorer.name, "looks": self.looks})
        best = ", the best so far" if look["best"] else "" if look["full"] else ", before the full sparsity"
        announce(
            f"{self.title}step {step}, {look['sparsity']:.1%} sparsity: {self.scorer.name} "
            f"{self.scorer.text(look['score'])}{best}",
            job.arguments.quiet,
        )


def best_of(looks: list[Look]) -> dict[str, Any] | None:
    """The best look at the full sparsity, whose generator is the result of a run. None where there is none."""
    return next((look for look in reversed(looks) if look["best"]), None)
