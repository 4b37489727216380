"""Scores of generated images: distances between sets of images, and classifiers."""

from .classifier import CLASSIFIERS, Classifier, find_classifier, load_classifier, save_classifier, train_classifier
from .distances import Distances, Evaluator, Features, Score, TaskEvaluator, distances_between, load_features

__all__ = [
    "CLASSIFIERS",
    "Classifier",
    "Distances",
    "Evaluator",
    "Features",
    "Score",
    "TaskEvaluator",
    "distances_between",
    "find_classifier",
    "load_classifier",
    "load_features",
    "save_classifier",
    "train_classifier",
]
