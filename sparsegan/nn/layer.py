"""Drop-in sparse layers: ``SparseConv2d`` and ``SparseConvTranspose2d``.

A layer holds only its kept weights: ``values`` (the Parameter, ``[nnz]``), ``support`` (int32 buffer ``[units]``, the
sorted flat positions of the kept units) and ``bias``. Training runs on these tensors, so gradients and optimizer state
have size nnz. ``sparsegan/nn/base.py`` has the base class of both layers.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..geometry import Pair
from .base import SparseConv as SparseConv
from .dense_path import record
from .granularity import check_sparsity


class SparseConv2d(SparseConv):
    """``torch.nn.Conv2d`` with only the kept weights in memory. It takes the same arguments and three more.

    Args:
        sparsity: fraction of units to drop, in [0, 1). The layer is initialised as torch's and pruned by magnitude.
        mask: bool ``[out_channels, in_channels / groups, *kernel_size]``, True where kept; instead of ``sparsity``.
            With neither, all weights are kept.
        granularity: the unit: ``"element"``, ``"vector:V"`` (V from 2 to 64 divides ``out_channels / groups``),
            ``"input:D"`` (D from 2 to 64 divides ``in_channels / groups``), ``"kernel"``, ``"filter"`` or ``"2:4"``
            (with ``sparsity=0.5`` or a mask); see ``sparsegan.nn.granularity``.

    The input is ``[N, in_channels, H, W]`` or ``[in_channels, H, W]``, of the layer's dtype. The output is
    NCHW-contiguous.

    ``load_state_dict`` takes one of the following. Where an entry does not fit, the layer stays unchanged.

    - ``values`` and ``support``, of any length.
    - ``weight_orig`` and ``weight_mask`` of ``torch.nn.utils.prune``. The mask says which weights are kept.
    - ``weight`` of a dense layer. If at least the layer's fraction of units is zero in it, the nonzero units are kept.
      Otherwise the layer keeps as many units as now, chosen anew by magnitude. A layer that was made with ``mask=``
      keeps its positions instead. To keep the positions that training has found, load
      ``{"support": layer.support, "values": weight.flatten()[layer.positions()], ...}``.

    ``values`` stays the same Parameter, except with ``assign=True``, so an optimizer that was made before still updates
    it. But the optimizer's state belongs to the old weights, and if the length has changed, its next step fails.
    Therefore make the optimizer after loading.
    """

    dense_class = nn.Conv2d
    adjoint = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        sparsity: float | None = None,
        mask: Tensor | None = None,
        granularity: str = "element",
    ) -> None:
        super().__init__()
        dense = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type] # torch checks it
            device,
            dtype,
        )
        self._absorb(dense, *_initial_support(sparsity, mask, granularity))

    def to_dense(self) -> nn.Conv2d:
        """A ``torch.nn.Conv2d`` that computes the same, with zeros at the dropped weights; a copy."""
        return cast(nn.Conv2d, super().to_dense())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``, as torch.nn.Conv2d computes it."""
        if _is_recorded_by_fx(x):
            return self._as_leaf(x)
        if torch.jit.is_tracing():
            return record(self, x, (0, 0))
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        size = []
        for axis, before in enumerate(self.padding_before()):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
            after = reach - before if self.padding == "same" else before
            self._check_padding(x, axis, max(before, after))
            n = before + x.shape[2 + axis] + after
            if n <= reach:
                raise ValueError(
                    f"input is {x.shape[2]} x {x.shape[3]}; with its padding it must be at least as large as the "
                    f"kernel's reach, {reach + 1} along dimension {2 + axis}"
                )
            size.append((n - reach - 1) // self.stride[axis] + 1)
        return self._run(x, (size[0], size[1]))

    def _check_padding(self, x: Tensor, axis: int, padding: int) -> None:
        """Raises ``ValueError`` beyond torch's limits: padding < size for "reflect", padding <= size for "circular"."""
        least = {"zeros": 0, "replicate": 1, "circular": max(padding, 1), "reflect": padding + 1}[self.padding_mode]
        if x.shape[2 + axis] < least:
            raise ValueError(
                f"input is {x.shape[2]} x {x.shape[3]}; padding_mode={self.padding_mode!r} with a padding of {padding} "
                f"needs at least {least} along dimension {2 + axis}"
            )


class SparseConvTranspose2d(SparseConv):
    """``torch.nn.ConvTranspose2d`` with only the kept weights in memory.

    It takes the arguments of ``torch.nn.ConvTranspose2d``, and ``sparsity``, ``mask`` and ``granularity`` as
    :class:`SparseConv2d`. ``mask`` is bool ``[in_channels, out_channels / groups, *kernel_size]``.
    """

    dense_class = nn.ConvTranspose2d
    adjoint = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        output_padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Pair = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        sparsity: float | None = None,
        mask: Tensor | None = None,
        granularity: str = "element",
    ) -> None:
        super().__init__()
        dense = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,  # type: ignore[arg-type] # torch checks it
            device,
            dtype,
        )
        self._absorb(dense, *_initial_support(sparsity, mask, granularity))

    def to_dense(self) -> nn.ConvTranspose2d:
        """A ``torch.nn.ConvTranspose2d`` that computes the same, with zeros at the dropped weights; a copy."""
        return cast(nn.ConvTranspose2d, super().to_dense())

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``, as torch.nn.ConvTranspose2d computes it.

        Args:
            output_size: the output's (height, width), or one number per dimension of the input. With a stride above 1
                several output sizes are possible; this argument chooses one of them.
        """
        if _is_recorded_by_fx(x):
            return self._as_leaf(x, output_size)
        if torch.jit.is_tracing() and output_size is None:
            return record(self, x, self.output_padding)
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0), output_size).squeeze(0)
        if output_size is not None and len(output_size) not in (2, x.dim()):
            raise ValueError(
                f"output_size has {len(output_size)} numbers; it must have 2, or one per dimension of the input"
            )
        size, extra = [], []
        for axis, n in enumerate(self.geometry.fine_size(x.shape[2:])):
            added = self.output_padding[axis] if output_size is None else output_size[axis - 2] - n
            # As in torch, the constructor's output padding is not limited here; that from output_size is.
            if output_size is not None and not 0 <= added < self.stride[axis]:
                raise ValueError(
                    f"output_size asks for {output_size[axis - 2]} along dimension {2 + axis}; "
                    f"it must be from {n} to {n + self.stride[axis] - 1}"
                )
            if n + added < 1:
                raise ValueError(
                    f"the output would have size {n + added} along dimension {2 + axis}; it must be at least 1"
                )
            size.append(n + added)
            extra.append(added)
        return self._run(x, (size[0], size[1]), (extra[0], extra[1]))


SPARSE_CLASSES: dict[type[nn.Module], type[SparseConv]] = {
    nn.Conv2d: SparseConv2d,
    nn.ConvTranspose2d: SparseConvTranspose2d,
}


def _initial_support(
    sparsity: float | None, mask: Tensor | None, granularity: str
) -> tuple[float | None, str, Tensor | None]:
    """The arguments of ``_absorb`` for a new layer. Without a sparsity and a mask, every weight is kept."""
    if sparsity is not None:
        check_sparsity(sparsity)
    return (0.0 if sparsity is None and mask is None else sparsity), granularity, mask


def _is_recorded_by_fx(x: Any) -> bool:
    return isinstance(x, fx.Proxy)
