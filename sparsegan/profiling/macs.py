"""Multiply-accumulates, dense and executed, and the bytes of a training state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..modes import Buffers
from ..nn.layer import DENSE_CLASSES, SparseConv
from ..nn.replace import sparse_layers
from ..signals import rows_and_columns


@dataclass(frozen=True)
class LayerMacs:
    """One layer: multiply-accumulates of the dense layer and of its kept weights, for the example's batch."""

    name: str
    kind: str
    dense: int
    executed: int


@dataclass
class MacsReport:
    """One row per layer, and totals. ``str()`` is a table."""

    rows: list[LayerMacs] = field(default_factory=list)

    @property
    def dense(self) -> int:
        """Multiply-accumulates of the dense model."""
        return sum(row.dense for row in self.rows)

    @property
    def executed(self) -> int:
        """Multiply-accumulates at kept weights."""
        return sum(row.executed for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'layer':<32}{'kind':<24}{'dense MACs':>16}{'executed':>16}"]
        lines += [f"{r.name:<32}{r.kind:<24}{r.dense:>16,}{r.executed:>16,}" for r in self.rows]
        lines.append(f"{'total':<56}{self.dense:>16,}{self.executed:>16,}")
        return "\n".join(lines)


_WITH_WEIGHTS = (*DENSE_CLASSES, nn.Linear)


def visit_layers(model: nn.Module, example: Any, visit: Callable[[str, nn.Module, Tensor, Tensor], None]) -> None:
    """Runs ``model(*example)`` once without gradients and calls ``visit(name, layer, input, output)`` at each layer."""
    hooks = []
    for name, module in model.named_modules():
        # A layer whose weight is parametrized has children, which compute the weight.
        if next(module.children(), None) is None or isinstance(module, _WITH_WEIGHTS):

            def hook(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = name
            ) -> None:
                x = args[0] if args else next(iter(kwargs.values()), None)
                if isinstance(x, Tensor) and isinstance(output, Tensor):
                    visit(name, module, x, output)

            hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    buffers = Buffers(model)
    try:
        with torch.no_grad():
            model(*example) if isinstance(example, tuple | list) else model(example)
    finally:
        buffers.put_back()  # counting must not change a model
        for handle in hooks:
            handle.remove()


def layer_macs(module: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int]:
    """(dense, executed) multiply-accumulates of one layer for one input and output; (0, 0) for layers without weights.

    A convolution counts every weight once per element of its coarse grid (the output; the input of a transposed
    convolution), padding included, as torch's own FLOP counter does.
    """
    if isinstance(module, SparseConv):
        weights, kept = math.prod(module.weight_shape), module.nnz
    elif isinstance(module, DENSE_CLASSES):
        weights = kept = module.weight.numel()
    elif isinstance(module, nn.Linear):
        dense = module.weight.numel() * (x.numel() // max(1, x.shape[-1]))
        return dense, dense
    else:
        return 0, 0
    sites, dims = (x if module.transposed else y), len(module.kernel_size)
    images = sites.shape[0] if sites.dim() == dims + 2 else 1
    height, width = rows_and_columns(sites.shape[-dims:], 1)
    return ops.macs(weights, images, height, width), ops.macs(kept, images, height, width)


def count_macs(model: nn.Module, example: Any) -> MacsReport:
    """Dense and executed multiply-accumulates of convolutions and linear layers, per layer and in total.

    Args:
        model: any module.
        example: the model's input, a tensor or a tuple of arguments. The model runs once without gradients, and its
            buffers are restored.

    A layer that runs twice is counted twice. ``torch.utils.flop_counter.FlopCounterMode`` counts the sparse ops too (in
    FLOPs, two per multiply-accumulate), and it sees functional calls that this function does not see.
    """
    report = MacsReport()

    def visit(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        dense, executed = layer_macs(module, x, y)
        if dense:
            report.rows.append(LayerMacs(name, type(module).__name__, dense, executed))

    visit_layers(model, example, visit)
    return report


def training_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
    """Bytes that training holds for a model: parameters, their gradients, optimizer state, support, plans.

    Activations and workspace depend on the batch and are not counted. ``sparsegan.native.workspace_bytes()`` returns
    the workspace.
    """

    def size(tensor: Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    parameters = list(model.parameters())
    state = {id(t): t for p in parameters for t in (optimizer.state.get(p, {}) if optimizer else {}).values()}
    layers = [layer for _name, layer in sparse_layers(model)]
    return {
        "parameters": sum(map(size, parameters)),
        "gradients": sum(size(p) for p in parameters if p.requires_grad),
        "optimizer": sum(size(t) for t in state.values() if isinstance(t, Tensor)),
        "support": sum(size(layer.support) for layer in layers),
        "plans": sum(layer.plan_bytes() for layer in layers),
    }


def masked_dense_bytes(model: nn.Module) -> int:
    """Bytes that masked-dense training of the same model would hold; compare ``sum(training_bytes(...).values())``.

    They are those of every weight of a sparse layer with a bool mask, of every other parameter, and of a gradient and
    Adam's two moments for each trained parameter. Adam's step counters, one number per parameter, are left out.
    """
    layers = {id(layer.values): layer for _name, layer in sparse_layers(model)}
    total = 0
    for parameter in model.parameters():
        layer = layers.get(id(parameter))
        weights = parameter.numel() if layer is None else math.prod(layer.weight_shape)
        copies = 4 if parameter.requires_grad else 1
        total += weights * parameter.element_size() * copies + (0 if layer is None else weights)
    return total
