"""The shapes of a model's values for inputs of a new size, without computing the values.

An engine compiles for a size when it meets the size. Running the model for that would cost more than the image itself,
so the graph is traced on a copy that lies on the meta device and has no numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..calls import Call
from ..nn.layer import SparseConv
from .rules import NORM_FORWARDS
from .tracing import Tracer


class Shapes:
    """Traces a model by shapes. `why_not`: the reason why its forward cannot be, once that has shown itself.

    A forward that needs values, or the device, is an example; such a model is traced by running it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._twin: nn.Module | None = None
        self.why_not: str | None = None

    def trace(self, call: Call, leaves: Collection[str]) -> tuple[fx.Graph, Any] | None:
        """The graph for inputs of these shapes, and the structure of its outputs, as
        :class:`sparsegan.engine.tracing.Tracer` makes them; None if `why_not`. `leaves`: modules that are not looked
        into."""
        if self.why_not is not None:
            return None
        try:
            if self._twin is None:
                self._twin = _without_numbers(self._model)
            tracer = Tracer(self._twin, call.changed(_empty), leaves)
            graph = tracer.trace()
            self._check_constants(graph)
        except Exception as error:  # whatever a forward makes of tensors without values
            self.why_not = str(error)
            return None
        return graph, tracer.out_structure

    def _check_constants(self, graph: fx.Graph) -> None:
        """Raises where the forward made a tensor of its own: the trace holds one without values, or in the copy."""
        for node in graph.nodes:
            if node.op == "get_attr":
                found: Any = self._model
                for part in str(node.target).split("."):
                    found = getattr(found, part)


def _empty(one: Tensor) -> Tensor:
    return torch.empty_like(one, device="meta")


def _without_numbers(model: nn.Module) -> nn.Module:
    """A copy on the meta device, of torch's own layers: nothing of a parameter's size is allocated on the way."""
    known: dict[int, Any] = {}
    for name, module in model.named_modules():
        hooks = module._forward_hooks or module._forward_pre_hooks
        if isinstance(module, SparseConv):
            if hooks:
                raise RuntimeError(f"{name} has hooks")
            known[id(module)] = module.dense_twin("meta").eval()
        elif type(module).forward in NORM_FORWARDS and not hooks:
            known[id(module)] = nn.ReLU()  # of the same shape too; torch takes a norm apart there, and takes longer
    for tensor in (*model.parameters(), *model.buffers()):
        empty = _empty(tensor)
        known[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, known)
