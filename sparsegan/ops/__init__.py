"""The torch ops of sparse convolution. Importing this package registers them."""

from . import reference as reference
from .sparse_conv import CURVES, PADDING_MODES, cuda_library, macs, sparse_conv, wgrad, why_no_cuda

__all__ = ["CURVES", "PADDING_MODES", "cuda_library", "macs", "reference", "sparse_conv", "wgrad", "why_no_cuda"]
