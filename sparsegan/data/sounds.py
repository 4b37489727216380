"""Sounds as samples: folders of WAV files, of any length, with windows for training.

A folder holds WAV files in any depth. Folders train/ and test/ (or val/) inside it are the splits; without them, a
tenth of the files is held out by the SHA-256 of their names, as in the layouts of images. All files need one rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..progress import announce, track
from . import layouts
from .samples import Samples
from .wav import read_header, read_wav


class Sounds(Samples):
    """Windows of sounds. Consecutive windows are laid over each sound, and each window is a sample.

    In training, a sample is a window at a random place of its sound. `in_order` yields the consecutive windows. The
    last of them ends with the sound, so it may overlap the one before it. A sound shorter than a window ends in zeros.

    `images`: the sounds, float32 [1, T] each. `cells`: int64 [N, 2], the sound and the first sample of each window.
    `rate`: samples per second; None for sounds of no particular rate.
    """

    def __init__(self, *arguments: Any, cells: Tensor, rate: int | None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.cells, self.rate = cells, rate

    @property
    def channels(self) -> int:
        """1: sounds of several channels become their mean."""
        return 1

    def batch(self, chosen: Tensor, draws: torch.Generator | None) -> Tensor:
        cells = self.cells[chosen]
        random = None if draws is None else torch.rand(len(cells), generator=draws)
        windows = []
        for row, (index, start) in enumerate(cells.tolist()):
            sound = self.images[index]
            if random is not None:
                start = int(random[row] * max(sound.shape[1] - self.size + 1, 1))
            window = sound[:, start : start + self.size]
            windows.append(F.pad(window, (0, self.size - window.shape[1])))
        return torch.stack(windows)


def cells_of(lengths: Sequence[int], size: int) -> Tensor:
    """The consecutive windows of `size` samples of sounds of these lengths, int64 [N, 2]: sound and first sample."""
    cells = []
    for index, length in enumerate(lengths):
        last = max(length - size, 0)
        cells += [(index, start) for start in [*range(0, last, size), last]]
    return torch.tensor(cells)


def sound_files(folder: Path) -> list[Path]:
    """Every WAV file in `folder`, in any depth, sorted. Hidden files are left out.

    Other files are left out too, and a printed line gives their number. Raises FileNotFoundError for a missing folder
    and ValueError for a folder without WAV files.
    """
    return files_of(folder, (".wav",))


def files_of(folder: Path, endings: Sequence[str]) -> list[Path]:
    """`sound_files` for files with any of `endings`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; a folder with {', '.join(endings)} files is expected")
    inside = (path for path in folder.rglob("*") if path.is_file())
    seen = [path for path in inside if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    files = sorted(path for path in seen if path.suffix.lower() in endings)
    if left := sorted({path.suffix or path.name for path in seen if path.suffix.lower() not in endings}):
        announce(f"{folder}: {len(seen) - len(files)} other files are left out ({', '.join(left[:4])})")
    if not files:
        raise ValueError(f"{folder} holds no {', '.join(endings)} files")
    return files


def sound_folder(root: Path, how: layouts.Reading) -> Sounds:
    """Returns windows of `how.size` samples of the WAV files in a folder. Raises ValueError for files of two rates."""
    files = layouts.split_files(root, how, sound_files)
    headers = [read_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        if header.rate != headers[0].rate:
            raise ValueError(
                f"{file} has {header.rate} Hz and {files[0]} has {headers[0].rate} Hz; all sounds need one rate, so "
                "resample them first"
            )
    lengths = [header.length for header in headers]
    if 4 * sum(lengths) > how.limit:
        sounds: Any = layouts.OnDisk(files, _samples)
    else:
        sounds = list(map(_samples, track(files, "reading sounds", how.quiet)))
    cells = cells_of(lengths, how.size)
    named = [file.relative_to(root).as_posix() for file in files]
    names = [f"{named[index]} from {start}" for index, start in cells.tolist()]
    return Sounds(sounds, names, how.size, cells=cells, rate=headers[0].rate, **how.training)


def _samples(file: Path) -> Tensor:
    return read_wav(file)[0]
