"""Real images: users' own in the layouts of the reference repositories, and sets that package registries carry.

`load(task, source, size)` gives `Samples`; their `batches(n)` feed a training loop, `in_order(n)` an evaluation.
`samples.py` says what a batch of each task is, `layouts.py` which files are read, `registry.py` which sets install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from . import layouts, mnist, registry
from .samples import Batches, Samples, Single

__all__ = ["DATASETS", "TASKS", "Batches", "Samples", "labelled", "load", "registry"]

#: What installs as a package -> function(size) giving images float32 [N, C, size, size] in [-1, 1], labels int64 [N]
DATASETS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {"mnist": mnist.images}

#: task -> (size that random windows are cut from, as a multiple of the images' size; whether they are mirrored), as
#: the reference repositories train
TASKS = {
    "dcgan": (Fraction(1), False),
    "pix2pix": (Fraction(286, 256), True),
    "cyclegan": (Fraction(286, 256), True),
    "stargan": (Fraction(1), True),
    "srgan": (Fraction(1), True),
}


def labelled(name: str, size: int = 64) -> tuple[Tensor, Tensor]:
    """Images float32 [N, C, size, size] in [-1, 1] and labels int64 [N]: mnist's, or of the train split of another set.

    Raises ValueError for an unknown name or a set without labels, ModuleNotFoundError or FileNotFoundError when what
    holds the data is missing.
    """
    if name in DATASETS:
        return DATASETS[name](size)
    accepted = [one for one, chosen in registry.SETS.items() if chosen.task in ("dcgan", "stargan")]
    _accept("name", name, (*DATASETS, *accepted))
    samples = load(registry.SETS[name].task, name, size, "train", augment=False)
    if not isinstance(samples, Single) or samples.labels is None:
        raise ValueError(f"{name} has no labels")
    parts = (samples.batch(chosen, None) for chosen in samples.order(shuffled=False).split(1000))
    return torch.cat([part if isinstance(part, Tensor) else part[0] for part in parts]), samples.labels


def load(
    task: str,
    source: str | Path,
    size: int = 64,
    split: str = "train",
    *,
    direction: str = "AtoB",
    attributes: str | Path | None = None,
    domains: Sequence[str] = (),
    channels: int = 3,
    augment: bool | None = None,
    load_size: int | None = None,
    limit: int = 2 << 30,
    workers: int = 2,
    quiet: bool = True,
) -> Samples:
    """The samples of a task, as bytes in memory.

    `task`: a key of `TASKS`. `source`: a file or folder in one of the task's layouts (see `layouts`), or the name of a
        set of `registry.SETS`, which means the folder that `sparsegan data NAME` writes (mnist: the installed package).
    `size`: height and width of the images in a batch, in pixels; srgan's high ones.
    `split`: "train", "test" or "all".
    `direction`: of pix2pix and cyclegan, "AtoB" or "BtoA". `attributes`: stargan's attribute file, of which `domains`
        chooses attributes; without it `domains` chooses domain folders.
    `channels`: 3, or 1 for grey images (idx files always are).
    `augment`: random windows and mirroring; None: as `TASKS` says when training, never in the test split.
    `load_size`: the size that windows are cut from; None: as `TASKS` says, `size` when nothing is augmented.
    `limit`: bytes that decoded images may take; above it `workers` processes decode them anew each epoch.
    `quiet`: no progress bar while images are read.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError naming what is wrong: nothing is left out silently.
    """
    _accept("task", task, tuple(TASKS))
    _accept("split", split, layouts.SPLITS)
    _accept("direction", direction, ("AtoB", "BtoA"))
    _accept("channels", channels, (1, 3))
    for name, value, least in (("size", size, 4), ("limit", limit, 0), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if (attributes is not None or domains) and task != "stargan":
        raise ValueError(f"attributes and domains are stargan's; the task is {task}")
    if len(set(domains)) < len(domains):
        raise ValueError(f"domains is {list(domains)}; each name must be there once")

    scale, flip = TASKS[task]
    augment = split != "test" if augment is None else augment
    load_size = (round(size * scale) if augment else size) if load_size is None else load_size
    if load_size < size or (load_size != size and task not in ("pix2pix", "cyclegan")):
        raise ValueError(f"load_size is {load_size}; it must be at least size, {size}, and is pix2pix's and cyclegan's")
    how = layouts.Reading(
        size, split, load_size, direction == "BtoA", channels, limit, flip and augment, workers, quiet
    )
    if source == "mnist" and task == "dcgan":
        return _digits(size, split)
    root = registry.folder(task, source, size) if source in registry.SETS else Path(source)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; a folder, or one of {', '.join(registry.SETS)}, is expected")
    if task == "dcgan":
        return layouts.idx_files(root, how) if layouts.is_idx(root) else layouts.image_folder(root, how)
    if task == "pix2pix":
        return layouts.pairs(root, how)
    if task == "cyclegan":
        return layouts.two_sides(root, how)
    if task == "srgan":
        return layouts.photographs(root, how)
    if attributes is not None:
        return layouts.attribute_file(root, how, Path(attributes), domains)
    return layouts.domain_folders(root, how, domains)


def _digits(size: int, split: str) -> Samples:
    images, labels = labelled("mnist", size)
    names = [f"mnist/{i}" for i in range(len(images))]
    if split != "all":
        chosen = [i for i, name in enumerate(names) if layouts.held_out(name) == (split == "test")]
        images, labels, names = images[chosen], labels[chosen], [names[i] for i in chosen]
    return Single("dcgan", images, names, size, labels=labels)


def _accept(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, accepted))}")
