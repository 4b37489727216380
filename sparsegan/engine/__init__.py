"""The inference engine: a whole generator compiled to a few fused steps.

``compiler.py`` turns a traced graph into ``steps.py``; ``values.py`` says how norms, activations and paddings travel
along until a step does them on the way; ``memory.py`` plans the arena; ``engine.py`` runs it all. ``gpu.py`` is another
way to the same, for GPUs.
"""

from .engine import Engine, StepTime, optimize_for_inference
from .gpu import GpuEngine

__all__ = ["Engine", "GpuEngine", "StepTime", "optimize_for_inference"]
