"""README.md is correct: its examples run, and its tables are those of the result files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsegan as sg

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def yours() -> dict:
    """The names that the bring-your-own-GAN example expects: generator, critic and loader."""
    generator = nn.Sequential(
        nn.Linear(128, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()
    )
    critic = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32, 1))
    return {"generator": generator, "critic": critic, "loader": [torch.rand(8, 3, 4, 4) * 2 - 1 for _ in range(2)]}


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = yours()
    exec(example.replace("steps=2000", "steps=10"), names)
    if "result" in names:
        loaded = sg.load(yours()["generator"], "mine.safetensors")
        assert [round(layer.sparsity, 1) for _, layer in sg.sparse_layers(loaded)] == [0.9]


def test_bringing_a_gan_takes_at_most_30_lines():
    (own,) = [example for example in EXAMPLES if "Objective" in example]
    assert len(own.splitlines()) <= 30


def test_tables_are_those_of_the_result_files():
    subprocess.run([sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], check=True)
