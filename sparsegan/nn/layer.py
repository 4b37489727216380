"""Drop-in sparse layers: ``SparseConv2d`` and ``SparseConvTranspose2d``.

A layer holds its kept weights only: ``values`` (the Parameter, ``[nnz]``), ``support`` (int32 buffer ``[units]``,
sorted flat positions of what is kept) and ``bias``. Training runs on these: gradients and optimizer state have size
nnz. A support lists single weights; with granularity ``"vector:V"`` it lists vectors, V consecutive output channels at
one input channel and kernel position, and ``values`` holds V weights for each.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .. import ops
from ..copying import mask_of, plain_layer
from ..geometry import Geometry, Pair
from ..ops.plan import check_support, numbers_of, plan_of
from ..renamed import renamed_attribute
from . import dispatch
from . import state as loading
from .granularity import (
    as_units,
    check_mask,
    check_shape,
    check_sparsity,
    kept,
    magnitude_mask,
    nonzero_mask,
    support_of,
    unit_size,
    units_of,
    vector_length,
)
from .plan_cache import Derived, is_readable, version_of

if TYPE_CHECKING:
    from typing_extensions import Self

#: Choices of a backend that a layer remembers, one per shape of its input.
MOST_CHOICES = 1024
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


class SparseConv(nn.Module):
    """What both layers share: ``dense_class`` is the torch.nn twin, ``adjoint`` the direction of the forward op."""

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
    _derived: Derived | None
    kernel = renamed_attribute("kernel", "backend")

    # ------------------------------------------------------------------ construction

    @classmethod
    def from_dense(
        cls,
        module: nn.Module,
        sparsity: float | None = None,
        granularity: str = "element",
        mask: Tensor | None = None,
    ) -> Self:
        """A sparse layer with the kept weights of a dense one.

        Args:
            module: ``torch.nn.Conv2d`` or ``torch.nn.ConvTranspose2d``. A weight or bias that is computed (masks of
                ``torch.nn.utils.prune``, spectral and weight normalisation, other parametrizations) is taken as it is
                in evaluation.
            sparsity: share of units to drop, smallest L2 norm first, in [0, 1).
            granularity: what is dropped as one: ``"element"``, ``"vector:V"``, ``"kernel"``, ``"filter"`` or
                ``"2:4"``; see ``sparsegan.nn.granularity``.
            mask: bool, shape of the weight, True where kept; instead of ``sparsity``. With neither, the units that the
                mask of ``torch.nn.utils.prune`` keeps, or else those with a nonzero weight, are kept: any pruning
                tool's result is taken as it is.

        Raises:
            ValueError, TypeError: an argument is out of range or does not fit the module.
        """
        if not isinstance(module, cls.dense_class):
            wanted = f"a torch.nn.{cls.dense_class.__name__}"
            raise TypeError(f"module is a {type(module).__name__}; {cls.__name__} is made from {wanted}")
        pruned, keeps_mask = mask_of(module), mask is not None
        if pruned is not None and sparsity is None and mask is None:
            mask = nonzero_mask(pruned.float(), granularity, issubclass(cls, SparseConvTranspose2d), module.groups)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._absorb(plain_layer(module), sparsity, granularity, mask)
        layer.keeps_mask = keeps_mask  # the mask of a pruning tool is no more than zeros that are there
        return layer

    def _absorb(
        self, dense: nn.Conv2d | nn.ConvTranspose2d, sparsity: float | None, granularity: str, mask: Tensor | None
    ) -> None:
        """Takes over a dense layer's settings and the kept part of its weight."""
        weight = plain_weight(dense)
        if weight.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise TypeError(f"the weight's dtype is {weight.dtype}; it must be a real floating-point type")
        for name in SETTINGS:
            setattr(self, name, getattr(dense, name))
        self._reversed_padding_repeated_twice = list(dense._reversed_padding_repeated_twice)
        check_shape(weight.shape, granularity, self.transposed, self.groups)
        self.granularity = granularity
        self.backend = "auto"
        self.training = dense.training
        self.keeps_mask = mask is not None
        self._derived = None

        self._prepare_geometries()
        self.register_buffer("support", self._chosen_support(weight, sparsity, mask))
        values = weight.detach().flatten()[self.positions()]
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        bias = dense.bias
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        )

    def _chosen_support(self, weight: Tensor, sparsity: float | None, mask: Tensor | None) -> Tensor:
        """The support that a sparsity, a mask, or with neither the zeros of a dense weight ask for."""
        how = (self.granularity, self.transposed, self.groups)
        if mask is not None and sparsity is not None:
            raise ValueError("sparsity and mask are both given; give one of them")
        if mask is not None:
            self._check_mask(mask)
        if sparsity is not None:
            check_sparsity(sparsity, self.granularity)
        if weight.is_meta:
            units = math.prod(self.weight_shape) // self.unit_size
            return loading.empty_support(self, sparsity, mask, kept(units, sparsity or 0.0))
        if mask is None:
            mask = nonzero_mask(weight, *how) if sparsity is None else magnitude_mask(weight, sparsity, *how)
        return support_of(mask.to(weight.device), self.granularity, self.transposed)

    def _check_mask(self, mask: Tensor) -> None:
        """Raises where a mask that a caller gave is none, or cuts a unit."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                f"mask is {getattr(mask, 'dtype', type(mask).__name__)}; it must be a tensor of dtype torch.bool"
            )
        if tuple(mask.shape) != self.weight_shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)}; it must have the weight's shape {self.weight_shape}")
        check_mask(mask, self.granularity, self.transposed, self.groups)

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
            self._padding_before() if self.padding_mode == "zeros" else (0, 0),
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

    def _padding_before(self) -> Pair:
        """What lies before the first row and column, by the padding mode."""
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "same":
            before = [d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return (before[0], before[1])
        assert isinstance(self.padding, tuple)
        return self.padding

    # ------------------------------------------------------------------ what the layer is

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
        """Share of weights that are dropped, in [0, 1]."""
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
        return self._scatter(self.values)

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
        self._replace(self.check_entries(support, values), values)

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

    def _replace(self, support: Tensor, values: Tensor, assign: bool = False) -> None:
        """Takes over what was checked. ``assign``: as ``load_state_dict`` has it, the Parameter is replaced too."""
        if assign:
            self.values = _assigned(values, self.values)
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
        self._derived = None

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

    # ------------------------------------------------------------------ forward

    def choose(
        self, x_shape: tuple[int, ...], y_size: tuple[int, int], dtype: torch.dtype | None = None
    ) -> dispatch.Choice:
        """Which kernel runs for an input ``[N, C, H, W]`` and an output size (height, width), and why.

        ``dtype``: of the tensors where it is not the layer's own (autocast).
        """
        return self._choice(self._derived_if_readable(), x_shape, y_size, dtype or self.values.dtype)

    def _choice(
        self, derived: Derived | None, x_shape: tuple[int, ...], y_size: tuple[int, int], dtype: torch.dtype
    ) -> dispatch.Choice:
        if self.backend != "auto":
            return dispatch.Choice(dispatch.check_backend(self.backend), "set on the layer")
        if torch.compiler.is_compiling():
            return dispatch.choose_by_sparsity(self.sparsity, dtype, self.values.device)
        if derived is None:
            return self._modelled(x_shape, y_size, dtype)
        choices = derived.choices
        cudnn: Any = torch.backends.cudnn  # whose allow_tf32 raises where torch.backends.fp32_precision is set
        key = (x_shape, y_size, dtype, cudnn.conv.fp32_precision)
        choice = choices.get(key)
        if choice is None:
            if len(choices) >= MOST_CHOICES:  # a server meets ever new sizes
                choices.clear()
            choices[key] = choice = self._modelled(x_shape, y_size, dtype)
        return choice

    def _modelled(self, x_shape: tuple[int, ...], y_size: tuple[int, int], dtype: torch.dtype) -> dispatch.Choice:
        coarse = x_shape[2:] if self.adjoint else y_size
        geometry = self._geometries[coarse[0] == 1, coarse[1] == 1]
        size, units = (x_shape[2], x_shape[3]), self.support.shape[0]
        return dispatch.choose(
            dispatch.Call(geometry, self.adjoint, units, x_shape[0], size, y_size, dtype, self.values.device)
        )

    def derived(self) -> Derived:
        """What is derived from the support as it is now: checked again, and made anew, where that has changed.

        Raises ``ValueError`` where it holds no valid support any more.
        """
        derived = self._derived
        if derived is None or not derived.describes(self.support):
            self._derived = derived = self._derive(derived)
        return derived

    def _derived_if_readable(self) -> Derived | None:
        """None where a graph is being made, or nothing has numbers."""
        return self.derived() if is_readable(self.support) else None

    def _derive(self, old: Derived | None) -> Derived:
        support = self.support
        version = version_of(support)  # before its numbers: a change in between is then found at the next call
        numbers = numbers_of(support).copy()
        new = Derived(support, version, numbers)
        if old is not None and new.digest == old.digest and support.device == old.support.device:
            new.take_over(old)
            return new
        try:
            self.check_positions(torch.from_numpy(numbers))
            if self.values.shape[0] != numbers.shape[0] * self.geometry.vector:
                raise ValueError(f"{self.values.shape[0]} values do not belong to {numbers.shape[0]} positions")
        except ValueError as error:
            raise ValueError(
                f"{self} has no valid support: {error}. It was changed in place, as an average over a state_dict does "
                "(an average of positions has no meaning), or never loaded. Load the layer's values and support, or "
                "call set_support; sparsegan.pruning.averaging keeps an average of a sparse model"
            ) from error
        if old is not None and old.support is support:
            warnings.warn(
                f"the support of {self} was changed in place, not by load_state_dict or set_support. It is valid, and "
                "the layer now runs on it; but where its values are averages over several supports, or the positions "
                "are averages, its results are wrong. sparsegan.pruning.averaging keeps an average of a sparse model",
                stacklevel=2,
            )
        return new

    def _check_input(self, x: Tensor) -> None:
        if x.dim() not in (3, 4):
            raise ValueError(f"input has {x.dim()} dimensions; it must be [N, C, H, W] or [C, H, W]")
        if x.shape[-3] != self.in_channels:
            raise ValueError(f"input has {x.shape[-3]} channels; the layer has in_channels={self.in_channels}")
        if x.device != self.values.device:
            raise ValueError(f"input is on {x.device}; the layer is on {self.values.device}")

    def _run(self, x: Tensor, y_size: tuple[int, int], output_padding: Pair = (0, 0)) -> Tensor:
        """One forward of an input ``[N, C, H, W]``, by the kernel of choice."""
        values: Tensor = self.values
        bias: Tensor | None = self.bias
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, values = x.to(dtype), values.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if x.dtype != values.dtype:
            raise TypeError(f"input has dtype {x.dtype}; the layer has {values.dtype}. Convert one of them with .to()")
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            _warn_of_dense("torch.func (vmap, grad, jvp, ...) runs")
            return self._run_dense(x, self._scatter(values), bias, output_padding)
        derived = self._derived_if_readable()
        if self._choice(derived, tuple(x.shape), y_size, x.dtype).backend == "dense":
            return self._run_dense(x, self._weight_for_call(values, derived), bias, output_padding)
        coarse = x.shape[2:] if self.adjoint else y_size
        variant = (bool(coarse[0] == 1), bool(coarse[1] == 1))
        forward_plan = self._plan(derived, variant, self.adjoint)
        # The other direction serves the gradient in x; a layer that only runs forward never builds it, and one that
        # would be slower for it than dense does not either: the op then takes that gradient dense.
        needed = torch.is_grad_enabled() and x.requires_grad
        if needed and x.is_cuda and self.geometry.vector > 1:
            needed = dispatch.vector_gradient_pays(1 - self.sparsity)
        backward_plan = self._plan(derived, variant, not self.adjoint) if needed else None
        plan, adjoint_plan = (backward_plan, forward_plan) if self.adjoint else (forward_plan, backward_plan)
        return ops.sparse_conv(
            x,
            values,
            bias,
            self.support if derived is None else derived.support,
            plan,
            adjoint_plan,
            self._numbers[variant],
            self.adjoint,
            [self.out_channels, *y_size],
            self.padding_mode,
            (0, 0) if self.padding_mode == "zeros" else self._padding_before(),
            self.negative_slope,
        )

    def _run_dense(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: Pair) -> Tensor:
        """torch's own convolution."""
        padding = self.padding
        if self.transposed:
            assert isinstance(padding, tuple)
            y = F.conv_transpose2d(x, weight, bias, self.stride, padding, output_padding, self.groups, self.dilation)
        else:
            if self.padding_mode != "zeros":
                x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
            y = F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return y if self.negative_slope == 1 else F.leaky_relu(y, self.negative_slope)

    def _record(self, x: Tensor, output_padding: Pair) -> Tensor:
        """A forward that ``torch.jit.trace`` records: it then serves every batch and image size, as torch's own does.

        The sparse op would be recorded with the output size of the example.
        """
        _warn_of_dense("torch.jit.trace records")
        return self._run_dense(x, self._scatter(self.values), self.bias, output_padding)

    def _as_leaf(self, x: Any, *args: Any) -> Any:
        """A call of this module in a graph that ``torch.fx`` records: a leaf, as torch.nn's own layers are."""
        if not isinstance(x.tracer, fx.Tracer):
            raise TypeError(f"{type(x.tracer).__name__} does not record modules; a sparse layer is recorded as one")
        given = tuple(arg for arg in args if arg is not None)
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x, *given), {})

    def _plan(self, derived: Derived | None, variant: tuple[bool, bool], adjoint: bool) -> Tensor:
        if derived is None:  # where a graph is made: a constant if a call before has made it, else part of the graph
            before = self._derived
            made = before.plans.get((*variant, adjoint)) if before is not None and before.unchanged() else None
            return plan_of(self.support, self._numbers[variant], adjoint) if made is None else made
        key = (*variant, adjoint)
        if key not in derived.plans:
            with torch.inference_mode(False):  # a plan made while evaluating serves training too
                derived.plans[key] = plan_of(derived.support, self._numbers[variant], adjoint)
        return derived.plans[key]

    def _weight_for_call(self, values: Tensor, derived: Derived | None) -> Tensor:
        """The dense weight for one call: kept where no gradient is taken, else a tensor of the graph.

        On a GPU always the latter: to compare would wait for the device.
        """
        if derived is None or torch.is_grad_enabled() or values.device.type != "cpu" or not is_readable(values):
            return self._scatter(values)
        return derived.dense_weight(values, self.weight_shape, self.positions_of(derived.support))

    def _scatter(self, values: Tensor) -> Tensor:
        flat = values.new_zeros(math.prod(self.weight_shape))
        return flat.index_copy(0, self.positions(), values).view(self.weight_shape)

    # ------------------------------------------------------------------ copies, devices, files

    def plan_bytes(self) -> int:
        """Bytes of the plans that this layer holds now."""
        derived = self._derived
        return 0 if derived is None else derived.plan_bytes()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._derived, on_meta = None, self.support.is_meta
        super()._apply(fn, recurse)
        if on_meta and not self.support.is_meta:
            with torch.no_grad():
                self.support.fill_(-1)  # no numbers have come along: nobody may take what lies there for a support
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_derived": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "kernel" in state:  # written before 0.1
            state = state | {"backend": state["kernel"]}
            del state["kernel"]
        super().__setstate__(state)

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            f"torch.jit.script cannot compile {self}: its kernels are chosen and its plans compiled in Python. "
            "Script sparsegan.densify(model), or record the model with torch.jit.trace or torch.export"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes ``values`` and ``support``, a dense ``weight``, or a pruned one's ``weight_orig`` and ``weight_mask``.

        Where an entry is wrong the layer takes nothing. Which weights stay: see :class:`SparseConv2d`.
        """
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        entries = {key[len(prefix) :]: entry for key, entry in state_dict.items() if key.startswith(prefix)}
        assign = local_metadata.get("assign_to_params_buffers", False)
        name = prefix.rstrip(".") or type(self).__name__
        try:
            loaded, missing = loading.read(self, entries)
            if self.values.is_meta and not assign and any(entry is not None for entry in loaded):
                raise ValueError(
                    "the layer is on the meta device and cannot hold numbers; give assign=True, or move the model with "
                    "to_empty() first"
                )
        except (ValueError, TypeError, RuntimeError) as error:
            error_msgs.append(f"{name}: {error}")
            return
        if strict:
            known = loading.KEYS if self.bias is not None else [k for k in loading.KEYS if not k.startswith("bias")]
            missing_keys += [prefix + key for key in missing]
            unexpected_keys += [
                prefix + key for key in entries if key not in known and key.split(".")[0] not in self._modules
            ]
        if loaded.support is not None and loaded.values is not None:
            keeps_mask = self.keeps_mask and "support" not in entries and "weight_mask" not in entries
            self._replace(loaded.support, loaded.values, assign)
            self.keeps_mask = keeps_mask
        if loaded.bias is not None and self.bias is not None:
            if assign:
                self.bias = _assigned(loaded.bias, self.bias)
            else:
                with torch.no_grad():
                    self.bias.copy_(loaded.bias)


def _is_recorded_by_fx(x: Any) -> bool:
    return isinstance(x, fx.Proxy)


def _warn_of_dense(who: str) -> None:
    """The same words from the same line for every layer: Python shows them once."""
    warnings.warn(
        f"{who} sparse layers as torch's own dense convolutions: results are the same, speed is a dense layer's. "
        "torch.compile and torch.export keep the sparse kernels",
        stacklevel=2,
    )


def _assigned(new: Tensor, old: nn.Parameter) -> nn.Parameter:
    """What ``load_state_dict(assign=True)`` puts in the place of a parameter, as torch does."""
    if isinstance(new, nn.Parameter):
        new.requires_grad_(old.requires_grad)
        return new
    return nn.Parameter(new.detach(), requires_grad=old.requires_grad)


class SparseConv2d(SparseConv):
    """``torch.nn.Conv2d`` with only the kept weights in memory: same arguments, and which weights to keep.

    Args:
        sparsity: share of units to drop, in [0, 1): the layer is initialised as torch's and pruned by magnitude.
        mask: bool ``[out_channels, in_channels / groups, *kernel_size]``, True where kept; instead of ``sparsity``.
            With neither, all weights are kept.
        granularity: what is dropped as one: ``"element"``, ``"vector:V"`` (V from 2 to 64 divides ``out_channels /
            groups``), ``"kernel"``, ``"filter"`` or ``"2:4"`` (with ``sparsity=0.5`` or a mask); see
            ``sparsegan.nn.granularity``.

    Input ``[N, in_channels, H, W]`` or ``[in_channels, H, W]`` of the layer's dtype; the output is NCHW-contiguous.

    ``load_state_dict`` takes one of these, or nothing where an entry does not fit:

    - ``values`` and ``support``: as they are, of any length.
    - ``weight_orig`` and ``weight_mask`` of ``torch.nn.utils.prune``: the mask says which weights stay.
    - ``weight``, a dense layer's. The layer chooses anew, by magnitude, as many units as it keeps now; where at least
      the layer's share of units is zero already, the others are the mask. A layer made with ``mask=`` reads the weight
      at its own positions. To keep positions that training has found, load
      ``{"support": layer.support, "values": weight.flatten()[layer.positions()], ...}``.

    ``values`` stays the same Parameter (with ``assign=True`` it does not), so an optimizer made before goes on with it.
    Its state is that of the old weights, and where the length has changed its next step fails: make it after loading.
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
        """A ``torch.nn.Conv2d`` that computes the same, zeros in place. Parameters are copies."""
        return cast(nn.Conv2d, super().to_dense())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``, as torch.nn.Conv2d computes it."""
        if _is_recorded_by_fx(x):
            return self._as_leaf(x)
        if torch.jit.is_tracing():
            return self._record(x, (0, 0))
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        size = []
        for axis, before in enumerate(self._padding_before()):
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
        """torch's own limits: a reflection never leaves the image, a circle goes round once."""
        least = {"zeros": 0, "replicate": 1, "circular": max(padding, 1), "reflect": padding + 1}[self.padding_mode]
        if x.shape[2 + axis] < least:
            raise ValueError(
                f"input is {x.shape[2]} x {x.shape[3]}; padding_mode={self.padding_mode!r} with a padding of {padding} "
                f"needs at least {least} along dimension {2 + axis}"
            )


