"""The torch ops of sparse convolution. Importing this package registers them."""

from . import reference as reference
from .flops import macs
from .library import cuda_library, why_no_cuda
from .old_names import CURVES, gather
from .padding import PADDING_MODES
from .sparse_conv import OUTPUT_ACTIVATIONS, sparse_conv, wgrad

__all__ = [
    "CURVES",
    "OUTPUT_ACTIVATIONS",
    "PADDING_MODES",
    "cuda_library",
    "gather",
    "macs",
    "reference",
    "sparse_conv",
    "wgrad",
    "why_no_cuda",
]
