"""A small classifier of 64x64 images. It gives features for distances, and predicts the class of generated images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..atomic_files import write_tensors
from ..randomness import CPU, seeded

#: Data set -> the name of this repository's classifier for it. The name with a hyphen is the classifier's folder.
CLASSIFIERS = {
    "mnist": "digit classifier",
    "fashion-mnist": "clothes classifier",
    "emoji-styles": "style classifier",
}
FILE = "classifier.safetensors"
SIZE = 64


class Classifier(nn.Module):
    """A network from images, float32 [N, channels, 64, 64] in [-1, 1], to logits [N, classes].

    `features` gives the 64 values of the layer before the logits. `name` is shown with distances in these features.
    """

    num_features = 64

    def __init__(self, channels: int = 1, classes: int = 10, name: str = "classifier") -> None:
        super().__init__()
        self.channels, self.name = channels, name
        layers: list[nn.Module] = []
        before = channels
        for width in (16, 32, 48, 64):  # 64x64 -> 4x4
            layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, classes)

    def features(self, images: Tensor) -> Tensor:  # [N, channels, 64, 64] -> [N, 64]
        """The values of the penultimate layer, all at least 0."""
        shape = (self.channels, SIZE, SIZE)
        if images.dim() != 4 or images.shape[1:] != shape:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; the {self.name} takes [N, {self.channels}, {SIZE}, {SIZE}]"
            )
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    name: str = "classifier",
    epochs: int = 12,
    batch_size: int = 100,
    held_out: int = 1000,
    seed: int = 0,
    device: torch.device = CPU,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Classifier, float]:
    """Trains a classifier on `images` [N, C, 64, 64] and `labels` int64 [N].

    Returns the classifier, on `device`, and its accuracy on the held-out images. These `held_out` images are drawn with
    `seed` and are not trained on. The optimizer is Adam with learning rate 2e-3 and cosine decay. Each batch is shifted
    by up to 3 pixels. `progress(epoch, loss)` is called after each epoch. Raises ValueError if `held_out` is not from 1
    to N - 1.
    """
    if not 1 <= held_out < len(images):
        raise ValueError(f"held_out is {held_out}; it must be from 1 to {len(images) - 1}")
    with seeded(seed):
        order = torch.randperm(len(images))
        test, train = order[:held_out], order[held_out:]
        model = Classifier(images.shape[1], int(labels.max()) + 1, name).to(device)
        images, labels = images.to(device), labels.to(device)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):
            total = 0.0
            chunks = train[torch.randperm(len(train))].split(batch_size)
            for chosen in chunks:
                down, right = torch.randint(-3, 4, (2,)).tolist()
                batch = torch.roll(images[chosen], (down, right), (2, 3))  # borders are plain, so wrapping is harmless
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


def save_classifier(model: Classifier, path: str | Path) -> None:
    """Writes the classifier's weights to a safetensors file."""
    write_tensors(Path(path), model.state_dict())


def load_classifier(path: str | Path) -> Classifier:
    """Reads a classifier that `save_classifier` wrote, and returns it in evaluation mode.

    The classifier's name is "network" in config.json in the same folder or, without such a file, the file's stem.
    Raises ValueError for a file that is not such a classifier.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = Path(path).with_name("config.json")
    try:
        name = json.loads(config.read_text(encoding="utf-8"))["network"] if config.is_file() else Path(path).stem
        state = load_file(path)
        model = Classifier(state["body.0.weight"].shape[1], len(state["head.bias"]), str(name))
        model.load_state_dict(state)
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(f"{path} is no classifier that sparsegan train wrote: {reason}") from None
    return model.eval().requires_grad_(False)


def find_classifier(data: str, checkpoints: Path) -> Path:
    """The path of this repository's classifier for a data set of `CLASSIFIERS`, in the folder `checkpoints`."""
    return checkpoints / CLASSIFIERS[data].replace(" ", "-") / FILE
