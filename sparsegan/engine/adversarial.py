"""One step of ordinary adversarial training: the discriminator first, then the generator, on one batch of fakes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..gans.objective import Objective


class AdversarialTask:
    """Train `generator` and `discriminator` by their own losses, as the GAN's author would.

    Every step: fakes from one draw of noise; the discriminator steps on the detached fakes; then the generator steps
    on the same fakes, judged by the updated discriminator.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        generator_optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
    ) -> None:
        self.generator = generator.train()
        self.discriminator = discriminator.train()
        self.objective = objective
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer

    def step(self, step: int, batch: Any) -> dict[str, float]:
        """One update of each network; returns every term's value."""
        fake = self.objective.generate(self.generator, batch)

        self.discriminator.requires_grad_(True)
        terms = self.objective.discriminator_terms(self.generator, self.discriminator, fake.detach(), batch)
        self.discriminator_optimizer.zero_grad()
        self.objective.total(terms).backward()
        self.discriminator_optimizer.step()
        figures = {name: term.item() for name, term in terms.items()}

        self.discriminator.requires_grad_(False)  # the generator's step needs no gradient of D's weights
        terms = self.objective.generator_terms(self.generator, self.discriminator, fake, batch)
        self.generator_optimizer.zero_grad()
        self.objective.total(terms).backward()
        self.generator_optimizer.step()
        return figures | {name: term.item() for name, term in terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Both networks (buffers too) and both optimizers."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
