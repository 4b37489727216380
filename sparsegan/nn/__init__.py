"""Drop-in sparse layers."""

from .layer import SPARSE_CLASSES, SparseConv, SparseConv2d, SparseConvTranspose2d
from .replace import densify, sparse_layers

__all__ = ["SPARSE_CLASSES", "SparseConv", "SparseConv2d", "SparseConvTranspose2d", "densify", "sparse_layers"]
