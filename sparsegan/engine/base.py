"""The common part of the engines of all devices.

An engine holds its own copy of a model, one compiled program for each kind of call, and its knowledge of how to tile
large images. It accepts calls from several threads, checks their arguments, and compares its results with the model's.
Code that expects an ``nn.Module`` may call the usual methods of a module: each method works, or raises an error that
says what to do instead.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from .statistics import by_batch
from .tiles import streaming, tiling
from .tracing import close

Self = TypeVar("Self", bound="BaseEngine")


class BaseEngine(ABC):
    """The base class of engines. A subclass makes and runs the programs.

    `model`: the engine's own copy of the model. `example`: the positional and keyword arguments of the example call.

    An engine compiles one program for all calls of one key, and keeps the `plans` programs that were used last.
    """

    #: The tool that may not see every operation of a forward, named in an error message.
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
        #: The reason why the model itself is called instead of a program; None where a program is used.
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
        """Returns ``model(*inputs, **kwargs)``, computed in evaluation mode, without gradients and without autocast.

        Args:
            inputs, kwargs: the arguments of the model's forward: tensors, numbers, strings and None, nested in lists,
                tuples and dicts. Each new combination of tensor shapes and other values is compiled on its first call.
            tile: the largest side of a tile in pixels, or (rows, columns). Images ``[N, C, H, W]`` are then computed
                tile by tile, and a run needs the memory of one tile. The result is that of the whole image. Signals
                ``[N, C, L]`` are computed in tiles of so many steps.
            overlap: pixels that neighbouring tiles share. The default is the number that the model's receptive field
                needs. With fewer pixels, tiles are blended, and one warning says so.
            approximate: accept a result that only resembles the result of the whole image. A layer that reads the
                whole image (an instance norm, attention) then reads one tile, and tiles are blended.

        Raises:
            TypeError: the forward does not take these arguments, or their dtypes are not those of the example.
            ValueError: an input is on another device. With `tile`: no input is an image; an output is not an image; an
                output depends on the whole image, and `approximate` is not set; the tile is too small.
        """
        leave_missing_threads()
        if tile is not None or overlap is not None or approximate:
            return tiling.run(self, inputs, kwargs, tile, overlap, approximate)
        call = self._call(inputs, kwargs)
        with self._computing():
            return self._run(self._compile(call), call)

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yields the result for a signal that arrives in chunks. Its parts, joined, are the result of the whole signal.

        Each part of the result comes as soon as the inputs that it depends on are there. The part of the signal that
        later results need, about the model's receptive field, is kept. Each new length of a window is compiled anew, so
        chunks of one length are fastest.

        Args:
            chunks: signals ``[N, C, L]`` of floats with any L, 0 included. They are the model's one argument.

        Raises:
            ValueError: a chunk is no signal, or differs from the first in anything but its length; the model puts out
                anything but one signal; the result depends on the whole signal.
        """
        return streaming.stream(self, chunks)

    @abstractmethod
    def _run(self, program: Any, call: Call) -> Any:
        """The outputs of a program for a call. The engine does not use these tensors again."""

    @abstractmethod
    def _make(self, call: Call) -> Any:
        """A new program for calls with the key of `call`."""

    def _key(self, call: Call) -> Any:
        """A key that is equal for all calls that one program serves."""
        return call.key

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Within this context, the caller's gradient and autocast modes do not change the model's results."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def _still(self) -> AbstractContextManager[Any]:
        """Within this context, random numbers are drawn as usual. Its end restores the state of torch's generators."""
        return undisturbed(devices_of(self.model))

    def _call(self, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The arguments of a call, after all checks.

        Raises TypeError for arguments that the forward does not take or whose dtypes differ from the example's, and
        ValueError for tensors on another device.
        """
        try:
            self._signature.bind(*inputs, **kwargs)
        except TypeError as error:
            name = type(self.model).__name__
            raise TypeError(f"the engine's model, {name}, does not accept these arguments: {error}") from None
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
        """Whether a device is the engine's device. A GPU without an index matches any GPU."""
        numbers = (None, self.device.index)
        return device.type == self.device.type and (device.type == "cpu" or device.index in numbers)

    def _compile(self, call: Call) -> Any:
        """The program for a call. A call with a known program does not wait while another program is compiled."""
        key = self._key(call)
        with ENGINES:
            if (known := self._known(key)) is not None:
                return known
        with TRACING:
            with ENGINES:
                if (known := self._known(key)) is not None:  # another thread has compiled it meanwhile
                    return known
            with self._still():  # compiling runs the forward, which may draw random numbers
                program = self._make(call)
            with ENGINES:
                self._compiled[key] = program
                # Referenced until the lock is free, because destroying a program may take a while.
                old = [self._compiled.popitem(last=False) for _ in range(len(self._compiled) - self._plans)]
            del old
            return program

    def _known(self, key: Any) -> Any:
        """The compiled program of a key, which becomes the most recently used one; None where there is none."""
        if key in self._compiled:
            self._compiled.move_to_end(key)
        return self._compiled.get(key)

    # ------------------------------------------------------------------ the comparison with the model

    def _check(self) -> None:
        """Raises ValueError if the results of the engine and the model differ for the same random numbers.

        If the forward changes the model's buffers, `_whole` is set, and the model itself is called from then on.
        """
        calls = [self._example]
        if any(
            one.is_floating_point() and one.numel() and bool((one == one.flatten()[0]).all())
            for one in calls[0].tensors
        ):
            calls.append(calls[0].changed(_varied))  # on a constant image, many differences do not show
        for call in calls:
            with self._computing():
                buffers = Buffers(self._running)
                try:
                    expected = self._expected(call)
                except Exception:
                    if call is self._example:
                        raise
                    continue  # the model does not accept the varied numbers
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
        """The result of the model for a call, computed without a program."""
        args, kwargs = call.copies()
        with self._still():
            return self._running(*args, **kwargs)

    def _compare(self, compute: Callable[..., Any], call: Call, expected: Any) -> None:
        """Raises ValueError if the result of `compute` for a call differs from `expected`."""
        args, kwargs = call.copies()
        with self._still():
            found = compute(*args, **kwargs)
        if not close(found, expected, call.tensors):
            raise ValueError(
                f"the results of the compiled {type(self.model).__name__} differ from the model's; the forward does "
                f"something that {self.unseen} does not see, for example isinstance(x, torch.Tensor), or counting its "
                "calls"
            )

    # ------------------------------------------------------------------ as a module

    def __reduce__(self) -> Any:
        """Copies and pickles hold the model and the example, and compile the model again."""
        return _rebuilt, (type(self), self.model, self.example, self._plans, self.statistics, *self._more)

    @property
    def _more(self) -> tuple[Any, ...]:
        """Further arguments of the engine's class, for copies and pickles."""
        return ()

    def eval(self: Self) -> Self:
        """Returns the engine unchanged: an engine always computes as a model in evaluation mode does."""
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Raises ``RuntimeError``. ``train(False)`` returns the engine unchanged."""
        if mode:
            raise RuntimeError("an engine only infers; train the model, then call optimize_for_inference again")
        return self

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Returns the engine if it has this device and dtype already. Raises ``RuntimeError`` otherwise: move the model
        and compile it again."""
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


def _rebuilt(
    kind: type[BaseEngine],
    model: nn.Module,
    example: tuple[Any, dict[str, Any]],
    plans: int,
    statistics: str,
    *more: Any,
) -> BaseEngine:
    args, kwargs = example
    return kind(model, Call.of(args, kwargs), plans, statistics, *more)
