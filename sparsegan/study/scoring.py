"""Scores the generator of a row on the row's split, and the floors: what the figures of a task can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import data
from ..atomic_files import write_tensors
from ..data import Samples, layouts
from ..gans import GANS, store
from ..gans.objective import View
from ..metrics import distances as metrics
from ..metrics.classifier import Classifier, find_classifier, load_classifier
from ..placement import device_of
from .grids import TEST, VALIDATION, Row
from .results import Report
from .tasks import FLOORS, TASKS, Task

#: The seeds of the noise for the scored images of every row. No training uses these seeds.
NOISE = {TEST: 20_000, VALIDATION: 30_000}


def samples_of(gan: store.Gan, task: Task, split: str) -> Samples:
    """Returns the images of a task. Where the task holds no images out, each split is all images."""
    split = split if task.held_out else "all"
    return data.load(GANS[task.gan].samples, gan.config["data"], gan.size or 64, split, channels=gan.channels or 3)


def score(row: Row, gan: store.Gan, generator: nn.Module, checkpoints: Path, out: Path) -> Report:
    """Returns the scores of the generator, or of the row's floor, on the row's split.

    "scores" holds a score per view and, for several views, their mean as "overall". `checkpoints`: the folder of the
    classifiers. `out`: the features of real images are saved there.
    """
    task, classifier = TASKS[row.task], None
    if task.classifier:
        device = device_of(generator=generator)
        classifier = load_classifier(find_classifier(task.classifier, checkpoints)).to(device)
    if gan.from_noise and classifier is not None:
        return _score_classes(row, gan, generator, task, classifier)
    return _score_views(row, gan, generator, task, classifier, out)


def _score_views(
    row: Row, gan: store.Gan, generator: nn.Module, task: Task, classifier: Classifier | None, out: Path
) -> Report:
    """Returns the scores in features of ImageNet, with an image per sample of the split."""
    samples = samples_of(gan, task, row.split)
    device = device_of(generator=generator)
    objective = gan.objective
    if row.technique in FLOORS:
        floor, views = _FLOORS[row.technique], objective.views
        objective = replace(
            objective, views=lambda fake, batch: {name: floor(view) for name, view in views(fake, batch).items()}
        )
    features = metrics.load_features(device=device)
    evaluator = metrics.TaskEvaluator(samples, objective, features, classifier=classifier, asked=task.asked)
    pixels = b"".join(image.numpy().tobytes() for image in samples.images)
    part = "half" if row.technique == "real" else "whole"
    by = f"{torch.__version__} {device.type} {part}"
    kept = out / "real" / f"{sha256(pixels + by.encode()).hexdigest()[:16]}.safetensors"
    if kept.is_file():
        evaluator.real |= load_file(kept)
    scores = evaluator.scores(generator)
    if not kept.is_file():
        write_tensors(kept, evaluator.real)
    if len(scores) > 1:
        scores["overall"] = metrics.overall(scores)
    return {"scores": {name: asdict(one) for name, one in scores.items()}}


@torch.no_grad()
def _score_classes(row: Row, gan: store.Gan, generator: nn.Module, task: Task, classifier: Classifier) -> Report:
    """Returns the distances from real images in the classifier's features, and the classes of generated images.

    "modes": the number of classes that at least 2 % of the images belong to, a fifth of an even distribution over ten.
    "mode_entropy": entropy of the classes' fractions in bits, at most log2 10 = 3.32. "confidence": mean probability of
    the likeliest class. "answer_entropy": mean entropy of the classifier's probabilities, in bits.
    """
    device = device_of(generator=generator)
    real = torch.cat([classifier.features(images.to(device)) for images in _real_images(gan, task, row.split)])
    if row.technique == "real":
        fake, real = real[::2], real[1::2]
    else:
        (noise,) = store.example(gan, task.images, seed=NOISE[row.split])
        fake = torch.cat([classifier.features(generator(part)) for part in noise.split(250)])
    fid, kid = metrics.distances_between(real.cpu(), fake.cpu())
    probabilities = classifier.head(fake).softmax(1)
    fractions = probabilities.argmax(1).bincount(minlength=10) / len(fake)
    classes = {
        "modes": int((fractions >= 0.02).sum()),
        "mode_entropy": -(fractions * fractions.clamp_min(1e-12).log2()).sum().item(),
        "confidence": probabilities.amax(1).mean().item(),
        "answer_entropy": entropy_of(probabilities),
    }
    one = metrics.Score(classifier.name, len(fake), fid, kid, dimensions=real.shape[1])
    return {"scores": {"samples": asdict(replace(one, diversity=metrics.diversity(fake, real)))}, "classes": classes}


def _real_images(gan: store.Gan, task: Task, split: str) -> tuple[Tensor, ...]:
    """Returns the real images of a split, in parts of 250.

    Where the task holds no images out, one half of all images is the test split and the other is the validation split.
    """
    samples = samples_of(gan, task, split)
    images = torch.cat(list(samples.in_order(250)))
    if not task.held_out:
        half = [layouts.held_out(f"validation/{name}", 0.5) == (split == VALIDATION) for name in samples.names]
        images = images[torch.tensor(half)]
    return images.split(250)


def entropy_of(probabilities: Tensor) -> float:
    """Returns the mean entropy, in bits, of the distributions [N, K]."""
    return -(probabilities * probabilities.clamp_min(1e-12).log2()).sum(1).mean().item()


# Floors


def _real(view: View) -> View:
    """Returns one half of a batch's real images as the fakes, and the other half as the real images."""
    assert view.real is not None
    fake, real = view.real[::2], view.real[1::2]
    asked = view.asked
    if asked is not None:  # all images of a view are asked for one domain; where no image was, none counts
        asked = asked.new_full((len(fake),), int(asked[0]) if len(asked) else -1)
    return View(None, fake, real, asked=asked)


def _identity(view: View) -> View:
    assert view.source is not None
    return view._replace(fake=view.source)


def _bicubic(view: View) -> View:
    assert view.source is not None
    size = view.fake.shape[2:]
    return view._replace(fake=F.interpolate(view.source, size, mode="bicubic").clamp(-1, 1))


_FLOORS: dict[str, Callable[[View], View]] = {"real": _real, "identity": _identity, "bicubic": _bicubic}
