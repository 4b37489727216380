"""The kinds of samples that a GAN may learn from: which layouts hold them, and how they are cut in training.

A GAN's own file names its kind; `dataclasses.replace` makes one that is cut in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from . import layouts
from .samples import Samples


@dataclass(frozen=True)
class Kind:
    """One kind of samples. `samples.py` says what a batch of each is.

    `read(root, how)`: the samples of a file or folder. `scale`: in training random windows are cut from images of so
    many times their size, which for a scale of 1 is their size. `mirrored`: half of the samples are mirrored in
    training. `named`: samples belong to domains or have attributes, of which some may be chosen by name.
    """

    name: str
    read: Callable[[Path, layouts.Reading], Samples]
    scale: Fraction = Fraction(1)
    mirrored: bool = False
    named: bool = False


def _images(root: Path, how: layouts.Reading) -> Samples:
    return layouts.idx_files(root, how) if layouts.is_idx(root) else layouts.image_folder(root, how)


def _domains(root: Path, how: layouts.Reading) -> Samples:
    return layouts.domain_folders(root, how) if how.attributes is None else layouts.attribute_file(root, how)


# Scales and mirroring are those of the reference repositories.
IMAGES = Kind("images", _images)
PAIRS = Kind("pairs", layouts.pairs, scale=Fraction(286, 256), mirrored=True)
UNPAIRED = Kind("unpaired", layouts.two_sides, scale=Fraction(286, 256), mirrored=True)
DOMAINS = Kind("domains", _domains, mirrored=True, named=True)
CROPS = Kind("crops", layouts.photographs, mirrored=True)

#: name -> kind
KINDS = {kind.name: kind for kind in (IMAGES, PAIRS, UNPAIRED, DOMAINS, CROPS)}
