"""The tables of the study's page. Each function turns the rows that have run into a table in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from ..compress import RECIPES
from . import paper
from .cell import Cell, change, distance, markdown, percent
from .grids import (
    ABLATIONS,
    BASELINES,
    CANDIDATES,
    DCGAN,
    DISCRIMINATORS,
    GRANULARITIES,
    MISSING,
    OPEN_POINTS,
    SECOND,
    SEEDS,
    SPARSITIES,
    STUDIES,
    Row,
)
from .results import Results
from .speed import best_and_dense
from .tasks import TASKS
from .techniques import TECHNIQUES

#: task -> the views that are scored, and their descriptions.
VIEWS = {
    "dcgan-mnist": {"samples": "digits"},
    "dcgan-fashion": {"samples": "clothes"},
    "pix2pix": {"output": "line art to colour"},
    "cyclegan": {"a_to_b": "Google's to Twitter's", "b_to_a": "Twitter's to Google's"},
    "stargan": {"translation": "any to any"},
    "srgan": {"output": "four times larger"},
}


#: The techniques of most tables -> the heads of their columns.
SHORT = {
    "self-supervised": "equations 7-9",
    "self-supervised-features": "L_F",
    "features-fast": "L_F, four times the learning rate",
}
#: Further techniques of the first table.
ADDED = ("one-shot", "equations-batch", "features-batch", "features-large", "features-larger")
#: task -> the technique with larger batches that gives the best result.
BATCHED = {
    "dcgan-mnist": "features-larger",
    "dcgan-fashion": "features-larger",
    "pix2pix": "features-batch",
    "cyclegan": "features-batch",
    "srgan": "features-batch",
}
SEEN = ("classes", "entropy", "confidence", "diversity")
DIVERSITY = "Diversity: mean distance between the features of two images, divided by that of real images."


def _dense(results: Results, task: str, view: str) -> float | None:
    return Cell.of(results, Row(task)).mean("scores", view, "fid")


def _how(results: Results, tasks: Iterable[str]) -> str:
    """Returns the sentences below a table: how its distances were measured, and the budget of its rows."""
    parts = []
    for name in tasks:
        cell = Cell.of(results, Row(name))
        if not cell.done:
            continue
        task, score = TASKS[name], next(iter(cell.done[0]["scores"].values()))
        parts.append(
            f"{task.title}: {score['network']}, {score['images']:,} images, {task.steps} steps of {task.batch} "
            f"({task.steps * task.batch / task.dense_images:.0%} of the dense training's images)"
        )
    machines = {report["machine"]["machine"] for name in tasks for report in Cell.of(results, Row(name)).done}
    text = f"Fréchet distances; {'; '.join(parts)}. "
    text += f"Mean ± spread over up to {len(SEEDS)} seeds; a figure without a spread is of one seed. In brackets: the "
    text += f"change against the dense generator. {', '.join(sorted(machines))}, one thread per row. Other work ran on "
    return text + "the machine, so MACs compare and seconds do not. MACs are those of the steps, D's included."


def by_sparsity(results: Results) -> str:
    """Returns the table of every task at every sparsity, with the paper's figures below each view."""
    names = SHORT | {name: TECHNIQUES[name].text for name in ADDED}
    planned = {(row.task, row.technique, row.sparsity) for row in STUDIES["paper-table2"]}
    rows = []
    for task, views in VIEWS.items():
        for view, text in views.items():
            dense, title = _dense(results, task, view), f"{TASKS[task].title}: {text}"
            for technique in names:
                if all((task, technique, sparsity) not in planned for sparsity in SPARSITIES):
                    continue
                row = [title, names[technique], Cell.of(results, Row(task)).show("scores", view, "fid", form=distance)]
                for sparsity in SPARSITIES:
                    cell = Cell.of(results, Row(task, technique, sparsity))
                    shown = cell.show("scores", view, "fid", form=distance, base=dense)
                    row.append(shown if (task, technique, sparsity) in planned else "none")
                rows.append(row)
            if (task, view) in paper.SPARSITIES:
                title, known = paper.SPARSITIES[task, view]
                changes = [
                    f"{known[s]:.1f} ({known[s] / known[0.0] - 1:+.0%})" if s in known else "none" for s in SPARSITIES
                ]
                rows.append([f"the paper's {title}", "equations 7-9", f"{known[0.0]:.1f}", *changes])
    head = ["task", "technique", "dense", *(percent(sparsity) for sparsity in SPARSITIES)]
    return markdown(head, rows, _how(results, TASKS))


