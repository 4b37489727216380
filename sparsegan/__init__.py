"""sparsegan: compress a trained GAN's generator, and run and train it on its compressed weights."""

import importlib.metadata

import torch  # noqa: F401  (first: the native module uses torch's library)

from . import allocation, gans, ops, prune, reference
from .averaging import Average
from .checkpoint import CheckpointError, load, save
from .compress import Compressor
from .engine import Engine, optimize_for_inference
from .export import export_onnx
from .macs import count_macs, training_bytes
from .nn import SparseConv2d, SparseConvTranspose2d
from .profiling import profile, tune
from .prune import densify, shrink, sparse_layers, sparsify
from .removal import remove_filters
from .reorder import reorder_channels

__version__ = importlib.metadata.version("sparsegan")

__all__ = [
    "Average",
    "CheckpointError",
    "Compressor",
    "Engine",
    "SparseConv2d",
    "SparseConvTranspose2d",
    "allocation",
    "count_macs",
    "densify",
    "export_onnx",
    "gans",
    "load",
    "ops",
    "optimize_for_inference",
    "profile",
    "prune",
    "reference",
    "remove_filters",
    "reorder_channels",
    "save",
    "shrink",
    "sparse_layers",
    "sparsify",
    "training_bytes",
    "tune",
]
