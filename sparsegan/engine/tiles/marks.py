"""Runs of a model in which marks on pixels spread from op to op, to find the elements of an output that depend on them.

A mark is NaN in a tensor whose dtype has NaN, and otherwise an element of a bool mask beside the tensor. Gradients or
differences would not serve: both vanish behind a closed ReLU, and differences fall below rounding long before the end
of the receptive field. Some ops lose NaN (comparisons, rounding to integers, ``nan_to_num``), so every op is watched.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..tracing import NORMS
from .images import noise, tensors_of

_aten = torch.ops.aten
#: Ops that work element by element but do not have the tag ``pointwise``.
_ELEMENTWISE = {_aten._to_copy, _aten.masked_fill, _aten.masked_fill_, _aten.copy_, _aten.where, _aten._prelu_kernel}
#: Ops whose result may be finite although their input is NaN. Their whole result is marked.
_FORGETFUL = {_aten.grid_sampler_2d, _aten.grid_sampler_3d, _aten.nansum, _aten.nanmedian}


class Spread(TorchDispatchMode):
    """A mode that follows marks through a run of a model on made-up numbers.

    `whole`: the first op that spreads the marks of a part of a tensor over its whole result, as a sentence. `reads`:
    the first place at which the forward reads a marked number in Python, for a branch or a size.
    """

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.whole: str | None = None
        self.reads: str | None = None
        self._twin = twin
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}  # holds the tensor, so that its id is not used again
        self._inside: list[tuple[str, bool]] = [(f"the model ({type(twin).__name__})", False)]
        self._hooks: list[Any] = []

    def __enter__(self) -> Spread:
        for name, module in self._twin.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # does not accept hooks
                continue
            telling = isinstance(module, NORMS) or type(module).__module__.startswith("torch.nn.modules")
            label = (f"{name or 'the model'} ({type(module).__name__})", telling)
            self._hooks.append(module.register_forward_pre_hook(self._entering(label)))
            self._hooks.append(module.register_forward_hook(self._leaving))
        return super().__enter__()

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        for hook in self._hooks:
            hook.remove()

    def _entering(self, label: tuple[str, bool]) -> Any:
        return lambda *_: self._inside.append(label)

    def _leaving(self, *_: Any) -> None:
        self._inside.pop()

    def _where(self, op: Any) -> str:
        label, telling = self._inside[-1]
        return label if telling else f"{op} in {label}"

    def mark(self, tensor: Tensor, mask: Tensor) -> Tensor:
        """Marks elements of a tensor, in place."""
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.masked_fill_(mask, math.nan)
        self._masks[id(tensor)] = (tensor, mask)
        return tensor

    def marks(self, tensor: Tensor) -> Tensor:
        """The marks on a tensor: bool, of the tensor's shape."""
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.isnan()
        known = self._masks.get(id(tensor))
        return torch.zeros_like(tensor, dtype=torch.bool) if known is None else known[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, op = kwargs or {}, func.overloadpacket
        given = tensors_of((args, kwargs))
        if op is _aten.convolution:
            return self._convolution(*args, **kwargs)
        before = [self.marks(one) for one in given]
        out = func(*args, **kwargs)
        if not any(bool(mask.any()) for mask in before):
            return out
        if op is _aten._local_scalar_dense:
            self.reads = self.reads or self._where(op)
            return out
        made = tensors_of(out)
        if torch.Tag.pointwise in func.tags or op in _ELEMENTWISE:
            sources = before[1:] if op is _aten.copy_ else before  # copy_ discards the old content of its target
            for one in made:
                for mask in sources:
                    self._mark_more(one, mask)
        elif _is_view(func):
            if not given[0].is_floating_point():
                self.mark(made[0], func(before[0], *args[1:], **kwargs))
        else:
            hidden = any(bool(mask.any()) for one, mask in zip(given, before, strict=True) if id(one) in self._masks)
            for one in made:
                if hidden or op in _FORGETFUL or not (one.is_floating_point() or one.is_complex()):
                    self.mark(one, torch.ones_like(one, dtype=torch.bool))
            if hidden or op in _FORGETFUL:
                self.whole = self.whole or f"{self._where(op)} hides which pixels its result depends on"
            full = any(bool(self.marks(one).all()) for one in made if one.numel() and id(one) not in self._masks)
            if (
                full
                and self.whole is None
                and all(int(mask.sum()) < 0.8 * mask.numel() for mask in before if mask.numel())
            ):
                self.whole = f"{self._where(op)} looks at the whole image"
        return out

    def _mark_more(self, tensor: Tensor, mask: Tensor) -> None:
        sizes = zip(reversed(mask.shape), reversed(tensor.shape), strict=False)
        if mask.dim() <= tensor.dim() and all(a in (1, b) for a, b in sizes):
            self.mark(tensor, self.marks(tensor) | mask)

    def _convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        transposed: bool,
        output_padding: Any,
        groups: int,
    ) -> Tensor:
        """Returns made-up numbers of the result's shape, with marks where the kernel reaches a marked pixel.

        The marks come from a convolution of one channel with a kernel of ones. The real convolution cannot be used,
        because fast algorithms spread NaN over their internal tiles.
        """
        ones = torch.ones(1, 1, *weight.shape[2:], device=x.device)
        one = self.marks(x).any(1, keepdim=True).float()
        reached = torch.convolution(one, ones, None, stride, padding, dilation, transposed, output_padding, 1) > 0.5
        channels = weight.shape[1] * groups if transposed else weight.shape[0]
        y = noise(x.new_empty(x.shape[0], channels, *reached.shape[2:]), 0.5, 1.5)
        parameters = [weight] if bias is None else [weight, bias]
        if any(bool(self.marks(one).any()) for one in parameters):  # computed from the image
            self.whole = self.whole or f"{self._where(_aten.convolution)} has a weight that depends on the image"
            return y.fill_(math.nan)
        return y.masked_fill_(reached, math.nan)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None and not returns[0].alias_info.is_write
