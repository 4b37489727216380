"""The losses that a compressed generator can minimise, one file each.

`self_supervised.py` has equations 7-9 of self-supervised GAN compression and their extension by features,
`distillation.py` the distances to the original's images and activations, `plain.py` the GAN's own loss. `scores.py` has
the numbers that a loss compares and the methods of a loss, and `distances.py` the distances of images and activations.
"""

from .distances import ACTIVATION_DISTANCES, DISTANCES, Distance, relative, scales, sharpness, sobel
from .distillation import DistillationLoss
from .plain import PlainLoss
from .scores import FLOOR, GeneratorLoss, Scores
from .self_supervised import SelfSupervisedLoss

#: The losses of this package by name.
LOSSES: dict[str, type[SelfSupervisedLoss | DistillationLoss | PlainLoss]] = {
    kind.__name__: kind for kind in (SelfSupervisedLoss, DistillationLoss, PlainLoss)
}

__all__ = [
    "ACTIVATION_DISTANCES",
    "DISTANCES",
    "FLOOR",
    "LOSSES",
    "Distance",
    "DistillationLoss",
    "GeneratorLoss",
    "PlainLoss",
    "Scores",
    "SelfSupervisedLoss",
    "relative",
    "scales",
    "sharpness",
    "sobel",
]
