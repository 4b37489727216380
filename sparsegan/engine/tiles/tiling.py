"""Large images and long signals tile by tile: the result of the whole image with the memory of one tile.

The model runs on one window of the image at a time. Near an edge of a window inside the image, the result is wrong,
because the pixels beyond the edge are missing. `receptive.py` measures how many elements are affected; they are taken
from the next window. At an edge of the image, the model pads a window as it pads the whole image. Windows are blended
if they share too few pixels for this, or if the model reads the whole image.

Windows begin at multiples of the model's stride. All windows have the same size, except those of the last row and the
last column, which end at the edge of the image. A signal is an image of one row here (`images.py`).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .agreement import disagreement
from .images import Arguments, Images
from .receptive import Field, Reach, find, multiples, rounded_up

#: Windows along one axis: the first pixel of each window, and the pixel after its last pixel.
Windows = list[tuple[int, int]]
#: A number of pixels for both axes, or (rows, columns).
Pixels = int | tuple[int, int]


@dataclass
class Tiles:
    """The fields of an engine's model that are known so far, and the results of comparing tiles with whole images.

    There is no lock, so nothing can be locked when a process forks. Threads that need the same field at the same time
    each compute it, with the same result.
    """

    model: nn.Module
    fields: dict[Any, Field] = field(default_factory=dict)
    proofs: dict[Any, str | None] = field(default_factory=dict)
    warned: bool = False

    def field(self, images: Images) -> Field:
        """The field of the model for calls with such images."""
        found = self.fields.get(images.key)
        if found is None:
            found = self.fields[images.key] = find(self.model, images)
        return found

    def disagreement(self, images: Images, found: Field, axis: int, windows: Windows) -> str | None:
        """The reason why the model computes something else for the windows of an image than for the whole image, or
        None."""
        sizes = (windows[-1][1], windows[0][1], windows[-1][1] - windows[-1][0])
        unit = multiples(found.stride[axis])[-1]
        key = (images.key, found, axis, tuple(size % unit for size in sizes))
        if key not in self.proofs:
            self.proofs[key] = disagreement(self.model, images, found, axis, sizes)
        return self.proofs[key]


class Tiled(Protocol):
    """An engine, as this module uses it."""

    tiles: Tiles

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result."""


def run(
    engine: Tiled,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tile: Pixels | None,
    overlap: Pixels | None,
    approximate: bool,
) -> Any:
    """The result of an engine for images, computed tile by tile. The arguments are those of `Engine.__call__`.

    Raises:
        ValueError: `tile` or `overlap` is not a number of pixels, or is too small; no input is an image, or images
            differ in size; an output is not an image; without `approximate`, an output depends on the whole image.
    """
    images = Images(args, kwargs)
    grid = _grid(engine, images, tile, overlap, approximate)
    if grid is None:
        return engine(*args, **kwargs)
    places = list(itertools.product(range(len(grid.rows)), range(len(grid.columns))))
    canvas: _Canvas | None = None
    with torch.no_grad():
        for row, column in [places[-1], *places[:-1]]:  # the last window first: it gives the size of the result
            args, kwargs = grid.window(images, row, column)
            result = images.maps(engine(*args, **kwargs))
            canvas = canvas or _Canvas(grid, result)
            canvas.put(row, column, result)
    assert canvas is not None
    return images.unmapped(canvas.result())


def shapes(
    engine: Tiled,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tile: Pixels | None,
    overlap: Pixels | None,
    approximate: bool,
) -> Iterator[Arguments]:
    """The arguments of an engine's calls for tiles: one call for each size of windows."""
    images = Images(args, kwargs)
    grid = _grid(engine, images, tile, overlap, approximate)
    if grid is None:
        yield args, kwargs
    else:
        for row, column in itertools.product({0, len(grid.rows) - 1}, {0, len(grid.columns) - 1}):
            yield grid.window(images, row, column)


def corner(args: tuple[Any, ...], tile: Pixels) -> tuple[Any, ...]:
    """The arguments for compiling an engine that will run tiles. An axis of the images that is longer than a tile is
    cut to the largest power of two that fits in the tile."""
    images = Images(args, {})
    sides = [
        slice(size if size <= most else 2 ** (most.bit_length() - 1))
        for size, most in zip(images.size, _sides_of(images, "tile", tile, 1), strict=True)
    ]
    return images.cut(sides[0], sides[1])[0]


# ---------------------------------------------------------------------- windows


@dataclass(frozen=True)
class _Grid:
    """The windows along rows and along columns. `exact`: for each axis, whether windows share enough pixels for the
    result of the whole image."""

    rows: Windows
    columns: Windows
    exact: tuple[bool, bool]
    field: Field

    def window(self, images: Images, row: int, column: int) -> Arguments:
        """The arguments of the call for one window. Images are copied, because a forward may write into them."""
        rows, columns = slice(*self.rows[row]), slice(*self.columns[column])
        return Images(*images.cut(rows, columns)).changed(
            lambda image: image.clone(memory_format=torch.contiguous_format)
        )


