"""The reference GANs. Each file holds one GAN: its networks, and its losses as named terms.

Other packages add GANs by entry points (`registry.py`).
"""

from . import cyclegan, dcgan, esrgan, hifigan, pix2pix, srgan, stargan, stylegan2
from .objective import ImagePool, Objective, View
from .reference import Reference, Training
from .registry import Registry

_MODULES = (dcgan, pix2pix, cyclegan, stargan, srgan, esrgan, stylegan2, hifigan)
#: name -> reference GAN, those of other packages too
GANS = Registry({module.reference.name: module.__name__ for module in _MODULES})

__all__ = [
    "GANS",
    "ImagePool",
    "Objective",
    "Reference",
    "Registry",
    "Training",
    "View",
    "cyclegan",
    "dcgan",
    "esrgan",
    "hifigan",
    "pix2pix",
    "srgan",
    "stargan",
    "stylegan2",
]
