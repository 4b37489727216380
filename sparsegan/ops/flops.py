"""The number of multiplications of the sparse ops, as formulas for torch's FLOP counter.

The formulas are registered when a program imports the counter, not when it imports sparsegan. The import of
``torch.utils.flop_counter`` also imports Triton, where Triton is installed. That would be half of the time of
``import sparsegan``, for a module that few programs use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FLOP_COUNTER = "torch.utils.flop_counter"


def macs(nnz: int, images: int, coarse_height: int, coarse_width: int) -> int:
    """The multiply-accumulates of either op: each kept weight meets every element of the coarse grid once.

    Products with the padding are counted too, as in torch's formula for a dense convolution.
    """
    return nnz * images * coarse_height * coarse_width


def register_flops(sparse_conv: Any, wgrad: Any) -> None:
    """Registers the formulas of a pair of ops. Both are op packets: ``torch.ops`` objects without an overload name."""

    def register() -> None:
        from torch.utils.flop_counter import register_flop_formula

        register_flop_formula(sparse_conv)(_sparse_conv_flops)
        register_flop_formula(wgrad)(_wgrad_flops)

    _with_flop_counter(register)


def _sparse_conv_flops(
    x_shape: Any,
    values_shape: Any,
    bias_shape: Any,
    support_shape: Any,
    plan_shape: Any,
    adjoint_plan_shape: Any,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    coarse = x_shape[2:] if adjoint else output_size[1:]
    return 2 * macs(values_shape[0], x_shape[0], *coarse)


def _wgrad_flops(
    gy_shape: Any,
    x_shape: Any,
    support_shape: Any,
    plan_shape: Any,
    adjoint_plan_shape: Any,
    geometry: list[int],
    adjoint: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    coarse = x_shape[2:] if adjoint else gy_shape[2:]
    return 2 * macs(support_shape[0] * geometry[-1] * geometry[-2], x_shape[0], *coarse)


class _AfterImport(MetaPathFinder):
    """Finds the FLOP counter through the other finders, and calls the waiting functions when the counter is loaded."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

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
                for register in self.waiting:
                    register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


#: One finder for all ops: two would ask each other without end.
_AFTER_IMPORT = _AfterImport()


def _with_flop_counter(register: Callable[[], None]) -> None:
    """Calls ``register()``: now if the FLOP counter is loaded, else right after the import of the counter."""
    if FLOP_COUNTER in sys.modules:
        register()
        return
    if not _AFTER_IMPORT.waiting:
        sys.meta_path.insert(0, _AFTER_IMPORT)
    _AFTER_IMPORT.waiting.append(register)
