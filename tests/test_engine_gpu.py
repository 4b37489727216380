"""The engine for a GPU, on a simulated GPU: streams, threads, captures, and the comparison with the model."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from simulated_gpu import SimulatedGpu
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.calls import Call
from sparsegan.engine.gpu import GpuEngine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    return SimulatedGpu(monkeypatch)


def model(*more: nn.Module) -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    made = sg.sparsify(nn.Sequential(*layers, *more).double().eval(), 0.5)
    for _, layer in sg.sparse_layers(made):
        layer.backend = "sparse"
    return made


def engine_of(network: nn.Module, *inputs: Any, plans: int = 8) -> GpuEngine:
    return GpuEngine(network, Call.of(inputs, {}), plans, "stored")


def image(n: int = 1, size: int = 6) -> Tensor:
    return torch.randn(n, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_calls_on_several_streams_do_not_interfere(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """One thread calls on several streams and waits for none. No call changes the results of another."""
    gpu, network, inputs = SimulatedGpu(monkeypatch, seed), model(), [image() for _ in range(6)]
    with torch.no_grad():
        expected = [network(2 * x) for x in inputs]
    with gpu.running():
        engine, streams = engine_of(network, inputs[0]), [torch.cuda.Stream() for _ in range(3)]
        results = []
        for index, x in enumerate(inputs):
            with torch.cuda.stream(streams[index % 3]):
                results.append(engine(2 * x))  # the product is not computed yet when the engine is called
        assert gpu.pending()
    gpu.synchronize()
    for own, right in zip(results, expected, strict=True):
        torch.testing.assert_close(own, right)


def test_threads_with_separate_streams(gpu: SimulatedGpu) -> None:
    """Sizes are captured while other threads replay graphs. No graph records the work of another thread."""
    network = model()
    with gpu.running():
        engine = engine_of(network, image())
    sizes, results, errors = (6, 8, 10, 12), {}, []
    inputs = {(thread, turn): image(size=sizes[(thread + turn) % 4]) for thread in range(4) for turn in range(12)}
    barrier = threading.Barrier(4)

    def serve(thread: int) -> None:
        try:
            with gpu.running(), torch.cuda.stream(torch.cuda.Stream()):
                barrier.wait()
                for turn in range(12):
                    results[thread, turn] = engine(inputs[thread, turn])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gpu.synchronize()
    assert not errors
    assert len({len(graph.works) for graph in gpu.graphs}) == 1
    for key, x in inputs.items():
        with torch.no_grad():
            torch.testing.assert_close(results[key], network(x))


def test_replays_wait_for_a_capture(gpu: SimulatedGpu) -> None:
    network, x, results = model(), image(), []
    with gpu.running():
        engine = engine_of(network, x)

        def serve() -> None:
            with gpu.running():
                results.append(engine(x))

        thread = threading.Thread(target=serve)

        def while_capturing() -> None:
            thread.start()
            thread.join(0.2)
            assert not results

        gpu.on_capture = while_capturing
        engine(image(size=8))
        thread.join()
    gpu.synchronize()
    with torch.no_grad():
        torch.testing.assert_close(results[0], network(x))


def test_deleting_a_graph_waits_for_its_last_replay(gpu: SimulatedGpu) -> None:
    with gpu.running():
        engine = engine_of(model(), image(), plans=1)
        engine(image())
        assert gpu.pending()
        engine._compiled.clear()
        gc.collect()
    assert not gpu.pending()


def test_the_models_device_is_current(gpu: SimulatedGpu) -> None:
    with gpu.running(), torch.cuda.device("another"):
        engine = engine_of(model(), image())
        gpu.devices.clear()
        for size in (6, 8):
            engine(image(size=size))
        assert gpu.devices == {engine.device}
        with pytest.raises(ValueError, match="input 0 is on meta; the engine is on cpu"):
            engine(image().to("meta"))
        with pytest.raises(ValueError, match="input 0 is on meta; the engine is on cpu"):
            engine_of(model(), image().to("meta"))
        graph = torch.cuda.CUDAGraph()
        with (
            pytest.raises(RuntimeError, match="cannot be captured in another"),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            engine(image())
    engine.device = torch.device("cuda", 0)
    assert engine.to("cuda") is engine.to("cuda:0") is engine
    for other in ("cuda:1", "cpu"):
        with pytest.raises(RuntimeError, match=f"cannot go to {other}"):
            engine.to(other)


class Keyed(nn.Module):
    """A forward whose result depends on the types of its arguments that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, images: dict[Any, Tensor], number: Any) -> Tensor:
        ((key, x),) = images.items()
        scale = {bool: 2, int: 3, float: 5}
        return self.inner(x) * scale[type(key)] * (7 * scale[type(number)])


