"""How far a model looks: the rows and columns of an image that an element of an output depends on.

The answer is found on the running model and not on a traced graph, so that a forward that torch.fx cannot follow is no
exception. Runs of three kinds contribute:

1. Sizes. The model runs without data (fake tensors) on images of three sizes. A tensor that grows by a quarter of the
   image's growth holds every fourth row: a part of an image may begin at multiples of four only.
2. Reach. The model runs on made-up numbers in which NaN marks all columns from some place on. Outputs without a mark do
   not depend on those columns, whatever the columns hold. A gradient or a difference would not do: both vanish behind a
   closed ReLU, and differences fade below rounding long before the receptive field ends. Some ops lose NaN
   (comparisons, rounding to integers, ``nan_to_num``), so each op of such a run is watched.
3. Values. The model runs on an image and on parts of it. Positions, the image's size and random numbers are
   dependencies that no mark shows.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..nn.layer import SparseConv
from .tracing import NORMS

#: Sizes at which tensors are compared, and whether without data. They are multiples of what strides multiply to, the
#: second where the first is none and strides beyond `_PLAUSIBLE` come out. They are small enough for the count of all
#: pairs of pixels, which attention makes. The last serves ops that need data.
_UNITS, _PLAUSIBLE = ((7680, True), (5040, True), (192, False)), 512
#: A receptive field is looked for on strips of at most so many pixels, or of so many strides. A place where marks
#: spread over everything is believed to look at the whole image on strips of `_TELLING` pixels and of so many strides.
_LONGEST, _MOST_STRIDES, _TELLING = 4096, 16, 128
#: Models that pad images to a multiple are taken to pad to no more than so many pixels.
_PERIOD = 256

AXES = ("rows", "columns")

_aten = torch.ops.aten
#: Ops that work element by element and are not tagged so.
_ELEMENTWISE = {_aten._to_copy, _aten.masked_fill, _aten.masked_fill_, _aten.copy_, _aten.where, _aten._prelu_kernel}
#: Ops whose result may be finite where their input is NaN: their whole result is marked.
_FORGETFUL = {_aten.grid_sampler_2d, _aten.grid_sampler_3d, _aten.nansum, _aten.nanmedian}

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Reach:
    """How one output follows the image along one axis.

    `scale`: elements of the output a pixel. `missing`: so many elements fewer than `scale` times the pixels an output
    has. `before`, `after`: so many elements after a cut at the part's beginning, and before a cut at its end, differ
    from those of the whole image.
    """

    scale: Fraction
    missing: int
    before: int = 0
    after: int = 0

    @property
    def overlap(self) -> Fraction:
        """Pixels that two parts must share, so that each element is right in one of them."""
        return (self.before + max(self.after, self.missing)) / self.scale


@dataclass(frozen=True)
class Field:
    """How a model's outputs follow its images.

    `stride`: parts of an image begin and end at multiples of so many rows and columns. `thin`: few rows, and few
    columns, that the model takes. `outputs`: of each tensor that the model puts out, rows and columns. `whole`: why
    parts of an image cannot be computed for themselves, a sentence without its full stop; None where they can.
    """

    stride: tuple[int, int]
    thin: tuple[int, int]
    outputs: tuple[tuple[Reach, Reach], ...]
    whole: str | None = None

    def overlap(self, axis: int) -> int:
        """Pixels that neighbouring parts must share along an axis, a multiple of the stride."""
        stride = self.stride[axis]
        return max(math.ceil(output[axis].overlap / stride) for output in self.outputs) * stride

    def covered(self, axis: int) -> int:
        """Pixels that they must share lest an element of an output be in none of them."""
        stride = self.stride[axis]
        return max(math.ceil(output[axis].missing / output[axis].scale / stride) for output in self.outputs) * stride

    def strided(self, axis: int, stride: int) -> Field:
        """The same with another stride."""
        return replace(self, stride=_strip(axis, stride, self.stride[1 - axis]))

    def widened(self, axis: int, strides: int) -> Field:
        """The same, looking so many strides farther to both sides."""

        def wider(reach: Reach) -> Reach:
            more = int(strides * self.stride[axis] * reach.scale)
            return replace(reach, before=reach.before + more, after=reach.after + more)

        outputs = ((wider(rows), columns) if axis == 0 else (rows, wider(columns)) for rows, columns in self.outputs)
        return replace(self, outputs=tuple(outputs))

    def variants(self, axis: int) -> list[Field]:
        """Fields to try in turn until values agree. Some models do more than marks show.

        One that pads its images to a multiple repeats after more than its layers' stride. One that crops, or counts how
        many elements there are beside an element, asks for neighbours whose values do not matter.
        """
        stride = self.stride[axis]
        return [self.strided(axis, one) for one in multiples(stride)] + [self.widened(axis, n) for n in (1, 2, 4)]


class Images:
    """The arguments of a call, and which of them are images: ``[N, C, H, W]``, and ``[N, H, W]`` of that size.

    Raises:
        ValueError: no argument is an image; images differ in size. A tensor ``[N, C, 1, 1]`` is no image.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.leaves, self._spec = pytree.tree_flatten((args, kwargs))
        sizes = {tuple(one.shape[2:]) for one in self.leaves if isinstance(one, Tensor) and one.dim() == 4}
        sizes -= {(1, 1)}
        if len(sizes) != 1:
            found = "images of " + " and ".join(f"{h}x{w}" for h, w in sorted(sizes)) if sizes else "no image"
            raise ValueError(f"tile needs images [N, C, H, W] of one size, and more than one pixel; there is {found}")
        height, width = sizes.pop()
        self.size: tuple[int, int] = (height, width)
        self._places = {
            place
            for place, one in enumerate(self.leaves)
            if isinstance(one, Tensor) and one.dim() in (3, 4) and tuple(one.shape[-2:]) == self.size
        }
        self._first = next(self.leaves[place] for place in sorted(self._places) if self.leaves[place].dim() == 4)

    @property
    def key(self) -> Any:
        """The same for calls that differ in the images' size, number and content only."""
        parts: list[Any] = []
        for place, one in enumerate(self.leaves):
            image = place in self._places
            shape = one.shape[1 : -2 if image else None] if isinstance(one, Tensor) else repr(one)
            parts.append((shape, one.dtype, image) if isinstance(one, Tensor) else shape)
        return str(self._spec), tuple(parts)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The arguments with something else in the place of each image."""
        leaves = [change(one) if place in self._places else one for place, one in enumerate(self.leaves)]
        return pytree.tree_unflatten(leaves, self._spec)

    def cut(self, rows: slice, columns: slice) -> Arguments:
        """The arguments with a part of each image."""
        return self.changed(lambda image: image[..., rows, columns])

    def one(self) -> Images:
        """The first of a batch: of the images, and of whatever else has a row for each image."""
        count = self._first.shape[0]
        leaves = [one[:1] if isinstance(one, Tensor) and one.shape[:1] == (count,) else one for one in self.leaves]
        return Images(*pytree.tree_unflatten(leaves, self._spec))

    def empty(self, size: tuple[int, int]) -> Arguments:
        """The arguments with images of another size, no numbers in them."""
        return self.changed(lambda image: image.new_empty(*image.shape[:-2], *size))

    def made_up(self, size: tuple[int, int]) -> Arguments:
        """The arguments with images of another size: noise in [-1, 1]; of integers, those of the image repeated."""
        rows, columns = (torch.arange(n, device=self._first.device) % m for n, m in zip(size, self.size, strict=True))

        def image(like: Tensor) -> Tensor:
            if like.is_floating_point():
                return _noise(like.new_empty(*like.shape[:-2], *size), -1.0, 1.0)
            return like[..., rows[:, None], columns]

        return self.changed(image)


def find(model: nn.Module, images: Images) -> Field:
    """How a model in evaluation follows images, as sizes and marks show it; values are :func:`disagreement`'s.

    Raises:
        ValueError: an output is no image, or the model takes no images of other sizes.
    """
    with _without_modes():
        twin, images = _twin(model, dense=True), images.one()
        stride, outputs = _growth(twin, images)
        field = Field(stride, (_thinnest(twin, images, stride, 0), _thinnest(twin, images, stride, 1)), outputs)
        axes = []
        for axis in (0, 1):
            found = _reaches(twin, images, field, axis)
            if isinstance(found, str):
                return replace(field, whole=found)
            axes.append(found)
        return replace(field, outputs=tuple(zip(*axes, strict=True)))


@contextmanager
def _without_modes() -> Iterator[None]:
    """What a model computes is the same in whatever mode the caller is."""
    cpu, gpu = torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False)
    with torch.inference_mode(False), torch.no_grad(), cpu, gpu:
        yield


def _twin(model: nn.Module, dense: bool) -> nn.Module:
    """A copy for runs that nobody else sees: hooks and buffers are its own, parameters and sparse layers are shared.

    `dense`: with dense layers in the place of the sparse ones.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    sparse = [layer for layer in model.modules() if isinstance(layer, SparseConv)]
    memo |= {id(layer): layer.to_dense() if dense else layer for layer in sparse}
    return copy.deepcopy(model, memo)


