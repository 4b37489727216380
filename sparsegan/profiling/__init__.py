"""Multiply-accumulates, bytes and measured times of a model; ``info`` describes the build and the machine."""

from .layers import LayerProfile, ProfileReport, interleaved_ms, interleaved_times, profile, tune
from .macs import LayerMacs, MacsReport, count_macs, training_bytes

__all__ = [
    "LayerMacs",
    "LayerProfile",
    "MacsReport",
    "ProfileReport",
    "count_macs",
    "interleaved_ms",
    "interleaved_times",
    "profile",
    "training_bytes",
    "tune",
]