class SparseConvTranspose2d(SparseConv):
    """``torch.nn.ConvTranspose2d`` with only the kept weights in memory: same arguments, and which weights to keep.

    ``mask`` is bool ``[in_channels, out_channels / groups, *kernel_size]``; the other arguments are those of
    :class:`SparseConv2d`.
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
        """A ``torch.nn.ConvTranspose2d`` that computes the same, zeros in place. Parameters are copies."""
        return cast(nn.ConvTranspose2d, super().to_dense())

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H', W']``, as torch.nn.ConvTranspose2d computes it.

        Args:
            output_size: (height, width), or one number a dimension: one of the sizes that the stride leaves open.
        """
        if _is_recorded_by_fx(x):
            return self._as_leaf(x, output_size)
        if torch.jit.is_tracing() and output_size is None:
            return self._record(x, self.output_padding)
        self._check_input(x)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0), output_size).squeeze(0)
        if output_size is not None and len(output_size) not in (2, x.dim()):
            raise ValueError(
                f"output_size has {len(output_size)} numbers; it must have 2, or one a dimension of the input"
            )
        size, extra = [], []
        for axis, n in enumerate(self.geometry.fine_size(x.shape[2:])):
            added = self.output_padding[axis] if output_size is None else output_size[axis - 2] - n
            # torch's own limits: any output padding of the constructor, less than a stride through output_size.
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
    """The arguments of ``_absorb`` for a new layer: without a sparsity or a mask every weight is kept."""
    if sparsity is not None:
        check_sparsity(sparsity)
    return (0.0 if sparsity is None and mask is None else sparsity), granularity, mask


def plain_weight(module: nn.Module) -> Tensor:
    """A dense layer's weight; a computed one (mask, spectral or weight norm, parametrization) as in evaluation."""
    weight = plain_layer(module)._parameters["weight"]
    assert weight is not None
    return weight