def changes(results: Results, technique: str, sparsity: float) -> dict[str, str]:
    """Returns the description of each view -> the change of its Fréchet distance against the dense generator's."""
    found = {}
    for task, views in VIEWS.items():
        for view, text in views.items():
            dense, pruned = _dense(results, task, view), Cell.of(results, Row(task, technique, sparsity))
            mean = pruned.mean("scores", view, "fid")
            if dense and mean:
                found[text] = change(mean / dense)
    return found


def in_short(results: Results) -> str:
    """Returns the README's table: every task at 90 %, beside the paper's change."""
    rows = []
    for task, views in VIEWS.items():
        for view, text in views.items():
            dense = _dense(results, task, view)
            names = ("one-shot", "self-supervised", "self-supervised-features", BATCHED.get(task, ""))
            cells = [Cell.of(results, Row(task, name, 0.9)) if name else Cell([], ["not run"]) for name in names]
            shown = [cell.show("scores", view, "fid", form=distance, base=dense) for cell in cells]
            known = paper.SPARSITIES.get((task, view), ("", {}))[1]
            said = change(known[0.9] / known[0.0]) if known else "none"
            rows.append([f"{TASKS[task].title.split(',')[0]}: {text}", distance(dense) if dense else "not run", *shown])
            rows[-1] += [_first_timed(results, task, 0.9), said]
    head = ["90 %", "dense", TECHNIQUES["one-shot"].text, "equations 7-9", "L_F", "L_F, larger batches"]
    head += ["forward", "the paper's 7-9"]
    below = f"Fréchet distances, each task's own features and images. Forward: {FORWARD}. Measured by `sparsegan study "
    return markdown(head, rows, below + "paper-table2`; [study.md](study.md) has the rest.")


def classes(task: str) -> Callable[[Results], str]:
    """Returns the function for the table of the classes that the classifier assigns to a DCGAN's images."""

    def table(results: Results) -> str:
        rows = [["dense", percent(0.0), *_seen(Cell.of(results, Row(task)))]]
        for technique, text in SHORT.items():
            for sparsity in SPARSITIES[1:]:
                rows.append([text, percent(sparsity), *_seen(Cell.of(results, Row(task, technique, sparsity)))])
        below = "Classes: the number of classes to which the classifier assigns at least 2 % of 5,000 images each. "
        below += "Entropy: that of the classes' fractions, in bits; an even mix has 3.32. Confidence: mean probability "
        return markdown(["technique", "sparsity", *SEEN], rows, f"{below}of the likeliest class. {DIVERSITY}")

    return table


def _two_digits(value: float) -> str:
    return f"{abs(value):.2f}"


def _seen(cell: Cell) -> list[str]:
    forms = {"modes": "{:.3g}".format, "mode_entropy": _two_digits, "confidence": _two_digits}
    seen = [cell.show("classes", name, form=form) for name, form in forms.items()]
    return [*seen, cell.show("scores", "samples", "diversity", form=_two_digits)]


#: A further figure in the score of a view -> its name, and its format.
BESIDE: dict[str, tuple[str, Callable[[float], str]]] = {
    "psnr": ("PSNR, dB", "{:.1f}".format),
    "ssim": ("SSIM", "{:.3f}".format),
    "diversity": ("diversity", _two_digits),
    "accuracy": ("domain accuracy", _two_digits),
}


def translations(results: Results) -> str:
    """Returns the table of the fidelity, diversity and domain accuracy of images that are made from images."""
    rows = []
    for task, views in VIEWS.items():
        for view, text in views.items():
            dense = Cell.of(results, Row(task))
            for figure, (name, form) in BESIDE.items():
                if view != "samples" and dense.values("scores", view, figure):
                    cells = [dense, *(Cell.of(results, Row(task, technique, 0.9)) for technique in SHORT)]
                    shown = [cell.show("scores", view, figure, form=form) for cell in cells]
                    rows.append([f"{TASKS[task].title}: {text}", name, *shown])
    below = f"{DIVERSITY} Domain accuracy: the fraction of images that a classifier of the four styles assigns to the "
    below += "requested style; of StarGAN's images only those count whose requested style is not the input's."
    return markdown(["task", "", "dense", *(f"{text}, 90 %" for text in SHORT.values())], rows, below)


