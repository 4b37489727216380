"""The receptive field of a model: the rows and columns of an image on which an element of an output depends.

The receptive field is measured on the running model, not on a traced graph. The method therefore also serves a forward
that torch.fx cannot trace. There are three kinds of runs:

1. Sizes. The model runs without data (fake tensors) on images of three sizes. A tensor that grows by a quarter of the
   image's growth holds every fourth row, so a part of an image may begin only at multiples of four.
2. Reach. The model runs on made-up numbers with marks on all columns before or after a cut (`marks.py`). Outputs
   without a mark do not depend on those columns, whatever values the columns hold.
3. Values. The model runs on an image and on parts of the image (`agreement.py`). These runs find dependences that marks
   do not show.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .images import Images, part_of, strip, tensors_of, twin_of, without_modes
from .marks import Spread

#: Sizes at which tensors are compared, and whether the run is without data. A size should be a multiple of the model's
#: stride. If the first size is not, a stride above `_PLAUSIBLE` results, and the second size is tried. The sizes are
#: small enough for attention, whose tensors have an element for each pair of pixels. The last size is for ops that need
#: data.
_UNITS, _PLAUSIBLE = ((7680, True), (5040, True), (192, False)), 512
#: Strips for the search of a receptive field have at most `_LONGEST` pixels or `_MOST_STRIDES` strides, whichever is
#: larger. If marks spread over a whole tensor, the model counts as reading the whole image once the strip has at least
#: `_TELLING` pixels and at least `_MOST_STRIDES` strides.
_LONGEST, _MOST_STRIDES, _TELLING = 4096, 16, 128
#: The largest multiple, in pixels, to which a model is assumed to pad its images.
_PERIOD = 256


@dataclass(frozen=True)
class Reach:
    """The relation between the elements of one output and the pixels of the image, along one axis.

    `scale`: elements of the output per pixel. `missing`: the output has `scale` times the pixels minus `missing`
    elements. `before`, `after`: for a part of the image, the numbers of output elements that differ from those of the
    whole image: `before` elements at the beginning of the part, and `after` elements before the cut at its end.
    """

    scale: Fraction
    missing: int
    before: int = 0
    after: int = 0

    @property
    def overlap(self) -> Fraction:
        """The pixels that two parts must share so that each element is correct in at least one part."""
        return (self.before + max(self.after, self.missing)) / self.scale


@dataclass(frozen=True)
class Field:
    """The relation between a model's outputs and its images.

    `stride`: parts of an image begin and end at multiples of this number of rows and of columns. `thin`: a small number
    of rows, and of columns, that the model accepts. `outputs`: for each output tensor, the reach along rows and along
    columns. `whole`: the reason why parts of an image cannot be computed separately, a sentence without its full stop;
    None if they can.
    """

    stride: tuple[int, int]
    thin: tuple[int, int]
    outputs: tuple[tuple[Reach, Reach], ...]
    whole: str | None = None

    def overlap(self, axis: int) -> int:
        """The pixels that neighbouring parts must share along an axis for exact results, a multiple of the stride."""
        stride = self.stride[axis]
        return max(math.ceil(output[axis].overlap / stride) for output in self.outputs) * stride

    def covered(self, axis: int) -> int:
        """The pixels that neighbouring parts must share along an axis so that every element of an output lies in some
        part, a multiple of the stride."""
        stride = self.stride[axis]
        return max(math.ceil(output[axis].missing / output[axis].scale / stride) for output in self.outputs) * stride

    def strided(self, axis: int, stride: int) -> Field:
        """The field with another stride along an axis."""
        return replace(self, stride=strip(axis, stride, self.stride[1 - axis]))

    def widened(self, axis: int, strides: int) -> Field:
        """The field with a reach that is larger by a number of strides, on both sides along an axis."""

        def wider(reach: Reach) -> Reach:
            more = int(strides * self.stride[axis] * reach.scale)
            return replace(reach, before=reach.before + more, after=reach.after + more)

        outputs = ((wider(rows), columns) if axis == 0 else (rows, wider(columns)) for rows, columns in self.outputs)
        return replace(self, outputs=tuple(outputs))

    def variants(self, axis: int) -> list[Field]:
        """The fields to try one after another until values agree, because marks do not show everything.

        A model that pads its images to a multiple needs a larger stride than its layers have. A model that crops, or
        that counts the neighbours of an element, needs neighbours whose values do not matter.
        """
        stride = self.stride[axis]
        return [self.strided(axis, one) for one in multiples(stride)] + [self.widened(axis, n) for n in (1, 2, 4)]


def multiples(stride: int) -> list[int]:
    """The strides to try for a model whose layers have `stride`, because the model may pad its images to a multiple."""
    return [stride * 2**power for power in range(7) if power == 0 or stride * 2**power <= _PERIOD]


def find(model: nn.Module, images: Images) -> Field:
    """The field of a model in evaluation mode, found from sizes and marks. `agreement.py` then compares values.

    Raises:
        ValueError: an output is not an image, or the model does not accept images of other sizes.
    """
    with without_modes():
        twin, images = twin_of(model, dense=True), images.one()
        stride, outputs = _growth(twin, images)
        thin = [_thinnest(twin, images, stride, axis) if axis in images.axes else 1 for axis in (0, 1)]
        field = Field(stride, (thin[0], thin[1]), outputs)
        axes = []
        for axis in (0, 1):
            if axis not in images.axes:
                axes.append([output[axis] for output in outputs])
                continue
            found = _reaches(twin, images, field, axis)
            if isinstance(found, str):
                return replace(field, whole=found)
            axes.append(found)
        return replace(field, outputs=tuple(zip(*axes, strict=True)))


# ---------------------------------------------------------------------- sizes


class _Sizes(TorchDispatchMode):
    """Records the shape of each tensor that an op returns. Reading a number from a tensor without data gives 1."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        out = func(*args, **(kwargs or {}))
        self.found += [(str(func), tuple(one.shape)) for one in tensors_of(out)]
        return out


