"""A GPU that is none: ops on CPU tensors that are put into queues, as a GPU's streams are, and run late.

Within a :class:`SimulatedGpu` each op only makes its result, without numbers; they come when the queue is worked off.
Streams run in a random order, as far as events let them. What a capture records runs at each replay.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], bool]  # False: an event that it waits for has not come


class SimulatedGpu:
    """Stands in the place of ``torch.cuda``; what is put into ``device_type`` "cpu" is its own work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.done: list[str] = []  # names of the ops that have run
        self.on_op: Callable[[str], None] = lambda name: None
        self.current_device: list[Any] = [None]
        self._lock = threading.RLock()
        self._streams: list[Stream] = []
        self._local = threading.local()
        self._default = Stream(self)
        fakes = {
            "synchronize": self.synchronize,
            "device": self.device,
            "Stream": lambda device=None: Stream(self),
            "Event": lambda: Event(self),
            "CUDAGraph": Graph,
            "current_stream": lambda device=None: self.here.stream,
            "stream": self.stream,
            "graph": self.capture,
            "is_current_stream_capturing": lambda: self.here.graph is not None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cpu, "synchronize", self.synchronize)
        numpy = Tensor.numpy

        def numpy_waits(tensor: Tensor, **options: Any) -> Any:
            if self.here.graph is None:  # layers on a CPU look at their support at each call
                self.synchronize()
            return numpy(tensor, **options)

        monkeypatch.setattr(Tensor, "numpy", numpy_waits)

    @property
    def here(self) -> Any:
        """The calling thread's stream and capture."""
        if not hasattr(self._local, "state"):
            self._local.state = SimpleNamespace(stream=self._default, graph=None)
        return self._local.state

    def put(self, work: Work) -> None:
        here = self.here
        with self._lock:
            (here.stream.queue if here.graph is None else here.graph.works).append(work)

    def pending(self) -> int:
        return sum(len(stream.queue) for stream in self._streams)

    def synchronize(self, device: Any = None) -> None:
        assert self.here.graph is None, "a device was waited for during a capture"
        self.work_off(lambda: not self.pending())

    def work_off(self, enough: Callable[[], bool]) -> None:
        """Runs what lies at the heads of the streams, in a random order."""
        with self._lock:
            stuck: set[Stream] = set()
            while not enough():
                ready = [stream for stream in self._streams if stream.queue and stream not in stuck]
                assert ready, "all streams wait for each other"
                stream = self.random.choice(ready)
                if stream.queue[0]():
                    stream.queue.popleft()
                    stuck.clear()
                else:
                    stuck.add(stream)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        self.current_device.append(device)
        yield
        self.current_device.pop()

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        here, before = self.here, self.here.stream
        here.stream = stream
        try:
            yield
        finally:
            here.stream = before

    @contextmanager
    def capture(self, graph: Graph, stream: Stream | None = None, capture_error_mode: str = "global") -> Iterator[None]:
        self.synchronize()
        graph.gpu, graph.mode, self.here.graph = self, capture_error_mode, graph
        try:
            with self.stream(stream or Stream(self)):
                yield
        finally:
            self.here.graph = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it the calling thread's ops are this device's."""
        with _Ops(self):
            yield


class Stream:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu = gpu
        self.queue: deque[Work] = deque()
        gpu._streams.append(self)

    def wait_event(self, event: Event) -> None:
        version = event.recorded
        with self.gpu.stream(self):
            self.gpu.put(lambda: event.reached >= version)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.gpu)
        event.record(other)
        self.wait_event(event)


class Event:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu, self.recorded, self.reached = gpu, 0, 0

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        version = self.recorded

        def reach() -> bool:
            self.reached = version
            return True

        with self.gpu.stream(stream):
            self.gpu.put(reach)

    def synchronize(self) -> None:
        version = self.recorded
        self.gpu.work_off(lambda: self.reached >= version)


class Graph:
    gpu: SimulatedGpu
    mode: str

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for work in self.works:
            self.gpu.put(work)


class _Ops(TorchDispatchMode):
    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name()
        returned = func._schema.returns
        if returned and not any("Tensor" in str(one.type) for one in returned):  # the host reads numbers
            if self.gpu.here.graph is not None:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.gpu.synchronize()
            return func(*args, **kwargs)
        written = func._schema.is_mutable
        if written:
            out = kwargs.get("out", args[0]) if returned else None
        else:
            out = func(*args, **kwargs)
            if _memory(out) & _memory((args, kwargs)):  # a view
                return out
        results = [one for one in pytree.tree_leaves(out) if isinstance(one, Tensor)]
        for one in results if not written else ():
            one.fill_(float("nan") if one.is_floating_point() else 0)

        def work() -> bool:
            # Not the dispatch mode's own thread, perhaps, nor its gradient mode.
            with torch.no_grad(), torch._C._DisableTorchDispatch():
                computed = func(*args, **kwargs)
                for own, late in zip(results, pytree.tree_leaves(computed), strict=True) if not written else ():
                    own.copy_(late)
            self.gpu.done.append(name)
            self.gpu.on_op(name)
            return True

        self.gpu.put(work)
        return out


def _memory(values: Any) -> set[int]:
    return {one.untyped_storage()._cdata for one in pytree.tree_leaves(values) if isinstance(one, Tensor)}