def test_equal_numbers_of_other_types_are_other_graphs(gpu: SimulatedGpu) -> None:
    network = Keyed().eval()
    with gpu.running():
        engine, x = engine_of(network, {1: image()}, 1, plans=16), image()
        results = {(key, number): engine({key: x}, number) for key in (1, True) for number in (1, True, 1.0)}
        assert len(engine._compiled) == len(gpu.graphs) == 6
        others = [engine({key: x}, number) for key in (1.0, 1, True) for number in (1, True, 1.0)]
    gpu.synchronize()
    with torch.no_grad():
        whole = [network({key: x}, number) for key in (1.0, 1, True) for number in (1, True, 1.0)]
    for own, right in zip(others, whole, strict=True):
        torch.testing.assert_close(own, right)
    assert torch.equal(results[True, 1.0], others[8])


def test_layouts_and_modes_of_the_caller(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    class Layout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + (1 if x.is_contiguous(memory_format=torch.channels_last) else 0)

    network, whole = Layout().eval(), image(4, size=8)
    with gpu.running(), torch.inference_mode():
        engine = engine_of(network, whole)
    given = (whole, whole.to(memory_format=torch.channels_last), whole.requires_grad_(), whole[:1].expand(4, 3, 8, 8))
    results = []
    with gpu.running():
        for x in given:
            with torch.autocast("cpu", torch.bfloat16):
                results.append(engine(x))
        assert len(engine._compiled) == 2
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        engine(whole)
        assert len(engine._compiled) == 3
    gpu.synchronize()
    with torch.no_grad():
        for x, own in zip(given, results, strict=True):
            assert not own.requires_grad
            assert not own.is_inference()
            torch.testing.assert_close(own, network(x))


class Frozen(nn.Module):
    """A forward that a graph would freeze: it uses the number of calls, or branches on a number of the device."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how, self.calls = model(), how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.how == "counts" or (self.how == "counts large" and x.shape[2] > 6):
            return self.inner(x) * self.calls
        return self.inner(x) if self.how == "counts large" or x.sum() > 0 else x


def test_forwards_that_a_graph_would_freeze_are_errors(gpu: SimulatedGpu) -> None:
    with gpu.running():
        before = gpu.here.stream
        with pytest.raises(
            ValueError, match=r"results of the compiled Frozen differ from .*; .* a CUDA graph does not see"
        ):
            engine_of(Frozen("counts").eval(), image())
        with pytest.raises(ValueError, match=r"cannot hold what the forward of Frozen does: operation not permitted"):
            engine_of(Frozen("branches").eval(), image())
        assert gpu.here.stream is before
        engine = engine_of(Frozen("counts large").eval(), image())
        with pytest.raises(ValueError, match="results of the compiled Frozen differ from"):
            engine(image(size=8))
        assert len(engine._compiled) == 1


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = model()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * self.calls


def test_hooks_and_changing_buffers_run_without_a_graph(gpu: SimulatedGpu) -> None:
    seen: list[int] = []
    hooked = model()
    hooked[2].register_forward_hook(lambda *_: seen.append(1))
    for network, words in ((hooked, "hooks are on 2"), (Drawing().eval(), "its forward changes calls")):
        with gpu.running():
            with pytest.warns(UserWarning, match=rf"calls the \w+ itself and uses no CUDA graph \({words}\)"):
                engine = engine_of(network, image())
            seen.clear()
            inputs = [image(), image()]
            results = [engine(x) for x in inputs]
        gpu.synchronize()
        assert not gpu.graphs
        assert len(seen) == (2 if network is hooked else 0)
        with torch.no_grad():
            for x, own in zip(inputs, results, strict=True):
                torch.testing.assert_close(own, network(x))
