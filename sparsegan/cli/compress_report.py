"""The end of `sparsegan compress`: scores and verdict of a finished run, as report.html, result.json and lines."""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ..atomic_files import write_json, write_text
from ..compress import Result
from ..data import Samples
from ..data.sounds import Sounds
from ..metrics.distances import TaskEvaluator
from ..metrics.features import load_features
from ..metrics.likeness import FAR
from ..metrics.measures import measured
from ..nn.layer import DENSE_CLASSES, SparseConv
from ..outermost import mapped
from ..placement import device_of, moved
from ..profiling.info import info, peak_bytes
from ..profiling.layers import profile
from ..profiling.macs import count_macs
from ..training import ranks
from .compress_job import Job
from .loading import NO_DATA, inputs_of
from .pictures import comparison, write_png
from .report import facts_table, layer_table, page, picture_uri, score_curve, table, term_curves
from .search import Search
from .sounds import players
from .validation import Scorer, best_of
from .verdict import Verdict, likenesses, original_images

#: The settings that the report shows.
SETTINGS = (
    *("size", "recipe", "granularity", "allocation", "sparsity", "steps", "batch"),
    *("lr", "discriminator_lr", "warm_up", "seed"),
)
#: Windows of sound that the GAN's own figures are means over, at most.
SCORED = 512


def finish(
    job: Job, result: Result, granularity: str | Mapping[str, str], scorer: Scorer | None, search: Search | None
) -> None:
    """Score the result of a run, write samples.png, report.html and result.json, and print the verdict.

    `granularity`: as in `CompressionConfig`. `scorer`, `search`: those of
    --validate and --within, where given. Every process must call this function; only rank 0 writes and prints. Raises
    RuntimeError where a search found no sparsity that holds.
    """
    arguments, gan = job.arguments, job.gan
    generators = {"dense": gan.generator, "compressed": result.generator}
    unseen, split = job.reported()
    scores = _scores(job, generators, unseen)
    if ranks.rank() > 0:
        return
    original = original_images(gan, unseen, arguments.size, arguments.seed)
    verdict = Verdict(
        likenesses(gan, result.generator, original, job.inputs, arguments.sparsity, granularity, arguments.seed),
        original.count,
        "noise of another seed than the training's" if gan.from_noise else f"{split} data",
        job.samples is not None and not job.sounds,  # --features compares images
    )
    batch = job.batch(unseen, 32 if job.reference.from_noise else 16)
    picture = comparison(generators, gan.objective, batch, arguments.seed, job.domains)
    write_png(arguments.out / "samples.png", picture)
    few = moved(job.batch(unseen, 4), device_of(generator=result.generator))
    inputs = inputs_of(result.generator, lambda: gan.objective.generate(result.generator, few))
    sizes = {name: _size(job, name, generator, inputs) for name, generator in generators.items()}
    facts = {"data": job.data} | {name: getattr(arguments, name) for name in SETTINGS}
    line = verdict.line if search is None else f"{search.line}; {verdict.line}"
    found = {
        **verdict.to_dict(),
        "line": line,
        "generators": {name: size | {"scores": scores[name]} for name, size in sizes.items()},
        "settings": {name: value if _plain(value) else str(value) for name, value in facts.items()},
        **_validated(result, scorer, search),
    }
    write_json(arguments.out / "result.json", found)

    head = [
        "generator",
        "sparsity",
        "weights",
        f"MACs per {'window' if job.sounds else 'image'}",
        "file",
        *scores["dense"],
    ]
    lines = [
        [
            name,
            f"{size['sparsity']:.1%}",
            f"{size['weights']:,}",
            f"{size['macs'] / 1e6:,.1f} M",
            f"{size['bytes'] / 1e6:.2f} MB",
            *(f"{value:.4g}" for value in scores[name].values()),
        ]
        for name, size in sizes.items()
    ]
    layers = [asdict(row) for row in profile(result.generator, inputs, seconds=0.05).rows]
    device = device_of(generator=gan.generator)
    running = {"device": device, "threads": torch.get_num_threads()}
    running |= {"peak memory": f"{peak_bytes(device) / 1e6:,.0f} MB"}
    curves = "<p>not fine-tuned</p>"
    if result.history:
        curves = f'<img class="plot" alt="curves" src="{term_curves(result.history)}">'
    warned = ' class="far"' if verdict.level == FAR else ""
    body = f"""<p{warned}><strong>{html.escape(line[0].upper() + line[1:])}.</strong></p>
<div class="wide">{table(*verdict.rows())}</div>
<p>Each generator is compared with the original on the same {verdict.images} inputs: {html.escape(verdict.inputs)}. The
mean image is the best that a generator which ignores its inputs could give. An edge energy below 1 means softer images
than the original's.</p>
<div class="wide">{table(head, lines)}</div>
<p>Sparsity and weights are those of the convolutions. The size of the dense file is that of its float32 tensors.</p>
{_validation_section(result, scorer, search)}
<h2>Dense and compressed, from the same inputs ({split} data)</h2>
<img alt="samples" src="{picture_uri(picture)}">
{_listening(job, generators, unseen, split)}
<h2>Terms over the fine-tuning</h2>
{curves}
<p>Solid: the terms of the compressed generator. Dotted: the terms of the original generator, by the same discriminator.
Smoothed over 10 steps.</p>
<h2>Layers of the compressed generator (batch of {len(inputs[0])}, forward)</h2>
<div class="wide">{layer_table(layers)}</div>
<h2>Settings</h2>
{facts_table(facts)}
<h2>Machine</h2>
{facts_table({**info(), **running})}"""
    data = "without data" if job.data == NO_DATA else f"on {job.data}"
    title = f"{job.reference.name} at {100 * arguments.sparsity:.4g}% sparsity, {data}"
    write_text(arguments.out / "report.html", page(title, body))

    memory = f"peak memory {peak_bytes(device) / 1e6:,.0f} MB"
    print(f"wrote {arguments.out / 'generator.safetensors'}, samples.png, report.html and result.json; {memory}")
    if scorer is not None and search is None:
        print(_chosen_look(result, scorer))
    if verdict.level == FAR:
        print(f"sparsegan compress: warning: {verdict.line}", file=sys.stderr)
    print(line)
    if search is not None and not search.held:
        raise RuntimeError(f"{search.line}; see {arguments.out / 'report.html'}")


