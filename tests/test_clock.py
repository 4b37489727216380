"""Measured times include all work of the timed call, also on a device that works asynchronously."""

from __future__ import annotations

import time

import pytest
import torch
from simulated_gpu import SimulatedGpu
from torch import nn

import sparsegan as sg
from sparsegan.clock import Clock


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """A GPU whose sparse kernel takes 3 ms and whose dense convolution takes 5 ms. No other op moves the clock."""
    gpu, now = SimulatedGpu(monkeypatch), [0.0]

    def on_op(name: str) -> None:
        now[0] += 3e-3 if name == "sparsegan::sparse_conv" else 5e-3 if "convolution" in name else 0.0

    gpu.on_op = on_op
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return gpu


def test_profile_waits_for_the_device(gpu: SimulatedGpu) -> None:
    model = sg.sparsify(nn.Sequential(nn.Conv2d(4, 8, 3, bias=False)), 0.5)
    model[0].backend = "dense"
    x = torch.randn(1, 4, 8, 8)
    with gpu.running():
        model(x)
        (row,) = sg.tune(model, x, seconds=0).rows
    assert (row.sparse_ms, row.dense_ms) == pytest.approx((3, 5))
    assert model[0].backend == "sparse"


def test_clock_finds_the_devices_of_its_arguments(gpu: SimulatedGpu) -> None:
    conv = nn.Conv2d(2, 2, 3, bias=False).requires_grad_(False)
    x = torch.randn(1, 2, 4, 4)
    for used in ((conv,), ({"images": [x]},)):
        with gpu.running():
            conv(x)  # earlier work must not count as time of the call
            assert Clock(*used).ms(lambda: conv(x)) == pytest.approx(5)
    assert Clock().ms(lambda: None) == 0
