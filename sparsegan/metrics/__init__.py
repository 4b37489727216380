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

__all__ = [
    "CLASSIFIERS",
    "MOST_PSNR",
    "Classifier",
    "Distances",
    "Evaluator",
    "Features",
    "Score",
    "TaskEvaluator",
    "distances_between",
    "diversity",
    "fidelity",
    "find_classifier",
    "load_classifier",
    "load_features",
    "overall",
    "save_classifier",
    "train_classifier",
]