def _scores(job: Job, generators: Mapping[str, nn.Module], unseen: Samples | None) -> dict[str, dict[str, float]]:
    """The scores of --features, or else the GAN's own, by generator and name. Empty where there are neither."""
    scores: dict[str, dict[str, float]] = {name: {} for name in generators}
    if job.gan.objective.measures is not None and unseen is not None:
        for name, generator in generators.items():
            scores[name] = measured(
                generator, job.gan.objective, unseen, SCORED, seed=job.arguments.seed, quiet=job.arguments.quiet
            )
    if job.arguments.features and unseen is not None:
        features = load_features(job.arguments.features, job.device)
        evaluator = TaskEvaluator(unseen, job.gan.objective, features, quiet=job.arguments.quiet)
        for name, generator in generators.items():
            for view, score in evaluator.scores(generator).items():
                scores[name] |= {f"{view}: {label}": value for label, value in score.labelled().items()}
    return scores


def _listening(job: Job, generators: Mapping[str, nn.Module], unseen: Samples | None, split: str) -> str:
    """The part of the report with players of sounds; "" for a GAN of images."""
    if not isinstance(unseen, Sounds):
        return ""
    return f"""<p>The images are mel spectrograms of the sounds, low frequencies below.</p>
<h2>Sounds ({split} data)</h2>
<div class="wide">{players(generators, job.gan, unseen, job.arguments.seed)}</div>"""


def _validated(result: Result, scorer: Scorer | None, search: Search | None) -> dict[str, Any]:
    """The entries "validation" and "within" of result.json, where the run was validated."""
    if scorer is None:
        return {}
    if search is not None:
        return {"within": search.to_dict()}
    best = best_of(result.looks)
    looks = [{name: _finite(value) for name, value in look.items()} for look in result.looks]
    step = None if best is None else best["step"]
    return {"validation": {"score": scorer.name, "higher is better": scorer.higher, "looks": looks, "best step": step}}


def _validation_section(result: Result, scorer: Scorer | None, search: Search | None) -> str:
    """The part of the report about the validation; "" where there was none."""
    if scorer is None:
        return ""
    name = html.escape(scorer.name)
    if search is not None:
        points = [(trial.sparsity, trial.score) for trial in sorted(search.trials, key=lambda trial: trial.sparsity)]
        plot = score_curve(points, scorer.name, "sparsity", chosen=search.chosen, limit=search.limit)
        return f"""<h2>Sparsities that were tried: {name}, on inputs kept for validation</h2>
<img class="plot" alt="score over sparsity" src="{plot}">
<p>{html.escape(search.line)}. The dashed line is the bound. Each sparsity had {search.steps} steps at most.</p>"""
    best = best_of(result.looks)
    points = [(look["step"], look["score"]) for look in result.looks]
    plot = score_curve(points, scorer.name, "step", chosen=None if best is None else best["step"])
    return f"""<h2>Validation: {name}</h2>
<img class="plot" alt="score over steps" src="{plot}">
<p>{html.escape(_chosen_look(result, scorer))}. The folder validation has a picture of each look.</p>"""


def _chosen_look(result: Result, scorer: Scorer) -> str:
    best = best_of(result.looks)
    if best is None:
        return "no look at the full sparsity had a score; the result is that of the last step"
    return (
        f"the result is that of step {best['step']}, the best of {len(result.looks)} looks by {scorer.name}: "
        f"{scorer.text(best['score'])}"
    )


def _size(job: Job, name: str, generator: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Sparsity and number of the convolutions' kept weights, MACs of one image, and bytes of the file."""
    weights, kept = (sum(numbers) for numbers in zip(*_weights(generator), strict=True))
    if name == "compressed":
        size = (job.arguments.out / "generator.safetensors").stat().st_size
    else:
        size = sum(tensor.numel() * tensor.element_size() for tensor in generator.state_dict().values())
    macs = count_macs(generator, mapped(inputs, lambda tensor: tensor[:1])).executed
    return {"sparsity": 1 - kept / weights, "weights": kept, "macs": macs, "bytes": size}


def _weights(generator: nn.Module) -> Iterator[tuple[int, int]]:
    """The pair (number of weights, number of kept weights) of every convolution."""
    for module in generator.modules():
        if isinstance(module, SparseConv):
            yield math.prod(module.weight_shape), module.nnz
        elif isinstance(module, DENSE_CLASSES):
            yield module.weight.numel(), module.weight.numel()


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | dict)


def _finite(value: Any) -> Any:
    """The value, or None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
