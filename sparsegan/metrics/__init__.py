"""Scores of generated images: distances between sets of images, and classifiers."""

from .classifier import CLASSIFIERS, Classifier, find_classifier, load_classifier, save_classifier, train_classifier
from .distances import (
    MOST_PSNR,
    Distances,
    Evaluator,
    Score,
    TaskEvaluator,
    distances_between,
    diversity,
    fidelity,
    overall,
)
from .features import Features, load_features
from .likeness import CLOSE, FAR, PARTLY, Likeness, OriginalImages, edge_energy, psnr, worst

__all__ = [
    "CLASSIFIERS",
    "CLOSE",
    "FAR",
    "MOST_PSNR",
    "PARTLY",
    "Classifier",
    "Distances",
    "Evaluator",
    "Features",
    "Likeness",
    "OriginalImages",
    "Score",
    "TaskEvaluator",
    "distances_between",
    "diversity",
    "edge_energy",
    "fidelity",
    "find_classifier",
    "load_classifier",
    "load_features",
    "overall",
    "psnr",
    "save_classifier",
    "train_classifier",
    "worst",
]
