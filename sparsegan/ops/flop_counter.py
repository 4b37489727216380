"""The sparse ops' formulas for torch's FLOP counter, handed over when somebody imports it.

Importing ``torch.utils.flop_counter`` imports Triton, where Triton is installed: half of the time that
``import sparsegan`` would take, for a module that few programs use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FLOP_COUNTER = "torch.utils.flop_counter"


class _AfterImport(MetaPathFinder):
    """Finds the FLOP counter as the other finders do, and calls ``register()`` once it is loaded."""

    def __init__(self, register: Callable[[], None]) -> None:
        self.register = register

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != FLOP_COUNTER:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                self.register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def with_flop_counter(register: Callable[[], None]) -> None:
    """Call ``register()``, now where the FLOP counter is loaded, else right after its import."""
    if FLOP_COUNTER in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterImport(register))
