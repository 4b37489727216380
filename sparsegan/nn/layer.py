"""Drop-in sparse layers: ``SparseConv2d`` and ``SparseConvTranspose2d`` for images, and the same two for signals.

A layer holds only its kept weights: ``values`` (the Parameter, ``[nnz]``), ``support`` (int32 buffer ``[units]``, the
sorted flat positions of the kept units) and ``bias``. Training runs on these tensors, so gradients and optimizer state
have size nnz. ``sparsegan/nn/forward.py`` has their forwards, ``sparsegan/nn/base.py`` the base class of all layers.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from ..geometry import Pair
from .base import SparseConv as SparseConv
from .forward import Convolution, TransposedConvolution
from .granularity import check_sparsity
from .kept_weights import DenseConv

Single = tuple[int]


class SparseConv2d(Convolution):
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
    dims = 2

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


class SparseConvTranspose2d(TransposedConvolution):
    """``torch.nn.ConvTranspose2d`` with only the kept weights in memory.

    It takes the arguments of ``torch.nn.ConvTranspose2d``, and ``sparsity``, ``mask`` and ``granularity`` as
    :class:`SparseConv2d`. ``mask`` is bool ``[in_channels, out_channels / groups, *kernel_size]``.
    """

    dense_class = nn.ConvTranspose2d
    dims = 2

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


class SparseConv1d(Convolution):
    """``torch.nn.Conv1d`` with only the kept weights in memory, as the layers of a vocoder have it.

    It takes the arguments of ``torch.nn.Conv1d``, and ``sparsity``, ``mask`` and ``granularity`` as
    :class:`SparseConv2d`. ``mask`` is bool ``[out_channels, in_channels / groups, kernel_size]``. The input is
    ``[N, in_channels, L]`` or ``[in_channels, L]``, of the layer's dtype. With its padding it must be at least as long
    as the kernel's reach; a shorter one raises ``ValueError``. The output is contiguous.

    The kernels compute a signal as an image of one row. Dtypes, devices, granularities and ``load_state_dict`` are
    therefore those of :class:`SparseConv2d`. The support has the positions in the flattened weight
    ``[out_channels, in_channels / groups, kernel_size]``.
    """

    dense_class = nn.Conv1d
    dims = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Single,
        stride: int | Single = 1,
        padding: int | Single | str = 0,
        dilation: int | Single = 1,
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
        dense = nn.Conv1d(
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

    def to_dense(self) -> nn.Conv1d:
        """A ``torch.nn.Conv1d`` that computes the same, with zeros at the dropped weights; a copy."""
        return cast(nn.Conv1d, super().to_dense())


class SparseConvTranspose1d(TransposedConvolution):
    """``torch.nn.ConvTranspose1d`` with only the kept weights in memory.

    It takes the arguments of ``torch.nn.ConvTranspose1d``, and ``sparsity``, ``mask`` and ``granularity`` as
    :class:`SparseConv2d`. ``mask`` is bool ``[in_channels, out_channels / groups, kernel_size]``. For inputs, see
    :class:`SparseConv1d`.
    """

    dense_class = nn.ConvTranspose1d
    dims = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Single,
        stride: int | Single = 1,
        padding: int | Single = 0,
        output_padding: int | Single = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Single = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        sparsity: float | None = None,
        mask: Tensor | None = None,
        granularity: str = "element",
    ) -> None:
        super().__init__()
        dense = nn.ConvTranspose1d(
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

    def to_dense(self) -> nn.ConvTranspose1d:
        """A ``torch.nn.ConvTranspose1d`` that computes the same, with zeros at the dropped weights; a copy."""
        return cast(nn.ConvTranspose1d, super().to_dense())


#: The sparse class for each dense class.
SPARSE_CLASSES: dict[type[nn.Module], type[SparseConv]] = {
    one.dense_class: one for one in (SparseConv1d, SparseConv2d, SparseConvTranspose1d, SparseConvTranspose2d)
}
#: The torch.nn classes that have a sparse class, for ``isinstance``.
DENSE_CLASSES: tuple[type[DenseConv], ...] = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
#: Those of them that are transposed convolutions.
TRANSPOSED_CLASSES = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def dense_class_of(module: DenseConv) -> type[DenseConv]:
    """The class of torch.nn that a convolution, perhaps of a subclass, belongs to."""
    return next(one for one in DENSE_CLASSES if isinstance(module, one))


def _initial_support(
    sparsity: float | None, mask: Tensor | None, granularity: str
) -> tuple[float | None, str, Tensor | None]:
    """The arguments of ``_absorb`` for a new layer. Without a sparsity and a mask, every weight is kept."""
    if sparsity is not None:
        check_sparsity(sparsity)
    return (0.0 if sparsity is None and mask is None else sparsity), granularity, mask
