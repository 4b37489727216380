"""The `Compressor`: prunes a trained GAN's generator gradually, and fine-tunes it on its compressed weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_files import write_json
from ..clock import Clock
from ..copying import bake, copy_model
from ..gans.objective import Objective, images_in
from ..modes import in_mode, in_modes_of, train_as_set, trainable
from ..nn.granularity import by_layer, units_of
from ..nn.replace import sparse_layers
from ..outermost import autocast as autocast_networks
from ..placement import device_of, moved
from ..progress import announce
from ..pruning.allocation import Targets
from ..pruning.averaging import Average
from ..pruning.reconstruct import reconstruct
from ..pruning.regrow import regrowable_layers
from ..pruning.schedule import Schedule, prunings
from ..pruning.surgery import sparsify
from ..randomness import seeded, undisturbed
from ..training import Run, endless, ranks, run_loop
from .config import BY_SALIENCY, CompressionConfig, OriginalMode, RunConfig, dict_of, from_old_keywords
from .statistics import batch_norms, match_contrast
from .step import CompressionTask
from .validation import Look, Looks, Validation

#: Seconds above which a rehearsal is content with one step. The first step also does work once for all.
SLOW = 60.0

#: Fields that run folders of earlier versions lack, and the values that describe the earlier versions' runs. A field
#: with this value is left out of a run's settings, so that a run of an earlier version can be resumed.
LATER_FIELDS: dict[str, Any] = {
    "regrow": 0.0,
    "rewind": False,
    "ema": 0.0,
    "lr_warm_up": 0.0,
    "cosine": False,
    "saliency": "magnitude",
    "reconstruct": 0,
    "original_mode": "evaluation",
    "discriminator_from": "start",
}
#: The same for the fields of losses, by the name of the loss.
LATER_LOSS_FIELDS: dict[str, dict[str, Any]] = {
    "SelfSupervisedLoss": {"match": "batch", "relative_floor": 0.0},
    "DistillationLoss": {"activations": "mse", "features": 0.0, "sharpness": 0.0},
}


@dataclass(frozen=True)
class Result:
    """The compressed `generator`, the `history` of every step's figures, the generator's `optimizer`, and the `looks`.

    With `validate`, the generator is that of the best look. Where this is not the last one, the optimizer has no state.
    """

    generator: nn.Module
    history: list[dict[str, float]]
    optimizer: torch.optim.Optimizer
    looks: list[Look] = field(default_factory=list)


class Compressor:
    """Compresses a copy of `generator`, or of `student`. The networks that are passed in are not changed.

    Each step prunes to the schedule's sparsity: each layer drops its smallest units, and dropped units stay dropped
    unless `regrow` is set. The step then makes fakes, updates a copy of the discriminator on them by its ordinary loss,
    and updates the generator by `config.loss`.

    `objective`: the GAN's terms. `schedule`: length and sparsity, for example `GradualPruning(steps=1000, target=0.9)`.
    `config`: all other settings that decide the result. `run`: the run folder, checkpoints and progress.
    `student`: the network to compress in place of `generator`. The loss still compares with `generator`.
    `validate`: look at the compressed generator during the run, keep the best one, end early; see `Validation`.

    The file config.json in the run folder holds the schedule, the configuration and `run.settings`. A resumed run must
    have the same. The file compression.json holds only the configuration, for `CompressionConfig.from_dict` and
    `sparsegan compress --config`.

    Frozen parameters (requires_grad is False) stay as they are. A frozen convolution that is not excluded is pruned and
    not trained, with one warning. A network in evaluation mode is put into training mode. In a network in training
    mode, modules in evaluation mode stay so (a norm on its stored statistics, for example). The original generator
    runs in the modes of the compressed generator (`config.original_mode`), and none of its numbers change.

    All networks must be on one device and stay there. Batches are moved to it.
    In a process group (`torchrun`) each step's work is divided among the processes, and the result is that of one
    process; see `training.ranks`. Only rank 0 writes files.
    Raises ValueError for values out of range, for networks on several devices, and for a network that should be trained
    but is completely frozen.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        schedule: Schedule,
        config: CompressionConfig | None = None,
        *,
        run: RunConfig | None = None,
        student: nn.Module | None = None,
        validate: Validation | None = None,
        **old: Any,
    ) -> None:
        config, run = from_old_keywords("Compressor", old, config, run)
        device_of(generator=generator, discriminator=discriminator, student=student)
        compared = config.loss.matches or config.original_images != "unused"
        if config.contrast and schedule.steps > 0 and not compared:
            kind = type(config.loss).__name__
            raise ValueError(
                f"contrast is set and loss is a {kind}; it must be a loss that compares with the original generator"
            )
        if config.reconstruct and ranks.world_size() > 1:
            raise ValueError(
                f"reconstruct is {config.reconstruct} in {ranks.world_size()} processes; it must be 0, because the "
                "reconstruction is not divided among processes"
            )
        self.config, self.run_config, self.schedule, self.validate = config, run, schedule, validate

        start = _ready_to_draw(generator if student is None else student)
        pruned = config.granularity, config.exclude
        chosen_later = config.allocation == BY_SALIENCY
        if chosen_later and schedule.steps > 0 and len(prunings(schedule)) < 3 and schedule.sparsity(0) > 0:
            warnings.warn(
                f"allocation is {BY_SALIENCY!r}, and the schedule prunes before the first step only, when no gradient "
                "is known yet: every layer gets the schedule's sparsity, and its weights are ranked without gradients",
                stacklevel=2,
            )
        targets = Targets.of(
            start, schedule.sparsity(schedule.steps), *pruned, "uniform" if chosen_later else config.allocation
        )
        first = dict(targets.at(schedule.sparsity(0)))
        if chosen_later and list(sparse_layers(start)):  # an earlier run has allocated the sparsity already
            first = dict.fromkeys(first, 0.0)
        #: The sparsities that the reconstruction at the start reaches. The layers are then whole until `fit`.
        self._first = first if config.reconstruct else {}
        if config.reconstruct:
            kinds = by_layer(first, config.granularity, "granularity")
            fixed = {name: units_of(kind).sparsity for name, kind in kinds.items()}
            whole = {name: 0.0 if only is None else only for name, only in fixed.items()}
        student = train_as_set(sparsify(start, whole if config.reconstruct else first, *pruned))
        _warn_of_frozen(student)
        if config.regrow:
            regrowable_layers(student)
        if config.stored_statistics:
            for norm in batch_norms(student):
                norm.eval()
        updated = config.discriminator_mode == "updated"
        judge = copy_model(discriminator)
        judge = train_as_set(judge) if updated else judge.requires_grad_(False).eval()
        if config.prune_discriminator:
            judge = sparsify(judge, schedule.sparsity(0))

        def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Adam:
            return torch.optim.Adam(parameters, lr, config.betas, fused=True)

        beside = compared or config.reconstruct > 0
        original = _original_beside(student, generator, config.original_mode) if beside else None
        why = ', or set discriminator_mode="frozen"'
        self.task = CompressionTask(
            original,
            student,
            judge,
            objective,
            schedule,
            config,
            targets,
            adam(trainable(student, "generator"), config.generator_lr),
            adam(trainable(judge, "discriminator", why), config.discriminator_lr) if updated else None,
        )
        if validate is not None:
            self.task.looks = Looks(validate, schedule.steps)
        # The folder is made last, so that a refused argument leaves none behind.
        self.run = None if run.run_dir is None else self._open(run)

    def _open(self, asked: RunConfig) -> Run:
        """The opened run folder, with the configuration written into it."""
        assert asked.run_dir is not None
        config = self.config.to_dict()
        loss = _as_before(config["loss"], LATER_LOSS_FIELDS.get(config["loss"]["kind"], {}))
        settings = _as_before(config | {"loss": loss}, LATER_FIELDS)
        if settings["original_images"] != "fake":  # run folders of earlier versions have the former name
            settings["original_as_real"] = settings.pop("original_images") == "real"
        settings = {"schedule": dict_of("schedule", self.schedule), **settings, **asked.settings}
        settings |= {} if self.validate is None else {"validation": self.validate.settings}
        run = Run(asked.run_dir, settings, resume=asked.resume, keep=asked.keep)
        if ranks.rank() == 0:
            write_json(run.path / "compression.json", config)
        return run

    def fit(self, loader: Iterable[Any]) -> Result:
        """Run the schedule over the batches of `loader`, which is repeated endlessly. Returns a `Result`.

        Raises training.Diverged where a term is not finite or above `run.limit`, ValueError for an empty loader and for
        discriminator terms that give the generator no gradient.
        """
        if self._first and (self.run is None or not self.run.checkpoints()):
            self._reconstruct(loader)
        networks = (self.task.student, self.task.original, self.task.discriminator)
        with ranks.divided(*networks), autocast_networks(self.config.autocast, *networks):
            return self._fit(loader)

    def _reconstruct(self, loader: Iterable[Any]) -> None:
        """Bring the student to the schedule's first sparsity by `pruning.reconstruct`, and say each layer's error."""
        student, original, seed = self.task.student, self.task.original, self.config.seed
        assert original is not None
        announce("fitting the pruned layers to the original's activations before the first step", self.run_config.quiet)
        with undisturbed():
            batches = [moved(one, self.task.device) for one in islice(endless(loader, seed), self.config.reconstruct)]

        def sample(network: nn.Module, index: int) -> None:
            with seeded((seed + index) % 2**63):
                self.task.objective.generate(network, batches[index])

        errors = reconstruct(student, original, sample, len(batches), self._first)
        text = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        announce(f"squared errors of the layers' outputs, relative to the original's: {text}", self.run_config.quiet)
        if self.task.average is not None:
            self.task.average = Average(student, self.config.ema)

    def rehearse(self, loader: Iterable[Any]) -> float:
        """The seconds of a step, measured on the second of two steps, or on the first where that takes `SLOW` seconds.

        The two steps train this compressor's networks, so the run itself needs another compressor. Nothing is written,
        and the random states are restored.
        """
        networks = (self.task.student, self.task.original, self.task.discriminator)
        clock, last = Clock(self.task.student), max(0, self.schedule.steps - 1)
        divided, autocast = ranks.divided(*networks), autocast_networks(self.config.autocast, *networks)
        with undisturbed(), divided, autocast:
            batches = endless(loader, self.config.seed)
            for step in (0, min(1, last)):
                batch = moved(next(batches), self.task.device)
                start = clock.seconds()
                self.task.step(step, batch)
                # Processes must agree on whether there is a second step.
                seconds = ranks.agreed(clock.seconds() - start)
                if seconds > SLOW:
                    break
        return seconds

    def _fit(self, loader: Iterable[Any]) -> Result:
        history: list[dict[str, float]] = []
        if self.schedule.steps > 0:
            history = run_loop(
                self.task,
                loader,
                self.schedule.steps,
                run=self.run,
                checkpoint_every=self.run_config.checkpoint_every,
                seed=self.config.seed,
                limit=self.run_config.limit,
                title=self.run_config.title or "compressing",
                quiet=self.run_config.quiet or ranks.rank() > 0,
            )
        average = self.task.average
        if average is not None:
            for ours, theirs in zip(average.model.parameters(), self.task.student.parameters(), strict=True):
                ours.requires_grad_(theirs.requires_grad)
        student = self.task.student.eval() if average is None else average.model
        looks = self.task.looks
        if looks is not None and looks.restore(student):
            self.task.optimizer.state.clear()
        original = self.task.original
        if self.config.contrast and original is not None and self.schedule.steps > 0:
            batches = [moved(batch, self.task.device) for batch in islice(endless(loader, self.config.seed), 16)]
            self._match_contrast(student, original, batches)
        return Result(student, history, self.task.optimizer, [] if looks is None else looks.rows)

    def _match_contrast(self, student: nn.Module, original: nn.Module, batches: list[Any]) -> None:
        """Match the contrast of each kind of image separately, on the child module of that name or else on `student`.

        A generator such as CycleGAN's has one child module for each kind of image.
        """

        def images(net: nn.Module) -> dict[str, Tensor]:
            """All images of `net` in evaluation for `batches` by kind, from the same noise at every call."""
            with seeded(self.config.seed), torch.no_grad(), in_mode(net, False):
                made = [images_in(self.task.objective.generate(net, batch)) for batch in batches]
            return {name: torch.cat([one[name] for one in made]) for name in made[0]}

        def match(name: str) -> None:
            ours, theirs = (dict(net.named_children()).get(name, net) for net in (student, original))
            match_contrast(ours, theirs, lambda part: images(student if part is ours else original)[name])

        names = list(images(original))
        if not names:
            raise ValueError("contrast is set and objective.generate gives no images; it must give images [N, C, H, W]")
        for name in names:
            match(name)


