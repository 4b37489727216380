"""The benchmarks of ``sparsegan bench``: layers, their training, and whole generators, against dense engines.

cases       the layers, and the target speed-up of each
engines     every installed dense engine, and the timing of calls in turns
results     the rows of one run, and their file
layers      one forward of each layer                 ``sparsegan bench layers``
training    forward and backward, memory, a new mask   ``sparsegan bench training``
generators  one forward of each generator              ``sparsegan bench generators``
gpu         layers on an NVIDIA GPU                    ``sparsegan bench gpu``
"""

from .cases import LAYERS, Job, LayerCase, jobs, target
from .engines import dense_engines
from .generators import (
    GENERATORS,
    GeneratorCase,
    GeneratorJob,
    generator_jobs,
    generator_target,
    time_generator,
)
from .layers import time_layer
from .results import Results, facts
from .training import CycleGanGenerator, time_new_mask, time_training, training_memory

__all__ = [
    "GENERATORS",
    "LAYERS",
    "CycleGanGenerator",
    "GeneratorCase",
    "GeneratorJob",
    "Job",
    "LayerCase",
    "Results",
    "dense_engines",
    "facts",
    "generator_jobs",
    "generator_target",
    "jobs",
    "target",
    "time_generator",
    "time_layer",
    "time_new_mask",
    "time_training",
    "training_memory",
]
