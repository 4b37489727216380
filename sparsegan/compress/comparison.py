"""The scores of two generators by one discriminator, which a loss compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..copying import copy_model
from ..gans.objective import Objective, drawing, reducing
from ..modes import in_mode
from ..nn.layer import DENSE_CLASSES, SparseConv
from ..placement import device_of, moved
from ..randomness import Draws, devices_of, seeded
from ..training import ranks
from .losses import GeneratorLoss, Scores, SelfSupervisedLoss

#: The output of a generator for a batch, and its activations where the loss matches activations.
Made = tuple[Any, list[Tensor]]


class Comparison:
    """Computes the scores that `loss` needs, of any generator and of `original`, by one discriminator.

    `feature_layers`: names of the discriminator's modules whose outputs are its features. By default they are all its
    activation modules.
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
        needs = {"generator_terms": "uses_terms", "discriminator_terms": "matches_discriminator_terms"}
        asked = (name for name, needed in needs.items() if getattr(loss, needed))
        # The objective of the scores. A user's loss may lack `match`; it is then given means.
        self.scoring = reducing(objective, getattr(loss, "match", "batch"), asked)
        self.feature_layers = feature_layers_of(discriminator, feature_layers) if loss.matches_features else []

    def compare(
        self, generator: nn.Module, ours: Made, theirs: Made | None, batch: Any, noise: Draws
    ) -> tuple[Scores, Scores | None]:
        """The scores of `generator` and of the original for the same batch and random numbers.

        `ours`: what `generator` made of `batch` from `noise`. `theirs`: what the original made of them; None to have
        it made here. The original's scores are None where the loss does not need them.
        """
        draws = Draws(noise.devices)  # the coefficient of a gradient penalty: the same for both generators
        with draws.first():
            compressed = self._scores(generator, *ours, batch, draws)
        if self.original is None or not self.loss.matches:
            return compressed, None
        theirs = theirs or self.generate_again(self.original, batch, noise)
        with draws.again():
            return compressed, self._scores(self.original, *theirs, batch, draws)

    def generate(self, generator: nn.Module, batch: Any, noise: Draws) -> Made:
        """The generator's output, and its activations where the loss matches them. The first pass that uses `noise`."""
        with noise.first():
            return self._made(generator, batch, noise)

    def generate_again(self, generator: nn.Module, batch: Any, noise: Draws, with_graph: bool = False) -> Made:
        """The same as :meth:`generate`, from the numbers of `noise` that an earlier pass has drawn."""
        with torch.set_grad_enabled(with_graph), noise.again():
            return self._made(generator, batch, noise)

    def _made(self, generator: nn.Module, batch: Any, noise: Draws) -> Made:
        found: list[Tensor] = []
        layers = _inner_layers(generator) if self.loss.matches_intermediate else []
        with outputs_of(layers, found):
            return drawing(self.objective, noise).generate(generator, batch), found

    def _scores(self, generator: nn.Module, fake: Any, activations: list[Tensor], batch: Any, draws: Draws) -> Scores:
        """The images, the activations, and those of the terms and features that the loss needs."""
        images = self.objective.compared(fake)
        scores, objective = Scores({}, images=images, intermediate=activations), drawing(self.scoring, draws)
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
    """A function that measures how far another generator is from `generator`.

    The function takes a generator of the same kind. It returns the mean of `loss` (by default equations 7-9) over
    `batches`, under the frozen `discriminator` and with the same noise at each call. All networks are in evaluation
    mode during the call. No network is trained or changed.
    `sparsegan.pruning.allocation.sensitivity` takes this function. Raises ValueError where `batches` is empty.
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
        with seeded(seed), in_mode(network, False), torch.enable_grad():  # a gradient penalty needs a graph
            for batch in batches:
                noise = Draws(devices)
                scores = both.compare(network, both.generate(network, batch, noise), None, batch, noise)
                total += minimised(objective, *scores).item()
        return total / len(batches)

    return measure


_ACTIVATIONS = (nn.LeakyReLU, nn.ReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)


def _activations(discriminator: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = [module for module in discriminator.modules() if isinstance(module, _ACTIVATIONS)]
    if not found:
        raise ValueError("the discriminator has no activation modules to match; name its layers in feature_layers")
    return found


def _inner_layers(generator: nn.Module) -> list[nn.Module]:
    """The activation modules of a generator. Where it calls functions in their place, its convolutions."""
    modules = list(generator.modules())
    found: list[nn.Module] = [module for module in modules if isinstance(module, _ACTIVATIONS)]
    if not found:
        found = [one for one in modules if isinstance(one, (*DENSE_CLASSES, SparseConv))]
    if not found:
        raise ValueError(
            "the generator has no activation modules and no convolutions, so no activations can be matched"
        )
    return found


@contextmanager
def outputs_of(layers: Sequence[nn.Module], found: list[Tensor]) -> Iterator[None]:
    """Within it, each output of `layers` is appended to `found`, in the order of the calls."""
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
        raise ValueError(f"feature_layers has {unknown[0]!r}; it must be names of the discriminator's modules")
    return [modules[name] for name in names] or _activations(discriminator)
