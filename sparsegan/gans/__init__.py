"""The reference GANs. Each file holds one GAN: its networks, and its losses as named terms."""

from . import cyclegan, dcgan, esrgan, hifigan, pix2pix, srgan, stargan
from .objective import ImagePool, Objective, View
from .reference import Reference, Training

#: name -> reference GAN
GANS = {
    module.reference.name: module.reference for module in (dcgan, pix2pix, cyclegan, stargan, srgan, esrgan, hifigan)
}

__all__ = [
    "GANS",
    "ImagePool",
    "Objective",
    "Reference",
    "Training",
    "View",
    "cyclegan",
    "dcgan",
    "esrgan",
    "hifigan",
    "pix2pix",
    "srgan",
    "stargan",
]
