"""Times are those of the work, also on a device that works behind the host's back."""

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
    """Its sparse kernel takes 3 ms and a dense convolution 5; the clock moves only while it works."""
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


def test_clock_finds_the_devices_of_what_is_timed(gpu: SimulatedGpu) -> None:
    conv = nn.Conv2d(2, 2, 3, bias=False).requires_grad_(False)
    x = torch.randn(1, 2, 4, 4)
    for used in ((conv,), ({"images": [x]},)):
        with gpu.running():
            conv(x)  # work of before the call is none of its time
            assert Clock(*used).ms(lambda: conv(x)) == pytest.approx(5)
    assert Clock().ms(lambda: None) == 0
