"""Compress a generator of which one file is all there is: no discriminator, no data. Writes PSNR and edges as JSON.

    python benchmarks/data_free.py --json benchmarks/results/data_free.json

runs `sparsegan compress --generator FILE --data-free` with its default options at each sparsity, and with the recipe
that fits the pruned layers by least squares and trains nothing. At one sparsity it also runs the other recipes that
need no discriminator's file, and the default recipe from a generator that is fitted at a high sparsity. Without
--generator, FILE is the emoji generator of this repository (checkpoints/dcgan-emoji). --steps and --batch set the
budget of every run. The figures are those of the command's result.json: the compressed and the original generator's
images from the same noise, which no training uses.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsegan.atomic_files import write_json
from sparsegan.profiling.info import info

FILE = Path(__file__).parent.parent / "checkpoints" / "dcgan-emoji" / "generator.safetensors"
SPARSITIES = (0.75, 0.8, 0.9)
#: Recipes beside the default one. An untrained discriminator is first taught where one is needed.
OTHERS = ("intermediate-distillation", "one-shot-distillation", "feature-distillation", "self-supervised")


#: The recipe that trains nothing, and the options with which the default recipe starts from such a fit.
FITTED, FROM_FIT = "reconstruction", ("--reconstruct", "24", "--initial-sparsity", "0.7")


def compress(
    arguments: argparse.Namespace, sparsity: float, recipe: str | None = None, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs the command with these options too, or continues it, and returns its result.json with the command."""
    out = arguments.out / "-".join([recipe or "default", f"{sparsity:g}", *(word.strip("-") for word in options)])
    words = ["sparsegan", "compress", "--generator", os.path.relpath(arguments.generator), "--data-free"]
    words += ["--sparsity", f"{sparsity:g}", "--steps", str(arguments.steps), "--batch", str(arguments.batch)]
    words += ["--seed", str(arguments.seed), *(["--recipe", recipe] if recipe else []), *options]
    more = ["--threads", str(arguments.threads), "--quiet", "--out", str(out), *(["--resume"] if out.exists() else [])]
    if not (out / "result.json").is_file():
        subprocess.run([sys.executable, "-m", *words, *more], check=True, stdout=subprocess.DEVNULL)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    label = f"{recipe or 'the default'}{', ' if options else ''}{shlex.join(options)}"
    return {"command": shlex.join(words), "recipe": label, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, default=FILE, help="the generator's file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--recipes", nargs="*", default=OTHERS, help="recipes to run at 90 % beside the default")
    parser.add_argument("--out", type=Path, default=Path("runs/data-free"), help="the folder of the runs")
    parser.add_argument("--json", type=Path, required=True, help="the file to write")
    arguments = parser.parse_args()
    rows = [compress(arguments, sparsity) for sparsity in arguments.sparsities]
    rows += [compress(arguments, sparsity, FITTED) for sparsity in arguments.sparsities]
    rows += [compress(arguments, 0.9, options=FROM_FIT)]
    rows += [compress(arguments, 0.9, recipe) for recipe in arguments.recipes]
    write_json(arguments.json, {"machine": info(), "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
