"""Layers that several threads use together, with empty caches: each call gives the result of a single thread."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.geometry import Geometry
from sparsegan.nn import plan_cache
from sparsegan.ops import native

THREADS = 4


@pytest.fixture
def switching() -> Iterator[None]:
    """Python switches threads 500 times as often as by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def burst(body: Callable[[int], Any]) -> list[Any]:
    """Runs body(thread) in all threads at the same time. Returns the results or raises the first exception."""
    results: list[Any] = [None] * THREADS
    barrier = threading.Barrier(THREADS)

    def run(thread: int) -> None:
        barrier.wait()
        try:
            results[thread] = body(thread)
        except BaseException as error:
            results[thread] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def layers() -> nn.Sequential:
    """Two dense layers, as ``auto`` chooses on most machines, and sparse ones of both classes, groups, paddings."""
    model = nn.Sequential(
        sg.SparseConv2d(12, 128, 3, padding=1, sparsity=0.2),
        sg.SparseConvTranspose2d(128, 16, 4, 2, 1, sparsity=0.2),
        sg.SparseConv2d(16, 24, 3, padding=1, groups=2, padding_mode="reflect", sparsity=0.9),
        sg.SparseConv2d(24, 16, 3, padding=1, padding_mode="circular", sparsity=0.9, granularity="vector:4"),
        sg.SparseConvTranspose2d(16, 12, 3, 1, 1, groups=4, sparsity=0.9, granularity="input:2"),
        sg.SparseConv2d(12, 12, 3, padding=1, padding_mode="replicate", sparsity=0.9),
    )
    model[0].backend = model[1].backend = "dense"
    return model


SHAPES = ((1, 12, 6, 5), (2, 12, 4, 8), (1, 12, 9, 9))


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("mode", ["inference", "no_grad", "training", "autocast"])
def test_empty_caches(mode: str) -> None:
    fresh = layers()
    exact = sg.densify(copy.deepcopy(fresh)).double()
    inputs = [torch.randn(shape) for shape in SHAPES]
    expected = [exact(x.double()).float() for x in inputs]
    loose = {"rtol": 0.1, "atol": 0.1} if mode == "autocast" else {"rtol": 1e-4, "atol": 1e-4}

    def serve(model: nn.Module, x: Tensor, thread: int) -> Tensor:
        if mode == "training":
            return model(x.clone().requires_grad_())
        if mode == "autocast":  # in every other thread, so that two dtypes meet
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=thread % 2 == 0):
                return model(x)
        with torch.inference_mode(mode == "inference"), torch.no_grad():
            return model(x)

    for _ in range(25):
        model = copy.deepcopy(fresh)
        # Each thread begins with another shape.
        answers = burst(lambda thread, model=model: [serve(model, inputs[(thread + i) % 3], thread) for i in range(3)])
        for thread, ours in enumerate(answers):
            for i, y in enumerate(ours):
                torch.testing.assert_close(y.float(), expected[(thread + i) % 3], **loose)


@pytest.mark.usefixtures("switching")
def test_a_large_dense_layer_of_a_served_model() -> None:
    """Filling the dense weight takes long enough that another thread could see a half-filled weight."""
    model = sg.sparsify(nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)), 0.2)
    x = torch.randn(1, 128, 16, 16)
    expected = model[0].to_dense()(x)
    model[0].backend = "dense"  # as "auto" chooses on most machines
    for _ in range(12):
        again = copy.deepcopy(model)

        def serve(thread: int, model: nn.Module = again) -> Tensor:
            with torch.no_grad():
                return model(x)

        for y in burst(serve):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_changes_between_bursts_are_seen(backend: str) -> None:
    """After a change of values or support, no plan or dense weight made before the change may be used."""
    layer = sg.SparseConvTranspose2d(16, 16, 4, 2, 1, sparsity=0.5)
    layer.backend, x = backend, torch.randn(2, 16, 5, 5)

    def serve(thread: int) -> Tensor:
        with torch.inference_mode():
            return layer(x)

    for step in range(15):
        if step % 3 == 0:
            layer.values.data.mul_(-1.5)
        elif step % 3 == 1:
            support = torch.randperm(16 * 16 * 16)[: layer.nnz].sort().values.int()
            layer.set_support(support, torch.randn(layer.nnz))
        else:
            layer.load_state_dict(sg.SparseConvTranspose2d(16, 16, 4, 2, 1, sparsity=0.6).state_dict())
        expected = layer.to_dense()(x)
        for y in burst(serve):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("switching")
def test_a_plan_made_for_an_old_support_does_not_reach_the_new_one() -> None:
    """The support is replaced while a thread compiles the plan of the old support. This plan comes too late."""
    layer = sg.SparseConvTranspose2d(8, 8, 3, sparsity=0.5)
    layer.backend, x = "sparse", torch.randn(1, 8, 5, 5)
    other = torch.randperm(8 * 8 * 9)[: layer.nnz].sort().values.int()
    compile_plan = plan_cache.plan_of

    def slow(*args: Any) -> Tensor:
        plan = compile_plan(*args)
        if not torch.equal(layer.support, other):
            layer.set_support(other, layer.values.detach())
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_cache, "plan_of", slow)
        layer(x)
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)


def test_a_support_that_changes_while_its_plan_is_compiled() -> None:
    """The compiler uses the positions that it checked. The plan belongs to a valid support, or ValueError is raised."""
    geometry = Geometry(64, 64, 1, (3, 3), (1, 1), (1, 1), (1, 1))
    half = 64 * 64 * 9 // 2
    states = [torch.arange(half, dtype=torch.int32), torch.arange(half, 2 * half, dtype=torch.int32)]
    support, done = states[0].clone(), threading.Event()
    numbers = support.numpy()

    def write() -> None:
        while not done.is_set():
            for state in states:
                support.copy_(state)

    writer = threading.Thread(target=write)
    writer.start()
    every = torch.arange(half, dtype=torch.int32)
    try:
        for _ in range(300):
            try:
                plan = torch.from_numpy(native.compile_plan(numbers, geometry.numbers(), True))
                _, order = native.compile_direct_plan(numbers, geometry.numbers(), False)
            except ValueError as error:
                assert "sorted" in str(error)  # noqa: PT017  (an error is right too)
                continue
            assert torch.equal(plan[-half:].sort().values, every)
            assert torch.equal(torch.from_numpy(order).sort().values, every)
    finally:
        done.set()
        writer.join()
