"""The torch ops ``sparsegan::sparse_conv`` and ``sparsegan::wgrad``: shapes, gradients, autocast and FLOPs.

Their code for CPUs and, single elements, for NVIDIA GPUs is in ``csrc/``; vectors on a GPU are the Triton ops of
``sparsegan/ops/vector_ops.py``, with the same arguments: :func:`sparse_conv` and :func:`wgrad` here choose by device
and geometry. ``sparsegan/ops/reference.py`` has plain-PyTorch twins. The two are closed under differentiation: with
``y = sparse_conv(x, v)`` bilinear in ``x`` and ``v``,

    dL/dx = sparse_conv over the adjoint plan (gy, v)        dL/dv = wgrad(gy, x)

and ``wgrad`` is bilinear in ``gy`` and ``x`` with both gradients sparse convolutions again. So double backward needs
nothing more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import native  # importing it registers the ops
from .flop_counter import with_flop_counter
from .plan import is_vector


def cuda_library() -> Path | None:
    """The shared object of the CUDA kernels, where they were built."""
    library = native.LIBRARY.with_name("_cuda.so")
    return library if library.exists() else None


def _load_cuda_library() -> str | None:
    """Loads the CUDA kernels where torch has CUDA. Returns the error, if any: the package works without them."""
    if torch.version.hip is not None:
        return "this torch is for AMD GPUs"
    library = cuda_library()
    if library is None or torch.version.cuda is None:
        return None
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return str(error.__cause__ or error)  # torch's own sentence leaves out the reason
    return None


_load_error = _load_cuda_library()


def why_no_cuda() -> str | None:
    """Why single elements cannot run sparse on a GPU, or ``None``."""
    if cuda_library() is None:
        lost = "not built in: _cuda.so is not among the package's files"
        return f"the CUDA kernels were {lost if native.cuda_build.startswith('built') else native.cuda_build}"
    return f"the CUDA kernels did not load: {_load_error}" if _load_error else None


def _require_cuda(x: Tensor) -> None:
    """Raises RuntimeError where ``x`` is on a GPU that the CUDA kernels cannot serve. Fake tensors need no kernels."""
    if not isinstance(x, FakeTensor) and (why := why_no_cuda()):
        raise RuntimeError(
            f"x is on {x.device}, and {why}; set the layer's backend to 'dense', or move the model to a CPU"
        )


_sparse_conv = torch.ops.sparsegan.sparse_conv.default
_wgrad = torch.ops.sparsegan.wgrad.default

#: What may lie around ``x``; an op's number for each is its place.
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
#: What may be done to the outputs of the engine's ops; an op gets the index.
CURVES = ("none", "tanh", "sigmoid")


def sparse_conv(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    padding_mode: str = "zeros",
    pad_before: tuple[int, int] = (0, 0),
    negative_slope: float = 1.0,
) -> Tensor:
    """``y[n, o, p] = f(bias[o] + sum over taps (v * x[n, c, p + shift]))``; ``f(z)`` is ``negative_slope * z`` below 0.

    Args:
        x: ``[N, source channels, H, W]``; float32, float64 or bfloat16 (accumulated in float32).
        values: ``[units * vector]``, unit by unit, dtype of ``x``.
        bias: ``[target channels]``, dtype of ``x``, or ``None``.
        support: int32 ``[units]``, sorted positions in the geometry's ``unit_shape``.
        plan, adjoint_plan: int32, from :func:`sparsegan.ops.plan.compile_plan`, fine to coarse and coarse to fine. The
        one
            that ``adjoint`` selects runs forward; the other serves the gradient in ``x``, or is ``None`` without one.
        geometry: :meth:`sparsegan.ops.plan.Geometry.numbers`.
        adjoint: ``False`` reads the fine grid and writes the coarse one (a convolution), ``True`` the other way round.
        output_size: ``[target channels, H', W']``.
        padding_mode: what lies around ``x``, one of :data:`PADDING_MODES`; ``"zeros"`` where ``adjoint``.
        pad_before: rows and columns of it before ``x``, where the geometry's padding is 0; ``(0, 0)`` for ``"zeros"``.
            What follows the last element is as much as ``output_size`` asks for.
        negative_slope: from 0 (ReLU) to 1 (nothing is activated), applied while the result is written.

    Returns:
        ``[N, target channels, H', W']``, contiguous, dtype of ``x``.

    Raises:
        RuntimeError: shapes, dtypes, devices or the plan do not fit each other.
        ValueError: an unknown ``padding_mode``.
    """
    mode, before = _padding_number(padding_mode), list(pad_before)
    taps = (support, plan, adjoint_plan, geometry)
    if x.is_cuda:
        x, mode, before = _padded(x, geometry, output_size[1:], mode, before), 0, [0, 0]
        if is_vector(geometry):
            return _vector_ops().vector_sparse_conv(x, values, bias, *taps, adjoint, output_size, negative_slope)
        _require_cuda(x)
    return _sparse_conv(x, values, bias, *taps, adjoint, output_size, mode, before, negative_slope)


def wgrad(
    gy: Tensor,
    x: Tensor,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    padding_mode: str = "zeros",
    pad_before: tuple[int, int] = (0, 0),
) -> Tensor:
    """``dv[t] = sum over n, p (gy[n, o, p] * x[n, c, p + shift])`` at the kept positions only.

    Args:
        gy: ``[N, target channels, H', W']``.
        x: ``[N, source channels, H, W]``, dtype of ``gy``. The other arguments are those of :func:`sparse_conv`.

    Returns:
        ``[units * vector]``, dtype of ``x``.
    """
    mode, before = _padding_number(padding_mode), list(pad_before)
    taps = (support, plan, adjoint_plan, geometry)
    if x.is_cuda:
        x, mode, before = _padded(x, geometry, list(gy.shape[2:]), mode, before), 0, [0, 0]
        if is_vector(geometry):
            return _vector_ops().vector_wgrad(gy, x, *taps, adjoint)
        _require_cuda(x)
    return _wgrad(gy, x, *taps, adjoint, mode, before)


def _vector_ops() -> Any:
    """The Triton ops, loaded when the first call needs them."""
    try:
        from . import vector_ops as vector_ops
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"vectors on a GPU run on Triton, and it is not here ({error}): install triton, or set the layer's backend "
            "to 'dense'"
        ) from error
    return vector_ops


def _padded(x: Tensor, geometry: list[int], output_size: list[int], mode: int, before: list[int]) -> Tensor:
    """``x`` with its padding around it: the GPU kernels know zeros only."""
    if mode == 0:
        return x
    pads = _pads(geometry, x.shape[2:], output_size, before)
    return F.pad(x, (*pads[1], *pads[0]), PADDING_MODES[mode])


def _pads(geometry: list[int], x_size: Any, output_size: Any, before: Any) -> list[tuple[int, int]]:
    """(before, after) of rows and of columns, in a mode other than zeros: after is what the output size asks for."""
    pads = []
    for axis in (0, 1):
        kernel, stride, zeros, dilation = (geometry[at + axis] for at in (3, 5, 7, 9))
        need = (output_size[axis] - 1) * stride + (kernel - 1) * dilation + 1
        pads.append((before[axis], max(0, need - zeros - before[axis] - x_size[axis])))
    return pads


def _padding_number(padding_mode: str) -> int:
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode is {padding_mode!r}; accepted: {', '.join(map(repr, PADDING_MODES))}")
    return PADDING_MODES.index(padding_mode)


def _check_one_device(*args: Any) -> None:
    """One tensor on the meta device is enough for torch to run a fake: real ones beside it would get no numbers."""
    if len(devices := {arg.device for arg in args if isinstance(arg, Tensor)}) > 1:
        raise RuntimeError(f"tensors are on {' and '.join(sorted(map(str, devices)))}; they must be on one device")


@torch.library.register_fake("sparsegan::sparse_conv")
def _(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    padding_mode: int = 0,
    pad_before: Any = (0, 0),
    negative_slope: float = 1.0,
) -> Tensor:
    _check_one_device(x, values, bias, support, plan, adjoint_plan)
    return torch.empty((x.shape[0], *output_size), dtype=x.dtype, device=x.device)


@torch.library.register_fake("sparsegan::wgrad")
def _(
    gy: Tensor,
    x: Tensor,
    support: Tensor,
    plan: Tensor | None,
    adjoint_plan: Tensor | None,
    geometry: list[int],
    adjoint: bool,
    padding_mode: int = 0,
    pad_before: Any = (0, 0),
) -> Tensor:
    _check_one_device(gy, x, support, plan, adjoint_plan)
    return torch.empty((support.shape[0] * geometry[-1] * geometry[-2],), dtype=x.dtype, device=x.device)


@torch.library.register_fake("sparsegan::sparse_conv_fused")
@torch.library.register_fake("sparsegan::pointwise")
def _(*args: Any) -> None:
    """They write into what they are given."""
    _check_one_device(*args)


def _sparse_conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _bias, support, plan, adjoint_plan, ctx.geometry, ctx.adjoint, _size, *padding, ctx.slope = inputs
    ctx.padding_mode, ctx.pad_before = padding
    ctx.save_for_backward(x, values, support, plan, adjoint_plan, None if ctx.slope == 1 else output)


def _sparse_conv_backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
    x, values, support, plan, adjoint_plan, y = ctx.saved_tensors
    gx = gv = gb = None
    if y is not None:  # a slope is not below 0: the result has the sum's sign
        gy = torch.where(y > 0, gy, gy * ctx.slope)
    taps = (support, plan, adjoint_plan, ctx.geometry)
    if ctx.needs_input_grad[0]:
        gx = _source_gradient(gy, values, taps, ctx, x.shape)
    if ctx.needs_input_grad[1]:
        gv = _wgrad(gy, x, *taps, ctx.adjoint, ctx.padding_mode, ctx.pad_before)
    if ctx.needs_input_grad[2]:
        gb = gy.sum((0, 2, 3))
    return gx, gv, gb, *[None] * 9


def _wgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gy, x, support, plan, adjoint_plan, ctx.geometry, ctx.adjoint, ctx.padding_mode, ctx.pad_before = inputs
    ctx.save_for_backward(gy, x, support, plan, adjoint_plan)


def _wgrad_backward(ctx: Any, gv: Tensor) -> tuple[Any, ...]:
    gy, x, support, plan, adjoint_plan = ctx.saved_tensors
    ggy = gx = None
    taps = (support, plan, adjoint_plan, ctx.geometry)
    if ctx.needs_input_grad[0]:
        ggy = _sparse_conv(x, gv, None, *taps, ctx.adjoint, list(gy.shape[1:]), ctx.padding_mode, ctx.pad_before)
    if ctx.needs_input_grad[1]:
        gx = _source_gradient(gy, gv, taps, ctx, x.shape)
    return ggy, gx, *[None] * 7


def _source_gradient(gy: Tensor, values: Tensor, taps: tuple[Any, ...], ctx: Any, x_shape: torch.Size) -> Tensor:
    """Gradient in ``x``: the adjoint sparse_conv over the padded extent, its padding led back to where it came from."""
    size = list(x_shape[1:])
    if ctx.padding_mode == 0:
        return _sparse_conv(gy, values, None, *taps, not ctx.adjoint, size)
    pads = _pads(taps[3], x_shape[2:], gy.shape[2:], ctx.pad_before)
    size[1:] = [n + sum(pad) for n, pad in zip(size[1:], pads, strict=True)]
    gx = _sparse_conv(gy, values, None, *taps, not ctx.adjoint, size)
    for axis, (before, after) in enumerate(pads):
        gx = _fold_padding(gx, 2 + axis, before, after, PADDING_MODES[ctx.padding_mode])
    return gx


def _fold_padding(g: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    """The adjoint of padding along one dimension: gradients in the padding are added to the elements it repeats."""
    n = g.shape[dim] - before - after
    if before == after == 0:
        return g
    front, inside, back = g.split([before, n, after], dim)
    inside = inside.clone()
    if mode == "replicate":
        front, back = front.sum(dim, keepdim=True), back.sum(dim, keepdim=True)
    elif mode == "reflect":
        front, back = front.flip(dim), back.flip(dim)
    to_front, to_back = {"replicate": (0, n - 1), "reflect": (1, n - 1 - after), "circular": (n - before, 0)}[mode]
    inside.narrow(dim, to_front, front.shape[dim]).add_(front)
    inside.narrow(dim, to_back, back.shape[dim]).add_(back)
    return inside


torch.library.register_autograd("sparsegan::sparse_conv", _sparse_conv_backward, setup_context=_sparse_conv_setup)
torch.library.register_autograd("sparsegan::wgrad", _wgrad_backward, setup_context=_wgrad_setup)


def macs(nnz: int, images: int, coarse_height: int, coarse_width: int) -> int:
    """Multiply-accumulates of either op: each kept weight meets every element of the coarse grid once.

    Positions that fall into the padding are counted, as in torch's own formula for a dense convolution.
    """
    return nnz * images * coarse_height * coarse_width


def _sparse_conv_flops(
    x_shape: Any,
    values_shape: Any,
    bias_shape: Any,
    support_shape: Any,
    plan_shape: Any,
    adjoint_plan_shape: Any,
    geometry: list[int],
    adjoint: bool,
    output_size: list[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    coarse = x_shape[2:] if adjoint else output_size[1:]
    return 2 * macs(values_shape[0], x_shape[0], *coarse)


def _wgrad_flops(
    gy_shape: Any,
    x_shape: Any,
    support_shape: Any,
    plan_shape: Any,
    adjoint_plan_shape: Any,
    geometry: list[int],
    adjoint: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    coarse = x_shape[2:] if adjoint else gy_shape[2:]
    return 2 * macs(support_shape[0] * geometry[-1] * geometry[-2], x_shape[0], *coarse)


def _register_flop_formulas() -> None:
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.sparsegan.sparse_conv)(_sparse_conv_flops)
    register_flop_formula(torch.ops.sparsegan.wgrad)(_wgrad_flops)


with_flop_counter(_register_flop_formulas)
