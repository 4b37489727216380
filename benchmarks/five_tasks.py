"""A first look at the five tasks: dense, pruned, and compressed by the method, one seed.

python benchmarks/five_tasks.py [--tasks pix2pix,stargan] [--threads 2]

Compresses this repository's trained GANs (checkpoints/) with `sparsegan compress` and scores them with `sparsegan
evaluate`; the runs are left in runs/tasks, the figures in benchmarks/results/tasks.json. Rows that are there already
are not made again. `sparsegan data NAME` makes the data ready first.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sparsegan import data, metrics
from sparsegan.cli.common import load_trained
from sparsegan.info import cpu_name
from sparsegan.training import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tasks.json"

#: task -> its checkpoint, what it is compressed and scored with
TASKS: dict[str, tuple[str, list[str], list[str]]] = {
    "dcgan": ("dcgan-mnist", ["--exclude", "main.12", "--batch", "16"], ["--samples", "2000"]),
    "pix2pix": ("pix2pix-openmoji", [], []),
    "cyclegan": ("cyclegan-emoji", [], []),
    "stargan": ("stargan-emoji", [], []),
    "srgan": ("srgan-photos", ["--lr", "2e-3", "--statistics", "batch"], []),
}
#: row -> recipe, sparsity, more options
ROWS: dict[str, tuple[str, float, list[str]]] = {
    "pruned, not fine-tuned": ("one-shot", 0.9, []),
    "equations 7-9, 50 %": ("self-supervised", 0.5, []),
    "equations 7-9, 90 %": ("self-supervised", 0.9, []),
    "with features, 90 %": ("self-supervised-features", 0.9, []),
}
#: what becomes of the last row without what it starts from, and of the equations with the discriminator as it was
MORE: dict[str, tuple[str, float, list[str]]] = {
    "equations, D frozen, 90 %": ("self-supervised-frozen", 0.9, []),
    "features, fresh D, 90 %": ("self-supervised-features", 0.9, ["--warm-up", "300"]),
    "features, no data, 90 %": ("self-supervised-features", 0.9, ["--data-free"]),
}
MORE_TASKS = ("dcgan", "pix2pix", "cyclegan", "stargan")
#: fine-tuning steps: at most a tenth of what the dense GAN was trained for, but of dcgan's demo, and srgan's: see docs
STEPS = {"dcgan": 400, "pix2pix": 600, "cyclegan": 300, "stargan": 250, "srgan": 1000}


def command(*words: Any) -> list[str]:
    """A command of sparsegan."""
    return ["sparsegan", *map(str, words)]


def run(words: list[str]) -> str:
    """Its output; the error where it fails."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)}\n{done.stderr}")
    return done.stdout


@cache
def evaluator(task: str) -> metrics.TaskEvaluator:
    """Of the task's held-out data, whose features are taken once."""
    gan = load_trained(ROOT / "checkpoints" / TASKS[task][0])
    samples = data.load(task, gan.config["data"], gan.config["size"], "test")
    return metrics.TaskEvaluator(samples, gan.objective, metrics.load_features(), quiet=True)


def score(folder: str, task: str, threads: int) -> dict[str, Any]:
    """What `sparsegan evaluate` says of a folder's generator; what the others share is computed once."""
    if task == "dcgan":
        return json.loads(run(command("evaluate", folder, "--json", "--quiet", "--threads", threads, *TASKS[task][2])))
    scores = evaluator(task).scores(load_trained(ROOT / folder).generator)
    return {"split": "test", **{name: asdict(one) for name, one in scores.items()}}


def drift(folder: Path) -> dict[str, Any] | None:
    """Mean of the discriminator's terms over the first sixth of a run and over its second half, the pruning done: what
    it makes of the compressed generator's images and of the original's. None where it did not learn."""
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not lines or not {"dis", "gen_original"} <= lines[0].keys():
        return None

    def mean(part: list[dict[str, float]]) -> dict[str, float]:
        seen = [line for line in part if "gen_original" in line]
        return {name: sum(line[name] for line in seen) / len(seen) for name in ("dis", "gen", "gen_original")}

    return {"first": mean(lines[: len(lines) // 6]), "second_half": mean(lines[len(lines) // 2 :])}


def rows(task: str, threads: int, report: dict[str, Any], file: Path) -> None:
    """Makes the rows of a task that are missing."""
    checkpoint, how, _ = TASKS[task]
    folder = f"checkpoints/{checkpoint}"
    done = report["tasks"].setdefault(task, {})
    if "dense" not in done:
        done["dense"] = {"command": shlex.join(command("evaluate", folder)), "scores": score(folder, task, threads)}
        write_json(file, report)
        print(f"{task}: dense", flush=True)
    for title, (recipe, sparsity, more) in (ROWS | (MORE if task in MORE_TASKS else {})).items():
        if title in done:
            continue
        out = f"runs/tasks/{task}/{recipe}-{sparsity:g}{''.join(more)}"
        steps = ["--steps", STEPS[task], "--decay"] if recipe != "one-shot" else []
        options = ["--recipe", recipe, "--sparsity", sparsity, *steps, *how, *more]
        words = command("compress", folder, *options, "--out", out)
        run([*words, "--quiet", "--resume", "--threads", str(threads)])
        size = (ROOT / out / "generator.safetensors").stat().st_size
        row = {"command": shlex.join(words), "file_bytes": size, "scores": score(out, task, threads)}
        row["drift"] = drift(ROOT / out)
        done[title] = row
        write_json(file, report)
        print(f"{task}: {title}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help="which of them (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go (default: benchmarks/results)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"command": "python benchmarks/five_tasks.py", "machine": cpu_name(), "tasks": {}}
    if options.json.exists():
        report["tasks"] = json.loads(options.json.read_text())["tasks"]
    for task in options.tasks.split(","):
        if task not in TASKS:
            raise SystemExit(f"--tasks has {task!r}; it must be of {', '.join(TASKS)}")
        rows(task, options.threads, report, options.json)


if __name__ == "__main__":
    main()
