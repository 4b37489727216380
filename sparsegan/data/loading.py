"""Loads the samples of a kind from a folder, a file, or a data set that was installed with a package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..renamed import renamed_keywords, warn_of_old_name
from . import dead_leaves, layouts, mnist, registry, tones
from .kinds import CROPS, DOMAINS, IMAGES, KINDS, PAIRS, UNPAIRED, Kind
from .samples import Samples, Single

#: name of a set that is read from its package -> function(size) that returns images float32 [N, C, size, size] in
#: [-1, 1] and labels int64 [N]
DATASETS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {"mnist": mnist.images}

#: The names of kinds in `load` before 0.1 -> kind. They go in 0.2.
TASKS = {"dcgan": IMAGES, "pix2pix": PAIRS, "cyclegan": UNPAIRED, "stargan": DOMAINS, "srgan": CROPS}


def labelled(name: str, size: int = 64) -> tuple[Tensor, Tensor]:
    """Returns images float32 [N, C, size, size] in [-1, 1] and labels int64 [N].

    They are all of mnist, or the train split of another set.
    Raises ValueError for an unknown name or a set without labels, ModuleNotFoundError or FileNotFoundError if the data
    are missing.
    """
    if name in DATASETS:
        return DATASETS[name](size)
    accepted = [one for one, chosen in registry.SETS.items() if chosen.kind in (IMAGES, DOMAINS)]
    _accept("name", name, (*DATASETS, *accepted))
    samples = load(registry.SETS[name].kind, name, size, "train", augment=False)
    if not isinstance(samples, Single) or samples.labels is None:
        raise ValueError(f"{name} has no labels")
    parts = (samples.batch(chosen, None) for chosen in samples.order(shuffled=False).split(1000))
    return torch.cat([part if isinstance(part, Tensor) else part[0] for part in parts]), samples.labels


@renamed_keywords(task="kind")
def load(
    kind: Kind | str,
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
    """Returns the samples of a kind.

    `kind`: a kind, or its name in `KINDS`.
    `source`: a file or folder in a layout of the kind (see `layouts`), or the name of a set of `registry.SETS`. A name
        means the folder that `sparsegan data NAME` writes; for mnist it means the installed package. "dead-leaves" are
        synthetic images (`dead_leaves`), and "tones" synthetic sounds (`tones`).
    `size`: height and width of the images in a batch, in pixels; for crops, those of the images in full resolution; for
        sounds, the samples of a window.
    `split`: "train", "test" or "all"; "validation", a tenth of the base items of "train"; or "fit", the rest of it.
    `direction`: "AtoB" or "BtoA", for pairs and unpaired sides.
    `attributes`: the attribute file, for domains. `domains`: the attributes of that file to use; without a file, the
        domain folders to use.
    `channels`: 3, or 1 for grey images. Idx files are always grey.
    `augment`: whether windows are random and samples are mirrored, as the kind says; None: unless `split` is "test" or
        "validation".
    `load_size`: size of the images that windows are cut from; None: as the kind says, or `size` without augmentation.
    `limit`: bytes that decoded images may take. Above it, `workers` processes decode the images anew in each epoch.
    `quiet`: no progress bar while images are read.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError that says what is wrong. Nothing is left out silently.
    """
    kind = _kind(kind)
    _accept("split", split, layouts.SPLITS)
    _accept("direction", direction, ("AtoB", "BtoA"))
    _accept("channels", channels, (1, 3))
    for name, value, least in (("size", size, 4), ("limit", limit, 0), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if (attributes is not None or domains) and not kind.named:
        raise ValueError(f"attributes and domains choose from samples of domains; the kind is {kind.name}")
    if len(set(domains)) < len(domains):
        raise ValueError(f"domains is {list(domains)}; each name must be there once")

    augment = split not in ("test", "validation") if augment is None else augment
    load_size = (round(size * kind.scale) if augment else size) if load_size is None else load_size
    if load_size < size or (load_size != size and kind.scale == 1):
        accepted = f"size, {size}" if kind.scale == 1 else f"at least size, {size}"
        raise ValueError(f"load_size is {load_size}; for samples of kind {kind.name} it must be {accepted}")
    how = layouts.Reading(
        size,
        split,
        load_size,
        direction == "BtoA",
        channels,
        limit,
        kind.mirrored and augment,
        workers,
        quiet,
        None if attributes is None else Path(attributes),
        tuple(domains),
        registry.SETS[str(source)].base if source in registry.SETS else str,
    )
    if source in DATASETS and kind.name == IMAGES.name:
        return _installed(str(source), how)
    if source == dead_leaves.NAME:
        return dead_leaves.samples(kind.name, how)
    if source == tones.NAME:
        return tones.samples(kind.name, how)
    root = registry.folder(kind, source, size) if source in registry.SETS else Path(source)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; a folder, or one of {', '.join(registry.SETS)}, is expected")
    return kind.read(root, how)


def _kind(kind: Kind | str) -> Kind:
    if isinstance(kind, Kind):
        return kind
    if kind in TASKS:
        new = TASKS[kind]
        warn_of_old_name(f"the kind {kind!r}", repr(new.name))
        return new
    _accept("kind", kind, tuple(KINDS))
    return KINDS[kind]


def _installed(name: str, how: layouts.Reading) -> Samples:
    """Returns the samples of the set `name` of `DATASETS`."""
    images, labels = labelled(name, how.size)
    names = [f"{name}/{i}" for i in range(len(images))]
    chosen = [i for i, name in enumerate(names) if how.part == "all" or layouts.held_out(name) == (how.part == "test")]
    chosen = how.chosen(chosen, (names[i] for i in chosen))
    return Single(images[chosen], [names[i] for i in chosen], how.size, labels=labels[chosen])


def _accept(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, accepted))}")