def _strip(axis: int, along: int, across: int) -> tuple[int, int]:
    """The size of an image that is `along` pixels long on an axis (0: rows)."""
    return (along, across) if axis == 0 else (across, along)


def _part(axis: int, pixels: slice) -> tuple[slice, slice]:
    return (pixels, slice(None)) if axis == 0 else (slice(None), pixels)


def _noise(tensor: Tensor, low: float, high: float) -> Tensor:
    """Fills a tensor; torch's own random state stays as it is."""
    return tensor.uniform_(low, high, generator=torch.Generator(tensor.device).manual_seed(0))


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(tree) if isinstance(one, Tensor)]


# ---------------------------------------------------------------------- sizes


class _Sizes(TorchDispatchMode):
    """Notes the shape of everything that ops return. A number that a forward reads from a tensor without data is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        out = func(*args, **(kwargs or {}))
        self.found += [(str(func), tuple(one.shape)) for one in _tensors(out)]
        return out


_Run = tuple[list[Any], list[tuple[str, tuple[int, ...]]]]


def _growth(twin: nn.Module, images: Images) -> tuple[tuple[int, int], tuple[tuple[Reach, Reach], ...]]:
    """`stride` and `outputs` as in :class:`Field`, without a reach."""
    found, problem = None, None
    for unit, fake in _UNITS:
        if found is not None and (max(found[0]) <= _PLAUSIBLE or not fake):
            break
        try:
            with _quiet():
                sizes = ((unit, unit), (2 * unit, unit), (unit, 2 * unit))
                runs = [_sized_run(twin, images, size, fake) for size in sizes]
        except Exception as error:  # whatever a forward makes of another size
            problem = problem or error
            continue
        stride = _strides(unit, runs)
        if found is None or max(stride) < max(found[0]):
            found = stride, _scales(unit, [leaves for leaves, _ in runs])
    if found is None:
        raise ValueError(f"tile needs a model that takes images of other sizes; this one says: {problem}")
    return found


def _sized_run(twin: nn.Module, images: Images, size: tuple[int, int], fake: bool) -> _Run:
    """The leaves of what the model puts out, and the shapes on the way."""
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        args, kwargs = images.empty(size)
        with _Sizes() as sizes:
            return pytree.tree_leaves(twin(*args, **kwargs)), sizes.found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from logging what fails in a run without data: here that is an answer, or becomes an error."""
    log, thread = logging.getLogger("torch._subclasses.fake_tensor"), threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(others)
    try:
        yield
    finally:
        log.removeFilter(others)


