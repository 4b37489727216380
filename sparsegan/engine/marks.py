"""Which elements of an output depend on marked pixels: a run of a model in which marks spread from op to op.

A mark is NaN in a tensor that can hold it, else an element of a mask beside the tensor. A gradient or a difference
would not do: both vanish behind a closed ReLU, and differences fade below rounding long before the receptive field
ends. Some ops lose NaN (comparisons, rounding to integers, ``nan_to_num``), so each op of such a run is watched.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .images import noise, tensors_of
from .tracing import NORMS

_aten = torch.ops.aten
#: Ops that work element by element and are not tagged so.
_ELEMENTWISE = {_aten._to_copy, _aten.masked_fill, _aten.masked_fill_, _aten.copy_, _aten.where, _aten._prelu_kernel}
#: Ops whose result may be finite where their input is NaN: their whole result is marked.
_FORGETFUL = {_aten.grid_sampler_2d, _aten.grid_sampler_3d, _aten.nansum, _aten.nanmedian}


class Spread(TorchDispatchMode):
    """Runs a model on made-up numbers and follows marks: NaN; for a tensor that holds no NaN, a mask beside it.

    `whole`: the first place at which marks on a part of a tensor spread over everything, as a sentence. `reads`: the
    first place at which the forward itself reads a marked number, for a branch or a size.
    """

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.whole: str | None = None
        self.reads: str | None = None
        self._twin = twin
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor too, lest another one gets its id
        self._inside: list[tuple[str, bool]] = [(f"the model ({type(twin).__name__})", False)]
        self._hooks: list[Any] = []

    def __enter__(self) -> Spread:
        for name, module in self._twin.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
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
        """bool, of a tensor's shape."""
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
            sources = before[1:] if op is _aten.copy_ else before  # whose target may hold anything before
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
        """Marks as far as the kernel reaches, by a convolution of one channel of ones: fast algorithms would spread NaN
        over tiles of their own. The numbers are made up, for nobody reads them."""
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
