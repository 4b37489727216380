"""Self-supervised GAN compression: the losses, the loop, and the recipes it is compared with."""

from .baselines import RECIPES, ROWS, Recipe, baseline, of_size
from .comparison import gap
from .compressor import Compressor, Result
from .data_free import Blank, OwnImages
from .losses import DistillationLoss, GeneratorLoss, PlainLoss, SelfSupervisedLoss
from .statistics import match_contrast, recalibrate_batch_norm

__all__ = [
    "RECIPES",
    "ROWS",
    "Blank",
    "Compressor",
    "DistillationLoss",
    "GeneratorLoss",
    "OwnImages",
    "PlainLoss",
    "Recipe",
    "Result",
    "SelfSupervisedLoss",
    "baseline",
    "gap",
    "match_contrast",
    "of_size",
    "recalibrate_batch_norm",
]
