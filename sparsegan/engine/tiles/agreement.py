"""The check that a model computes the same for parts of an image as for the whole image.

The marks of `marks.py` do not show a dependence on positions, on the image's size or on random numbers. Here the model
runs on an image and on parts of the image, and the values are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .images import Images, part_of, strip, tensors_of, twin_of, without_modes
from .receptive import Field, Reach, multiples


def disagreement(model: nn.Module, images: Images, field: Field, axis: int, sizes: tuple[int, int, int]) -> str | None:
    """The reason why a model computes something else for parts of an image than for the whole image; None if the
    results are the same.

    The model runs on strips that are shorter than the image and its parts. The difference in length is a multiple of
    every period to which the model may pad its images.

    `sizes`: pixels along the axis: of the image, of a part at its beginning, and of the part at its end.

    Raises:
        ValueError: the model does not accept the image or a part of the image.
    """
    stride = field.stride[axis]
    unit, least = multiples(stride)[-1], max(field.overlap(axis), field.thin[axis]) + stride
    early_length, late_length = (_like(size, unit, least) for size in sizes[1:])
    length = _like(sizes[0], unit, max(early_length, late_length) + 1)
    images = images.one()
    with without_modes():
        image = Images(*images.made_up(strip(axis, length, field.thin[1 - axis])))
        parts = (slice(None), slice(None), slice(early_length), slice(length - late_length, None))
        calls = [Images(*image.cut(*part_of(axis, part))).changed(Tensor.clone) for part in parts]
        twin = twin_of(model, dense=False)
        try:
            full, again, early, late = (tensors_of(image.maps(twin(*args, **kwargs))) for args, kwargs in calls)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the model does not take a part of {length} {images.names[axis]} of the image: {error}"
            ) from error
    if not all(map(_agree, again, full)):
        return "the model computes something else in each call: it uses random numbers or a state of its own"
    for output, *made in zip(field.outputs, full, early, late, strict=True):
        if not _parts_agree(output[axis], 2 + axis, made, early_length, length - late_length):
            return "the model computes something else for a part of an image: it uses positions or the image's size"
    return None


def _like(size: int, unit: int, least: int) -> int:
    """The smallest number that is at least `least` and differs from `size` by a multiple of `unit`."""
    return least + (size - least) % unit


def _parts_agree(reach: Reach, dim: int, made: list[Tensor], end: int, start: int) -> bool:
    """Whether the outputs for two parts of an image agree with the output for the whole image.

    `made`: the outputs for the image, for its pixels before `end`, and for its pixels from `start` on.
    """
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
    """Whether two tensors are equal within rounding. Of integers and bools, 1 % may differ: they may be the results of
    comparisons or of rounding to integers, which a small difference can turn over."""
    if not theirs.is_floating_point():
        return int((ours != theirs).sum()) <= 0.01 * theirs.numel()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(theirs.dtype, 16 * torch.finfo(theirs.dtype).eps)
    scale = theirs.abs().max().item() if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)