_Run = tuple[list[Any], list[tuple[str, tuple[int, ...]]]]


def _growth(twin: nn.Module, images: Images) -> tuple[tuple[int, int], tuple[tuple[Reach, Reach], ...]]:
    """`stride` and `outputs` as in :class:`Field`. In the outputs, `before` and `after` are not known yet."""
    found, problem = None, None
    for unit, fake in _UNITS:
        if found is not None and (max(found[0]) <= _PLAUSIBLE or not fake):
            break
        try:
            with _quiet():
                rows = 1 if images.signals else unit
                sizes = ((rows, unit), (rows if images.signals else 2 * unit, unit), (rows, 2 * unit))
                runs = [_sized_run(twin, images, size, fake) for size in sizes]
        except Exception as error:  # a forward may raise anything for another size
            problem = problem or error
            continue
        stride = _strides(unit, runs)
        if found is None or max(stride) < max(found[0]):
            found = stride, _scales(unit, [leaves for leaves, _ in runs], images.signals)
    if found is None:
        raise ValueError(f"tile needs a model that takes images of other sizes; this one says: {problem}")
    return found


def _sized_run(twin: nn.Module, images: Images, size: tuple[int, int], fake: bool) -> _Run:
    """The leaves of the model's output, and the name and the shape of every result of an op."""
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        args, kwargs = images.empty(size)
        with _Sizes() as sizes:
            return pytree.tree_leaves(images.maps(twin(*args, **kwargs))), sizes.found


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses torch's log of failures in runs without data. A failure here leads to another run or to an error."""
    log, thread = logging.getLogger("torch._subclasses.fake_tensor"), threading.get_ident()

    def of_other_threads(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(of_other_threads)
    try:
        yield
    finally:
        log.removeFilter(of_other_threads)


def _strides(unit: int, runs: list[_Run]) -> tuple[int, int]:
    """The model's stride along rows and columns: the pixels after which the places of all tensors' elements repeat."""
    found = []
    (_, base), *others = runs
    for _, grown in others:
        if [name for name, _ in grown] != [name for name, _ in base]:
            raise ValueError("the model does something else for images of another size, so it cannot run on tiles")
        sizes = [size for _, shape in base for size in shape], [size for _, shape in grown for size in shape]
        found.append(math.lcm(*(Fraction(new - old, unit).denominator for old, new in zip(*sizes, strict=True))))
    return found[0], found[1]


def _scales(unit: int, runs: list[list[Any]], signals: bool) -> tuple[tuple[Reach, Reach], ...]:
    """For each output, `scale` and `missing` along rows and columns. Raises ValueError if an output is not an image.

    `signals`: the outputs must be signals, as images of one row, which have no tiles along the rows.
    """
    kind = "signal [N, C, L]" if signals else "image [N, C, H, W]"
    outputs = []
    for place, (one, taller, wider) in enumerate(zip(*runs, strict=True)):
        if one is None or isinstance(one, bool | int | float | str):
            continue
        if not isinstance(one, Tensor):
            raise ValueError(f"output {place} is of type {type(one).__name__}; tiles need outputs that are images")
        if signals and one.dim() == 4 and one.shape[2] != 1:
            raise ValueError(f"output {place} is no {kind}; tiles of signals need outputs that are signals")
        if one.dim() != 4 or taller.shape[3] != one.shape[3] or wider.shape[2] != one.shape[2]:
            raise ValueError(f"output {place} is no {kind}; tiles need outputs that are images or signals")
        rows, columns = (
            Reach(scale, int(scale * unit) - one.shape[dim])
            for dim, grown in ((2, taller), (3, wider))
            for scale in [Fraction(grown.shape[dim] - one.shape[dim], unit)]
        )
        if signals:
            rows = Reach(Fraction(1), 0)
        if rows.scale <= 0 or columns.scale <= 0:
            raise ValueError(f"output {place} does not grow with the image, so it cannot be put together from tiles")
        outputs.append((rows, columns))
    if not outputs:
        raise ValueError(f"the model puts out no {kind}; tiles need outputs that are images or signals")
    return tuple(outputs)


# ---------------------------------------------------------------------- reach


def _thinnest(twin: nn.Module, images: Images, stride: tuple[int, int], axis: int) -> int:
    """A small number of rows or columns that the model accepts: the width of strips along the other axis."""
    size, problem = rounded_up(8, stride[axis]), None
    across = 1 if images.signals else _shortest(stride[1 - axis])
    while size <= _longest(stride[axis]):
        try:
            _marked_run(twin, images, axis, strip(axis, size, across), slice(0))
        except Exception as error:  # for example, a reflection of more rows than the image has
            size, problem = 2 * size, error
        else:
            return size
    raise ValueError(f"tile needs a model that takes images of other sizes; this one says: {problem}")


def rounded_up(pixels: int, stride: int) -> int:
    """The least multiple of `stride` that is not below `pixels`."""
    return stride * -(-pixels // stride)


def _shortest(stride: int) -> int:
    return max(rounded_up(64, stride), 8 * stride)


def _longest(stride: int) -> int:
    return max(_LONGEST, _MOST_STRIDES * stride)


def _reaches(twin: nn.Module, images: Images, field: Field, axis: int) -> list[Reach] | str:
    """The reach of each output along an axis, or the reason why an output depends on the whole image."""
    stride, across = field.stride[axis], field.thin[1 - axis]
    outputs = [output[axis] for output in field.outputs]
    length = _shortest(stride)
    while True:
        half = length // 2 // stride * stride
        found: list[list[Reach | None]] = []
        whole = None
        for cut in (half, half + stride):  # both cuts give the same reach if the stride is right
            sides = []
            for part in (slice(None, cut), slice(cut, None)):
                marks, spread = _marked_run(twin, images, axis, strip(axis, length, across), part)
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
) -> tuple[list[Tensor], Spread]:
    """For each output a bool vector: the rows (axis 0) or columns that depend on a part of the image's rows or columns.

    Also returns the mode that followed the marks.
    """
    made_up = Images(*images.made_up(size))
    spread = Spread(twin)
    rows, columns = part_of(axis, part)

    def marked(image: Tensor) -> Tensor:
        mask = torch.zeros(image.shape, dtype=torch.bool, device=image.device)
        mask[..., rows, columns] = True
        return spread.mark(image.clone(), mask)

    args, kwargs = made_up.changed(marked)
    with spread:
        outputs = tensors_of(images.maps(twin(*args, **kwargs)))
    return [spread.marks(one).movedim(2 + axis, 0).flatten(1).any(1) for one in outputs], spread


def _far(twin: nn.Module, pixels: int) -> str:
    """The reason why all elements are marked although no single op spreads marks over a whole tensor."""
    for name, module in twin.named_modules():
        if isinstance(module, nn.CircularPad2d) or getattr(module, "padding_mode", "") == "circular":
            return f"{name or 'the model'} ({type(module).__name__}) joins opposite borders of the image"
    return f"an output depends on pixels that are more than {pixels} away"


def _reach(output: Reach, cut: int, before: Tensor, after: Tensor) -> Reach | None:
    """The reach of an output from one cut; None if too few elements are free of marks to be sure of the reach.

    `before`, `after`: the elements that depend on pixels before the cut, and on pixels from the cut on.
    """
    at, count = int(cut * output.scale), len(before)
    first = int(before.nonzero().max()) + 1 if before.any() else 0  # the first without a pixel before the cut
    last = int(after.nonzero().min()) if after.any() else count
    found = replace(output, before=max(first - at, 0), after=max(at - last, 0))
    enough = max(found.before, found.after, 1)
    return found if last >= enough and count - first >= enough else None
