"""A simulated GPU: ops on CPU tensors are put into queues, like the streams of a GPU, and run later.

Within :meth:`SimulatedGpu.running` an op only allocates its result. The numbers are computed when the queue is worked
off. Streams run in a random order, as far as events allow. An op that runs before another op that it needs is an error.
Ops that a capture records run at each replay.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(eq=False)
class Work:
    """An entry of a queue. `run` returns False while the event that it waits for has not been reached."""

    run: Callable[[], bool]
    reads: set[int] = field(default_factory=set)  # keys of storages
    writes: set[int] = field(default_factory=set)
    after: list[Work] = field(default_factory=list)
    done: bool = False

    def needs(self, other: Work) -> bool:
        return bool(self.reads & other.writes or self.writes & (other.writes | other.reads))


class SimulatedGpu:
    """Replaces the functions of ``torch.cuda`` that the engine calls, and runs the ops of CPU tensors in its queues."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.done: list[str] = []  # names of the ops that have run
        self.on_op: Callable[[str], None] = lambda name: None
        self.devices: set[Any] = set()  # current when a stream or graph was made or a graph replayed
        self.graphs: list[Graph] = []
        self.on_capture: Callable[[], None] = lambda: None
        self.capturing = False
        self._lock = threading.RLock()
        self._streams: list[Stream] = []
        self._local = threading.local()
        self._default = Stream(self)
        fakes = {
            "synchronize": self.synchronize,
            "device": self.device,
            "Stream": lambda device=None: self.noted(Stream(self)),
            "Event": lambda: Event(self),
            "CUDAGraph": lambda: self.noted(Graph(self)),
            "current_stream": lambda device=None: self.here.stream,
            "stream": self.stream,
            "graph": self.capture,
            "is_current_stream_capturing": lambda: self.here.graph is not None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cpu, "synchronize", self.synchronize)
        monkeypatch.setattr("sparsegan.engine.gpu._TURNS", {}, raising=False)
        numpy = Tensor.numpy

        def numpy_waits(tensor: Tensor, **options: Any) -> Any:
            if self.here.graph is None:  # layers on a CPU read their support at each call
                self.synchronize()
            return numpy(tensor, **options)

        monkeypatch.setattr(Tensor, "numpy", numpy_waits)

    @property
    def here(self) -> Any:
        """The current stream, capture and device of the calling thread."""
        if not hasattr(self._local, "state"):
            self._local.state = SimpleNamespace(stream=self._default, graph=None, device=None)
        return self._local.state

    def noted(self, made: Any) -> Any:
        self.devices.add(self.here.device)
        return made

    def put(self, run: Callable[[], bool], reads: set[int] | None = None, writes: set[int] | None = None) -> None:
        here, work = self.here, Work(run, reads or set(), writes or set())
        with self._lock:
            if here.graph is not None:
                here.graph.works.append(work)
                return
            queued = [one for stream in self._streams for one in stream.queue]
            work.after = [one for one in queued if work.needs(one)]
            here.stream.queue.append(work)

    def pending(self) -> int:
        return sum(len(stream.queue) for stream in self._streams)

    def synchronize(self, device: Any = None) -> None:
        assert not self.capturing, "a device was waited for during a capture"
        self.work_off(lambda: not self.pending())

    def work_off(self, enough: Callable[[], bool]) -> None:
        """Runs the first entries of the queues, in a random order of streams, until `enough()` is true."""
        with self._lock:
            stuck: set[Stream] = set()
            while not enough():
                ready = [stream for stream in self._streams if stream.queue and stream not in stuck]
                assert ready, "all streams wait for each other"
                stream = self.random.choice(ready)
                work = stream.queue[0]
                if work.run():
                    assert all(one.done for one in work.after), "an op ran before an op of another stream that it needs"
                    work.done = True
                    stream.queue.popleft()
                    stuck.clear()
                else:
                    stuck.add(stream)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        here, before = self.here, self.here.device
        here.device = device
        try:
            yield
        finally:
            here.device = before

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
        assert capture_error_mode == "thread_local", "other threads could not allocate during the capture"
        assert not self.capturing, "torch captures one graph at a time"
        before, self.here.stream = self.here.stream, stream or Stream(self)
        self.here.graph, self.capturing = graph, True
        try:
            self.on_capture()
            yield
            self.here.stream = before  # torch does not restore the stream where a capture fails
        finally:
            self.here.graph, self.capturing = None, False

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which the ops of the calling thread run on this device."""
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
    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu = gpu
        self.works: list[Work] = []
        gpu.graphs.append(self)

    def replay(self) -> None:
        assert not self.gpu.capturing, "torch's random numbers allow no replay during a capture"
        self.gpu.noted(self)
        for work in self.works:
            self.gpu.put(work.run, work.reads, work.writes)


class _Ops(TorchDispatchMode):
    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name()
        returned = func._schema.returns
        numbers = returned and not any("Tensor" in str(one.type) for one in returned)
        if numbers or torch.Tag.dynamic_output_shape in func.tags:  # the host needs the numbers
            if self.gpu.here.graph is not None:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.gpu.synchronize()
            return func(*args, **kwargs)
        if "empty" in name or torch.Tag.inplace_view in func.tags or _is_fake((args, kwargs)):  # nothing to compute
            return func(*args, **kwargs)
        written = func._schema.is_mutable
        if written:
            out = kwargs.get("out", args[0]) if returned else None
        else:
            out = func(*args, **kwargs)
            if _is_fake(out) or _memory(out) & _memory((args, kwargs)):  # a fake result, or a view
                return out
        results = [one for one in pytree.tree_leaves(out) if isinstance(one, Tensor)]
        for one in results if not written else ():
            one.fill_(float("nan") if one.is_floating_point() else 0)

        def work() -> bool:
            # Another thread may run this work, under another dispatch mode and gradient mode.
            with torch.no_grad(), torch._C._DisableTorchDispatch():
                computed = func(*args, **kwargs)
                for own, late in zip(results, pytree.tree_leaves(computed), strict=True) if not written else ():
                    own.copy_(late)
            self.gpu.done.append(name)
            self.gpu.on_op(name)
            return True

        memory, made = _memory((args, kwargs)), _memory(out)
        if written and out is None:  # any argument may be the one that is written
            made = memory
        self.gpu.put(work, memory, made)
        return out


def _is_fake(values: Any) -> bool:
    return any(isinstance(one, FakeTensor) for one in pytree.tree_leaves(values))


def _memory(values: Any) -> set[int]:
    return {one.untyped_storage()._cdata for one in pytree.tree_leaves(values) if isinstance(one, Tensor)}
