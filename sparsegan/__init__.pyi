# The public names. __init__.py reads this file, so a new public name needs only a line here.
from . import gans as gans
from . import nn as nn
from . import ops as ops
from . import pruning as pruning
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load as load
from .checkpoint import save as save
from .compress import CompressionConfig as CompressionConfig
from .compress import Compressor as Compressor
from .compress import RunConfig as RunConfig
from .engine import Engine as Engine
from .engine import optimize_for_inference as optimize_for_inference
from .engine.export import export_onnx as export_onnx
from .nn import ModulatedConv as ModulatedConv
from .nn import SparseConv1d as SparseConv1d
from .nn import SparseConv2d as SparseConv2d
from .nn import SparseConvTranspose1d as SparseConvTranspose1d
from .nn import SparseConvTranspose2d as SparseConvTranspose2d
from .nn import densify as densify
from .nn import sparse_layers as sparse_layers
from .profiling import count_macs as count_macs
from .profiling import profile as profile
from .profiling import training_bytes as training_bytes
from .profiling import tune as tune
from .pruning import Average as Average
from .pruning import remove_filters as remove_filters
from .pruning import reorder_channels as reorder_channels
from .pruning import shrink as shrink
from .pruning import sparsify as sparsify

__version__: str