def _grid(
    engine: Tiled, images: Images, tile: Pixels | None, overlap: Pixels | None, approximate: bool
) -> _Grid | None:
    """The windows for a call; None if the images are not larger than a tile."""
    if tile is None:
        raise ValueError("overlap or approximate is given without tile; both say how tiles are put together")
    most = _sides_of(images, "tile", tile, 1)
    shared = (None, None) if overlap is None else _sides_of(images, "overlap", overlap, 0)
    if all(size <= side for size, side in zip(images.size, most, strict=True)):
        return None
    found = engine.tiles.field(images)
    windows, exact = [], []
    for axis in (0, 1):
        own, right = [(0, images.size[axis])], True
        if images.size[axis] > most[axis]:
            found, own, right = _axis(engine, images, found, axis, most[axis], shared[axis], approximate)
        windows.append(own)
        exact.append(right)
    if not all(exact) and not approximate and not engine.tiles.warned:
        engine.tiles.warned = True
        needed = " and ".join(f"{found.overlap(axis)} {images.names[axis]}" for axis in (0, 1) if not exact[axis])
        warnings.warn(
            f"overlap is {overlap}; for the result of the whole image this model needs {needed}. Tiles are blended "
            "instead; approximate=True accepts this and turns the warning off",
            stacklevel=4,
        )
    return _Grid(windows[0], windows[1], (exact[0], exact[1]), found)


def _axis(
    engine: Tiled, images: Images, found: Field, axis: int, tile: int, overlap: int | None, approximate: bool
) -> tuple[Field, Windows, bool]:
    """The field that passed the comparison, the windows along an axis, and whether they share enough pixels for the
    result of the whole image."""
    size, why = images.size[axis], found.whole
    for one in found.variants(axis) if why is None else []:
        stride = one.stride[axis]
        if why is not None and tile // stride * stride < one.overlap(axis) + stride:
            continue
        side, common, enough = _sides(one, axis, images.names[axis], tile, overlap, approximate)
        windows = _windows(size, side, common, stride)
        if not enough:
            return one, windows, False
        why = engine.tiles.disagreement(images, one, axis, windows)
        if why is None:
            return one, windows, True
    if not approximate:
        raise ValueError(
            f"{why}, so tiles of {tile} {'steps' if images.signals else 'pixels'} would not compute what the model "
            "computes; approximate=True (generate --approximate) computes each tile separately and blends neighbours"
        )
    side, common, _ = _sides(replace(found, whole=why), axis, images.names[axis], tile, overlap, approximate)
    return found, _windows(size, side, common, found.stride[axis]), False


