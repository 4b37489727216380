"""Drop-in sparse layers."""

from .base import SparseConv
from .kept_weights import SETTINGS
from .layer import SPARSE_CLASSES, SparseConv1d, SparseConv2d, SparseConvTranspose1d, SparseConvTranspose2d
from .modulated import ModulatedConv
from .replace import densify, sparse_layers

__all__ = [
    "SETTINGS",
    "SPARSE_CLASSES",
    "ModulatedConv",
    "SparseConv",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "densify",
    "sparse_layers",
]