def _strides(unit: int, runs: list[_Run]) -> tuple[int, int]:
    """The pixels, for rows and columns, after which everything on the way repeats."""
    found = []
    (_, base), *others = runs
    for _, grown in others:
        if [name for name, _ in grown] != [name for name, _ in base]:
            raise ValueError("the model does something else for images of another size; tiles cannot follow that")
        sizes = [size for _, shape in base for size in shape], [size for _, shape in grown for size in shape]
        found.append(math.lcm(*(Fraction(new - old, unit).denominator for old, new in zip(*sizes, strict=True))))
    return found[0], found[1]


def _scales(unit: int, runs: list[list[Any]]) -> tuple[tuple[Reach, Reach], ...]:
    outputs = []
    for place, (one, taller, wider) in enumerate(zip(*runs, strict=True)):
        if one is None or isinstance(one, bool | int | float | str):
            continue
        if not isinstance(one, Tensor):
            raise ValueError(f"output {place} is of type {type(one).__name__}; tiles can put images together only")
        if one.dim() != 4 or taller.shape[3] != one.shape[3] or wider.shape[2] != one.shape[2]:
            raise ValueError(f"output {place} is no image [N, C, H, W]; tiles can put images together only")
        rows, columns = (
            Reach(scale, int(scale * unit) - one.shape[dim])
            for dim, grown in ((2, taller), (3, wider))
            for scale in [Fraction(grown.shape[dim] - one.shape[dim], unit)]
        )
        if rows.scale <= 0 or columns.scale <= 0:
            raise ValueError(f"output {place} does not grow with the image; tiles cannot put it together")
        outputs.append((rows, columns))
    if not outputs:
        raise ValueError("the model puts out no image [N, C, H, W]; tiles can put images together only")
    return tuple(outputs)