def sizes(results: Results) -> str:
    """Returns the table of MACs per image, file sizes and milliseconds per forward pass."""
    rows = []
    for task in TASKS:
        cells = [Cell.of(results, Row(task))]
        cells += [_first_done(results, task, sparsity) for sparsity in SPARSITIES]
        macs = [cell.show("size", "macs", form=lambda value: f"{value / 1e6:,.1f} M") for cell in cells]
        files = [cell.show("size", "file_bytes", form=lambda value: f"{value / 1e6:.2f} MB") for cell in cells]
        forward = ["", *(_first_timed(results, task, sparsity) for sparsity in SPARSITIES)]
        rows += [[TASKS[task].title, "MACs per image", *macs], ["", "file", *files], ["", "forward", *forward]]
    below = f"Forward: {FORWARD}."
    return markdown(["task", "", "dense", *(percent(sparsity) for sparsity in SPARSITIES)], rows, below)


#: What `speed.py` measures.
FORWARD = "milliseconds per batch (64 images for DCGAN, else one) on one thread; in brackets: times as fast as dense"


def _first_timed(results: Results, task: str, sparsity: float) -> str:
    """Returns the milliseconds of the first of the two main techniques that was timed."""
    shown = [_times(results, Row(task, name, sparsity)) for name in ("self-supervised", "self-supervised-features")]
    return next((one for one in shown if one.endswith(")")), shown[0])


def _first_done(results: Results, task: str, sparsity: float) -> Cell:
    """Returns one seed of the first of the two main techniques that has run. Generators of both have the same size."""
    for technique in ("self-supervised", "self-supervised-features"):
        cell = Cell.of(results, Row(task, technique, sparsity))
        if cell.done:
            return Cell(cell.done[:1], [])
    return Cell([], ["not run"])


COST = ("training, s", "training, GMACs")


def _cost(cell: Cell) -> list[str]:
    """Returns the means over the seeds. The spread is left out, because it comes from the machine."""
    forms = {"seconds": lambda value: f"{value:.0f}", "macs": lambda value: f"{value / 1e9:,.0f}"}
    found = {name: cell.mean("cost", name) for name in forms}
    return [
        forms[name](value) if value is not None else cell.show("cost", name, form=distance)
        for name, value in found.items()
    ]


def baselines(task: str, sparsity: float) -> Callable[[Results], str]:
    """Returns the function for the paper's table of techniques, for one task and sparsity."""

    def table(results: Results) -> str:
        view = next(iter(VIEWS[task]))
        dense = _dense(results, task, view)
        rows = []
        for name in sorted(BASELINES, key=lambda name: (RECIPES[name].row or "~", name)):
            recipe, cell = RECIPES[name], Cell.of(results, Row(task, name, sparsity))
            known = paper.BASELINES.get(recipe.row)
            rows.append(
                [
                    f"{recipe.row or '-'} {name}",
                    cell.show("scores", view, "fid", form=distance, base=dense),
                    *(_seen(cell)[:2] if view == "samples" else []),
                    *_cost(cell),
                    f"{known:.1f}" if known else "none",
                ]
            )
        name, cell = "self-supervised-features", Cell.of(results, Row(task, "self-supervised-features", sparsity))
        fid = cell.show("scores", view, "fid", form=distance, base=dense)
        rows.append([f"- {name}", fid, *(_seen(cell)[:2] if view == "samples" else []), *_cost(cell), "none"])
        head = ["technique", f"{TASKS[task].title}, {percent(sparsity)}", *(SEEN[:2] if view == "samples" else ())]
        head += [*COST, "the paper's StarGAN, 50 %"]
        dense_text = distance(dense) if dense else "not run"
        return markdown(
            head, rows, f"Dense: {dense_text} (the paper's: {paper.DENSE_STARGAN}). {_how(results, [task])}"
        )

    return table


