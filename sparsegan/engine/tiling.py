"""Large images by tiles: the memory of a tile, the result of the whole image.

The model sees one window of the image at a time. Where a window ends within the image its neighbours are missing, so
elements of the result near that end are taken from the next window, which has them; how near is measured by
`receptive.py`. Where a window ends with the image, the model pads it as it pads the whole image. Windows that share too
little for that, or whose model looks at the whole image, are blended.

Windows begin at multiples of the model's stride. All have one size but for the last row and column of windows, which
end with the image.
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
from .images import AXES, Arguments, Images
from .receptive import Field, Reach, find, multiples

#: The first pixel of each, and the pixel after its last.
Windows = list[tuple[int, int]]
#: Pixels, of a square or as (rows, columns).
Pixels = int | tuple[int, int]


@dataclass
class Tiles:
    """An engine's knowledge of how the model that it runs follows images.

    Threads that need to know the same at once each find it out, and find the same: nothing is locked when a process
    forks.
    """

    model: nn.Module
    fields: dict[Any, Field] = field(default_factory=dict)
    proofs: dict[Any, str | None] = field(default_factory=dict)
    warned: bool = False

    def field(self, images: Images) -> Field:
        """Of calls with such images."""
        found = self.fields.get(images.key)
        if found is None:
            found = self.fields[images.key] = find(self.model, images)
        return found

    def disagreement(self, images: Images, found: Field, axis: int, windows: Windows) -> str | None:
        """Why the model computes something else for the windows of an image than for the whole of it."""
        sizes = (windows[-1][1], windows[0][1], windows[-1][1] - windows[-1][0])
        unit = multiples(found.stride[axis])[-1]
        key = (images.key, found, axis, tuple(size % unit for size in sizes))
        if key not in self.proofs:
            self.proofs[key] = disagreement(self.model, images, found, axis, sizes)
        return self.proofs[key]


class Tiled(Protocol):
    """An engine."""

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
    """The result of an engine for images, a tile at a time. The arguments are those of `Engine.__call__`.

    Raises:
        ValueError: `tile` or `overlap` is no number of pixels, or too small; no input is an image, or images differ in
            size; an output is no image; without `approximate`, an output depends on the whole image.
    """
    images = Images(args, kwargs)
    grid = _grid(engine, images, tile, overlap, approximate)
    if grid is None:
        return engine(*args, **kwargs)
    places = list(itertools.product(range(len(grid.rows)), range(len(grid.columns))))
    canvas: _Canvas | None = None
    with torch.no_grad():
        for row, column in [places[-1], *places[:-1]]:  # the last one tells where the result ends
            args, kwargs = grid.window(images, row, column)
            result = engine(*args, **kwargs)
            canvas = canvas or _Canvas(grid, result)
            canvas.put(row, column, result)
    assert canvas is not None
    return canvas.result()


def shapes(
    engine: Tiled,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tile: Pixels | None,
    overlap: Pixels | None,
    approximate: bool,
) -> Iterator[Arguments]:
    """The arguments of an engine's calls for tiles: one call of each size."""
    images = Images(args, kwargs)
    grid = _grid(engine, images, tile, overlap, approximate)
    if grid is None:
        yield args, kwargs
    else:
        for row, column in itertools.product({0, len(grid.rows) - 1}, {0, len(grid.columns) - 1}):
            yield grid.window(images, row, column)


def corner(args: tuple[Any, ...], tile: Pixels) -> tuple[Any, ...]:
    """Arguments to compile an engine for that will run tiles: of larger images a corner, a power of two long."""
    images = Images(args, {})
    sides = [
        slice(size if size <= most else 2 ** (most.bit_length() - 1))
        for size, most in zip(images.size, _pair("tile", tile, 1), strict=True)
    ]
    return images.cut(sides[0], sides[1])[0]


# ---------------------------------------------------------------------- windows


@dataclass(frozen=True)
class _Grid:
    """Windows of rows and of columns. `exact`: on which axes they share enough for the result of the whole image."""

    rows: Windows
    columns: Windows
    exact: tuple[bool, bool]
    field: Field

    def window(self, images: Images, row: int, column: int) -> Arguments:
        """The arguments of one call; a forward may write into them."""
        rows, columns = slice(*self.rows[row]), slice(*self.columns[column])
        return Images(*images.cut(rows, columns)).changed(
            lambda image: image.clone(memory_format=torch.contiguous_format)
        )


def _grid(
    engine: Tiled, images: Images, tile: Pixels | None, overlap: Pixels | None, approximate: bool
) -> _Grid | None:
    """None where the images are no larger than a tile."""
    if tile is None:
        raise ValueError("overlap or approximate is given without tile; both say how tiles are put together")
    most = _pair("tile", tile, 1)
    shared = (None, None) if overlap is None else _pair("overlap", overlap, 0)
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
        needed = " and ".join(f"{found.overlap(axis)} {AXES[axis]}" for axis in (0, 1) if not exact[axis])
        warnings.warn(
            f"overlap is {overlap}; for the result of the whole image this model needs {needed}. Tiles are blended "
            "instead; approximate=True says that this is meant",
            stacklevel=4,
        )
    return _Grid(windows[0], windows[1], (exact[0], exact[1]), found)


