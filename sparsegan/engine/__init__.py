"""The inference engine: a whole generator compiled to a few fused steps.

``compiler.py`` turns a traced graph into ``steps.py``; ``values.py`` says how norms, activations and paddings travel
along until a step does them on the way; ``memory.py`` plans the arena; ``engine.py`` runs it all.
"""

from .engine import Engine, StepTime, optimize_for_inference

__all__ = ["Engine", "StepTime", "optimize_for_inference"]
