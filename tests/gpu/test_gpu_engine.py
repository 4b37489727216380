"""An engine on a GPU: captured, replayed, equal to the model."""

from __future__ import annotations

import pytest
import torch
from gpu_device import DEVICE, on_gpu

import sparsegan as sg
from sparsegan.engine import GpuEngine
from sparsegan.gans import cyclegan, dcgan

#: A generator, its last layer (3 channels: no vectors) and an image's shape.
GENERATORS = {
    "dcgan": (lambda: dcgan.Generator(nz=16, ngf=16), "main.12", (16, 1, 1)),
    "cyclegan": (lambda: cyclegan.ResnetGenerator(ngf=16, blocks=2), "model.19", (3, 32, 32)),
}


@on_gpu
@pytest.mark.parametrize("granularity", ["element", "vector:16"])
@pytest.mark.parametrize("name", GENERATORS)
def test_engine_replays_what_the_model_computes(name: str, granularity: str) -> None:
    build, last, shape = GENERATORS[name]
    model = sg.sparsify(build(), 0.8, granularity, exclude=(last,)).to(DEVICE).eval()
    engine = sg.optimize_for_inference(model, torch.randn(1, *shape, device=DEVICE))
    assert isinstance(engine, GpuEngine)
    results = []
    for n in (1, 1, 3):
        x = torch.randn(n, *shape, device=DEVICE)
        y = engine(x)
        with torch.no_grad():
            torch.testing.assert_close(y, model(x), rtol=2e-3, atol=2e-3)
        results.append((y, y.clone()))
    assert all(torch.equal(y, then) for y, then in results)  # the caller's own
