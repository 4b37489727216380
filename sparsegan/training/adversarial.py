"""One step of ordinary adversarial training: the discriminator first, then the generator, on one batch of fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..gans.objective import ImagePool, Objective, detached
from ..modes import held, train_as_set, trainable
from ..placement import device_of
from .figures import Figures
from .loop import run_loop


def decayed(step: int, steps: int) -> float:
    """The fraction of a learning rate at `step` of `steps`: 1, then falling linearly to 0 over the second half."""
    return min(1.0, 2 * (1 - step / steps))


def set_rates(optimizer: Optimizer | None, fraction: float) -> None:
    """Set each learning rate of `optimizer` to a fraction of its first value."""
    for group in optimizer.param_groups if optimizer is not None else ():
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = fraction * group["initial_lr"]


class AdversarialTask:
    """Train `generator` and `discriminator` by their own losses, as the GAN's author would.

    Every step: fakes from one draw of noise; the discriminator steps on the detached fakes, or on what its pool of past
    ones gives for them (`objective.pool`); then the generator steps on the same fakes, judged by the updated
    discriminator.

    What is frozen stays frozen, and modules that are in evaluation stay there; see `sparsegan.modes`.

    `generator_optimizer`: None leaves the generator as it is, in evaluation mode, and trains the discriminator alone.
    `generator_every`: discriminator steps per generator step, n_critic. `decay`: the run's steps, over whose second
    half both rates fall linearly to 0; None for constant rates.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        generator_optimizer: Optimizer | None,
        discriminator_optimizer: Optimizer,
        generator_every: int = 1,
        decay: int | None = None,
    ) -> None:
        if generator_every < 1:
            raise ValueError(f"generator_every is {generator_every}; it must be at least 1")
        self.generator = generator.eval() if generator_optimizer is None else train_as_set(generator)
        self.discriminator = train_as_set(discriminator)
        self.judging = trainable(discriminator, "discriminator")
        self.objective = objective
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.generator_every = generator_every
        self.decay = decay
        self.pool = ImagePool(objective.pool)
        #: Called before a step waits for its figures.
        self.meanwhile: Callable[[], None] | None = None

    @property
    def device(self) -> torch.device:
        """Where both networks are."""
        return device_of(generator=self.generator, discriminator=self.discriminator)

    def step(self, step: int, batch: Any) -> dict[str, float]:
        """One update of the discriminator and, every `generator_every` steps, of the generator; every term's value."""
        if self.decay is not None:
            for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
                set_rates(optimizer, decayed(step, self.decay))
        generator_steps = self.generator_optimizer is not None and step % self.generator_every == 0
        with nullcontext() if generator_steps else torch.no_grad():
            fake = self.objective.generate(self.generator, batch)

        past = self.pool(detached(fake))
        terms = self.objective.discriminator_terms(self.generator, self.discriminator, past, batch)
        self.discriminator_optimizer.zero_grad()
        self.objective.total(terms).backward()
        self.discriminator_optimizer.step()
        judged, made = Figures(), Figures()
        judged.add(terms)
        if not generator_steps:
            return judged.read(self.meanwhile)

        assert self.generator_optimizer is not None
        with held(self.judging):
            terms = self.objective.generator_terms(self.generator, self.discriminator, fake, batch)
            self.generator_optimizer.zero_grad()
            self.objective.total(terms).backward()
        self.generator_optimizer.step()
        made.add(terms)
        return judged.read(self.meanwhile) | made.read()

    def state_dict(self) -> dict[str, Any]:
        """Both networks (buffers too), both optimizers and the pool."""
        optimizer = self.generator_optimizer
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": optimizer.state_dict() if optimizer is not None else {},
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "pool": self.pool.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.generator_optimizer is not None:
            self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.pool.load_state_dict(state.get("pool", {}))


def teach(
    discriminator: nn.Module,
    generator: nn.Module,
    objective: Objective,
    loader: Iterable[Any],
    steps: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.5, 0.999),
    **loop: Any,
) -> None:
    """Train `discriminator` alone, by its own loss on what `generator` makes. `loop`: more arguments of `run_loop`."""
    optimizer = torch.optim.Adam(trainable(discriminator, "discriminator"), lr, betas)
    run_loop(AdversarialTask(generator, discriminator, objective, None, optimizer), loader, steps, **loop)
