"""The tasks of the study: six dense GANs, and the budget of their compression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """A dense GAN to compress, and the budget that every technique gets.

    `checkpoint`: the GAN's folder under checkpoints/. `steps`, `batch`: steps and images per step of the fine-tuning.
    `lr`, `discriminator_lr`: for Adam; both fall to 0 over the second half. `dense_steps`, `dense_batch`, `dense_lr`:
    those of the dense GAN's own training.
    `exclude`: layers that stay dense. `images`: number of images for a distance; 0 for one per sample of the split.
    `probability`: how the discriminator's output becomes the probability of being real: "output", "sigmoid", or "" if
    the output is no probability. `held_out`: whether the test images are kept out of the training.
    `classifier`: the data set of the classifier (`sparsegan.metrics.classifier`) that assigns classes to the images.
    For a DCGAN, this classifier also gives the features of the distances. `asked`: view -> the class that its images
    should have, for a GAN that does not tell this class.
    `floors`: the names of `FLOORS` that can be scored.
    """

    title: str
    checkpoint: str
    gan: str
    steps: int
    batch: int
    dense_steps: int
    dense_batch: int
    dense_lr: float
    lr: float = 1e-3
    discriminator_lr: float = 2e-4
    generator_every: int = 1
    exclude: tuple[str, ...] = ()
    images: int = 0
    probability: str = ""
    held_out: bool = True
    classifier: str = ""
    asked: Mapping[str, int] = field(default_factory=dict)
    floors: tuple[str, ...] = ("real",)

    @property
    def dense_images(self) -> int:
        """The number of images, repetitions included, that the dense GAN's training saw."""
        return self.dense_steps * self.dense_batch


#: What stands in the place of a generator's images, to show what the distances of a task can be -> its description.
FLOORS = {
    "real": "real images against other real images",
    "identity": "the input images themselves",
    "bicubic": "bicubic enlargement",
}

GOOGLE, TWITTER = 0, 3  # classes of the style classifier: the folders of emoji-styles in sorted order

#: The images are at most a tenth of those that the dense training saw. The learning rate of G_C, the compressed
#: generator, is five times the discriminator's. DCGAN's last layer stays dense, because it has only 512 of 1,098,240
#: weights.
TASKS = {
    "dcgan-mnist": Task(
        "DCGAN, MNIST",
        "dcgan-mnist",
        "dcgan",
        steps=498,
        batch=16,
        dense_steps=2496,
        dense_batch=32,
        dense_lr=1e-3,
        exclude=("main.12",),
        images=5000,
        probability="output",
        held_out=False,
        classifier="mnist",
    ),
    "dcgan-fashion": Task(
        "DCGAN, Fashion-MNIST",
        "dcgan-fashion",
        "dcgan",
        steps=960,
        batch=16,
        dense_steps=4800,
        dense_batch=32,
        dense_lr=1e-3,
        exclude=("main.12",),
        images=5000,
        probability="output",
        classifier="fashion-mnist",
    ),
    "pix2pix": Task(
        "pix2pix, line art to colour",
        "pix2pix-openmoji",
        "pix2pix",
        steps=600,
        batch=8,
        dense_steps=6000,
        dense_batch=8,
        dense_lr=2e-4,
        probability="sigmoid",
        floors=("real", "identity"),
    ),
    "cyclegan": Task(
        "CycleGAN, two emoji styles",
        "cyclegan-emoji",
        "cyclegan",
        steps=300,
        batch=1,
        dense_steps=3000,
        dense_batch=1,
        dense_lr=2e-4,
        classifier="emoji-styles",
        asked={"a_to_b": TWITTER, "b_to_a": GOOGLE},
        floors=("real", "identity"),
    ),
    "stargan": Task(
        "StarGAN, four emoji styles",
        "stargan-emoji",
        "stargan",
        steps=250,
        batch=8,
        dense_steps=2500,
        dense_batch=8,
        dense_lr=2e-4,
        generator_every=2,
        classifier="emoji-styles",
        floors=("real", "identity"),
    ),
    "srgan": Task(
        "SRGAN, photographs",
        "srgan-photos",
        "srgan",
        steps=1000,
        batch=8,
        dense_steps=10000,
        dense_batch=8,
        dense_lr=1e-3,
        lr=5e-4,
        discriminator_lr=1e-4,
        probability="output",
        floors=("real", "bicubic"),
    ),
}