# ---------------------------------------------------------------------- reach


class _Spread(TorchDispatchMode):
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

    def __enter__(self) -> _Spread:
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
        given = _tensors((args, kwargs))
        if op is _aten.convolution:
            return self._convolution(*args, **kwargs)
        before = [self.marks(one) for one in given]
        out = func(*args, **kwargs)
        if not any(bool(mask.any()) for mask in before):
            return out
        if op is _aten._local_scalar_dense:
            self.reads = self.reads or self._where(op)
            return out
        made = _tensors(out)
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
        y = _noise(x.new_empty(x.shape[0], channels, *reached.shape[2:]), 0.5, 1.5)
        parameters = [weight] if bias is None else [weight, bias]
        if any(bool(self.marks(one).any()) for one in parameters):  # computed from the image
            self.whole = self.whole or f"{self._where(_aten.convolution)} has a weight that depends on the image"
            return y.fill_(math.nan)
        return y.masked_fill_(reached, math.nan)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None and not returns[0].alias_info.is_write


def _thinnest(twin: nn.Module, images: Images, stride: tuple[int, int], axis: int) -> int:
    """Few rows or columns that the model takes: strips of so many show how far it looks along the other axis."""
    size, problem = _about(8, stride[axis]), None
    while size <= _longest(stride[axis]):
        try:
            _marked_run(twin, images, axis, _strip(axis, size, _shortest(stride[1 - axis])), slice(0))
        except Exception as error:  # a reflection of more rows than there are, say
            size, problem = 2 * size, error
        else:
            return size
    raise ValueError(f"tile needs a model that takes images of other sizes; this one says: {problem}")