def _axis(
    engine: Tiled, images: Images, found: Field, axis: int, tile: int, overlap: int | None, approximate: bool
) -> tuple[Field, Windows, bool]:
    """The field that holds, windows along an axis, and whether they share enough for the result of the whole image."""
    size, why = images.size[axis], found.whole
    for one in found.variants(axis) if why is None else []:
        stride = one.stride[axis]
        if why is not None and tile // stride * stride < one.overlap(axis) + stride:
            continue
        side, common, enough = _sides(one, axis, tile, overlap, approximate)
        windows = _windows(size, side, common, stride)
        if not enough:
            return one, windows, False
        why = engine.tiles.disagreement(images, one, axis, windows)
        if why is None:
            return one, windows, True
    if not approximate:
        raise ValueError(
            f"{why}, so tiles of {tile} pixels would not compute what the model computes; approximate=True (generate "
            "--approximate) lets each tile stand for itself and blends neighbouring tiles"
        )
    side, common, _ = _sides(replace(found, whole=why), axis, tile, overlap, approximate)
    return found, _windows(size, side, common, found.stride[axis]), False


def _sides(found: Field, axis: int, tile: int, overlap: int | None, approximate: bool) -> tuple[int, int, bool]:
    """A window's length, what neighbours share, both multiples of the stride, and whether that is enough."""
    stride, name = found.stride[axis], AXES[axis]
    side, needed = tile // stride * stride, found.overlap(axis) if found.whole is None else None
    if side == 0:
        raise ValueError(f"tile is {tile} {name}; this model needs tiles of {stride} {name}, or a multiple")
    if overlap is not None:
        common, given = _rounded(overlap, stride), f"overlap={overlap}"
    elif needed is not None and (needed < side or not approximate):
        common, given = needed, f"the {needed} {name} that this model's tiles share"
    else:
        common = max(_rounded(side // 4, stride), found.covered(axis))
        given = f"the {common} {name} that blended tiles share"
    if common < found.covered(axis):
        raise ValueError(
            f"overlap is {overlap} {name}; below {found.covered(axis)} tiles leave gaps, for the model crops its images"
        )
    if common >= side:
        way_out = "; overlap= of fewer blends tiles" if overlap is None and not approximate else ""
        raise ValueError(f"tile is {tile} {name}; with {given} it must be at least {common + stride}{way_out}")
    return side, common, needed is not None and common >= needed


def _rounded(pixels: int, stride: int) -> int:
    return -(-pixels // stride) * stride


def _windows(size: int, side: int, common: int, stride: int) -> Windows:
    last = -(-(size - side) // stride) * stride  # the first place from which a window reaches the end
    return [(start, start + side) for start in range(0, last, side - common)] + [(last, size)]


def _pair(name: str, given: Pixels, least: int) -> tuple[int, int]:
    pair = given if isinstance(given, tuple | list) else (given, given)
    if len(pair) != 2 or any(not isinstance(one, int) or isinstance(one, bool) or one < least for one in pair):
        raise ValueError(f"{name} is {given!r}; it must be a whole number of pixels, at least {least}, or two of them")
    return pair[0], pair[1]


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class _Span:
    """Along one axis: the length of a window's result, which part of that is used, where it goes, and its weights."""

    length: int
    take: slice
    put: slice
    weights: Tensor | None


class _Canvas:
    """The result of the whole image, into which those of windows are put. It is as large as the last one says."""

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
            raise ValueError("the model puts out another structure for one tile than for another")
        for whole, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(whole, Tensor):
                of_rows, of_columns = next(spans)
                _put(whole, leaf, of_rows[row], of_columns[column])
            elif whole != leaf:
                raise ValueError(f"the model puts out {whole!r} for one tile and {leaf!r} for another")

    def result(self) -> Any:
        """The whole, in the structure that the model puts out."""
        return pytree.tree_unflatten(self._leaves, self._structure)


def _put(whole: Tensor, part: Tensor, rows: _Span, columns: _Span) -> None:
    if tuple(part.shape[2:]) != (rows.length, columns.length):
        expected, found = f"{rows.length}x{columns.length}", "x".join(map(str, part.shape[2:]))
        raise ValueError(f"a tile becomes {found} where tiles of another size let expect {expected}")
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
    # Each element comes from one window: in the middle of what both neighbours have right.
    before, after = (reach.before, max(reach.after - reach.missing, 0)) if exact else (0, 0)
    seams = [(start + before + end - after) // 2 for start, end in zip(starts[1:], ends, strict=False)]
    return [
        _Span(end - start, slice(first - start, past - start), slice(first, past), None)
        for start, end, first, past in zip(starts, ends, [0, *seams], [*seams, ends[-1]], strict=True)
    ]


def _ramps(starts: list[int], ends: list[int], like: Tensor) -> list[Tensor]:
    """Weights of each window's elements: they fade where it overlaps its neighbours, and add up to 1."""
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
