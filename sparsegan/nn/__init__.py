"""Drop-in sparse layers."""

from .base import SparseConv
from .kept_weights import SETTINGS
from .layer import SPARSE_CLASSES, SparseConv2d, SparseConvTranspose2d
from .replace import densify, sparse_layers

__all__ = [
    "SETTINGS",
    "SPARSE_CLASSES",
    "SparseConv",
    "SparseConv2d",
    "SparseConvTranspose2d",
    "densify",
    "sparse_layers",
]
