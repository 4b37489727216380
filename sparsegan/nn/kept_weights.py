"""The kept weights of a sparse layer: settings, support and values, and all that follows from these alone.

Nothing here runs a layer; ``sparsegan/nn/base.py`` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..geometry import Geometry
from ..ops.plan import check_support
from ..signals import rows_and_columns
from .granularity import as_units, check_mask, positions_of, unit_size, units_of
from .plan_cache import PlanCache

#: The attributes that a sparse layer has in common with the torch.nn layer, under the same names.
SETTINGS: tuple[str, ...] = (
    "transposed",
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "output_padding",
    "groups",
    "padding_mode",
)

#: A torch.nn layer that has a sparse twin.
DenseConv = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


class KeptWeights(nn.Module):
    """The settings, support and values of a layer.

    ``dense_class`` is the torch.nn class with the same function. ``dims`` is 1 for signals ``[N, C, L]`` and 2 for
    images ``[N, C, H, W]``: settings such as ``stride`` have so many numbers. ``adjoint`` is the direction of the
    forward: False for a convolution, True for a transposed one. ``values`` is the Parameter, ``[nnz]``. ``support`` is
    an int32 buffer ``[units]`` of sorted flat positions. A support lists single weights; with granularity
    ``"vector:V"`` or ``"input:D"`` it lists units, V consecutive output or D consecutive input channels at one kernel
    position, and ``values`` has V or D weights for each unit.
    """

    dense_class: ClassVar[type[DenseConv]]
    dims: ClassVar[int]
    adjoint: ClassVar[bool]

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    padding_mode: str
    #: Outputs at or below 0 are multiplied by this slope while they are written. An engine fuses a ReLU by it.
    negative_slope: float = 1.0
    values: nn.Parameter
    support: Tensor
    bias: nn.Parameter | None
    #: Whether the positions come from the caller's mask. A dense weight is then loaded at these positions.
    keeps_mask: bool
    granularity: str
    #: Plans and choices for one state of the support; see :mod:`sparsegan.nn.plan_cache`.
    _cache: PlanCache | None

    def _prepare_geometries(self) -> None:
        """Sets the layer's geometry, and its variants for a coarse grid that is one element high or wide."""
        coarse, fine = (self.in_channels, self.out_channels) if self.adjoint else (self.out_channels, self.in_channels)
        units = units_of(self.granularity)
        self.geometry = Geometry(
            coarse,
            fine,
            self.groups,
            rows_and_columns(self.kernel_size, 1),
            rows_and_columns(self.stride, 1),
            rows_and_columns(self.padding_before(), 0) if self.padding_mode == "zeros" else (0, 0),
            rows_and_columns(self.dilation, 1),
            coarse_vector=units.inputs if self.adjoint else units.outputs,
            fine_vector=units.outputs if self.adjoint else units.inputs,
        )
        self._geometries = {
            (one_h, one_w): self.geometry.for_coarse_size(1 if one_h else 2, 1 if one_w else 2)
            for one_h in (False, True)
            for one_w in (False, True)
        }
        self._numbers = {key: geometry.numbers() for key, geometry in self._geometries.items()}

    def padding_before(self) -> tuple[int, ...]:
        """The padding before the first element of each axis, in any padding mode."""
        if self.padding == "valid":
            return (0,) * self.dims
        if self.padding == "same":
            return tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        assert isinstance(self.padding, tuple)
        return self.padding

    def output_padding_for(self, coarse_size: Sequence[int], fine_size: Sequence[int]) -> tuple[int, ...]:
        """The output padding of ``dense_class`` that makes ``fine_size`` of ``coarse_size``, a number per axis."""
        sizes = (rows_and_columns(coarse_size, 1), rows_and_columns(fine_size, 1))
        return self.geometry.output_padding(*sizes)[-self.dims :]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the dense weight, as in torch: ``[out, in / groups, *kernel_size]``, or transposed
        ``[in, out / groups, *kernel_size]``."""
        return (*self.geometry.weight_shape[:2], *self.kernel_size)

    @property
    def unit_size(self) -> int:
        """The number of weights per unit; 1 for ``"2:4"``."""
        return unit_size(self.weight_shape, self.granularity, self.transposed, self.groups)

    @property
    def nnz(self) -> int:
        """The number of kept weights."""
        return self.values.shape[0]

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are dropped, in [0, 1]."""
        return 1 - self.nnz / math.prod(self.weight_shape)

    def mask(self) -> Tensor:
        """The mask: bool, shape of the dense weight, True where kept."""
        return self._mask_of(self.support)

    def _mask_of(self, support: Tensor) -> Tensor:
        flat = torch.zeros(math.prod(self.weight_shape), dtype=torch.bool, device=support.device)
        flat[self.positions_of(support)] = True
        return flat.view(self.weight_shape)

    def positions(self) -> Tensor:
        """The position of each of ``values`` in the flattened dense weight, int64 ``[nnz]``."""
        return self.positions_of(self.support)

    def positions_of(self, support: Tensor) -> Tensor:
        """:meth:`positions` for another support."""
        return positions_of(support, self.weight_shape, self.granularity, self.transposed)

    @property
    def runs_single(self) -> bool:
        """Whether the layer's device runs the kept units as single weights, as a GPU runs input units.

        The Triton kernels take units of input channels too, but at random supports they are slower than dense there
        (``kernels/NOTES.md``).
        """
        inputs = self.geometry.coarse_vector if self.adjoint else self.geometry.fine_vector
        return inputs > 1 and self.support.is_cuda

    def single_weights(self) -> tuple[Tensor, Tensor]:
        """The support of the kept weights as single weights, int32 ``[nnz]``, and their places in ``values``, int64."""
        positions, places = self.positions().sort()
        return positions.int(), places

    def unit_rows(self) -> Tensor:
        """The weights of each kept unit as indices into ``values``, int64 ``[kept units, weights per unit]``.

        Only for granularities that keep whole units.
        """
        mask = self.mask()
        weights = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        units = as_units(weights, self.granularity, self.transposed, self.groups).flatten(0, -2)
        # The first weight of a whole unit tells whether it is kept.
        rank = mask.flatten().cumsum(0) - 1
        return rank[units[mask.flatten()[units[:, 0]]]]

    def dense_weight(self) -> Tensor:
        """The dense weight with zeros where dropped: a new tensor, differentiable in ``values``."""
        return self.scattered(self.values)

    def scattered(self, values: Tensor) -> Tensor:
        """:meth:`dense_weight` for other values."""
        flat = values.new_zeros(math.prod(self.weight_shape))
        return flat.index_copy(0, self.positions(), values).view(self.weight_shape)

    def dense_twin(self, device: torch.device | str) -> DenseConv:
        """A ``torch.nn`` layer with these settings. Its parameters are allocated but not initialised."""
        return nn.utils.skip_init(
            self.dense_class,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device=device,
            dtype=self.values.dtype,
            **({"output_padding": self.output_padding} if self.transposed else {}),
        )

    def to_dense(self) -> DenseConv:
        """A ``torch.nn`` layer that computes the same, with zeros at the dropped weights. Its parameters are copies."""
        dense = self.dense_twin(self.values.device)
        with torch.no_grad():
            dense.weight.copy_(self.dense_weight())
            if self.bias is not None and dense.bias is not None:
                dense.bias.copy_(self.bias)
                dense.bias.requires_grad_(self.bias.requires_grad)
        dense.weight.requires_grad_(self.values.requires_grad)
        return dense.train(self.training)

    def set_support(self, support: Tensor, values: Tensor) -> None:
        """Replaces the kept positions and their weights. ``self.values`` stays the same Parameter object.

        Args:
            support: int32 ``[units]``, strictly increasing positions in the flattened ``geometry.unit_shape`` (for
                single weights: in the flattened dense weight). The positions must form whole units of the granularity.
            values: ``[units * V]``, unit by unit; converted to the layer's dtype and device.

        Raises:
            ValueError: the support is not valid, the lengths do not fit, or the layer is on the meta device. The layer
                is then unchanged.
        """
        if self.values.is_meta:
            raise ValueError(
                "the layer is on the meta device and cannot hold numbers; load with assign=True, or move the model "
                "with to_empty() first"
            )
        self.replace_weights(self.check_entries(support, values), values)

    def check_entries(self, support: Tensor, values: Tensor) -> Tensor:
        """A copy of the support. Raises ``ValueError`` unless support and values are as ``set_support`` takes them."""
        if support.dim() == 1 and support.shape[0] <= math.prod(self.geometry.unit_shape):
            # Copied before the checks, so that the checked numbers cannot change afterwards.
            support = support.detach().clone(memory_format=torch.contiguous_format)
        self.check_positions(support)
        nnz = support.shape[0] * self.geometry.vector
        if tuple(values.shape) != (nnz,):
            raise ValueError(
                f"values has shape {tuple(values.shape)}; it must be ({nnz},): the support has {support.shape[0]} "
                f"positions with {self.geometry.vector} weights each (granularity {self.granularity!r})"
            )
        return support

    def check_positions(self, support: Tensor) -> None:
        """Raises ``ValueError`` unless a support is int32, sorted, unique, in range and made of whole units."""
        check_support(support, math.prod(self.geometry.unit_shape))
        if not units_of(self.granularity).listed:
            check_mask(self._mask_of(support), self.granularity, self.transposed, self.groups)

    def _check_mask(self, mask: Tensor) -> None:
        """Raises where the caller's mask is not a bool tensor of the weight's shape, or cuts a unit."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                f"mask is {getattr(mask, 'dtype', type(mask).__name__)}; it must be a tensor of dtype torch.bool"
            )
        if tuple(mask.shape) != self.weight_shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; it must have the weight's shape {self.weight_shape}")
        check_mask(mask, self.granularity, self.transposed, self.groups)

    def replace_weights(self, support: Tensor, values: Tensor, assign: bool = False) -> None:
        """Replaces support and values by arguments that were checked before.

        ``assign``: also replace the Parameter object, as ``load_state_dict(assign=True)`` does.
        """
        if assign:
            self.values = assigned(values, self.values)
        elif values.shape == self.values.shape and not self.values.is_inference():
            with torch.no_grad():
                self.values.copy_(values.detach())
        else:
            new = values.detach().to(self.values).clone()
            # The detour over another dtype makes torch drop the gradient accumulator. A graph of the last step may
            # still hold that accumulator, which has the old shape.
            self.values.data = new.to(torch.float64 if new.dtype == torch.float32 else torch.float32)
            self.values.data = new
        self.values.grad = None
        with torch.inference_mode(False):  # a support that is loaded in inference mode must serve training too
            self.support = support.to(self.values.device, copy=True)
        self.keeps_mask = False
        self._cache = None

    def extra_repr(self) -> str:
        """The settings as torch.nn prints them, then sparsity, nnz and granularity."""
        granularity = "" if self.granularity == "element" else f", granularity={self.granularity!r}"
        ours = f", sparsity={self.sparsity:.4f}, nnz={self.nnz}{granularity}"
        return self.dense_class.extra_repr(self) + ours  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} has no dense `weight`; it holds `values` and `support`. "
                "For a dense copy use layer.dense_weight() or layer.to_dense()"
            )
        return super().__getattr__(name)


def assigned(new: Tensor, old: nn.Parameter) -> nn.Parameter:
    """The Parameter that ``load_state_dict(assign=True)`` puts in the place of ``old``, as torch does."""
    if isinstance(new, nn.Parameter):
        new.requires_grad_(old.requires_grad)
        return new
    return nn.Parameter(new.detach(), requires_grad=old.requires_grad)