def _ready_to_draw(network: nn.Module) -> nn.Module:
    """A copy of `network` whose dropouts draw the same mask for a sparse and for a dense layer before them.

    A dropout draws in the order in which its input lies in memory. A sparse layer writes rows after rows, and so does
    a dense layer whose weights do not lie in channels_last.
    """
    network = copy_model(network)
    if any(isinstance(module, nn.modules.dropout._DropoutNd) for module in network.modules()):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network


def _original_beside(student: nn.Module, generator: nn.Module, mode: OriginalMode) -> nn.Module:
    """A copy of `generator` that is not trained, for comparisons with `student`.

    Where a layer of `student` is sparse, its weight is the value in evaluation of a computed weight (a spectral norm,
    for example). The copy's layer of that name gets this value too.
    """
    original = _ready_to_draw(generator).requires_grad_(False)
    modules = dict(original.named_modules())
    for name, _ in sparse_layers(student):
        if name in modules:
            bake(modules[name])
    return in_modes_of(original, student) if mode == "same" else original.eval()


def _as_before(settings: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """The settings without those of `later` that have the value of earlier versions' runs."""
    return {name: value for name, value in settings.items() if name not in later or value != later[name]}


def _warn_of_frozen(student: nn.Module) -> None:
    frozen = [name for name, layer in sparse_layers(student) if not layer.values.requires_grad]
    if frozen:
        warnings.warn(
            f"frozen convolutions (requires_grad is False) are pruned like the others, and their kept weights are not "
            f"trained: {', '.join(frozen)}. Name them in exclude to keep them dense",
            stacklevel=3,
        )
