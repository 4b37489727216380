"""Two generators before one discriminator: the scores that a loss compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..copying import copy_model
from ..gans.objective import Objective, drawing, images_in
from ..placement import device_of, moved
from ..randomness import Draws, devices_of, seeded
from ..training import ranks
from .losses import GeneratorLoss, Scores, SelfSupervisedLoss

#: What a generator made of a batch, and its activations on the way, where a loss matches those.
Made = tuple[Any, list[Tensor]]


class Comparison:
    """Another generator beside `original`, both before one discriminator: the scores that a loss asks for.

    `feature_layers`: names of the discriminator's modules that a loss of features looks at; by default, all its
    activations.
    """

    def __init__(
        self,
        original: nn.Module | None,
        discriminator: nn.Module,
        objective: Objective,
        loss: GeneratorLoss,
        feature_layers: Sequence[str] = (),
    ) -> None:
        self.original = original
        self.discriminator = discriminator
        self.objective = objective
        self.loss = loss
        self.feature_layers = feature_layers_of(discriminator, feature_layers) if loss.matches_features else []

    def compare(
        self, generator: nn.Module, ours: Made, theirs: Made | None, batch: Any, noise: Draws
    ) -> tuple[Scores, Scores | None]:
        """Scores of what `generator` made, `ours`, and of what the original makes of the same batch and random numbers.

        `theirs`: the latter, if it is there already. `noise`: the random numbers that `ours` was made from.
        """
        draws = Draws(noise.devices)  # a penalty's coefficient
        with draws.first():
            compressed = self._scores(generator, *ours, batch, draws)
        if self.original is None or not self.loss.matches:
            return compressed, None
        theirs = theirs or self.generate_again(self.original, batch, noise)
        with draws.again():
            return compressed, self._scores(self.original, *theirs, batch, draws)

    def generate(self, generator: nn.Module, batch: Any, noise: Draws) -> Made:
        """A fake from `noise`, drawn by it first, and the activations on its way where the loss matches those."""
        with noise.first():
            return self._made(generator, batch, noise)

    def generate_again(self, generator: nn.Module, batch: Any, noise: Draws, with_graph: bool = False) -> Made:
        """:meth:`generate` from noise that is drawn already."""
        with torch.set_grad_enabled(with_graph), noise.again():
            return self._made(generator, batch, noise)

    def _made(self, generator: nn.Module, batch: Any, noise: Draws) -> Made:
        found: list[Tensor] = []
        layers = _activations(generator, "generator") if self.loss.matches_intermediate else []
        with outputs_of(layers, found):
            return drawing(self.objective, noise).generate(generator, batch), found

    def _scores(self, generator: nn.Module, fake: Any, activations: list[Tensor], batch: Any, draws: Draws) -> Scores:
        """What the loss needs: terms of both kinds and features where it looks at them, images and activations."""
        scores, objective = Scores({}, images=images_in(fake), intermediate=activations), drawing(self.objective, draws)
        if self.loss.uses_terms:
            with outputs_of(self.feature_layers, scores.features):
                scores.generator = objective.generator_terms(generator, self.discriminator, fake, batch)
        if self.loss.matches_discriminator_terms:
            terms = objective.discriminator_terms(generator, self.discriminator, fake, batch)
            scores.discriminator = {k: term for k, term in terms.items() if k not in objective.real_terms}
        return scores


def gap(
    generator: nn.Module,
    discriminator: nn.Module,
    objective: Objective,
    batches: Sequence[Any],
    loss: GeneratorLoss | None = None,
    seed: int = 0,
) -> Callable[[nn.Module], float]:
    """A measure of how far other generators are from `generator`, for `sparsegan.pruning.allocation.sensitivity`.

    Returns a function of a generator of the same kind: the mean over `batches` of `loss` (by default equations 7-9)
    under the frozen `discriminator`, each time with the same noise. No network is trained; those handed in stay.
    Raises ValueError for no batches.
    """
    if not batches:
        raise ValueError("batches is empty; at least one is needed")
    minimised = SelfSupervisedLoss() if loss is None else loss
    judge = copy_model(discriminator).requires_grad_(False).eval()
    device = device_of(generator=generator, discriminator=discriminator)
    batches = [moved(batch, device) for batch in batches]
    both = Comparison(copy_model(generator).eval(), judge, objective, minimised)

    def measure(network: nn.Module) -> float:
        total, devices = 0.0, devices_of(network, judge)
        with seeded(seed), torch.enable_grad():  # a gradient penalty differentiates
            for batch in batches:
                noise = Draws(devices)
                scores = both.compare(network, both.generate(network, batch, noise), None, batch, noise)
                total += minimised(objective, *scores).item()
        return total / len(batches)

    return measure


_ACTIVATIONS = (nn.LeakyReLU, nn.ReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)


def _activations(network: nn.Module, role: str) -> list[nn.Module]:
    found: list[nn.Module] = [module for module in network.modules() if isinstance(module, _ACTIVATIONS)]
    if not found:
        hint = "; name its layers in feature_layers" if role == "discriminator" else ""
        raise ValueError(f"the {role} has no activation modules to match{hint}")
    return found


@contextmanager
def outputs_of(layers: Sequence[nn.Module], found: list[Tensor]) -> Iterator[None]:
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


def feature_layers_of(discriminator: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    modules = dict(discriminator.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"feature_layers has {unknown[0]!r}; the discriminator has no module of that name")
    return [modules[name] for name in names] or _activations(discriminator, "discriminator")
