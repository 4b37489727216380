"""The forwards of a convolution and of a transposed convolution, for signals and images: checks and output sizes.

``sparsegan/nn/layer.py`` has the layers, ``sparsegan/nn/base.py`` runs them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..signals import rows_and_columns
from .base import SparseConv
from .dense_path import record


class Convolution(SparseConv):
    """The base of ``SparseConv1d`` and ``SparseConv2d``."""

    adjoint = False

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, *size]`` to ``[N, out_channels, *size']``, as the torch.nn layer computes it."""
        if _is_recorded_by_fx(x):
            return self._as_leaf(x)
        if torch.jit.is_tracing():
            return record(self, x, ())
        self._check_input(x)
        if x.dim() == self.dims + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        size = []
        for axis, before in enumerate(self.padding_before()):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
            after = reach - before if self.padding == "same" else before
            self._check_padding(x, axis, max(before, after))
            n = before + x.shape[2 + axis] + after
            if n <= reach:
                raise ValueError(
                    f"input is {_size(x)}; with its padding it must be at least as large as the "
                    f"kernel's reach, {reach + 1} along dimension {2 + axis}"
                )
            size.append((n - reach - 1) // self.stride[axis] + 1)
        return self._run(x, tuple(size))

    def _check_padding(self, x: Tensor, axis: int, padding: int) -> None:
        """Raises ``ValueError`` beyond torch's limits: padding < size for "reflect", padding <= size for "circular"."""
        least = {"zeros": 0, "replicate": 1, "circular": max(padding, 1), "reflect": padding + 1}[self.padding_mode]
        if x.shape[2 + axis] < least:
            raise ValueError(
                f"input is {_size(x)}; padding_mode={self.padding_mode!r} with a padding of {padding} "
                f"needs at least {least} along dimension {2 + axis}"
            )


class TransposedConvolution(SparseConv):
    """The base of ``SparseConvTranspose1d`` and ``SparseConvTranspose2d``."""

    adjoint = True

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[N, in_channels, *size]`` to ``[N, out_channels, *size']``, as the torch.nn layer computes it.

        Args:
            output_size: the output's size (height and width, or length), or one number per dimension of the input. With
                a stride above 1 several output sizes are possible; this argument chooses one of them.
        """
        if _is_recorded_by_fx(x):
            return self._as_leaf(x, output_size)
        if torch.jit.is_tracing() and output_size is None:
            return record(self, x, self.output_padding)
        self._check_input(x)
        if output_size is not None:
            if len(output_size) not in (self.dims, x.dim()):
                raise ValueError(
                    f"output_size has {len(output_size)} numbers; it must have {self.dims}, or one per dimension of "
                    "the input"
                )
            output_size = output_size[-self.dims :]
        if x.dim() == self.dims + 1:
            return self.forward(x.unsqueeze(0), output_size).squeeze(0)
        size, extra = [], []
        for axis, n in enumerate(self.geometry.fine_size(rows_and_columns(x.shape[2:], 1))[-self.dims :]):
            added = self.output_padding[axis] if output_size is None else output_size[axis] - n
            # As in torch, the constructor's output padding is not limited here; that from output_size is.
            if output_size is not None and not 0 <= added < self.stride[axis]:
                raise ValueError(
                    f"output_size asks for {output_size[axis]} along dimension {2 + axis}; "
                    f"it must be from {n} to {n + self.stride[axis] - 1}"
                )
            if n + added < 1:
                raise ValueError(
                    f"the output would have size {n + added} along dimension {2 + axis}; it must be at least 1"
                )
            size.append(n + added)
            extra.append(added)
        return self._run(x, tuple(size), tuple(extra))


def _size(x: Tensor) -> str:
    sizes = [str(size) for size in x.shape[2:]]
    return " x ".join(sizes) if len(sizes) > 1 else f"of length {sizes[0]}"


def _is_recorded_by_fx(x: Any) -> bool:
    return isinstance(x, fx.Proxy)
