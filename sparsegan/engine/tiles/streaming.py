"""Signals as a stream: chunks of the input go in, and chunks of the result come out as soon as they are final.

An element of the result is final when all inputs that it depends on have arrived. `receptive.py` measures how far these
reach. The end of the input so far, as long as the reach to both sides, is kept, and each new chunk is computed together
with it. The chunks that come out, joined, are the result of the whole signal within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ...signals import SIGNAL
from .images import Images
from .receptive import Field, Reach, rounded_up
from .tiling import Tiled


def stream(engine: Tiled, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the result of an engine for a signal that arrives in `chunks`; see `BaseEngine.stream`."""
    whole: _Stream | None = None
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, Tensor) or chunk.dim() != SIGNAL or not chunk.is_floating_point():
            found = f"{chunk.dtype} {list(chunk.shape)}" if isinstance(chunk, Tensor) else type(chunk).__name__
            raise ValueError(f"chunk {number} is {found}; each chunk must be a signal of floats [N, C, L]")
        whole = whole or _Stream(engine, chunk)
        yield from whole.add(chunk, number)
    if whole is not None:
        yield from whole.end()


class _Stream:
    """The state of one stream: the inputs that later results need, and how many elements have come out.

    `first`: the place of the first kept input in the signal. `done`: the number of elements that have come out.
    """

    def __init__(self, engine: Tiled, chunk: Tensor) -> None:
        self.engine, self.kept = engine, chunk[..., :0]
        self.first = self.done = 0
        self._reach: tuple[int, Reach] | None = None

    def add(self, chunk: Tensor, number: int) -> Iterator[Tensor]:
        """Takes the next chunk, and yields the elements that are final now, if there are any."""
        like = self.kept
        if (chunk.shape[:2], chunk.dtype, chunk.device) != (like.shape[:2], like.dtype, like.device):
            raise ValueError(
                f"chunk {number} is {chunk.dtype} {list(chunk.shape)} on {chunk.device}; batch, channels, dtype and "
                f"device must be those of the first chunk, {like.dtype} {list(like.shape[:2])} on {like.device}"
            )
        self.kept = torch.cat([self.kept, chunk], 2)
        stride, reach = self._measured()
        past = (self.first + self.kept.shape[2]) // stride * stride  # a window ends at a multiple of the stride
        final = int(past * reach.scale) - max(reach.after, reach.missing)
        if final > self.done:
            window = self.kept[..., : past - self.first]
            yield self._elements(window, self.first, final, reach)
            self.done = final
            # The first input that element `done` needs: a window that starts there is right from `done` on.
            start = math.floor((self.done - reach.before) / reach.scale / stride) * stride
            drop = max(start, 0) - self.first
            if drop > 0:
                self.kept, self.first = self.kept[..., drop:].clone(), self.first + drop

    def end(self) -> Iterator[Tensor]:
        """Yields the elements that only the end of the signal makes final."""
        if not self.kept.shape[2]:
            return
        reach = None if self._reach is None else self._reach[1]
        rest = self._elements(self.kept, self.first, None, reach)
        if rest.shape[2]:
            yield rest

    def _elements(self, window: Tensor, first: int, past: int | None, reach: Reach | None) -> Tensor:
        """The elements from `done` to `past` of the result, computed for inputs from `first` on."""
        result = self.engine(window.contiguous())
        if not isinstance(result, Tensor) or result.dim() != SIGNAL:
            raise ValueError("the model puts out no signal [N, C, L]; a stream needs one signal")
        before = 0 if reach is None else int(first * reach.scale)
        return result[..., self.done - before : None if past is None else past - before].clone()

    def _measured(self) -> tuple[int, Reach]:
        """The model's stride and reach, measured when the first chunk arrives.

        Raises ValueError where the result depends on the whole signal.
        """
        if self._reach is None:
            images = Images((self.kept.new_zeros(*self.kept.shape[:2], 2),), {})  # only its kind counts
            field = _proven(self.engine, images, self.engine.tiles.field(images))
            if len(field.outputs) != 1:
                raise ValueError(f"the model puts out {len(field.outputs)} signals; a stream needs one")
            self._reach = field.stride[1], field.outputs[0][1]
        return self._reach


def _proven(engine: Tiled, images: Images, field: Field) -> Field:
    """The field with which windows of a signal give the result of the whole signal, as `tiling` proves it for tiles."""
    why = field.whole
    for one in field.variants(1) if why is None else []:
        stride, shared = one.stride[1], one.overlap(1)
        side = rounded_up(2 * shared + one.thin[1], stride) + stride
        why = engine.tiles.disagreement(images, one, 1, [(0, side), (side - shared, 2 * side)])
        if why is None:
            return one
    raise ValueError(f"{why}, so chunks of a signal would not give the result of the whole signal")
