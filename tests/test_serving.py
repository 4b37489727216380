"""Engines in a serving program: several threads, new sizes, forked workers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.engine.shapes import Shapes
from sparsegan.gans.parts import InstanceNorm2d
from sparsegan.nn.layer import SparseConv

SIZES = [(1, 16, 16), (2, 12, 20), (1, 9, 33), (3, 16, 16), (1, 40, 8)]


class Net(nn.Module):
    """A small generator with a skip, both kinds of norm and a dense layer. `last(y, x)` is the end of its forward."""

    def __init__(self, last: Callable[[Tensor, Tensor], Tensor] = lambda y, x: y) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, padding_mode="reflect"), nn.InstanceNorm2d(24))
        self.down = nn.Sequential(nn.Conv2d(24, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2))
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 24, 4, 2, 1), InstanceNorm2d(24), nn.ReLU())
        self.tail = nn.Conv2d(24, 5, 3, padding=1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        up = self.up(self.down(y))
        return self.last(self.tail(y[..., : up.shape[2], : up.shape[3]] + up).tanh(), x)


def network(last: Callable[[Tensor, Tensor], Tensor] = lambda y, x: y) -> Any:
    model = Net(last).eval().requires_grad_(False)
    return sg.sparsify(model, {"down.*": 0.9, "up.*": 0.9, "*": 0.1})


def inputs(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    n, height, width = shape
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_four_threads_with_empty_caches() -> None:
    """In each round all threads start at the same time on a new engine whose layers have empty caches."""
    model = network()
    wanted = {shape: model(inputs(shape)) for shape in SIZES}
    for burst in range(6):
        engine = sg.optimize_for_inference(network_like(model), inputs(SIZES[0]), plans=2 if burst % 2 else 8)
        start = threading.Barrier(4)

        def serve(number: int, start: threading.Barrier = start, engine: Any = engine) -> None:
            start.wait()
            for turn in range(len(SIZES)):
                shape = SIZES[(turn + number) % len(SIZES)]
                torch.testing.assert_close(engine(inputs(shape)), wanted[shape], rtol=1e-4, atol=1e-5)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(serve, range(4)))
        assert len(engine._workspaces) <= 4


def network_like(model: nn.Module) -> nn.Module:
    """A model with the same weights, whose layers have computed nothing yet."""
    other = network()
    other.load_state_dict(model.state_dict())
    return other


def test_known_sizes_do_not_wait_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    engine = sg.optimize_for_inference(model, inputs(SIZES[0]))
    compiling, go_on = threading.Event(), threading.Event()
    trace = Shapes.trace

    def slow(self: Shapes, *given: Any) -> Any:
        compiling.set()
        assert go_on.wait(60)
        return trace(self, *given)

    monkeypatch.setattr(Shapes, "trace", slow)
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(engine, inputs(SIZES[1]))
        assert compiling.wait(60)
        try:
            known = pool.submit(engine, inputs(SIZES[0])).result(timeout=60)
        finally:
            go_on.set()
        torch.testing.assert_close(known, model(inputs(SIZES[0])), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(new.result(60), model(inputs(SIZES[1])), rtol=1e-4, atol=1e-5)


def test_other_models_run_while_one_is_traced() -> None:
    """While torch.fx traces, it replaces ``nn.Module.__call__`` in the whole process."""
    compiling, go_on = threading.Event(), threading.Event()
    blocking = False

    def last(y: Tensor, x: Tensor) -> Tensor:
        if blocking:
            compiling.set()
            assert go_on.wait(60)
        return y

    engine = sg.optimize_for_inference(network(last), inputs(SIZES[0]))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = inputs(SIZES[0])
    wanted, blocking = other(x), True
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(engine, inputs(SIZES[1]))
        assert compiling.wait(60)
        try:
            assert torch.equal(pool.submit(other, x).result(60), wanted)
        finally:
            blocking = False
            go_on.set()
        new.result(60)


LOOKS = {
    "at nothing": lambda y, x: y,
    "at sizes": lambda y, x: F.interpolate(y, size=(x.size(2) + 3, x.shape[-1] * 2)),
    "at the number of elements": lambda y, x: y.reshape(len(x.shape), -1) if x.shape[0] == 4 else y.flatten(1),
    "at the device": lambda y, x: y + torch.ones(x.shape[3], device=x.device)[: y.shape[3]],
    "at a tensor of its own": lambda y, x: y * torch.linspace(0, 1, y.shape[3]),
    "at values": lambda y, x: y[torch.nonzero(x[:, 0, 0, 0] < 1e9)[:, 0]],
}


@pytest.mark.parametrize("look", LOOKS)
def test_new_sizes(look: str) -> None:
    """Every size gets a correct program, whatever property of its input a forward reads."""
    model = network(LOOKS[look])
    engine = sg.optimize_for_inference(model, inputs(SIZES[0]))
    for shape in SIZES:
        for seed in (1, 2):
            torch.testing.assert_close(engine(inputs(shape, seed)), model(inputs(shape, seed)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("look", ["at nothing", "at sizes", "at the number of elements"])
def test_a_new_size_is_not_run_to_compile_it(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = sg.optimize_for_inference(network(LOOKS[look]), inputs(SIZES[0]))
    calls = []
    monkeypatch.setattr(SparseConv, "_run", lambda self, *given: calls.append(given))
    for shape in SIZES:
        engine(inputs(shape))
    assert not calls
    assert engine._shapes.why_not is None


def test_all_sizes_use_one_arena() -> None:
    engine = sg.optimize_for_inference(network(), inputs(SIZES[0]))
    for shape in [*SIZES, *SIZES]:
        engine(inputs(shape))
    (workspace,) = engine._workspaces
    assert workspace.arena.numel() == max(engine.memory(inputs(shape))["arena"] for shape in SIZES)


FORKS = """
import os, sys, threading, warnings
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads({threads})
import sparsegan as sg
from test_serving import SIZES, inputs, network

model = network()
wanted = {{shape: model(inputs(shape)) for shape in SIZES}}
engine = sg.optimize_for_inference(model, inputs(SIZES[0]), plans=2)
stop = threading.Event()

def compile_always():
    number = 0
    while not stop.is_set():
        number += 1
        engine(inputs((1, 10 + 2 * (number % 40), 12)))

threads = [threading.Thread(target=compile_always) for _ in range(2)]
for thread in threads:
    thread.start()
bad = 0
for _ in range(4):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for shape in SIZES:
                    torch.testing.assert_close(engine(inputs(shape)), wanted[shape], rtol=1e-4, atol=1e-5)
            said = [one for one in caught if "forked" in str(one.message)]
            code = 0 if len(said) == {warnings} and torch.get_num_threads() == 1 else 2
        finally:
            os._exit(code)
    bad += os.waitpid(child, 0)[1] != 0
stop.set()
for thread in threads:
    thread.join()
sys.exit(bad)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("threads", [1, 2])
def test_workers_that_fork_while_others_compile(threads: int) -> None:
    """In a child, locks are free, replacements by torch.fx are undone, and nothing waits for threads that are gone."""
    script = FORKS.format(tests=str(Path(__file__).parent), threads=threads, warnings=int(threads > 1))
    done = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
