"""What ``sparsegan bench`` times: single layers, their training, and a CycleGAN generator's, against dense engines.

cases     the layers, and the speed-up that is asked of each
engines   every dense engine that is installed, and how two calls are timed in turns
results   rows of one run and the file they go to
layers    one forward of each layer                 ``sparsegan bench layers``
training  forward and backward, memory, a new mask   ``sparsegan bench training``
gpu       both on an NVIDIA GPU                      ``sparsegan bench gpu``
"""

from .cases import LAYERS, Job, LayerCase, jobs, target
from .engines import dense_engines
from .layers import time_layer
from .results import Results, facts
from .training import CycleGanGenerator, time_new_mask, time_training, training_memory

__all__ = [
    "LAYERS",
    "CycleGanGenerator",
    "Job",
    "LayerCase",
    "Results",
    "dense_engines",
    "facts",
    "jobs",
    "target",
    "time_layer",
    "time_new_mask",
    "time_training",
    "training_memory",
]
