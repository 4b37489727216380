"""The kinds of samples that a GAN may learn from: the layouts that hold them, and the windows that training takes.

Each file of `sparsegan/gans` names the kind of its GAN. `dataclasses.replace` gives a kind with other windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from . import layouts, sounds
from .samples import Samples


@dataclass(frozen=True)
class Kind:
    """One kind of samples. `samples.py` describes a batch of each kind.

    `read(root, how)`: returns the samples of a file or folder. `scale`: training cuts random windows from images that
    are `scale` times as large as the windows. `mirrored`: training mirrors half of the samples. `named`: samples belong
    to domains or have attributes, some of which can be chosen by name. `signals`: samples are sounds, not images, and a
    size is a number of samples of a sound.
    """

    name: str
    read: Callable[[Path, layouts.Reading], Samples]
    scale: Fraction = Fraction(1)
    mirrored: bool = False
    named: bool = False
    signals: bool = False


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
SOUNDS = Kind("sounds", sounds.sound_folder, signals=True)

#: name -> kind
KINDS = {kind.name: kind for kind in (IMAGES, PAIRS, UNPAIRED, DOMAINS, CROPS, SOUNDS)}
