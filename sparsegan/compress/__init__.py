"""Self-supervised GAN compression: the losses, the loop, and the recipes it is compared with."""

from .baselines import RECIPES, Recipe, baseline
from .compressor import Compressor, Result, match_contrast, recalibrate_batch_norm
from .loss import GeneratorLoss, PlainLoss, SelfSupervisedLoss

__all__ = [
    "RECIPES",
    "Compressor",
    "GeneratorLoss",
    "PlainLoss",
    "Recipe",
    "Result",
    "SelfSupervisedLoss",
    "baseline",
    "match_contrast",
    "recalibrate_batch_norm",
]
