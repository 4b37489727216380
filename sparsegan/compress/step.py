"""One step of compression: prune, update the discriminator, update the generator."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..copying import computed_as_in_evaluation
from ..gans.objective import ImagePool, Objective, Terms, detached
from ..modes import Buffers, held, in_mode
from ..nn.replace import sparse_layers
from ..outermost import mapped
from ..placement import device_of
from ..pruning.allocation import Targets
from ..pruning.averaging import Average
from ..pruning.regrow import dense_gradients, regrow
from ..pruning.saliency import counting_uses, sparsities_by_saliency
from ..pruning.schedule import Schedule, prunings
from ..pruning.surgery import shrink
from ..randomness import Draws, devices_of, states, version_of
from ..training import ranks
from ..training.adversarial import decayed, set_rates
from ..training.figures import Figures
from ..training.scaling import LossScale
from .comparison import Comparison, Made
from .config import BY_SALIENCY, CompressionConfig
from .statistics import batch_norms
from .validation import Looks

#: Steps between two exchanges of weights, and the fraction of the run after which there are none.
REGROW_EVERY = 10
REGROW_UNTIL = 0.75


class CompressionTask(Comparison):
    """A step of compression, and the complete state between two steps. See `Compressor` for the arguments."""

    def __init__(
        self,
        original: nn.Module | None,
        student: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        schedule: Schedule,
        config: CompressionConfig,
        targets: Targets,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer | None,
    ) -> None:
        super().__init__(original, discriminator, objective, config.loss, config.feature_layers)
        self.config = config
        self.student = student
        self.judging = [one for one in discriminator.parameters() if one.requires_grad]
        self.schedule = schedule
        self.stretches = prunings(schedule) if config.rewind else [0, schedule.steps]
        self.targets = targets
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.scales = {side: LossScale(config.autocast, self.device) for side in ("generator", "discriminator")}
        self.average = Average(student, config.ema) if config.ema else None
        self.pool = ImagePool(objective.pool)
        self._sparsity = schedule.sparsity(0)
        #: How often a weight of each layer is used in a step, for the allocation by saliency. The first step counts it.
        self.uses: dict[str, int] = {}
        #: The looks at the compressed generator, where the run is validated.
        self.looks: Looks | None = None
        #: A function that is called before a step waits for its figures.
        self.meanwhile: Callable[[], None] | None = None

    @property
    def device(self) -> torch.device:
        """The device of all networks."""
        return device_of(generator=self.student, discriminator=self.discriminator, original=self.original)

    def step(self, step: int, batch: Any) -> dict[str, float]:
        """Prune, update the discriminator, update the generator. Returns every term's value and the sparsity."""
        wanted = self.schedule.sparsity(step)
        # Where gradients overflow in float16, the first step that the optimizer takes comes late.
        ready = self.config.saliency == "magnitude" or bool(self.optimizer.state)
        if wanted > self._sparsity and ready:
            shrink(self.student, self._sparsities(wanted), self.optimizer, self.config.saliency)
            if self.config.prune_discriminator:
                shrink(self.discriminator, wanted, self.discriminator_optimizer)
            self._sparsity = wanted
        terms = Figures()
        if self.config.decay or self.config.cosine or self.config.lr_warm_up:
            for optimizer in (self.optimizer, self.discriminator_optimizer):
                set_rates(optimizer, self._rate(step))

        parts = split(batch, self.config.accumulate)
        fraction = self._exchanged(step)
        watched: AbstractContextManager[dict[str, Tensor]] = nullcontext({})
        if fraction > 0:
            watched = dense_gradients(self.student)
        resting = nullcontext() if self._discriminator_is_trained() else in_mode(self.discriminator, False)
        counted: AbstractContextManager[dict[str, int]] = nullcontext(self.uses)
        if self.config.allocation == BY_SALIENCY and not self.uses:
            counted = counting_uses(self.student)
        with watched as gradients, counted as self.uses, _buffers_kept(self.original), resting:
            generator_steps = step % self._generator_every() == 0
            made = self._discriminator_step(parts, generator_steps and len(parts) == 1, terms)
            stepped = generator_steps and self._generator_step(parts, made, gradients, terms)
        figures = {"sparsity": self._sparsity} | terms.read(self.meanwhile)
        # No exchange of weights by gradients that overflowed or of a loss that is not finite. The training loop reports
        # such a loss.
        if fraction > 0 and stepped and all(math.isfinite(figure) for figure in figures.values()):
            regrow(self.student, gradients, fraction, self.optimizer)
        if self.average is not None and generator_steps:
            self.average.update(self.student)
        if self.looks is not None:
            full = self._sparsity >= self.schedule.sparsity(self.schedule.steps)
            self.looks.after(step + 1, self.result, self._sparsity, full)
        return figures

    def _discriminator_is_trained(self) -> bool:
        """Whether this step updates the discriminator."""
        waits = self.config.discriminator_from == "target"
        rests = waits and self._sparsity < self.schedule.sparsity(self.schedule.steps)
        return self.discriminator_optimizer is not None and not rests

    def _generator_every(self) -> int:
        """Steps per step of the generator, which is updated at every step while no discriminator is."""
        return self.config.generator_every if self._discriminator_is_trained() else 1

    @property
    def result(self) -> nn.Module:
        """The compressed generator: the moving average where there is one, else the network that is trained."""
        return self.student if self.average is None else self.average.model

    @property
    def finished(self) -> bool:
        """Whether the run ends before its last step, because validation has found nothing better for long."""
        return self.looks is not None and self.looks.finished

    def _sparsities(self, wanted: float) -> Mapping[str, float]:
        """The sparsity of each layer when all layers together have the sparsity `wanted`."""
        if self.config.allocation != BY_SALIENCY:
            return self.targets.at(wanted)
        return sparsities_by_saliency(self.student, wanted, self.uses, [self.optimizer], self.config.saliency)

    def _rate(self, step: int) -> float:
        """The factor of the learning rates at `step`: their rise, and their fall over the stretch that contains `step`.

        The stretch is the whole run, or with `rewind` that between two prunings.
        """
        last = bisect_right(self.stretches, step) - 1
        start, end = self.stretches[last : last + 2]
        rise = self.config.lr_warm_up * self.schedule.steps
        factor = min(1.0, (step + 1) / rise) if rise > 0 else 1.0
        if self.config.cosine:
            return factor * (1 + math.cos(math.pi * (step - start) / (end - start))) / 2
        return factor * (decayed(step - start, end - start) if self.config.decay else 1.0)

    def _exchanged(self, step: int) -> float:
        """The fraction of the kept weights to exchange after the update of `step`; 0 for most steps."""
        end = REGROW_UNTIL * self.schedule.steps
        # True for the generator's first step at or after a multiple of REGROW_EVERY.
        every = self._generator_every()
        due = step % every == 0 and step % REGROW_EVERY < every
        if not due or step >= end or self._sparsity == 0:
            return 0.0
        return self.config.regrow / 2 * (1 + math.cos(math.pi * step / end))

    def _generator_step(
        self,
        parts: list[Part],
        made: list[tuple[Draws, Made | None, Made | None]],
        gradients: Mapping[str, Tensor],
        figures: Figures,
    ) -> bool:
        """Update the generator on the fakes of every part.

        `gradients`: the gradients of its dense weights, absent weights included, which this step fills in. Returns
        False where a gradient overflowed in float16.
        """
        self.optimizer.zero_grad()
        for gradient in gradients.values():  # the discriminator's step may have added to them
            gradient.zero_()
        with held(self.judging), computed_as_in_evaluation(self.discriminator):
            for part, (noise, ours, theirs) in zip(parts, made, strict=True):
                if ours is None:
                    ours = self.generate_again(self.student, part.batch, noise, with_graph=True)
                with _judging_once(self.discriminator, noise.devices):
                    self._generator_backward(ours, theirs, part, noise, figures)
        ranks.sum_gradients(self.optimizer)
        ranks.sum_tensors(gradients.values())
        scale = self.scales["generator"]
        stepped = scale.step(self.optimizer)
        return stepped and not (scale.used and any(not one.isfinite().all() for one in gradients.values()))

    def _discriminator_step(
        self, parts: list[Part], with_graph: bool, figures: Figures
    ) -> list[tuple[Draws, Made | None, Made | None]]:
        """Make the fakes of every part, and update the discriminator on them where its time has come.

        `with_graph`: whether the fakes keep their graph, for a generator step on them. Returns per part the noise, the
        compressed generator's fakes, and the original's fakes, which are None where the discriminator is not trained on
        them. With several parts, only the noise is kept, to save memory: all fakes are None.
        """
        optimizer = self.discriminator_optimizer if self._discriminator_is_trained() else None
        scale = self.scales["discriminator"]
        made: list[tuple[Draws, Made | None, Made | None]] = []
        devices = devices_of(self.student, self.original, self.discriminator)
        if optimizer is not None:
            optimizer.zero_grad()
        for part in parts:
            noise, theirs, batch = Draws(devices), None, part.batch
            with nullcontext() if with_graph else torch.no_grad(), _statistics_kept(self.student, len(parts) > 1):
                ours = self.generate(self.student, batch, noise)
            if optimizer is not None:
                past = self.pool(detached(ours[0]))
                terms = self.objective.discriminator_terms(self.student, self.discriminator, past, batch)
                loss = self.objective.total(terms)
                if self.original is not None and self.config.original_images != "unused":
                    theirs = self.generate_again(self.original, batch, noise)
                    loss = self._with_original_images(loss, self.original, theirs[0], batch)
                scale.backward(loss / part.parts)
                figures.add(terms, part.parts)
            made.append((noise, ours, theirs) if len(parts) == 1 else (noise, None, None))
        if optimizer is not None:
            ranks.sum_gradients(optimizer)
            scale.step(optimizer)
        return made

    def _with_original_images(self, loss: Tensor, original: nn.Module, fake: Any, batch: Any) -> Tensor:
        """The discriminator's loss, from `loss` on the compressed generator's fakes, for both generators' fakes."""
        if self.config.original_images == "real":
            return loss + self.objective.total(
                self.objective.generator_terms(original, self.discriminator, fake, batch)
            )
        theirs = self.objective.discriminator_terms(original, self.discriminator, fake, batch)
        return (loss + self.objective.total(theirs)) / 2

    def _generator_backward(self, ours: Made, theirs: Made | None, part: Part, noise: Draws, figures: Figures) -> None:
        compressed, original = self.compare(self.student, ours, theirs, part.batch, noise)
        judged = compressed.discriminator
        if judged and not any(term.requires_grad for term in judged.values()):
            raise ValueError(
                f"the discriminator terms {', '.join(map(repr, judged))} give the generator no gradient; "
                "discriminator_terms must not detach its argument fake"
            )
        loss = self.loss(self.objective, compressed, original)
        self.scales["generator"].backward(loss / part.parts)
        figures.add(_means(compressed.generator), part.parts)
        figures.add(_means(compressed.discriminator, "_compressed"), part.parts)
        if original is not None:
            figures.add(_means(original.generator | original.discriminator, "_original"), part.parts)
        figures.add({"loss": loss}, part.parts)

    def state_dict(self) -> dict[str, Any]:
        """The states of networks, optimizers, loss, pool, moving average, loss scales and looks, and the sparsity."""
        judge = self.discriminator_optimizer
        average = {} if self.average is None else {"average": self.average.state_dict()}
        scales = {side: scale.state_dict() for side, scale in self.scales.items() if scale.used}
        return {
            **average,
            **({} if self.looks is None else {"looks": self.looks.state_dict()}),
            **({"scales": scales} if scales else {}),
            **({"uses": self.uses} if self.uses else {}),
            "sparsity": self._sparsity,
            "student": self.student.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": judge.state_dict() if judge is not None else {},
            "loss": self.loss.state_dict(),
            "pool": self.pool.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sparsity = state["sparsity"]
        self.uses = state.get("uses", {})
        for part, network in (("student", self.student), ("discriminator", self.discriminator)):
            for name, layer in sparse_layers(network):  # the saved support is smaller than the layer's initial support
                layer.set_support(state[part][f"{name}.support"], state[part][f"{name}.values"])
        self.student.load_state_dict(state["student"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        for side, scale in self.scales.items():
            scale.load_state_dict(state.get("scales", {}).get(side, {}))
        self.loss.load_state_dict(state["loss"])
        self.pool.load_state_dict(state.get("pool", {}))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.looks is not None:
            self.looks.load_state_dict(state["looks"])


def _means(terms: Terms, ending: str = "") -> Terms:
    """The terms as scalars, under names with this `ending`. A loss may compare terms sample by sample."""
    return {f"{name}{ending}": term.detach().mean() for name, term in terms.items()}


class Part(NamedTuple):
    """Some images of a batch. `parts`: how many parts of this size make the batch; losses are divided by it."""

    batch: Any
    parts: float


def split(batch: Any, parts: int) -> list[Part]:
    """The batch in `parts` parts that differ by at most one image, or in one part per image where it has fewer images.

    `batch` may hold tensors inside tuples and dicts. Raises ValueError where their first dimensions differ.
    """
    sizes: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        sizes.add(tensor.shape[0] if tensor.dim() else 0)
        return tensor

    mapped(batch, note)
    if parts == 1 or not sizes:
        return [Part(batch, 1)]
    if len(sizes) > 1 or 0 in sizes:
        found = ", ".join(map(str, sorted(sizes)))
        raise ValueError(
            f"a batch has tensors of {found} images; accumulate={parts} needs tensors with the same number of images, "
            "at least one, along the first dimension"
        )
    (images,) = sizes
    cuts = torch.arange(images).tensor_split(min(parts, images))

    def part(rows: Tensor) -> Part:
        first, last = int(rows[0]), int(rows[-1]) + 1
        return Part(mapped(batch, lambda tensor: tensor[first:last]), images / len(rows))

    return [part(rows) for rows in cuts]


@contextmanager
def _statistics_kept(network: nn.Module, keep: bool) -> Iterator[None]:
    """Within it, if `keep`, batch norms keep their running statistics, and spectral norms their vectors.

    The same images pass a second time.
    """
    if not keep:
        yield
        return
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    counted = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [count.clone() for count in counted]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with computed_as_in_evaluation(network):
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in zip(counted, counts, strict=True):
            count.copy_(before)


@contextmanager
def _buffers_kept(network: nn.Module | None) -> Iterator[None]:
    """Buffers that `network` changes within it (running statistics, vectors of spectral norms) are put back."""
    buffers = None if network is None else Buffers(network)
    try:
        yield
    finally:
        if buffers is not None:
            buffers.put_back()


@contextmanager
def _judging_once(discriminator: nn.Module, devices: list[torch.device]) -> Iterator[None]:
    """Within it, the discriminator computes the output of each input once. This saves about a fifth of a step.

    Equations 7 and 8 use the same fakes, and both generators' terms use the same real images. An earlier output is
    returned again only if the arguments are the same objects, neither they nor the output were changed in place, and
    the call drew no random numbers.
    """
    forward = discriminator.forward
    judged: list[tuple[list[Any], pytree.TreeSpec, list[tuple[Tensor, int]], Any]] = []

    def once(*inputs: Any, **named: Any) -> Any:
        given, structure = pytree.tree_flatten((inputs, named))
        for seen, like, versions, output in judged:
            same = like == structure and all(one is other for one, other in zip(seen, given, strict=True))
            if same and all(version_of(one) == version for one, version in versions):
                return output
        before = states(devices)
        output = forward(*inputs, **named)
        if all(torch.equal(state, before[device]) for device, state in states(devices).items()):
            used = [one for one in (*given, *pytree.tree_leaves(output)) if isinstance(one, Tensor)]
            judged.append((given, structure, [(one, version_of(one)) for one in used], output))
        return output

    discriminator.forward = once
    try:
        yield
    finally:
        del discriminator.forward
