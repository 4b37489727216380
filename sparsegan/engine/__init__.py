"""The inference engine: a whole generator compiled to a few fused steps.

``optimize.py`` chooses the engine for the model's device, ``cpu.py`` or ``gpu.py``. Both are built on ``base.py`` and
use the table in ``rules.py``, which gives each module and function a meaning of ``meanings.py``. On a CPU,
``compiler.py`` follows a traced graph and calls ``builder.py``, which appends the steps of ``steps.py``. ``values.py``
defines how norms, activations and paddings are deferred until a step reads the value. ``arena.py`` plans the memory.
"""

from .cpu import Engine, StepTime
from .gpu import GpuEngine
from .optimize import optimize_for_inference

__all__ = ["Engine", "GpuEngine", "StepTime", "optimize_for_inference"]