def granularity(results: Results) -> str:
    """Returns the table of distance, MACs and time by granularity and sparsity."""
    dense = _dense(results, DCGAN, "samples")
    sparsities = sorted({row.sparsity for row in STUDIES["granularity"]})
    rows = []
    for unit in GRANULARITIES:
        all_of = [Row(DCGAN, "self-supervised-features", sparsity, unit) for sparsity in sparsities]
        cells = [Cell.of(results, row) for row in all_of]
        macs = [cell.show("size", "macs", form=lambda value: f"{value / 1e6:.1f}") for cell in cells]
        fids = [cell.show("scores", "samples", "fid", form=distance, base=dense) for cell in cells]
        rows.append([unit, *fids, *macs, *(_times(results, row) for row in all_of)])
    for unit, known in paper.GRANULARITIES.items():
        fids = [f"{known[s]:.1f} ({known[s] / known[0.0] - 1:+.0%})" for s in sparsities]
        rows.append([f"the paper's {unit}, CycleGAN", *fids, *["none"] * 2 * len(sparsities)])
    head = ["granularity", *(percent(s) for s in sparsities), *(f"MACs at {percent(s)}, M" for s in sparsities)]
    head += [f"forward at {percent(s)}" for s in sparsities]
    below = (
        f"L_F. {_how(results, [DCGAN])} Forward: {FORWARD}. Each time is of the generator's fastest "
        "form: drop-in layers, the engine or, for filters, smaller dense layers."
    )
    return markdown(head, rows, below)


def _times(results: Results, row: Row) -> str:
    """Returns the milliseconds of a row's generator, and its speed-up over the dense generator."""
    found = None if row.obstacle() else best_and_dense(results, row)
    if found is None:
        return row.obstacle() or "not timed"
    best, dense = found
    return f"{best:.1f} ms ({dense / best:.1f}x)"


#: The reviewers' rows at 90 % on DCGAN, in the table's order.
QUESTIONS = (
    *ABLATIONS,
    "gan-loss",
    "gan-loss-fresh",
    "small-dense",
    "small-dense-pretrained",
)


def discriminators(results: Results) -> str:
    """Returns the table of the discriminator's outputs at the end of each run, beside the distance."""
    dense = _dense(results, DCGAN, "samples")
    rows = []
    for name in QUESTIONS:
        cell = Cell.of(results, Row(DCGAN, name, 0.9))
        said = [_said(cell, name) for name in ("real", "compressed", "original", "entropy_real", "entropy_compressed")]
        fid = cell.show("scores", "samples", "fid", form=distance, base=dense)
        rows.append([f"{name}: {TECHNIQUES[name].text}", fid, _seen(cell)[0], *said, *_cost(cell)])
    head = ["technique", "90 %", "classes", "D(real)", "D(compressed)", "D(dense)", "entropy on real"]
    head += ["entropy on compressed", *COST]
    below = f"D's mean output and the mean entropy of its output in bits, at the end. {_how(results, [DCGAN])}"
    return markdown(head, rows, below)


def _said(cell: Cell, name: str) -> str:
    """Returns a figure of the last look at the discriminator: the mean over the seeds."""
    values = [report["watched"][-1][name] for report in cell.done if name in report["watched"][-1]]
    if not values:
        return "; ".join(dict.fromkeys(cell.why_not)) or "not a probability"
    return f"{statistics.mean(values):.2f}"


def what_of_d(results: Results) -> str:
    """Returns the table that shows which part of the trained discriminator helps."""
    dense = _dense(results, DCGAN, "samples")
    rows = []
    for name in ("self-supervised-features", "self-supervised", "self-supervised-fresh", *DISCRIMINATORS):
        cell = Cell.of(results, Row(DCGAN, name, 0.9))
        fid = cell.show("scores", "samples", "fid", form=distance, base=dense)
        rows.append([TECHNIQUES[name].text, fid, *_seen(cell)])
    return markdown(["technique", "90 %", *SEEN], rows, _how(results, [DCGAN]))


def open_points(results: Results) -> str:
    """Returns the table of the settings of equations 7-9 that the paper leaves open."""
    dense = _dense(results, DCGAN, "samples")
    rows = []
    for name in ("self-supervised", *OPEN_POINTS):
        cell = Cell.of(results, Row(DCGAN, name, 0.9))
        rows.append([TECHNIQUES[name].text, cell.show("scores", "samples", "fid", form=distance, base=dense)])
        rows[-1] += _seen(cell)[:2]
    return markdown(["technique", "90 %", *SEEN[:2]], rows, _how(results, [DCGAN]))


