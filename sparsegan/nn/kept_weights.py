"""Which weights a sparse layer keeps: its settings, support and values, and everything that follows from them alone.

Nothing here runs a layer. ``sparsegan/nn/base.py`` does, with these weights.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..geometry import Geometry, Pair
from ..ops.plan import check_support
from .granularity import as_units, check_mask, unit_size, units_of, vector_length
from .plan_cache import PlanCache

#: What a layer has in common with its torch.nn twin, under the same names.
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


class KeptWeights(nn.Module):
    """Settings, support and values of a layer. ``dense_class`` is the torch.nn twin, ``adjoint`` the forward direction.

    ``values`` is the Parameter, ``[nnz]``; ``support`` an int32 buffer ``[units]``, sorted flat positions of what is
    kept. A support lists single weights; with granularity ``"vector:V"`` it lists vectors, V consecutive output
    channels at one input channel and kernel position, and ``values`` holds V weights for each.
    """

    dense_class: ClassVar[type[nn.Conv2d] | type[nn.ConvTranspose2d]]
    adjoint: ClassVar[bool]

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair | str
    dilation: Pair
    transposed: bool
    output_padding: Pair
    groups: int
    padding_mode: str
    #: What is not above 0 in the output is multiplied by it while it is written: how an engine fuses a ReLU.
    negative_slope: float = 1.0
    values: nn.Parameter
    support: Tensor
    bias: nn.Parameter | None
    #: Whether the positions are a mask that the caller gave: a dense weight is then read at them.
    keeps_mask: bool
    granularity: str
    #: What was made of the support as it was; see :mod:`sparsegan.nn.plan_cache`.
    _cache: PlanCache | None

    def _prepare_geometries(self) -> None:
        """The ops' view of the layer, and the variants for a coarse grid that is one element high or wide."""
        coarse, fine = (self.in_channels, self.out_channels) if self.adjoint else (self.out_channels, self.in_channels)
        vector = vector_length(self.granularity)
        self.geometry = Geometry(
            coarse,
            fine,
            self.groups,
            self.kernel_size,
            self.stride,
            self.padding_before() if self.padding_mode == "zeros" else (0, 0),
            self.dilation,
            coarse_vector=1 if self.adjoint else vector,
            fine_vector=vector if self.adjoint else 1,
        )
        self._geometries = {
            (one_h, one_w): self.geometry.for_coarse_size(1 if one_h else 2, 1 if one_w else 2)
            for one_h in (False, True)
            for one_w in (False, True)
        }
        self._numbers = {key: geometry.numbers() for key, geometry in self._geometries.items()}

    def padding_before(self) -> Pair:
        """What lies before the first row and column, by the padding mode."""
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "same":
            before = [d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return (before[0], before[1])
        assert isinstance(self.padding, tuple)
        return self.padding

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the dense weight."""
        return self.geometry.weight_shape

    @property
    def unit_size(self) -> int:
        """How many weights are kept or dropped as one; 1 for ``"2:4"``."""
        return unit_size(self.weight_shape, self.granularity, self.transposed, self.groups)

    @property
    def nnz(self) -> int:
        """Number of kept weights."""
        return self.values.shape[0]

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are dropped, in [0, 1]."""
        return 1 - self.nnz / math.prod(self.weight_shape)

    def mask(self) -> Tensor:
        """bool, shape of the dense weight: True where kept."""
        return self._mask_of(self.support)

    def _mask_of(self, support: Tensor) -> Tensor:
        flat = torch.zeros(math.prod(self.weight_shape), dtype=torch.bool, device=support.device)
        flat[self.positions_of(support)] = True
        return flat.view(self.weight_shape)

    def positions(self) -> Tensor:
        """int64 ``[nnz]``: where in the flattened dense weight each of ``values`` belongs."""
        return self.positions_of(self.support)

    def positions_of(self, support: Tensor) -> Tensor:
        """The same of another support."""
        vector, units = self.geometry.vector, support.long()
        if vector == 1:
            return units
        # A row of `inner` units is V rows of weights: channels of a unit are `inner` apart.
        inner = math.prod(self.weight_shape[2 if self.adjoint else 1 :])
        first = units + (units // inner) * (inner * (vector - 1))
        channels = torch.arange(0, inner * vector, inner, device=units.device)
        return (first.unsqueeze(1) + channels).flatten()

    def unit_rows(self) -> Tensor:
        """int64 ``[kept units, weights of a unit]``: indices into ``values``, for granularities with whole units."""
        mask = self.mask()
        weights = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        units = as_units(weights, self.granularity, self.transposed, self.groups).flatten(0, -2)
        # The first weight of a whole unit tells whether it is kept.
        rank = mask.flatten().cumsum(0) - 1
        return rank[units[mask.flatten()[units[:, 0]]]]

    def dense_weight(self) -> Tensor:
        """The dense weight, zeros where dropped; a new tensor, differentiable in ``values``."""
        return self.scattered(self.values)

    def scattered(self, values: Tensor) -> Tensor:
        """The same of other values."""
        flat = values.new_zeros(math.prod(self.weight_shape))
        return flat.index_copy(0, self.positions(), values).view(self.weight_shape)

    def dense_twin(self, device: torch.device | str) -> nn.Conv2d | nn.ConvTranspose2d:
        """A ``torch.nn`` layer with these settings; its parameters are allocated and not set."""
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

    def to_dense(self) -> nn.Conv2d | nn.ConvTranspose2d:
        """A ``torch.nn`` layer that computes the same, zeros in place. Parameters are copies."""
        dense = self.dense_twin(self.values.device)
        with torch.no_grad():
            dense.weight.copy_(self.dense_weight())
            if self.bias is not None and dense.bias is not None:
                dense.bias.copy_(self.bias)
                dense.bias.requires_grad_(self.bias.requires_grad)
        dense.weight.requires_grad_(self.values.requires_grad)
        return dense.train(self.training)

    def set_support(self, support: Tensor, values: Tensor) -> None:
        """Replaces the kept positions and their weights. ``values`` stays the same Parameter object.

        Args:
            support: int32 ``[units]``, strictly increasing positions in the flattened ``geometry.unit_shape`` (for
                single weights: in the flattened dense weight); whole units of the granularity.
            values: ``[units * V]``, unit by unit, converted to the layer's dtype and device.

        Raises:
            ValueError: the support is not valid, the two lengths differ, or the layer is on the meta device; the layer
                is unchanged.
        """
        if self.values.is_meta:
            raise ValueError(
                "the layer is on the meta device and cannot hold numbers; load with assign=True, or move the model "
                "with to_empty() first"
            )
        self.replace_weights(self.check_entries(support, values), values)

    def check_entries(self, support: Tensor, values: Tensor) -> Tensor:
        """A copy of a support that fits the layer, as ``set_support`` takes it. Raises as that does."""
        if support.dim() == 1 and support.shape[0] <= math.prod(self.geometry.unit_shape):
            # Copied first: nobody can change what was checked.
            support = support.detach().clone(memory_format=torch.contiguous_format)
        self.check_positions(support)
        nnz = support.shape[0] * self.geometry.vector
        if tuple(values.shape) != (nnz,):
            raise ValueError(
                f"values has shape {tuple(values.shape)}; it must be ({nnz},), {self.geometry.vector} for each of the "
                f"support's {support.shape[0]} positions (granularity {self.granularity!r})"
            )
        return support

    def check_positions(self, support: Tensor) -> None:
        """Raises ``ValueError`` unless a support is int32, sorted, unique, in range and of whole units."""
        check_support(support, math.prod(self.geometry.unit_shape))
        if not units_of(self.granularity).listed:
            check_mask(self._mask_of(support), self.granularity, self.transposed, self.groups)

    def _check_mask(self, mask: Tensor) -> None:
        """Raises where a mask that a caller gave is none, or cuts a unit."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                f"mask is {getattr(mask, 'dtype', type(mask).__name__)}; it must be a tensor of dtype torch.bool"
            )
        if tuple(mask.shape) != self.weight_shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; it must have the weight's shape {self.weight_shape}")
        check_mask(mask, self.granularity, self.transposed, self.groups)

    def replace_weights(self, support: Tensor, values: Tensor, assign: bool = False) -> None:
        """Takes over what was checked. ``assign``: as ``load_state_dict`` has it, the Parameter is replaced too."""
        if assign:
            self.values = assigned(values, self.values)
        elif values.shape == self.values.shape and not self.values.is_inference():
            with torch.no_grad():
                self.values.copy_(values.detach())
        else:
            new = values.detach().to(self.values).clone()
            # Through another dtype: torch then forgets the gradient accumulator, which a graph of the last step may
            # still hold with the old shape.
            self.values.data = new.to(torch.float64 if new.dtype == torch.float32 else torch.float32)
            self.values.data = new
        self.values.grad = None
        with torch.inference_mode(False):  # what is loaded while evaluating serves training too
            self.support = support.to(self.values.device, copy=True)
        self.keeps_mask = False
        self._cache = None

    def extra_repr(self) -> str:
        """torch.nn's own line, and what is kept."""
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
    """What ``load_state_dict(assign=True)`` puts in the place of a parameter, as torch does."""
    if isinstance(new, nn.Parameter):
        new.requires_grad_(old.requires_grad)
        return new
    return nn.Parameter(new.detach(), requires_grad=old.requires_grad)
