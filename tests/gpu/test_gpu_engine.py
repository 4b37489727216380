"""An engine on a GPU is captured and replayed, and equals the model; with several streams, threads and devices."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from gpu_device import DEVICE, on_gpu
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.engine import GpuEngine
from sparsegan.gans import cyclegan, dcgan

#: A generator, its last layer (which stays dense: its 3 channels make no vectors) and the shape of one input.
GENERATORS = {
    "dcgan": (lambda: dcgan.Generator(nz=16, ngf=16), "main.12", (16, 1, 1)),
    "cyclegan": (lambda: cyclegan.ResnetGenerator(ngf=16, blocks=2), "model.19", (3, 32, 32)),
}


def made(name: str, granularity: str, device: torch.device = DEVICE) -> tuple[nn.Module, GpuEngine, Any]:
    """A model, its engine, and a function that makes inputs."""
    build, last, shape = GENERATORS[name]
    model = sg.sparsify(build(), 0.8, granularity, exclude=(last,)).to(device).eval()

    def inputs(n: int = 1) -> Tensor:
        return torch.randn(n, *shape, device=device)

    engine = sg.optimize_for_inference(model, inputs())
    assert isinstance(engine, GpuEngine)
    return model, engine, inputs


def assert_same(y: Tensor, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(y, model(x), rtol=2e-3, atol=2e-3)


@on_gpu
@pytest.mark.parametrize("granularity", ["element", "vector:16"])
@pytest.mark.parametrize("name", GENERATORS)
def test_engine_replays_what_the_model_computes(name: str, granularity: str) -> None:
    model, engine, inputs = made(name, granularity)
    results = []
    for n in (1, 1, 3):
        x = inputs(n)
        y = engine(x)
        assert_same(y, model, x)
        results.append((y, y.clone()))
    assert all(torch.equal(y, then) for y, then in results)  # later calls did not change it


@on_gpu
def test_threads_with_streams_of_their_own() -> None:
    """The sizes are new to the engine, and the inputs are still being computed when the engine is called."""
    model, engine, inputs = made("cyclegan", "element")
    given = {(thread, turn): inputs(1 + (thread + turn) % 3) for thread in range(4) for turn in range(12)}
    results: dict[tuple[int, int], Tensor] = {}
    errors: list[BaseException] = []
    torch.cuda.synchronize()

    def serve(thread: int) -> None:
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for turn in range(12):
                    torch.cuda._sleep(100_000 * (1 + thread))
                    results[thread, turn] = engine(given[thread, turn] * 1.5)
            stream.synchronize()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(thread,)) for thread in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    torch.cuda.synchronize()
    assert not errors
    for key, x in given.items():
        assert_same(results[key], model, x * 1.5)


@on_gpu
def test_random_numbers_follow_torchs_generator() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x + torch.randn_like(x))

    model = sg.sparsify(Noisy(), 0.5).to(DEVICE).eval()
    x = torch.randn(1, 3, 16, 16, device=DEVICE)
    torch.cuda.manual_seed(7)
    engine = sg.optimize_for_inference(model, x)
    ours = [engine(x) for _ in range(3)]  # compiling did not change torch's generator
    torch.cuda.manual_seed(7)
    for y in ours:
        assert_same(y, model, x)
    assert not torch.equal(ours[0], ours[1])


@on_gpu
def test_what_a_graph_cannot_hold_is_an_error_and_leaves_torch_usable() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum().item() > 0 else self.conv(-x)

    x, before = torch.randn(1, 3, 16, 16, device=DEVICE), torch.cuda.current_stream()
    with pytest.raises(ValueError, match="a CUDA graph cannot hold what the forward of Branching does"):
        sg.optimize_for_inference(sg.sparsify(Branching(), 0.5).to(DEVICE).eval(), x)
    assert torch.cuda.current_stream() == before
    model, engine, inputs = made("dcgan", "element")
    z = inputs()
    assert_same(engine(z), model, z)


@on_gpu
def test_inputs_elsewhere_are_an_error() -> None:
    _, engine, inputs = made("dcgan", "element")
    with pytest.raises(ValueError, match=r"input 0 is on cpu; the engine is on cuda:0"):
        engine(inputs().cpu())


@on_gpu
@pytest.mark.parametrize("granularity", ["element", "vector:16"])
def test_another_device(granularity: str) -> None:
    """The model's device need not be the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    model, engine, inputs = made("dcgan", granularity, torch.device("cuda:1"))
    assert torch.cuda.current_device() == 0
    for n in (1, 2):
        x = inputs(n)
        assert_same(engine(x), model, x)
    with pytest.raises(ValueError, match="input 0 is on cuda:0; the engine is on cuda:1"):
        engine(inputs().to("cuda:0"))