def missing(results: Results) -> str:
    """Returns the table of runs without the discriminator, without the data, and without both."""
    rows = []
    for task, views in VIEWS.items():
        for view, text in views.items():
            dense = _dense(results, task, view)
            cells = [Cell.of(results, Row(task, technique, 0.9)) for technique in MISSING]
            shown = [cell.show("scores", view, "fid", form=distance, base=dense) for cell in cells]
            row = Cell.of(results, Row(task)).show("scores", view, "fid", form=distance)
            rows.append([f"{TASKS[task].title}: {text}", row, *shown])
    head = ["task", "dense", *(f"{SHORT.get(name, TECHNIQUES[name].text)}, 90 %" for name in MISSING)]
    return markdown(head, rows, _how(results, TASKS))


def drift(results: Results) -> str:
    """Returns the table of the terms of equations 7-9: means over the first sixth and the second half of the run."""
    shown = {"dis": "Dis on compressed", "gen": "Gen of the compressed", "gen_original": "Gen of the original"}
    rows = []
    for task in TASKS:
        for sparsity in (0.5, 0.9):
            cell = Cell.of(results, Row(task, "self-supervised", sparsity))
            row = [f"{TASKS[task].title}, {percent(sparsity)}"]
            for term in shown:
                curves = [report["curves"][term] for report in cell.done if term in report["curves"]]
                parts = [(curve[: max(1, len(curve) // 6)], curve[len(curve) // 2 :]) for curve in curves]
                means = [statistics.mean(map(statistics.mean, part)) for part in zip(*parts, strict=True)]
                row.append(
                    " to ".join(f"{mean:.2f}" for mean in means) or "; ".join(dict.fromkeys(cell.why_not)) or "none"
                )
            rows.append(row)
    below = "Means over the seeds: over the first sixth of the run, then over its second half."
    return markdown(["task, equations 7-9", *shown.values()], rows, below)


def recipes(results: Results) -> str:
    """Returns the table of the candidates for a better recipe."""
    rows = []
    for name in CANDIDATES:
        row = [f"{name}: {TECHNIQUES[name].text}"]
        for task, sparsity in RECIPE_COLUMNS:
            row += _against_equations(results, Row(task, name, sparsity))
            if (task, sparsity) == (DCGAN, 0.9):
                row += _cost(Cell.of(results, Row(task, name, sparsity)))
        rows.append(row)
    head = ["technique"]
    for task, sparsity in RECIPE_COLUMNS:
        head += [f"{TASKS[task].title}, {percent(sparsity)}", "of equations 7-9's change"]
        head += COST if (task, sparsity) == (DCGAN, 0.9) else ()
    return markdown(head, rows, _how(results, [DCGAN, SECOND]))


RECIPE_COLUMNS = ((DCGAN, 0.9), (DCGAN, 0.95), (SECOND, 0.9), (SECOND, 0.95))


def _against_equations(results: Results, row: Row) -> tuple[str, str]:
    """Returns a distance as text, and its change against dense as a fraction of the change with equations 7-9."""
    view = next(iter(VIEWS[row.task]))
    dense = _dense(results, row.task, view)
    cell, other = Cell.of(results, row), Cell.of(results, Row(row.task, "self-supervised", row.sparsity))
    own, known = cell.mean("scores", view, "fid"), other.mean("scores", view, "fid")
    fraction = f"{(own - dense) / (known - dense):.2f}" if own and known and dense else "not known"
    return cell.show("scores", view, "fid", form=distance, base=dense), fraction


#: study -> marker of a table in the page -> the function that makes the table.
TABLES: dict[str, dict[str, Callable[[Results], str]]] = {
    "paper-table2": {
        "by_sparsity": by_sparsity,
        "translations": translations,
        "digits": classes(DCGAN),
        "clothes": classes("dcgan-fashion"),
        "sizes": sizes,
    },
    "baselines": {
        "baselines_dcgan_90": baselines(DCGAN, 0.9),
        "baselines_dcgan_50": baselines(DCGAN, 0.5),
        "baselines_pix2pix_50": baselines(SECOND, 0.5),
    },
    "granularity": {"granularity": granularity},
    "reviewers": {"discriminators": discriminators, "what_of_d": what_of_d, "open_points": open_points, "drift": drift},
    "missing": {"missing": missing},
    "recipe": {"recipes": recipes},
}
