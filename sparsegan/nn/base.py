"""The base class of the sparse layers: making one from a dense layer, choosing the backend, and the forward."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from .. import ops
from ..copying import mask_of, plain_layer, plain_weight
from ..ops.plan import is_vector, numbers_of, plan_of
from ..renamed import renamed_attribute, with_new_names
from ..signals import as_map, rows_and_columns
from . import dispatch, state
from .dense_path import run_dense, warn_of_dense, weight_for_call
from .granularity import check_shape, check_sparsity, kept, magnitude_mask, nonzero_mask, support_of
from .kept_weights import SETTINGS, DenseConv, KeptWeights
from .plan_cache import PlanCache, is_readable, version_of

if TYPE_CHECKING:
    from typing_extensions import Self


class SparseConv(KeptWeights):
    """A layer that runs on its kept weights: the base of ``SparseConv1d``, ``SparseConv2d`` and their transposes."""

    backend: str
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
        """Makes a sparse layer with the kept weights of a dense layer.

        With neither ``sparsity`` nor ``mask`` the layer takes the result of any pruning tool: it keeps the units that
        the mask of ``torch.nn.utils.prune`` keeps or, without such a mask, the units with a nonzero weight.

        Args:
            module: a layer of the torch.nn class that the sparse class replaces. A computed weight or bias (masks of
                ``torch.nn.utils.prune``, spectral and weight normalisation, other parametrizations) is folded: the
                sparse layer holds the value that it has in evaluation, as plain numbers. Training then runs on these
                numbers. For weight normalisation (Salimans and Kingma, arXiv 1602.07868) the weight
                ``g * v / norm(v)`` takes the place of ``g`` and ``v``.
            sparsity: fraction of units to drop, smallest L2 norm first, in [0, 1).
            granularity: the unit: ``"element"``, ``"vector:V"``, ``"input:D"``, ``"kernel"``, ``"filter"`` or
                ``"2:4"``; see ``sparsegan.nn.granularity``.
            mask: bool, shape of the weight, True where kept; instead of ``sparsity``.

        Raises:
            ValueError, TypeError: an argument is out of range or does not fit the module.
        """
        if not isinstance(module, cls.dense_class):
            wanted = f"a torch.nn.{cls.dense_class.__name__}"
            raise TypeError(f"module is a {type(module).__name__}; {cls.__name__} is made from {wanted}")
        pruned, keeps_mask = mask_of(module), mask is not None
        if pruned is not None and sparsity is None and mask is None:
            mask = nonzero_mask(pruned.float(), granularity, cls.adjoint, module.groups)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._absorb(plain_layer(module), sparsity, granularity, mask)
        layer.keeps_mask = keeps_mask  # only the caller's mask counts: a pruning tool's mask is treated like zeros
        return layer

    def _absorb(self, dense: DenseConv, sparsity: float | None, granularity: str, mask: Tensor | None) -> None:
        """Copies a dense layer's settings, bias and the kept part of its weight."""
        weight = plain_weight(dense)
        if weight.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise TypeError(f"the weight's dtype is {weight.dtype}; it must be a real floating-point type")
        for name in SETTINGS:
            setattr(self, name, getattr(dense, name))
        self._reversed_padding_repeated_twice = list(dense._reversed_padding_repeated_twice)
        check_shape(weight.shape, granularity, self.transposed, self.groups)
        self.granularity = granularity
        self._version = state.units_version(granularity)
        self.backend = "auto"
        self.training = dense.training
        self.keeps_mask = mask is not None
        self._cache = None

        self._prepare_geometries()
        self.register_buffer("support", self._chosen_support(weight, sparsity, mask))
        values = weight.detach().flatten()[self.positions()]
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        bias = dense.bias
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        )

    def _chosen_support(self, weight: Tensor, sparsity: float | None, mask: Tensor | None) -> Tensor:
        """The support of a new layer: from the sparsity, the mask or, with neither, the zeros of the dense weight."""
        how = (self.granularity, self.transposed, self.groups)
        if mask is not None and sparsity is not None:
            raise ValueError("sparsity and mask are both given; give one of them")
        if mask is not None:
            self._check_mask(mask)
        if sparsity is not None:
            check_sparsity(sparsity, self.granularity)
        if weight.is_meta:
            units = math.prod(self.weight_shape) // self.unit_size
            return state.empty_support(self, sparsity, mask, kept(units, sparsity or 0.0))
        if mask is None:
            mask = nonzero_mask(weight, *how) if sparsity is None else magnitude_mask(weight, sparsity, *how)
        return support_of(mask.to(weight.device), self.granularity, self.transposed)

    # ------------------------------------------------------------------ forward

    def choose(
        self, x_shape: tuple[int, ...], y_size: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> dispatch.Choice:
        """The backend that runs for an input ``[N, C, H, W]`` and an output size (height, width), and why.

        A 1-D layer has an input ``[N, C, L]`` and an output size (length,).
        ``dtype``: dtype of the tensors, where it differs from the layer's (autocast).
        """
        return self._choice(self._cache_if_readable(), x_shape, y_size, dtype or self.values.dtype)

    def _choice(
        self, cache: PlanCache | None, x_shape: tuple[int, ...], y_size: tuple[int, ...], dtype: torch.dtype
    ) -> dispatch.Choice:
        if self.backend != "auto":
            return dispatch.Choice(dispatch.check_backend(self.backend), "set on the layer")
        if torch.compiler.is_compiling():
            return dispatch.choose_by_sparsity(self.sparsity, dtype, self.values.device)
        if cache is None:
            return self._modelled(x_shape, y_size, dtype)
        cudnn: Any = torch.backends.cudnn  # cudnn.allow_tf32 raises where torch.backends.fp32_precision is set
        key = (x_shape, y_size, dtype, cudnn.conv.fp32_precision)
        return cache.choice(key, lambda: self._modelled(x_shape, y_size, dtype))

    def _modelled(self, x_shape: tuple[int, ...], y_size: tuple[int, ...], dtype: torch.dtype) -> dispatch.Choice:
        sizes = (rows_and_columns(x_shape[2:], 1), rows_and_columns(y_size, 1))
        coarse = sizes[0] if self.adjoint else sizes[1]
        geometry, units = self._geometries[coarse[0] == 1, coarse[1] == 1], self.support.shape[0]
        if self.runs_single:
            geometry, units = geometry.single(), self.nnz
        return dispatch.choose(
            dispatch.Call(geometry, self.adjoint, units, x_shape[0], *sizes, dtype, self.values.device)
        )

    def plan_cache(self) -> PlanCache:
        """The plan cache of the present support. Where the support has changed, it is checked and gets a new cache.

        Raises ``ValueError`` where the support is no longer valid.
        """
        cache = self._cache
        if cache is None or not cache.describes(self.support):
            self._cache = cache = self._new_cache(cache)
        return cache

    def _cache_if_readable(self) -> PlanCache | None:
        """The plan cache, or None while a graph is traced and where the support is fake or on the meta device."""
        return self.plan_cache() if is_readable(self.support) else None

    def _new_cache(self, old: PlanCache | None) -> PlanCache:
        support = self.support
        version = version_of(support)  # read before the numbers, so that the next call finds a change in between
        numbers = numbers_of(support).copy()
        new = PlanCache(support, version, numbers)
        if old is not None and new.digest == old.digest and support.device == old.support.device:
            new.take_over(old)
            return new
        try:
            self.check_positions(torch.from_numpy(numbers))
            if self.values.shape[0] != numbers.shape[0] * self.geometry.vector:
                raise ValueError(f"{self.values.shape[0]} values do not fit {numbers.shape[0]} positions")
        except ValueError as error:
            raise ValueError(
                f"{self} has no valid support: {error}. The support was changed in place (for example by averaging "
                "state_dicts: an average of positions has no meaning) or was never loaded. Load the layer's values and "
                "support, or call set_support; sparsegan.pruning.averaging keeps an average of a sparse model"
            ) from error
        if old is not None and old.support is support:
            warnings.warn(
                f"the support of {self} was changed in place, not by load_state_dict or set_support. The new positions "
                "are valid, and the layer runs on them. If they are averages, or if the values are averages over "
                "several supports, the results are wrong. sparsegan.pruning.averaging keeps an average of a sparse "
                "model",
                stacklevel=2,
            )
        return new

    def _check_input(self, x: Tensor) -> None:
        axes = self.dims + 1  # without the batch
        if x.dim() not in (axes, axes + 1):
            accepted = "[N, C, L] or [C, L]" if self.dims == 1 else "[N, C, H, W] or [C, H, W]"
            raise ValueError(f"input has {x.dim()} dimensions; it must be {accepted}")
        if x.shape[-axes] != self.in_channels:
            raise ValueError(f"input has {x.shape[-axes]} channels; the layer has in_channels={self.in_channels}")
        if x.device != self.values.device:
            raise ValueError(f"input is on {x.device}; the layer is on {self.values.device}")

    def _run(self, x: Tensor, y_size: tuple[int, ...], output_padding: tuple[int, ...] = ()) -> Tensor:
        """One forward of an input ``[N, C, H, W]`` or ``[N, C, L]`` on the chosen backend."""
        values: Tensor = self.values
        bias: Tensor | None = self.bias
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            x, values = _autocast(x), _autocast(values)
            bias = None if bias is None else _autocast(bias)
        if x.dtype != values.dtype:
            raise TypeError(f"input has dtype {x.dtype}; the layer has {values.dtype}. Convert one of them with .to()")
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            warn_of_dense("torch.func (vmap, grad, jvp, ...) runs")
            return run_dense(self, x, self.scattered(values), bias, output_padding)
        cache = self._cache_if_readable()
        if self._choice(cache, tuple(x.shape), y_size, x.dtype).backend == "dense":
            return run_dense(self, x, weight_for_call(self, values, cache), bias, output_padding)
        rows, columns = rows_and_columns(x.shape[2:] if self.adjoint else y_size, 1)
        variant = (bool(rows == 1), bool(columns == 1))
        support, numbers = self.support if cache is None else cache.support, self._numbers[variant]
        if self.runs_single:
            support, places = self._single_weights(cache)
            values, numbers = values.index_select(0, places), self._geometries[variant].single().numbers()
        forward_plan = self._plan(cache, variant, support, numbers, self.adjoint)
        # The plan of the other direction serves the gradient in x. It is not compiled where only the forward runs, nor
        # where the dense gradient is faster: without this plan, the vector op computes the gradient dense.
        needed = torch.is_grad_enabled() and x.requires_grad
        if needed and x.is_cuda and is_vector(numbers):
            needed = dispatch.vector_gradient_pays(self._geometries[variant], self.adjoint, support.shape[0])
        backward_plan = self._plan(cache, variant, support, numbers, not self.adjoint) if needed else None
        plan, adjoint_plan = (backward_plan, forward_plan) if self.adjoint else (forward_plan, backward_plan)
        y = ops.sparse_conv(
            as_map(x),
            values,
            bias,
            support,
            plan,
            adjoint_plan,
            numbers,
            self.adjoint,
            [self.out_channels, *rows_and_columns(y_size, 1)],
            self.padding_mode,
            (0, 0) if self.padding_mode == "zeros" else rows_and_columns(self.padding_before(), 0),
            self.negative_slope,
        )
        return y.squeeze(2) if self.dims == 1 else y

    def _as_leaf(self, x: Any, *args: Any) -> Any:
        """Records a call of this module in a ``torch.fx`` graph as a leaf, as ``torch.fx`` does for torch.nn layers."""
        if not isinstance(x.tracer, fx.Tracer):
            raise TypeError(
                f"{type(x.tracer).__name__} does not record modules; a sparse layer can only be recorded as a module"
            )
        given = tuple(arg for arg in args if arg is not None)
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x, *given), {})

    def _plan(
        self, cache: PlanCache | None, variant: tuple[bool, bool], support: Tensor, numbers: list[int], adjoint: bool
    ) -> Tensor:
        if cache is None:  # a graph is traced: the plan is a constant if it is in the cache, else a node of the graph
            before = self._cache
            made = before.plans.get((*variant, adjoint)) if before is not None and before.unchanged() else None
            return plan_of(support, numbers, adjoint) if made is None else made
        return cache.plan(variant, support, numbers, adjoint)

    def _single_weights(self, cache: PlanCache | None) -> tuple[Tensor, Tensor]:
        if cache is None:  # as in _plan
            before = self._cache
            made = before.single if before is not None and before.unchanged() else None
            return self.single_weights() if made is None else made
        return cache.single_weights(self.single_weights)

    # ------------------------------------------------------------------ copies, devices, files

    def plan_bytes(self) -> int:
        """The bytes of the plans that this layer holds now."""
        cache = self._cache
        return 0 if cache is None else cache.plan_bytes()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._cache, on_meta = None, self.support.is_meta
        super()._apply(fn, recurse)
        if on_meta and not self.support.is_meta:
            with torch.no_grad():
                self.support.fill_(-1)  # not loaded yet: -1 is invalid, so uninitialised memory never passes as support
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": None}

    def __setstate__(self, written: dict[str, Any]) -> None:
        super().__setstate__(with_new_names(written))

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
        """Loads ``values`` and ``support``, a dense ``weight``, or ``weight_orig`` and ``weight_mask``.

        Where an entry is wrong the layer stays unchanged. :class:`sparsegan.nn.SparseConv2d` says which weights are
        kept.
        """
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        assign = local_metadata.get("assign_to_params_buffers", False)
        version = local_metadata.get("version")
        state.load(self, state_dict, prefix, assign, version, strict, missing_keys, unexpected_keys, error_msgs)


def _autocast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of autocast. As in torch, autocast leaves float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(tensor.device.type))
