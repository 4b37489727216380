"""Prune a trained GAN's generator gradually on its compressed weights, and fine-tune it on the way."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import Targets
from ..gans.objective import ImagePool, Objective, detached, images_in
from ..nn import SparseConv
from ..prune import shrink, sparse_layers, sparsify
from ..schedule import Schedule
from ..training import Run, endless, ranks, run_loop
from ..training.adversarial import decayed, set_rates
from ..training.outermost import autocast as autocast_networks
from ..training.outermost import mapped
from .loss import GeneratorLoss, Scores, SelfSupervisedLoss

DISCRIMINATOR_MODES = ("updated", "frozen", "none")


@dataclass(frozen=True)
class Result:
    """`generator`: the compressed generator. `history`: every step's figures. `optimizer`: the generator's."""

    generator: nn.Module
    history: list[dict[str, float]]
    optimizer: torch.optim.Optimizer


class Compressor:
    """Compress a copy of `generator`, or of `student`; the networks handed in stay as they are.

    Every step: prune to the schedule's sparsity (a layer's smallest units go, none comes back); make fakes; let the
    discriminator's copy take a step of its ordinary loss on them; let the generator take a step of `loss`.

    `objective`: the GAN's terms. `schedule`: length and sparsity, for example `GradualPruning(steps=1000, target=0.9)`.
    `loss`: what the generator minimises; `SelfSupervisedLoss()` (the method, with its options), `DistillationLoss()` or
    `PlainLoss()`.
    `student`: what is compressed and trained instead of a copy of `generator`, which the loss still compares with.
    `granularity`, `exclude`: as in `sparsegan.sparsify`. Layers of granularity "2:4" are pruned at once, the others
    along the schedule, whose last sparsity must be 0.5 where such a layer gets the same as all.
    `allocation`: how the schedule's last sparsity is shared out among the layers of `generator`: "uniform", "global",
    "global-normalized", or sparsities by layer, as `sparsegan.allocation.sensitivity` finds them. A layer is always as
    far on its way as the schedule is on its own.
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
    the run.
    `accumulate`: parts that a batch is taken in, one after the other, their gradients added: a bound on memory. Each
    part is a batch of its own to norms and to the ratios of the loss, so the result differs a little.
    `autocast`: the dtype in which networks compute (torch.bfloat16), losses and parameters staying as they are.
    `run_dir`, `resume`, `checkpoint_every`, `keep`: see `training.Run`; without a folder nothing is written.
    `config`: more JSON-able settings to hold a resumed run to (the data set, say).
    `limit`: magnitude of a term at which the run is stopped as diverged.

    In a process group (`torchrun`) each step's work is divided among the processes, with the result of one process; see
    `training.ranks`. Rank 0 writes.
    Raises ValueError for values out of range.
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
        if generator_every < 1:
            raise ValueError(f"generator_every is {generator_every}; it must be at least 1")
        if accumulate < 1:
            raise ValueError(f"accumulate is {accumulate}; it must be at least 1")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast is {autocast}; it must be torch.bfloat16, torch.float16 or None")
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
            **(config or {}),
        }
        start = generator if student is None else student
        targets = Targets.of(start, schedule.sparsity(schedule.steps), granularity, exclude, allocation)
        sparse = sparsify(copy.deepcopy(start), targets.at(schedule.sparsity(0)), granularity, exclude)
        student = sparse.requires_grad_(True).train()
        if stored_statistics:
            for norm in _batch_norms(student):
                norm.eval()
        judge = copy.deepcopy(discriminator).train(discriminator_mode == "updated")
        if prune_discriminator:
            judge = sparsify(judge, schedule.sparsity(0))
        compared = loss.matches or original_as_real
        self.task = CompressionTask(
            copy.deepcopy(generator).requires_grad_(False).eval() if compared else None,
            student,
            judge,
            objective,
            schedule,
            loss,
            torch.optim.Adam(student.parameters(), generator_lr, betas, fused=True),
            torch.optim.Adam(judge.parameters(), discriminator_lr, betas, fused=True)
            if discriminator_mode == "updated"
            else None,
            generator_every,
            _feature_layers(judge, feature_layers) if loss.matches_features else [],
            decay,
            targets,
            prune_discriminator,
            original_as_real,
            accumulate,
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
        student = self.task.student.eval()
        if self.contrast and self.schedule.steps > 0:
            original = self.task.original
            if original is None:
                raise ValueError("contrast needs a loss that looks at the original generator; PlainLoss() does not")
            batches = list(islice(endless(loader, self.seed), 16))
            self._match_contrast(student, original, batches)
        return Result(student, history, self.task.optimizer)

    def _match_contrast(self, student: nn.Module, original: nn.Module, batches: list[Any]) -> None:
        """Each kind of image on its own: one that is named as a part of the generator comes out of that part."""

        def images(net: nn.Module) -> dict[str, Tensor]:
            """For `batches`, from the same noise at every call."""
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(self.seed)
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


def _fields(value: Any) -> dict[str, Any]:
    return {name: field for name, field in asdict(value).items() if not name.startswith("_")}


#: What a generator made of a batch, and its activations on the way, where a loss matches those.
Made = tuple[Any, list[Tensor]]


class Comparison:
    """Another generator beside `original`, both before one discriminator: the scores that a loss asks for."""

    def __init__(
        self,
        original: nn.Module | None,
        discriminator: nn.Module,
        objective: Objective,
        loss: GeneratorLoss,
        feature_layers: Sequence[nn.Module] = (),
    ) -> None:
        self.original = original
        self.discriminator = discriminator
        self.objective = objective
        self.loss = loss
        self.feature_layers = feature_layers

    def compare(
        self, generator: nn.Module, ours: Made, theirs: Made | None, batch: Any, before: Tensor
    ) -> tuple[Scores, Scores | None]:
        """Scores of what `generator` made, `ours`, and of what the original makes of the same batch and random numbers.

        `theirs`: the latter, if it is there already. `before`: the random state before `ours` was made.
        """
        middle = torch.get_rng_state()
        compressed = self._scores(generator, *ours, batch)
        if self.original is None or not self.loss.matches:
            return compressed, None
        after = torch.get_rng_state()
        theirs = theirs or self.generate_again(self.original, batch, before)
        torch.set_rng_state(middle)  # the same penalty coefficient
        original = self._scores(self.original, *theirs, batch)
        torch.set_rng_state(after)
        return compressed, original

    def generate(self, generator: nn.Module, batch: Any) -> Made:
        """A fake, and the activations on its way where the loss matches those."""
        found: list[Tensor] = []
        layers = _activations(generator, "generator") if self.loss.matches_intermediate else []
        with _outputs(layers, found):
            return self.objective.generate(generator, batch), found

    def generate_again(self, generator: nn.Module, batch: Any, before: Tensor) -> Made:
        """:meth:`generate` without a graph, from the noise that was drawn at the random state `before`."""
        now = torch.get_rng_state()
        torch.set_rng_state(before)
        with torch.no_grad():
            made = self.generate(generator, batch)
        torch.set_rng_state(now)
        return made

    def _scores(self, generator: nn.Module, fake: Any, activations: list[Tensor], batch: Any) -> Scores:
        """What the loss needs: terms of both kinds and features where it looks at them, images and activations."""
        scores = Scores({}, images=images_in(fake), intermediate=activations)
        if self.loss.uses_terms:
            with _outputs(self.feature_layers, scores.features):
                scores.generator = self.objective.generator_terms(generator, self.discriminator, fake, batch)
        if self.loss.matches_discriminator_terms:
            terms = self.objective.discriminator_terms(generator, self.discriminator, fake, batch)
            scores.discriminator = {k: term for k, term in terms.items() if k not in self.objective.real_terms}
        return scores


class CompressionTask(Comparison):
    """One step of compression, and the whole state between steps; see `Compressor`."""

    def __init__(
        self,
        original: nn.Module | None,
        student: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        schedule: Schedule,
        loss: GeneratorLoss,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer | None,
        generator_every: int = 1,
        feature_layers: Sequence[nn.Module] = (),
        decay: bool = False,
        targets: Targets | None = None,
        prune_discriminator: bool = False,
        original_as_real: bool = False,
        accumulate: int = 1,
    ) -> None:
        super().__init__(original, discriminator, objective, loss, feature_layers)
        self.accumulate = accumulate
        self.student = student
        self.schedule = schedule
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.generator_every = generator_every
        self.decay = decay
        self.targets = targets
        self.prune_discriminator = prune_discriminator
        self.original_as_real = original_as_real
        self.pool = ImagePool(objective.pool)
        self._sparsity = schedule.sparsity(0)

    def step(self, step: int, batch: Any) -> dict[str, float]:
        """Prune, update the discriminator, update the generator; returns every term's value and the sparsity."""
        wanted = self.schedule.sparsity(step)
        if wanted > self._sparsity:
            shrink(self.student, self.targets.at(wanted) if self.targets is not None else wanted, self.optimizer)
            if self.prune_discriminator:
                shrink(self.discriminator, wanted, self.discriminator_optimizer)
            self._sparsity = wanted
        figures = {"sparsity": self._sparsity}
        if self.decay:
            for optimizer in (self.optimizer, self.discriminator_optimizer):
                set_rates(optimizer, decayed(step, self.schedule.steps))

        parts = split(batch, self.accumulate)
        generator_steps = step % self.generator_every == 0
        made = self._discriminator_step(parts, generator_steps and len(parts) == 1, figures)
        if generator_steps:
            self.discriminator.requires_grad_(False)
            self.optimizer.zero_grad()
            for part, (before, ours, theirs) in zip(parts, made, strict=True):
                if ours is None:
                    ours = self._generate_with_graph(part, before)
                with _judging_once(self.discriminator):
                    self._generator_backward(ours, theirs, part, before, len(parts), figures)
            ranks.sum_gradients(self.optimizer)
            self.optimizer.step()
        return figures

    def _discriminator_step(
        self, parts: list[Any], with_graph: bool, figures: dict[str, float]
    ) -> list[tuple[Tensor, Made | None, Made | None]]:
        """Fakes of every part, and a step of the discriminator on them. Returns, a part: the random state before its
        noise, what the generator made, what the original did. Of several parts only the random state is kept."""
        optimizer = self.discriminator_optimizer
        made: list[tuple[Tensor, Made | None, Made | None]] = []
        if optimizer is not None:
            self.discriminator.requires_grad_(True)
            optimizer.zero_grad()
        for part in parts:
            before, theirs = torch.get_rng_state(), None
            with nullcontext() if with_graph else torch.no_grad(), _statistics_kept(self.student, len(parts) > 1):
                ours = self.generate(self.student, part)
            if self.original is not None and self.original_as_real:
                theirs = self.generate_again(self.original, part, before)
            if optimizer is not None:
                past = self.pool(detached(ours[0]))
                terms = self.objective.discriminator_terms(self.student, self.discriminator, past, part)
                loss = self.objective.total(terms)
                if self.original is not None and theirs is not None:
                    real = self.objective.generator_terms(self.original, self.discriminator, theirs[0], part)
                    loss = loss + self.objective.total(real)
                (loss / len(parts)).backward()
                _add(figures, terms, len(parts))
            made.append((before, ours, theirs) if len(parts) == 1 else (before, None, None))
        if optimizer is not None:
            ranks.sum_gradients(optimizer)
            optimizer.step()
        return made

    def _generate_with_graph(self, part: Any, before: Tensor) -> Made:
        """The same fakes again, from the random state before their noise."""
        now = torch.get_rng_state()
        torch.set_rng_state(before)
        made = self.generate(self.student, part)
        torch.set_rng_state(now)
        return made

    def _generator_backward(
        self, ours: Made, theirs: Made | None, part: Any, before: Tensor, parts: int, figures: dict[str, float]
    ) -> None:
        compressed, original = self.compare(self.student, ours, theirs, part, before)
        judged = compressed.discriminator
        if judged and not any(term.requires_grad for term in judged.values()):
            raise ValueError(
                f"the discriminator terms {', '.join(map(repr, judged))} give the generator no gradient; "
                "discriminator_terms must not detach its argument fake"
            )
        loss = self.loss(self.objective, compressed, original)
        (loss / parts).backward()
        _add(figures, compressed.generator, parts)
        _add(figures, {f"{name}_compressed": term for name, term in compressed.discriminator.items()}, parts)
        if original is not None:
            both = original.generator | original.discriminator
            _add(figures, {f"{name}_original": term for name, term in both.items()}, parts)
        _add(figures, {"loss": loss}, parts)

    def state_dict(self) -> dict[str, Any]:
        """The compressed generator, the discriminator, both optimizers, the loss's averages, the pool, the sparsity."""
        judge = self.discriminator_optimizer
        return {
            "sparsity": self._sparsity,
            "student": self.student.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": judge.state_dict() if judge is not None else {},
            "loss": self.loss.state_dict(),
            "pool": self.pool.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._sparsity = state["sparsity"]
        for part, network in (("student", self.student), ("discriminator", self.discriminator)):
            for name, layer in sparse_layers(network):  # the saved support is smaller than the one it started with
                layer.set_support(state[part][f"{name}.support"], state[part][f"{name}.values"])
        self.student.load_state_dict(state["student"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.pool.load_state_dict(state.get("pool", {}))


def gap(
    generator: nn.Module,
    discriminator: nn.Module,
    objective: Objective,
    batches: Sequence[Any],
    loss: GeneratorLoss | None = None,
    seed: int = 0,
) -> Callable[[nn.Module], float]:
    """A measure of how far other generators are from `generator`, for `sparsegan.allocation.sensitivity`.

    Returns a function of a generator of the same kind: the mean over `batches` of `loss` (by default equations 7-9)
    under the frozen `discriminator`, each time with the same noise. No network is trained; those handed in stay.
    Raises ValueError for no batches.
    """
    if not batches:
        raise ValueError("batches is empty; at least one is needed")
    minimised = SelfSupervisedLoss() if loss is None else loss
    judge = copy.deepcopy(discriminator).requires_grad_(False).eval()
    layers = _feature_layers(judge, ()) if minimised.matches_features else []
    both = Comparison(copy.deepcopy(generator).eval(), judge, objective, minimised, layers)

    def measure(network: nn.Module) -> float:
        total = 0.0
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # a gradient penalty differentiates
            torch.manual_seed(seed)
            for batch in batches:
                before = torch.get_rng_state()
                scores = both.compare(network, both.generate(network, batch), None, batch, before)
                total += minimised(objective, *scores).item()
        return total / len(batches)

    return measure


def split(batch: Any, parts: int) -> list[Any]:
    """A batch, tensors inside tuples and dicts too, in so many equal parts. Raises ValueError where it has none."""
    if parts == 1:
        return [batch]

    def part(index: int) -> Any:
        def cut(tensor: Tensor) -> Tensor:
            if tensor.shape[0] % parts:
                raise ValueError(f"a batch of {tensor.shape[0]} does not divide into accumulate={parts} parts")
            return tensor.chunk(parts)[index]

        return mapped(batch, cut)

    return [part(index) for index in range(parts)]


def _add(figures: dict[str, float], terms: Mapping[str, Tensor], parts: int) -> None:
    """Terms of one part to those of the parts before it: their mean."""
    for name, term in terms.items():
        figures[name] = figures.get(name, 0.0) + term.item() / parts


@contextmanager
def _statistics_kept(network: nn.Module, keep: bool) -> Iterator[None]:
    """Within it batch norms do not count what they see: the same images come a second time."""
    norms = _batch_norms(network) if keep else []
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


_ACTIVATIONS = (nn.LeakyReLU, nn.ReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)


def _activations(network: nn.Module, role: str) -> list[nn.Module]:
    found: list[nn.Module] = [module for module in network.modules() if isinstance(module, _ACTIVATIONS)]
    if not found:
        hint = "; name its layers in feature_layers" if role == "discriminator" else ""
        raise ValueError(f"the {role} has no activation modules to match{hint}")
    return found


@contextmanager
def _outputs(layers: Sequence[nn.Module], found: list[Tensor]) -> Iterator[None]:
    """Within it, what the layers put out is appended to `found`, in the order of their calls."""
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: found.append(ranks.joined(output)))
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _feature_layers(discriminator: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    modules = dict(discriminator.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"feature_layers has {unknown[0]!r}; the discriminator has no module of that name")
    return [modules[name] for name in names] or _activations(discriminator, "discriminator")


@contextmanager
def _judging_once(discriminator: nn.Module) -> Iterator[None]:
    """Within it the discriminator computes each input once: equations 7 and 8 look at the same fakes, and both
    generators' terms at the same real images. Saves about a fifth of a step.
    """
    forward = discriminator.forward
    judged: list[tuple[tuple[Any, ...], Any]] = []

    def once(*inputs: Any) -> Any:
        for seen, output in judged:
            if len(seen) == len(inputs) and all(one is other for one, other in zip(seen, inputs, strict=True)):
                return output
        output = forward(*inputs)
        judged.append((inputs, output))
        return output

    discriminator.forward = once
    try:
        yield
    finally:
        del discriminator.forward


def _batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def match_contrast(
    generator: nn.Module, original: nn.Module, sample: Callable[[nn.Module], Tensor], rounds: int = 12
) -> float:
    """Scale the generator's last convolution so that its images have the original's standard deviation.

    A pruned network that regresses to another one's outputs comes out paler: what it cannot represent averages out
    (Jordan et al., "REPAIR", arXiv 2211.08403, on the same collapse of variance in merged networks). One number, found
    by bisection in [0.5, 2], puts it back; no real image is looked at. `sample(network)` gives images, the same noise
    at every call. In place; returns the scale. When no scale in the range does it, warns and changes nothing.
    """
    last = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | SparseConv)]
    if not last:
        raise ValueError("the generator has no convolution whose weights could be scaled")
    weight = last[-1].values if isinstance(last[-1], SparseConv) else last[-1].weight
    kept = weight.detach().clone()
    wanted = sample(original).std().item()

    def contrast(scale: float) -> float:
        weight.copy_(kept * scale)
        return sample(generator).std().item()

    low, high = 0.5, 2.0
    if not contrast(low) <= wanted <= contrast(high):
        weight.copy_(kept)
        text = (
            f"no scale of the last layer from {low} to {high} gives images the original's contrast; it is left as it is"
        )
        warnings.warn(text, stacklevel=2)
        return 1.0
    for _ in range(rounds):
        scale = math.sqrt(low * high)
        low, high = (scale, high) if contrast(scale) < wanted else (low, scale)
    weight.copy_(kept * low)
    return low


@torch.no_grad()
def recalibrate_batch_norm(generator: nn.Module, sample: Callable[[], Any], batches: int = 20) -> nn.Module:
    """Replace the batch norms' running statistics by their plain average over `batches` calls of `sample()`.

    Pruning changes what each layer puts out, so the running statistics no longer fit. In place; returns `generator`,
    its training flag unchanged. Random numbers come from torch's generator. Raises ValueError for batches below 1.
    """
    if batches < 1:
        raise ValueError(f"batches is {batches}; it must be at least 1")
    norms = [norm for norm in _batch_norms(generator) if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    training = generator.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    generator.train()
    for _ in range(batches):
        sample()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return generator.train(training)
