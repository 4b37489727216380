"""What the engines of all devices have in common.

An engine holds its own copy of a model, one compiled program for each kind of call, and the tiles of large images. It
takes calls from several threads, checks their arguments, and compares what it computes with the model. Code that
expects a module finds the methods of one: each works, or an error says what to do instead.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..calls import Call
from ..copying import bake, copy_model
from ..forks import ENGINES, TRACING, leave_missing_threads
from ..modes import Buffers
from ..randomness import devices_of, undisturbed
from . import tiling
from .statistics import by_batch
from .tracing import close

Self = TypeVar("Self", bound="BaseEngine")


class BaseEngine(ABC):
    """An engine without its programs: a subclass makes and runs them.

    `model`: the engine's own copy; `example`: its positional and keyword arguments.

    A program is what an engine compiles for calls of one key. The `plans` that were used last are kept.
    """

    #: The tools that may miss a part of a forward, for an error message.
    unseen: ClassVar[str]

    def __init__(self, model: nn.Module, example: Call, plans: int, statistics: str) -> None:
        self.model = bake(copy_model(model)).eval().requires_grad_(False)
        self.example = example.arguments([tensor.detach().clone() for tensor in example.tensors])
        self.statistics = statistics
        self.device = next((one.device for one in _tensors(self.model)), torch.device("cpu"))
        self._check_devices(example)
        self._plans = plans
        self._example = Call.of(*self.example)
        self._signature = inspect.signature(self.model.forward)
        self._running = self.model if statistics == "stored" else by_batch(self.model)
        #: Why the whole model is called as it is, instead of a program.
        self._whole: str | None = None
        self._compiled: OrderedDict[Any, Any] = OrderedDict()
        self.tiles = tiling.Tiles(self._running)

    # ------------------------------------------------------------------ calls

    def __call__(
        self,
        *inputs: Any,
        tile: int | tuple[int, int] | None = None,
        overlap: int | tuple[int, int] | None = None,
        approximate: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The result of ``model(*inputs, **kwargs)`` in evaluation, without gradients, and without autocast.

        Args:
            inputs, kwargs: what the model's forward takes: tensors, numbers, strings, None, nested in lists, tuples and
                dicts. Each new combination of shapes, and of all that is no tensor, is compiled when it comes.
            tile: compute images ``[N, C, H, W]`` in parts of at most so many pixels a side, or (rows, columns): a run
                then needs the memory of one part. The result is that of the whole image.
            overlap: pixels that neighbouring tiles share; by default as many as the model's receptive field asks for.
                With fewer, tiles are blended, which is said once.
            approximate: a result that only resembles that of the whole image is welcome: a layer that looks at the
                whole image (an instance norm, attention) looks at a tile instead, and tiles are blended.

        Raises:
            TypeError: the forward takes no such arguments, or they are not of the example's dtypes.
            ValueError: an input is on another device. With `tile`: no input is an image; an output is none; an output
                depends on the whole image, and `approximate` is not set; the tile is too small.
        """
        leave_missing_threads()
        if tile is not None or overlap is not None or approximate:
            return tiling.run(self, inputs, kwargs, tile, overlap, approximate)
        call = self._call(inputs, kwargs)
        with self._computing():
            return self._run(self._compile(call), call)

    @abstractmethod
    def _run(self, program: Any, call: Call) -> Any:
        """The outputs of a program for a call: tensors of the caller's own."""

    @abstractmethod
    def _make(self, call: Call) -> Any:
        """A new program for calls of this key."""

    def _key(self, call: Call) -> Any:
        """Equal for calls that one program serves."""
        return call.key

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Within it nothing that the caller has switched on changes what the model computes."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def _still(self) -> AbstractContextManager[Any]:
        """Within it random numbers are drawn as usual; afterwards torch's generators are as they were before."""
        return undisturbed(devices_of(self.model))

    def _call(self, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Raises TypeError for arguments that the forward does not take, or of other dtypes than the example's, and
        ValueError for tensors on another device."""
        try:
            self._signature.bind(*inputs, **kwargs)
        except TypeError as error:
            raise TypeError(f"the engine's model, {type(self.model).__name__}, does not take that: {error}") from None
        call = Call.of(inputs, kwargs)
        if call.structure == self._example.structure and call.places == self._example.places:
            for place, (one, like) in enumerate(zip(call.tensors, self._example.tensors, strict=True)):
                if one.dtype != like.dtype:
                    raise TypeError(f"input {place} has dtype {one.dtype}; the example has dtype {like.dtype}")
        self._check_devices(call)
        return call

    def _check_devices(self, call: Call) -> None:
        for place, one in enumerate(call.tensors):
            if not self._is_here(one.device):
                raise ValueError(f"input {place} is on {one.device}; the engine is on {self.device}")

    def _is_here(self, device: torch.device) -> bool:
        """Whether a device is the engine's; a GPU without a number is any."""
        numbers = (None, self.device.index)
        return device.type == self.device.type and (device.type == "cpu" or device.index in numbers)

    def _compile(self, call: Call) -> Any:
        """The program for a call; known ones do not wait for new ones."""
        key = self._key(call)
        with ENGINES:
            if (known := self._known(key)) is not None:
                return known
        with TRACING:
            with ENGINES:
                if (known := self._known(key)) is not None:  # another thread has compiled it meanwhile
                    return known
            with self._still():  # a forward that draws random numbers is run to compile it
                program = self._make(call)
            with ENGINES:
                self._compiled[key] = program
                # Kept until the lock is free: to take a program down may take a while.
                old = [self._compiled.popitem(last=False) for _ in range(len(self._compiled) - self._plans)]
            del old
            return program

    def _known(self, key: Any) -> Any:
        """A program that is there, or None; the one that was used longest ago goes first."""
        if key in self._compiled:
            self._compiled.move_to_end(key)
        return self._compiled.get(key)

    # ------------------------------------------------------------------ the comparison with the model

    def _check(self) -> None:
        """Raises ValueError where the engine computes something else than the model, from the same random numbers.

        A model whose forward changes its buffers runs as it is from then on: `_whole`.
        """
        calls = [self._example]
        if any(
            one.is_floating_point() and one.numel() and bool((one == one.flatten()[0]).all())
            for one in calls[0].tensors
        ):
            calls.append(calls[0].changed(_varied))  # a constant image says little
        for call in calls:
            with self._computing():
                buffers = Buffers(self._running)
                try:
                    expected = self._expected(call)
                except Exception:
                    if call is self._example:
                        raise
                    continue  # numbers that the model does not take
                for one in pytree.tree_leaves(expected):
                    if dataclasses.is_dataclass(one):
                        raise TypeError(
                            f"the model puts out a {type(one).__name__}, a dataclass that torch cannot look into; "
                            "register it with torch.utils._pytree.register_dataclass, or put out a tuple or a dict"
                        )
                if (changed := buffers.put_back()) and self._whole is None:
                    self._whole = f"its forward changes {', '.join(changed)}"
                self._compare(self, call, expected)
                buffers.put_back()

    def _expected(self, call: Call) -> Any:
        """The result of the model itself for a call."""
        args, kwargs = call.copies()
        with self._still():
            return self._running(*args, **kwargs)

    def _compare(self, compute: Callable[..., Any], call: Call, expected: Any) -> None:
        """Raises ValueError where `compute` puts out something else for a call than is `expected`."""
        args, kwargs = call.copies()
        with self._still():
            found = compute(*args, **kwargs)
        if not close(found, expected):
            raise ValueError(
                f"the compiled {type(self.model).__name__} does not put out the same; its forward does something that "
                f"{self.unseen} does not see"
            )

    # ------------------------------------------------------------------ as a module

    def __reduce__(self) -> Any:
        """Copies and pickles hold the model and the example; they compile again."""
        return _compiled_again, (type(self), self.model, self.example, self._plans, self.statistics)

    def eval(self: Self) -> Self:
        """Itself: an engine computes what a model computes in evaluation."""
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Raises ``RuntimeError``, but for ``mode=False``."""
        if mode:
            raise RuntimeError("an engine only infers; train the model, then call optimize_for_inference again")
        return self

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Itself where that is no change; else ``RuntimeError``: move the model and compile it again."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        own = next((one.dtype for one in self.model.parameters() if one.is_floating_point()), dtype)
        if (device is not None and not self._is_here(device)) or dtype not in (None, own):
            raise RuntimeError(
                f"an engine is compiled for one device and dtype and cannot go to {device or dtype}; move the model "
                "and call optimize_for_inference again"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        kind = type(self).__name__
        if name.startswith("_") or not hasattr(nn.Module, name):
            raise AttributeError(f"{kind} has no attribute {name!r}")
        raise AttributeError(f"{kind} is no torch.nn.Module and has no {name!r}; its model is `engine.model`")


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _varied(one: Tensor) -> Tensor:
    if not one.is_floating_point():
        return one
    return torch.linspace(-1, 1, one.numel(), dtype=one.dtype, device=one.device).view(one.shape)


def _compiled_again(
    kind: type[BaseEngine], model: nn.Module, example: tuple[Any, dict[str, Any]], plans: int, statistics: str
) -> BaseEngine:
    args, kwargs = example
    return kind(model, Call.of(args, kwargs), plans, statistics)
