"""Self-supervised GAN compression: the losses, the loop, and the recipes it is compared with."""

from .baselines import RECIPES, ROWS, Recipe, baseline, of_size
from .comparison import gap
from .compressor import Compressor, Result
from .config import CompressionConfig, RunConfig
from .data_free import Blank, BlankBatches, GeneratedBatches, OwnImages
from .losses import DistillationLoss, GeneratorLoss, PlainLoss, SelfSupervisedLoss
from .statistics import match_contrast, recalibrate_batch_norm
from .validation import Look, Validation

__all__ = [
    "RECIPES",
    "ROWS",
    "Blank",
    "BlankBatches",
    "CompressionConfig",
    "Compressor",
    "DistillationLoss",
    "GeneratedBatches",
    "GeneratorLoss",
    "Look",
    "OwnImages",
    "PlainLoss",
    "Recipe",
    "Result",
    "RunConfig",
    "SelfSupervisedLoss",
    "Validation",
    "baseline",
    "gap",
    "match_contrast",
    "of_size",
    "recalibrate_batch_norm",
]
