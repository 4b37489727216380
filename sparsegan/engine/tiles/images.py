"""The images or signals among a call's arguments, and helpers for runs of a model on others.

A signal ``[N, C, L]`` is an image ``[N, C, 1, L]`` of one row here, as in `sparsegan.signals`. Only a call of the model
sees the signal itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...nn.layer import SparseConv
from ...signals import IMAGE, SIGNAL, as_map

AXES = ("rows", "columns")
#: The names of the axes of a signal, whose length lies along the columns.
SIGNAL_AXES = ("rows", "steps")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Images:
    """The arguments of a call, and which of them are images: tensors ``[N, C, H, W]``, and ``[N, H, W]`` of the same H
    and W. A tensor ``[N, C, 1, 1]`` is not an image. Where there are no images, tensors of floats ``[N, C, L]`` are
    signals, unless L is 1.

    `signals`: whether they are signals. `axes`: the axes along which there are tiles. `names`: the axes' names.

    Raises:
        ValueError: no argument is an image or a signal, or they differ in size.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.leaves, self._spec = pytree.tree_flatten((args, kwargs))
        tensors = {place: one for place, one in enumerate(self.leaves) if isinstance(one, Tensor)}
        sizes = {tuple(one.shape[2:]) for one in tensors.values() if one.dim() == IMAGE} - {(1, 1)}
        lengths = {one.shape[2] for one in tensors.values() if one.dim() == SIGNAL and one.is_floating_point()} - {1}
        self.signals = not sizes and bool(lengths)
        if self.signals:
            sizes = {(1, length) for length in lengths}
        if len(sizes) != 1:
            found = " and ".join(str(w) if self.signals else f"{h}x{w}" for h, w in sorted(sizes))
            there = f"{'signals' if self.signals else 'images'} of {found}" if sizes else "no image"
            raise ValueError(
                "tile needs images [N, C, H, W] of one size, and more than one pixel, or signals [N, C, L] of one "
                f"length; there is {there}"
            )
        height, width = sizes.pop()
        self.size: tuple[int, int] = (height, width)
        self.axes: tuple[int, ...] = (1,) if self.signals else (0, 1)
        self.names = SIGNAL_AXES if self.signals else AXES
        dims = (SIGNAL,) if self.signals else (SIGNAL, IMAGE)
        self._places = {
            place
            for place, one in tensors.items()
            if one.dim() in dims and tuple(as_map(one).shape[2:] if self.signals else one.shape[-2:]) == self.size
        }
        self._first = next(tensors[place] for place in sorted(self._places) if tensors[place].dim() == dims[-1])

    @property
    def key(self) -> Any:
        """A key that is equal for calls that differ only in the size, number and content of their images."""
        parts: list[Any] = []
        for place, one in enumerate(self.leaves):
            image = place in self._places
            shape = one.shape[1 : -2 if image else None] if isinstance(one, Tensor) else repr(one)
            parts.append((shape, one.dtype, image) if isinstance(one, Tensor) else shape)
        return str(self._spec), tuple(parts)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The arguments with each image replaced by ``change(image)``. A signal is an image of one row there."""

        def changed(one: Tensor) -> Tensor:
            return change(as_map(one)).squeeze(2) if self.signals else change(one)

        leaves = [changed(one) if place in self._places else one for place, one in enumerate(self.leaves)]
        return pytree.tree_unflatten(leaves, self._spec)

    def cut(self, rows: slice, columns: slice) -> Arguments:
        """The arguments with each image cut to some rows and columns."""
        return self.changed(lambda image: image[..., rows, columns])

    def one(self) -> Images:
        """The arguments for the first image of the batch. Tensors with a row per image are cut to their first row."""
        count = self._first.shape[0]
        leaves = [one[:1] if isinstance(one, Tensor) and one.shape[:1] == (count,) else one for one in self.leaves]
        return Images(*pytree.tree_unflatten(leaves, self._spec))

    def maps(self, outputs: Any) -> Any:
        """The model's outputs with signals as images of one row."""
        return pytree.tree_map_only(Tensor, as_map, outputs) if self.signals else outputs

    def unmapped(self, outputs: Any) -> Any:
        """The inverse of `maps`."""
        return pytree.tree_map_only(Tensor, lambda one: one.squeeze(2), outputs) if self.signals else outputs

    def empty(self, size: tuple[int, int]) -> Arguments:
        """The arguments with uninitialized images of another size."""
        return self.changed(lambda image: image.new_empty(*image.shape[:-2], *size))

    def made_up(self, size: tuple[int, int]) -> Arguments:
        """The arguments with images of another size: noise in [-1, 1], or an image of integers repeated."""
        rows, columns = (torch.arange(n, device=self._first.device) % m for n, m in zip(size, self.size, strict=True))

        def image(like: Tensor) -> Tensor:
            if like.is_floating_point():
                return noise(like.new_empty(*like.shape[:-2], *size), -1.0, 1.0)
            return like[..., rows[:, None], columns]

        return self.changed(image)


@contextmanager
def without_modes() -> Iterator[None]:
    """Within this context, the caller's gradient, inference and autocast modes do not change a model's results."""
    cpu, gpu = torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False)
    with torch.inference_mode(False), torch.no_grad(), cpu, gpu:
        yield


def twin_of(model: nn.Module, dense: bool) -> nn.Module:
    """A copy of a model for runs that leave the model unchanged. Hooks and buffers are copied; parameters and sparse
    layers are common to both.

    `dense`: replace the sparse layers of the copy by dense ones.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    sparse = [layer for layer in model.modules() if isinstance(layer, SparseConv)]
    memo |= {id(layer): layer.to_dense() if dense else layer for layer in sparse}
    return copy.deepcopy(model, memo)


def strip(axis: int, along: int, across: int) -> tuple[int, int]:
    """The size (rows, columns) of an image: `along` pixels on the axis (0: rows), `across` on the other axis."""
    return (along, across) if axis == 0 else (across, along)


def part_of(axis: int, pixels: slice) -> tuple[slice, slice]:
    return (pixels, slice(None)) if axis == 0 else (slice(None), pixels)


def noise(tensor: Tensor, low: float, high: float) -> Tensor:
    """Fills a tensor with uniform noise, always the same. The state of torch's generators does not change."""
    return tensor.uniform_(low, high, generator=torch.Generator(tensor.device).manual_seed(0))


def tensors_of(tree: Any) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(tree) if isinstance(one, Tensor)]
