"""Tracing a model for inputs of a new size by shapes only, without computing values.

An engine compiles a program for each new size. Running the model for that purpose would cost more than computing the
image, so the graph is traced on a copy of the model on the meta device, which holds no values.
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
    """Traces a model by shapes only. `why_not`: the reason why this is not possible, once it is known.

    It is not possible, for example, if the forward needs values or the device. Such a model is traced by running it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._twin: nn.Module | None = None
        self.why_not: str | None = None

    def trace(self, call: Call, leaves: Collection[str]) -> tuple[fx.Graph, Any] | None:
        """The graph for inputs of these shapes and the structure of its outputs, as
        :class:`sparsegan.engine.tracing.Tracer` makes them; None if there is a `why_not`.

        `leaves`: names of modules whose forward is not traced.
        """
        if self.why_not is not None:
            return None
        try:
            if self._twin is None:
                self._twin = _without_numbers(self._model)
            tracer = Tracer(self._twin, call.changed(_empty), leaves)
            graph = tracer.trace()
            self._check_constants(graph)
        except Exception as error:  # a forward may raise anything when it gets tensors without values
            self.why_not = str(error)
            return None
        return graph, tracer.out_structure

    def _check_constants(self, graph: fx.Graph) -> None:
        """Raises AttributeError if the graph reads a tensor that the model does not have. The forward then made the
        tensor itself, and the traced tensor has no values or belongs to the copy."""
        for node in graph.nodes:
            if node.op == "get_attr":
                found: Any = self._model
                for part in str(node.target).split("."):
                    found = getattr(found, part)


def _empty(one: Tensor) -> Tensor:
    return torch.empty_like(one, device="meta")


def _without_numbers(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, with dense layers. Nothing of a parameter's size is allocated."""
    known: dict[int, Any] = {}
    for name, module in model.named_modules():
        hooks = module._forward_hooks or module._forward_pre_hooks
        if isinstance(module, SparseConv):
            if hooks:
                raise RuntimeError(f"{name} has hooks")
            known[id(module)] = module.dense_twin("meta").eval()
        elif type(module).forward in NORM_FORWARDS and not hooks:
            known[id(module)] = nn.ReLU()  # gives the same shape, faster: on meta, torch decomposes a norm
    for tensor in (*model.parameters(), *model.buffers()):
        empty = _empty(tensor)
        known[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, known)
