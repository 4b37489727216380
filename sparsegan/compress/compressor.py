"""Prune a trained GAN's generator gradually on its compressed weights, and fine-tune it on the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..copying import copy_model
from ..gans.objective import Objective, images_in
from ..modes import train_as_set, trainable
from ..nn.replace import sparse_layers
from ..outermost import autocast as autocast_networks
from ..placement import device_of, moved
from ..pruning.allocation import Targets
from ..pruning.averaging import Average
from ..pruning.regrow import regrowable_layers
from ..pruning.schedule import Schedule
from ..pruning.surgery import sparsify
from ..randomness import seeded
from ..training import Run, endless, ranks, run_loop
from .comparison import feature_layers_of
from .losses import GeneratorLoss, SelfSupervisedLoss
from .statistics import batch_norms, match_contrast
from .step import CompressionTask

DISCRIMINATOR_MODES = ("updated", "frozen", "none")


@dataclass(frozen=True)
class Result:
    """`generator`: the compressed generator. `history`: every step's figures. `optimizer`: the generator's."""

    generator: nn.Module
    history: list[dict[str, float]]
    optimizer: torch.optim.Optimizer


class Compressor:
    """Compress a copy of `generator`, or of `student`; the networks handed in stay as they are.

    Every step: prune to the schedule's sparsity (a layer's smallest units go, and none comes back unless `regrow` lets
    it); make fakes; let the discriminator's copy take a step of its ordinary loss on them; let the generator take a
    step of `loss`.

    `objective`: the GAN's terms. `schedule`: length and sparsity, for example `GradualPruning(steps=1000, target=0.9)`.
    `loss`: what the generator minimises; `SelfSupervisedLoss()` (the method, with its options), `DistillationLoss()` or
    `PlainLoss()`.
    `student`: what is compressed and trained instead of a copy of `generator`, which the loss still compares with.
    `granularity`, `exclude`: as in `sparsegan.sparsify`. Layers of granularity "2:4" are pruned at once, the others
    along the schedule, whose last sparsity must be 0.5 where such a layer gets the same as all.
    `allocation`: how the schedule's last sparsity is shared out among the layers of `generator`: "uniform", "global",
    "global-normalized", or sparsities by layer, as `sparsegan.pruning.allocation.sensitivity` finds them. A layer is
    always as far on its way as the schedule is on its own.
    `regrow`: share of a layer's kept weights that change places with absent ones, at first; 0 for never. From the first
    pruning on, every `REGROW_EVERY` steps (or at the generator's next step) those of smallest magnitude go and those of
    largest gradient come in, at 0, by RigL (Evci et al., arXiv 1911.11134; see `sparsegan.pruning.regrow`). The share
    falls as half a cosine, `regrow / 2 * (1 + cos(pi * step / end))`, to 0 at `end`, three quarters of the run.
    Granularity "element" only; a pruned discriminator's weights stay dropped.
    `discriminator_mode`: "updated" (by its own loss on the compressed generator's fakes), "frozen" (and in evaluation
    mode: a fixed function of an image) or "none" (not asked, for a loss that needs no discriminator).
    `prune_discriminator`: prune it along the schedule too, single weights, each layer alike.
    `original_as_real`: an updated discriminator also minimises the generator terms of `generator`'s fakes: it learns to
    take those for real, and so to tell the two generators apart.
    `feature_layers`: names of the discriminator's modules whose outputs are its features; by default, its activations.
    `stored_statistics`: the compressed generator's batch norms use, and keep, their stored statistics: a match image by
    image then has no noise from the rest of the batch.
    `contrast`: at the end, scale the last layer so that images have the original's contrast; see `match_contrast`.
    `generator_every`: discriminator steps a generator step, n_critic.
    `generator_lr`, `discriminator_lr`, `betas`: Adam's. `decay`: both rates fall linearly to 0 over the second half of
    the run. `rewind`: of every stretch between two prunings, at which they start anew (Renda et al., arXiv 2003.02389).
    `ema`: decay of a moving average of the compressed generator's weights, which is then the result; 0 for none. See
    `sparsegan.Average`.
    `accumulate`: parts that a batch is taken in, one after the other, their gradients added: a bound on memory. Each
    part is a batch of its own to norms and to the ratios of the loss, so the result differs a little.
    `autocast`: the dtype in which networks compute (torch.bfloat16), losses and parameters staying as they are. With
    torch.float16 losses are scaled for the backward pass; see `training.scaling`.
    `run_dir`, `resume`, `checkpoint_every`, `keep`: see `training.Run`; without a folder nothing is written.
    `config`: more JSON-able settings to hold a resumed run to (the data set, say).
    `limit`: magnitude of a term at which the run is stopped as diverged.
    `seed`: `fit` seeds torch's and Python's random generators with it, and they go on from where the run ends. Both
    generators see the same numbers of `draws` and of torch; numbers of NumPy or of Python's `random` may differ.

    Parameters that do not require a gradient stay as they are, those of a frozen convolution that is not excluded are
    pruned and not trained, which one warning says. Networks that are in evaluation are put into training mode; in those
    that are in training, a module in evaluation stays there (a norm on its stored statistics, say).

    Networks stay on the device that they are on, one for all, and batches are moved there.
    In a process group (`torchrun`) each step's work is divided among the processes, with the result of one process; see
    `training.ranks`. Rank 0 writes.
    Raises ValueError for values out of range, for networks on several devices, and for a network to be trained of which
    everything is frozen.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        schedule: Schedule,
        *,
        loss: GeneratorLoss | None = None,
        student: nn.Module | None = None,
        granularity: str | Mapping[str, str] = "element",
        exclude: tuple[str, ...] = (),
        allocation: str | Mapping[str, float] = "uniform",
        regrow: float = 0.0,
        discriminator_mode: str = "updated",
        prune_discriminator: bool = False,
        original_as_real: bool = False,
        feature_layers: tuple[str, ...] = (),
        stored_statistics: bool = False,
        contrast: bool = False,
        generator_every: int = 1,
        generator_lr: float = 2e-4,
        discriminator_lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        decay: bool = False,
        rewind: bool = False,
        ema: float = 0.0,
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
        run_dir: str | Path | None = None,
        resume: bool = False,
        checkpoint_every: int = 100,
        keep: int = 2,
        config: dict[str, Any] | None = None,
        seed: int = 0,
        limit: float = 1e4,
        title: str = "compressing",
        quiet: bool = False,
    ) -> None:
        if discriminator_mode not in DISCRIMINATOR_MODES:
            modes = ", ".join(map(repr, DISCRIMINATOR_MODES))
            raise ValueError(f"discriminator_mode is {discriminator_mode!r}; it must be one of {modes}")
        if not 0 <= regrow < 1:
            raise ValueError(f"regrow is {regrow}; it must be at least 0 and below 1")
        if rewind and not decay:
            raise ValueError("rewind is set and decay is not; without a decay no learning rate is ever lower")
        if not 0 <= ema < 1:
            raise ValueError(f"ema is {ema}; it must be at least 0 and below 1")
        if generator_every < 1:
            raise ValueError(f"generator_every is {generator_every}; it must be at least 1")
        if not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; it must be an integer, at least 1")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast is {autocast}; it must be torch.bfloat16, torch.float16 or None")
        given = {"generator": generator, "discriminator": discriminator, "student": student}
        device_of(**given)
        self.schedule, self.contrast, self.autocast = schedule, contrast, autocast
        self.seed, self.limit, self.checkpoint_every = seed, limit, checkpoint_every
        self.title, self.quiet = title, quiet
        loss = SelfSupervisedLoss() if loss is None else loss
        if discriminator_mode == "none" and loss.uses_terms:
            raise ValueError(f'discriminator_mode is "none", and {type(loss).__name__} needs a discriminator\'s terms')
        for name, asked in (("prune_discriminator", prune_discriminator), ("original_as_real", original_as_real)):
            if asked and discriminator_mode != "updated":
                raise ValueError(
                    f'{name} is set and discriminator_mode is {discriminator_mode!r}; it must be "updated"'
                )
        settings = {
            "schedule": {"kind": type(schedule).__name__, **_fields(schedule)},
            "loss": {"kind": type(loss).__name__, **_fields(loss)},
            "granularity": granularity,
            "exclude": exclude,
            "allocation": allocation,
            "discriminator_mode": discriminator_mode,
            "prune_discriminator": prune_discriminator,
            "original_as_real": original_as_real,
            "feature_layers": feature_layers,
            "stored_statistics": stored_statistics,
            "contrast": contrast,
            "generator_every": generator_every,
            "generator_lr": generator_lr,
            "discriminator_lr": discriminator_lr,
            "betas": betas,
            "decay": decay,
            "accumulate": accumulate,
            "autocast": None if autocast is None else str(autocast),
            "seed": seed,
            # Without these, runs that were begun before they were there go on.
            **({"regrow": regrow} if regrow else {}),
            **({"rewind": rewind} if rewind else {}),
            **({"ema": ema} if ema else {}),
            **(config or {}),
        }
        start = generator if student is None else student
        targets = Targets.of(start, schedule.sparsity(schedule.steps), granularity, exclude, allocation)
        sparse = sparsify(copy_model(start), targets.at(schedule.sparsity(0)), granularity, exclude)
        student = train_as_set(sparse)
        _say_frozen(student)
        if regrow:
            regrowable_layers(student)
        if stored_statistics:
            for norm in batch_norms(student):
                norm.eval()
        judge = copy_model(discriminator)
        judge = train_as_set(judge) if discriminator_mode == "updated" else judge.requires_grad_(False).eval()
        if prune_discriminator:
            judge = sparsify(judge, schedule.sparsity(0))
        compared = loss.matches or original_as_real
        self.task = CompressionTask(
            copy_model(generator).requires_grad_(False).eval() if compared else None,
            student,
            judge,
            objective,
            schedule,
            loss,
            torch.optim.Adam(trainable(student, "generator"), generator_lr, betas, fused=True),
            torch.optim.Adam(
                trainable(judge, "discriminator", ', or set discriminator_mode="frozen"'),
                discriminator_lr,
                betas,
                fused=True,
            )
            if discriminator_mode == "updated"
            else None,
            generator_every,
            feature_layers_of(judge, feature_layers) if loss.matches_features else [],
            decay,
            targets,
            prune_discriminator,
            original_as_real,
            accumulate,
            regrow,
            rewind,
            Average(student, ema) if ema else None,
            autocast,
        )
        # Last: a refused argument leaves no folder behind.
        self.run = Run(run_dir, settings, resume=resume, keep=keep) if run_dir is not None else None

    def fit(self, loader: Iterable[Any]) -> Result:
        """Run the schedule over `loader`'s batches (endlessly repeated) and return the compressed generator.

        Raises training.Diverged when a term is not finite or too large, ValueError for an empty loader or for
        discriminator terms that give the generator no gradient.
        """
        networks = (self.task.student, self.task.original, self.task.discriminator)
        with ranks.divided(*networks), autocast_networks(self.autocast, *networks):
            return self._fit(loader)

    def _fit(self, loader: Iterable[Any]) -> Result:
        history: list[dict[str, float]] = []
        if self.schedule.steps > 0:
            history = run_loop(
                self.task,
                loader,
                self.schedule.steps,
                run=self.run,
                checkpoint_every=self.checkpoint_every,
                seed=self.seed,
                limit=self.limit,
                title=self.title,
                quiet=self.quiet or ranks.rank() > 0,
            )
        average = self.task.average
        if average is not None:
            for ours, theirs in zip(average.model.parameters(), self.task.student.parameters(), strict=True):
                ours.requires_grad_(theirs.requires_grad)
        student = self.task.student.eval() if average is None else average.model
        if self.contrast and self.schedule.steps > 0:
            original = self.task.original
            if original is None:
                raise ValueError("contrast needs a loss that looks at the original generator; PlainLoss() does not")
            batches = [moved(batch, self.task.device) for batch in islice(endless(loader, self.seed), 16)]
            self._match_contrast(student, original, batches)
        return Result(student, history, self.task.optimizer)

    def _match_contrast(self, student: nn.Module, original: nn.Module, batches: list[Any]) -> None:
        """Each kind of image on its own: one that is named as a part of the generator comes out of that part."""

        def images(net: nn.Module) -> dict[str, Tensor]:
            """For `batches`, from the same noise at every call."""
            with seeded(self.seed), torch.no_grad():
                made = [images_in(self.task.objective.generate(net, batch)) for batch in batches]
            return {name: torch.cat([one[name] for one in made]) for name in made[0]}

        def match(name: str) -> None:
            ours, theirs = (dict(net.named_children()).get(name, net) for net in (student, original))
            match_contrast(ours, theirs, lambda part: images(student if part is ours else original)[name])

        names = list(images(original))
        if not names:
            raise ValueError("contrast needs an objective whose generate gives images [N, C, H, W]")
        for name in names:
            match(name)


def _say_frozen(student: nn.Module) -> None:
    frozen = [name for name, layer in sparse_layers(student) if not layer.values.requires_grad]
    if frozen:
        warnings.warn(
            f"frozen convolutions (requires_grad is False) are pruned like the others, and what is kept of them is not "
            f"trained: {', '.join(frozen)}. Name them in exclude to keep them dense",
            stacklevel=3,
        )


def _fields(value: Any) -> dict[str, Any]:
    return {name: field for name, field in asdict(value).items() if not name.startswith("_")}
