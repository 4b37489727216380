"""Memory of a generator on one large image, with and without tiles.

python benchmarks/large_image.py --size 1080 1920 --tiles 0 256 512 --json benchmarks/results/large_image.json

Each run is a separate process, and the figure is the peak of its resident memory. Tile 0 is the whole image at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import sparsegan as sg
from sparsegan.benchmark.results import facts
from sparsegan.gans import store
from sparsegan.progress import peak_memory

CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "srgan-photos"


def measure(height: int, width: int, tile: int) -> dict[str, float]:
    """Bytes and seconds of one image, which is the first of its size."""
    torch.manual_seed(0)
    model = sg.sparsify(store.load(CHECKPOINT).generator.eval(), sparsity=0.9)
    engine = sg.optimize_for_inference(model, torch.randn(1, 3, 64, 64))
    assert isinstance(engine, sg.Engine)
    x = torch.rand(1, 3, height, width) * 2 - 1
    before, start = peak_memory(), time.perf_counter()
    y = engine(x, tile=tile) if tile else engine(x)
    seconds = time.perf_counter() - start
    arena = engine.memory(x, tile=tile)["arena"] if tile else engine.memory(x)["arena"]
    assert before is not None
    return {
        "tile": tile,
        "peak_bytes": peak_memory() or 0,
        "bytes_before": before,
        "result_bytes": y.numel() * y.element_size(),
        "arena_bytes": arena,
        "seconds": seconds,
    }


def main() -> None:
    """Starts one process per tile size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=[1080, 1920], help="height and width of the image")
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 256, 512])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--here", action="store_true", help="run the first tile size only, in this process")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.size[0], given.size[1], given.tiles[0])))
        return
    rows = []
    for tile in given.tiles:
        words = [sys.executable, __file__, "--here", "--size", *map(str, given.size), "--tiles", str(tile)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    if given.json is not None:
        command = f"python benchmarks/large_image.py --size {given.size[0]} {given.size[1]} --tiles "
        report = {
            "command": command + " ".join(map(str, given.tiles)) + f" --json {given.json}",
            "machine": facts(),
            "model": f"{CHECKPOINT.name} at 90 %",
            "rows": rows,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