def _sides(
    found: Field, axis: int, name: str, tile: int, overlap: int | None, approximate: bool
) -> tuple[int, int, bool]:
    """The length of a window, the pixels that neighbours share, and whether these are enough for the exact result.

    Length and shared pixels are multiples of the stride.
    """
    stride = found.stride[axis]
    side, needed = tile // stride * stride, found.overlap(axis) if found.whole is None else None
    if side == 0:
        raise ValueError(f"tile is {tile} {name}; this model needs tiles of {stride} {name}, or a multiple")
    if overlap is not None:
        common, given = rounded_up(overlap, stride), f"overlap={overlap}"
    elif needed is not None and (needed < side or not approximate):
        common, given = needed, f"the {needed} {name} that this model's tiles share"
    else:
        common = max(rounded_up(side // 4, stride), found.covered(axis))
        given = f"the {common} {name} that blended tiles share"
    if common < found.covered(axis):
        raise ValueError(
            f"overlap is {overlap} {name}; it must be at least {found.covered(axis)}, or tiles leave gaps, because the "
            "model crops its images"
        )
    if common >= side:
        way_out = "; a smaller overlap= blends tiles" if overlap is None and not approximate else ""
        raise ValueError(f"tile is {tile} {name}; with {given} it must be at least {common + stride}{way_out}")
    return side, common, needed is not None and common >= needed


def _windows(size: int, side: int, common: int, stride: int) -> Windows:
    last = -(-(size - side) // stride) * stride  # the first multiple from which a window reaches the end
    return [(start, start + side) for start in range(0, last, side - common)] + [(last, size)]


def _sides_of(images: Images, name: str, given: Pixels, least: int) -> tuple[int, int]:
    """`given` as numbers of rows and columns. Raises ValueError for two numbers where there are signals."""
    if images.signals and isinstance(given, tuple | list):
        raise ValueError(f"{name} is {given!r}; for signals [N, C, L] it must be one number, at least {least}")
    return _pair(name, given, least)


def _pair(name: str, given: Pixels, least: int) -> tuple[int, int]:
    pair = given if isinstance(given, tuple | list) else (given, given)
    if len(pair) != 2 or any(not isinstance(one, int) or isinstance(one, bool) or one < least for one in pair):
        raise ValueError(f"{name} is {given!r}; it must be a whole number of pixels, at least {least}, or two of them")
    return pair[0], pair[1]


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class _Span:
    """The use of a window's result along one axis.

    `length`: of the result. `take`: the part of the result that is used. `put`: the place of this part in the whole
    result. `weights`: for blending; None where nothing is blended.
    """

    length: int
    take: slice
    put: slice
    weights: Tensor | None


class _Canvas:
    """The result of the whole image, put together from the results of windows.

    `last`: the result of the last window, which gives the size of the whole result.
    """

    def __init__(self, grid: _Grid, last: Any) -> None:
        leaves, self._structure = pytree.tree_flatten(last)
        self._leaves: list[Any] = []
        self._spans: list[tuple[list[_Span], list[_Span]]] = []
        reaches = iter(grid.field.outputs)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                rows, columns = next(reaches)
                self._spans.append((
                    _spans(grid.rows, rows, grid.exact[0], leaf, 2),
                    _spans(grid.columns, columns, grid.exact[1], leaf, 3),
                ))  # fmt: skip
                size = [spans[-1].put.stop for spans in self._spans[-1]]
                leaf = leaf.new_zeros(*leaf.shape[:2], *size)
            self._leaves.append(leaf)

    def put(self, row: int, column: int, result: Any) -> None:
        """Adds a window's result."""
        leaves, structure = pytree.tree_flatten(result)
        spans = iter(self._spans)
        if structure != self._structure:
            raise ValueError("the structure of the model's output differs between tiles")
        for whole, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(whole, Tensor):
                of_rows, of_columns = next(spans)
                _put(whole, leaf, of_rows[row], of_columns[column])
            elif whole != leaf:
                raise ValueError(f"the model puts out {whole!r} for one tile and {leaf!r} for another")

    def result(self) -> Any:
        """The whole result, in the structure of the model's output."""
        return pytree.tree_unflatten(self._leaves, self._structure)


def _put(whole: Tensor, part: Tensor, rows: _Span, columns: _Span) -> None:
    if tuple(part.shape[2:]) != (rows.length, columns.length):
        expected, found = f"{rows.length}x{columns.length}", "x".join(map(str, part.shape[2:]))
        raise ValueError(f"the result of a tile is {found}; by the results of other tiles it must be {expected}")
    target, source = whole[..., rows.put, columns.put], part[..., rows.take, columns.take]
    if rows.weights is None and columns.weights is None:
        target.copy_(source)
        return
    weights = target.new_ones(())
    if rows.weights is not None:
        weights = rows.weights[:, None]
    if columns.weights is not None:
        weights = weights * columns.weights
    target.addcmul_(source, weights)


def _spans(windows: Windows, reach: Reach, exact: bool, last: Tensor, dim: int) -> list[_Span]:
    """The place of each window's result along a dimension; `last` is the result of the last window."""
    starts = [int(start * reach.scale) for start, _ in windows]
    ends = [int(end * reach.scale) - reach.missing for _, end in windows[:-1]] + [starts[-1] + last.shape[dim]]
    if not exact and last.is_floating_point():
        return [
            _Span(end - start, slice(None), slice(start, end), weights)
            for start, end, weights in zip(starts, ends, _ramps(starts, ends, last), strict=True)
        ]
    # Each element comes from one window. The seam lies in the middle of the elements that are right in both neighbours.
    before, after = (reach.before, max(reach.after - reach.missing, 0)) if exact else (0, 0)
    seams = [(start + before + end - after) // 2 for start, end in zip(starts[1:], ends, strict=False)]
    return [
        _Span(end - start, slice(first - start, past - start), slice(first, past), None)
        for start, end, first, past in zip(starts, ends, [0, *seams], [*seams, ends[-1]], strict=True)
    ]


def _ramps(starts: list[int], ends: list[int], like: Tensor) -> list[Tensor]:
    """The weights of each window's elements. They fall linearly where windows overlap, and add up to 1."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    raw = []
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        at = torch.arange(end - start, dtype=dtype, device=like.device) + 0.5
        weights = torch.ones_like(at)
        if place > 0:
            weights = weights.minimum(at / max(ends[place - 1] - start, 1))
        if place + 1 < len(starts):
            weights = weights.minimum((end - start - at) / max(end - starts[place + 1], 1))
        raw.append(weights)
    total = torch.zeros(ends[-1], dtype=dtype, device=like.device)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + len(weights)] += weights
    return [(one / total[start : start + len(one)]).to(like.dtype) for start, one in zip(starts, raw, strict=True)]
