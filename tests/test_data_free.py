"""A generator of which one file is all there is: no discriminator, no data. The default recipe compresses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsegan.cli import main
from sparsegan.gans import store

FILE = Path(__file__).parent.parent / "checkpoints" / "dcgan-emoji" / "generator.safetensors"


def compress(out: Path, *words: str) -> dict[str, dict[str, float]]:
    """From the name of a generator of result.json to the figures of its images."""
    command = ["compress", "--generator", str(FILE), "--data-free", "--steps", "150", "--batch", "16", "--quiet"]
    main([*command, "--out", str(out), *words])
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["settings"]["data"] == "none"
    assert "mnist" not in (out / "report.html").read_text(encoding="utf-8").lower()
    return {name: figures["samples"] for name, figures in result["likeness"].items()}


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return compress(tmp_path_factory.mktemp("default") / "run", "--sparsity", "0.75")


def test_the_default_options_come_near_the_original(default: dict[str, dict[str, float]]) -> None:
    """Without any fine-tuning the images are further from the original's than one image, the mean of all."""
    assert default["pruned"]["psnr"] < default["compressed"]["mean_image"]
    assert default["compressed"]["psnr"] > default["compressed"]["mean_image"] + 4
    assert default["compressed"]["psnr"] > default["pruned, batch norms re-estimated"]["psnr"]
    assert 0.6 < default["compressed"]["edges"] < 1.3


def test_the_checkpoint_is_a_colour_generator_in_the_layout_of_the_public_example() -> None:
    gan, judged = store.load_public(FILE)
    assert not judged
    assert gan.config["network"] == {"gan": "dcgan", "nz": 100, "width": 32, "channels": 3}
    with torch.no_grad():
        assert gan.generator(torch.randn(2, 100, 1, 1)).shape == (2, 3, 64, 64)
