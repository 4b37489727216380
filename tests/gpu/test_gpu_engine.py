"""An engine on a GPU: captured, replayed, equal to the model."""

from __future__ import annotations

import pytest
import torch
from gpu_device import DEVICE

import sparsegan as sg
from sparsegan.engine import GpuEngine
from sparsegan.gans import cyclegan, dcgan


@pytest.mark.skipif(DEVICE != "cuda", reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("granularity", ["element", "vector:16"])
def test_engine_replays_what_the_model_computes(granularity: str) -> None:
    exclude = ("main.12", "model.26")
    generators = [
        (dcgan.Generator(nz=16, ngf=16), lambda n: torch.randn(n, 16, 1, 1, device=DEVICE)),
        (cyclegan.ResnetGenerator(ngf=16, blocks=2), lambda n: torch.randn(n, 3, 32, 32, device=DEVICE)),
    ]
    for generator, images in generators:
        model = sg.sparsify(
            generator, 0.8, granularity, exclude=[e for e in exclude if e in dict(generator.named_modules())]
        )
        model = model.to(DEVICE).eval()
        engine = sg.optimize_for_inference(model, images(1))
        assert isinstance(engine, GpuEngine)
        first = None
        for n in (1, 1, 3):
            x = images(n)
            with torch.no_grad():
                y = engine(x)
                torch.testing.assert_close(y, model(x), rtol=2e-3, atol=2e-3)
            if first is None:
                first, kept = y, y.clone()
        assert first is not None
        assert torch.equal(first, kept)  # the caller's own
