"""Images and sounds: the user's own, in the layouts of the reference repositories, and sets from package registries.

`load(kind, source, size)` returns `Samples`. Their `batches(n)` feed a training loop; their `in_order(n)` feed an
evaluation. `kinds.py` lists the kinds of samples, `samples.py` describes a batch of each kind, `layouts.py` reads files
and `registry.py` holds the sets that install as packages.
"""

from . import registry
from .kinds import CROPS, DOMAINS, IMAGES, KINDS, PAIRS, SOUNDS, UNPAIRED, Kind
from .loading import DATASETS, TASKS, labelled, load
from .samples import Batches, Samples

__all__ = [
    "CROPS",
    "DATASETS",
    "DOMAINS",
    "IMAGES",
    "KINDS",
    "PAIRS",
    "SOUNDS",
    "TASKS",
    "UNPAIRED",
    "Batches",
    "Kind",
    "Samples",
    "labelled",
    "load",
    "registry",
]