def _about(pixels: int, stride: int) -> int:
    return stride * -(-pixels // stride)


def _shortest(stride: int) -> int:
    return max(_about(64, stride), 8 * stride)


def _longest(stride: int) -> int:
    return max(_LONGEST, _MOST_STRIDES * stride)


def _reaches(twin: nn.Module, images: Images, field: Field, axis: int) -> list[Reach] | str:
    """How far each output looks along an axis; or why that is no bounded part of the image."""
    stride, across = field.stride[axis], field.thin[1 - axis]
    outputs = [output[axis] for output in field.outputs]
    length = _shortest(stride)
    while True:
        half = length // 2 // stride * stride
        found: list[list[Reach | None]] = []
        whole = None
        for cut in (half, half + stride):  # a stride later everything repeats, or the stride is none
            sides = []
            for part in (slice(None, cut), slice(cut, None)):
                marks, spread = _marked_run(twin, images, axis, _strip(axis, length, across), part)
                if spread.reads is not None:
                    return f"{spread.reads} reads a number that depends on the whole image"
                whole = whole or spread.whole
                sides.append(marks)
            pairs = zip(*sides, strict=True)
            found.append([_reach(one, cut, *pair) for one, pair in zip(outputs, pairs, strict=True)])
            if None in found[-1]:
                break
        else:
            reaches = [one for one in found[0] if one is not None]
            if found[0] == found[1]:
                return reaches
        if whole is not None and length >= max(_TELLING, _MOST_STRIDES * stride):
            return whole
        if 2 * length > _longest(stride):
            return _far(twin, length // 4)
        length *= 2


def _marked_run(
    twin: nn.Module, images: Images, axis: int, size: tuple[int, int], part: slice
) -> tuple[list[Tensor], _Spread]:
    """Of each output: bool, which rows (axis 0) or columns depend on that part of the image's."""
    made_up = Images(*images.made_up(size))
    spread = _Spread(twin)
    rows, columns = _part(axis, part)

    def marked(image: Tensor) -> Tensor:
        mask = torch.zeros(image.shape, dtype=torch.bool, device=image.device)
        mask[..., rows, columns] = True
        return spread.mark(image.clone(), mask)

    args, kwargs = made_up.changed(marked)
    with spread:
        outputs = _tensors(twin(*args, **kwargs))
    return [spread.marks(one).movedim(2 + axis, 0).flatten(1).any(1) for one in outputs], spread


def _far(twin: nn.Module, pixels: int) -> str:
    """Why marks are everywhere though no op spreads them over everything."""
    for name, module in twin.named_modules():
        if isinstance(module, nn.CircularPad2d) or getattr(module, "padding_mode", "") == "circular":
            return f"{name or 'the model'} ({type(module).__name__}) joins opposite borders of the image"
    return f"an output depends on pixels that are more than {pixels} away"


def _reach(output: Reach, cut: int, before: Tensor, after: Tensor) -> Reach | None:
    """`before`, `after`: which elements depend on pixels before a cut, and on those from the cut on.

    None where too few elements are free of either to tell how many are not.
    """
    at, count = int(cut * output.scale), len(before)
    first = int(before.nonzero().max()) + 1 if before.any() else 0  # the first that sees nothing before the cut
    last = int(after.nonzero().min()) if after.any() else count
    found = replace(output, before=max(first - at, 0), after=max(at - last, 0))
    enough = max(found.before, found.after, 1)
    return found if last >= enough and count - first >= enough else None


# ---------------------------------------------------------------------- values


def multiples(stride: int) -> list[int]:
    """Strides that a model may have for whose layers one is enough: it may pad its images to a multiple."""
    return [stride * 2**power for power in range(7) if power == 0 or stride * 2**power <= _PERIOD]


def disagreement(model: nn.Module, images: Images, field: Field, axis: int, sizes: tuple[int, int, int]) -> str | None:
    """Why a model computes something else for parts of an image than for the whole of it; None where it does not.

    The model runs on strips, which are shorter than the image and its parts but by a multiple of what images may be
    padded to. `sizes`: pixels along the axis, of the image, of a part at its beginning, and of the part at its end.

    Raises:
        ValueError: the model does not take the image, or a part of it.
    """
    stride = field.stride[axis]
    unit, least = multiples(stride)[-1], max(field.overlap(axis), field.thin[axis]) + stride
    early_length, late_length = (_like(size, unit, least) for size in sizes[1:])
    length = _like(sizes[0], unit, max(early_length, late_length) + 1)
    images = images.one()
    with _without_modes():
        image = Images(*images.made_up(_strip(axis, length, field.thin[1 - axis])))
        parts = (slice(None), slice(None), slice(early_length), slice(length - late_length, None))
        calls = [Images(*image.cut(*_part(axis, part))).changed(Tensor.clone) for part in parts]
        twin = _twin(model, dense=False)
        try:
            full, again, early, late = (_tensors(twin(*args, **kwargs)) for args, kwargs in calls)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the model does not take a part of {length} {AXES[axis]} of the image: {error}"
            ) from error
    if not all(map(_agree, again, full)):
        return "the model computes something else in each call: random numbers or a state of its own enter"
    for output, *made in zip(field.outputs, full, early, late, strict=True):
        if not _parts_agree(output[axis], 2 + axis, made, early_length, length - late_length):
            return "the model computes something else for a part of an image: positions or the image's size enter"
    return None


def _like(size: int, unit: int, least: int) -> int:
    """The smallest number that is at least `least` and differs from a size by a multiple of the unit."""
    return least + (size - least) % unit


def _parts_agree(reach: Reach, dim: int, made: list[Tensor], end: int, start: int) -> bool:
    """`made`: the outputs for an image, for its pixels up to `end` and for those from `start` on."""
    full, early, late = made
    step, count = int(start * reach.scale), int(end * reach.scale) - reach.missing
    if late.shape[dim] != full.shape[dim] - step or early.shape[dim] != count:
        return False
    kept = late.shape[dim] - reach.before
    if not _agree(late.narrow(dim, reach.before, kept), full.narrow(dim, reach.before + step, kept)):
        return False
    kept = count - max(reach.after - reach.missing, 0)
    return _agree(early.narrow(dim, 0, kept), full.narrow(dim, 0, kept))


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """The same within rounding, which turns over few of the numbers that were made whole."""
    if not theirs.is_floating_point():
        return int((ours != theirs).sum()) <= 0.01 * theirs.numel()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(theirs.dtype, 16 * torch.finfo(theirs.dtype).eps)
    scale = theirs.abs().max().item() if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)
