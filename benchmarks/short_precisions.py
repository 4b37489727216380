"""How near the engine's short precisions are to float32, on trained generators. Writes JSON.

    python benchmarks/short_precisions.py --json benchmarks/results/short_precisions.json

Each trained generator of checkpoints/ is pruned to 90 % in units of four input channels and fitted to its original by
least squares (`sparsegan.pruning.reconstruct`), without training. The engine then runs it in each precision, calibrated
on other inputs than those that are compared. Inputs are noise, or dead-leaves images for generators that take images.
Precisions that this machine has no instructions for are emulated here; the numbers are the same.
"""

from __future__ import annotations

import argparse
import copy
import math
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.atomic_files import write_json
from sparsegan.data.dead_leaves import images
from sparsegan.engine import Engine
from sparsegan.engine.precision import decibels
from sparsegan.gans import store
from sparsegan.ops.precisions import PRECISIONS, Precision
from sparsegan.profiling.info import info
from sparsegan.pruning.reconstruct import reconstruct

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
FOLDERS = ("dcgan-mnist", "dcgan-emoji", "pix2pix-openmoji", "cyclegan-emoji", "stargan-emoji", "srgan-photos")
#: Layers with other channels, such as the first one of images, keep single weights and run in float32.
GRANULARITY = "input:4"
SPARSITY, BATCH, CALIBRATION, COMPARED = 0.9, 8, 4, 4


def inputs(gan: store.Gan, seed: int) -> tuple[Tensor, ...]:
    """A batch of a generator's inputs, with dead leaves in the place of random images."""
    return tuple(
        images(len(one), one.shape[-1], one.shape[1], seed) if one.dim() == 4 and one.shape[-1] > 1 else one
        for one in store.example(gan, BATCH, seed=seed)
    )


def pruned(gan: store.Gan) -> nn.Module:
    """The generator with 10 % of its units, fitted to the original."""
    dense = gan.generator.eval()
    granularities = {}
    for name, layer in dense.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            granularities[name] = GRANULARITY if layer.in_channels % 4 == 0 and layer.groups == 1 else "element"
    sparse = sg.sparsify(copy.deepcopy(dense), 0.0, granularity=granularities)
    reconstruct(sparse, dense, lambda network, index: network(*inputs(gan, 1000 + index)), 8, SPARSITY)
    return sparse.eval()


def row(folder: str) -> dict[str, Any]:
    """The distances of one generator."""
    gan = store.load(CHECKPOINTS / folder)
    sparse = pruned(gan)
    calibration = [inputs(gan, seed) for seed in range(CALIBRATION)]
    compared = [inputs(gan, 100 + seed) for seed in range(COMPARED)]
    with torch.no_grad():
        expected = [sparse(*one) for one in compared]
        original = [gan.generator(*one) for one in compared]
    found: dict[str, Any] = {"generator": folder, "float32 to the original": psnr(original, expected)}
    for name in PRECISIONS:
        engine = sg.optimize_for_inference(sparse, compared[0], precision=name, calibration=calibration)
        assert isinstance(engine, Engine)
        results = [engine(*one) for one in compared]
        found[name] = {
            "layers": len(engine.precisions.chosen),
            "decibels": min(decibels(a, b) for a, b in zip(expected, results, strict=True)),
            "to the original": psnr(original, results),
        }
    print(found, flush=True)
    return found


def psnr(expected: list[Tensor], results: list[Tensor]) -> float:
    """The peak signal-to-noise ratio of images in [-1, 1], in dB."""
    error = sum(float((a - b).square().mean()) for a, b in zip(expected, results, strict=True)) / len(expected)
    return 10 * math.log10(4 / error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    with warnings.catch_warnings(), mock.patch.object(Precision, "native", True):
        warnings.simplefilter("ignore")  # of layers with other units, which stay in float32
        rows = [row(folder) for folder in FOLDERS]
    if options.json:
        command = f"python benchmarks/short_precisions.py --json {options.json}"
        write_json(
            options.json, {"command": command, "sparsity": SPARSITY, "granularity": GRANULARITY, **info(), "rows": rows}
        )


if __name__ == "__main__":
    main()
