"""Pruning: the choice of weights to drop, supports that shrink, grow and move, and removed or reordered channels."""

from . import allocation, schedule
from .allocation import allocate, sensitivity
from .averaging import Average
from .regrow import dense_gradients
from .removal import remove_filters
from .reorder import reorder_channels
from .surgery import move_support, shrink, sparsify

__all__ = [
    "Average",
    "allocate",
    "allocation",
    "dense_gradients",
    "move_support",
    "remove_filters",
    "reorder_channels",
    "schedule",
    "sensitivity",
    "shrink",
    "sparsify",
]
