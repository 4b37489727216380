"""Real images: users' own in the layouts of the reference repositories, and sets that package registries carry.

`load(kind, source, size)` gives `Samples`; their `batches(n)` feed a training loop, `in_order(n)` an evaluation.
`kinds.py` says which kinds there are, `samples.py` what a batch of each is, `layouts.py` which files are read,
`registry.py` which sets install.
"""

from . import registry
from .kinds import CROPS, DOMAINS, IMAGES, KINDS, PAIRS, UNPAIRED, Kind
from .loading import DATASETS, TASKS, labelled, load
from .samples import Batches, Samples

__all__ = [
    "CROPS",
    "DATASETS",
    "DOMAINS",
    "IMAGES",
    "KINDS",
    "PAIRS",
    "TASKS",
    "UNPAIRED",
    "Batches",
    "Kind",
    "Samples",
    "labelled",
    "load",
    "registry",
]
