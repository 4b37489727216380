"""Multiply-accumulates, bytes and measured times of a model, and the build and machine at hand."""

from .info import info
from .layers import LayerProfile, ProfileReport, profile, tune
from .macs import LayerMacs, MacsReport, count_macs, training_bytes

__all__ = [
    "LayerMacs",
    "LayerProfile",
    "MacsReport",
    "ProfileReport",
    "count_macs",
    "info",
    "profile",
    "training_bytes",
    "tune",
]
