"""The inference engine: a whole generator compiled to a few fused steps.

``optimize.py`` chooses the engine: ``cpu.py`` or ``gpu.py``, on top of ``base.py``. Both read ``rules.py``, which says
what a module or function means. On a CPU ``compiler.py`` follows a traced graph and has ``builder.py`` append
``steps.py``; ``values.py`` says how norms, activations and paddings are deferred until a step reads the value; and
``arena.py`` plans the memory.
"""

from .cpu import Engine, StepTime
from .gpu import GpuEngine
from .optimize import optimize_for_inference

__all__ = ["Engine", "GpuEngine", "StepTime", "optimize_for_inference"]
