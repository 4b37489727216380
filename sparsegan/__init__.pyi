# The public names. __init__.py reads this file: a line here is all that a new name needs.
from . import allocation as allocation
from . import gans as gans
from . import ops as ops
from . import prune as prune
from . import reference as reference
from .averaging import Average as Average
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load as load
from .checkpoint import save as save
from .compress import Compressor as Compressor
from .engine import Engine as Engine
from .engine import optimize_for_inference as optimize_for_inference
from .export import export_onnx as export_onnx
from .macs import count_macs as count_macs
from .macs import training_bytes as training_bytes
from .nn import SparseConv2d as SparseConv2d
from .nn import SparseConvTranspose2d as SparseConvTranspose2d
from .profiling import profile as profile
from .profiling import tune as tune
from .prune import densify as densify
from .prune import shrink as shrink
from .prune import sparse_layers as sparse_layers
from .prune import sparsify as sparsify
from .removal import remove_filters as remove_filters
from .reorder import reorder_channels as reorder_channels

__version__: str
