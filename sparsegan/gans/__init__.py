"""Reference GANs, one file each: networks, and losses as named terms."""

from . import dcgan
from .objective import Objective

__all__ = ["Objective", "dcgan"]
