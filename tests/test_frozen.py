"""Training keeps frozen parameters unchanged, and keeps every module in the mode that the user chose."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsegan.compress import (
    CompressionConfig,
    Compressor,
    PlainLoss,
    RunConfig,
    SelfSupervisedLoss,
    match_contrast,
    recalibrate_batch_norm,
)
from sparsegan.compress.data_free import GeneratedBatches
from sparsegan.gans import Objective, dcgan
from sparsegan.pruning.schedule import GradualPruning
from sparsegan.training import run_loop
from sparsegan.training.adversarial import AdversarialTask, teach


def gan() -> tuple[nn.Module, nn.Module]:
    generator = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 4),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 6, 4, 2, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 1, 3, padding=1),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4), nn.Flatten(0), nn.Sigmoid()
    )
    return generator, discriminator


OBJECTIVE = Objective(
    dcgan.generator_terms,
    dcgan.discriminator_terms,
    lambda generator, batch: generator(torch.randn(len(batch), 4, 1, 1)),
)
BATCHES = [torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(one)) for one in range(2)]


@pytest.fixture
def frozen() -> tuple[nn.Module, nn.Module]:
    """Two networks with frozen parts: a pruned layer, a bias, a norm's scale, an excluded layer, a layer of D. A norm
    of each network and the dropout are in evaluation mode."""
    generator, discriminator = gan()
    for one in (generator[0].weight, generator[3].bias, generator[4].weight, discriminator[0].weight):
        one.requires_grad_(False)
    generator[7].requires_grad_(False)
    for module in (generator[1], generator[6], discriminator[1]):
        module.eval()
    return generator, discriminator


def compressor_of(generator: nn.Module, discriminator: nn.Module, **options: Any) -> Compressor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings: dict[str, Any] = {"exclude": ("7",), "generator_lr": 0.01, "discriminator_lr": 0.01}
        schedule, config = GradualPruning(steps=6, target=0.5, every=1), CompressionConfig(**{**settings, **options})
        return Compressor(generator, discriminator, OBJECTIVE, schedule, config, run=RunConfig(quiet=True))


def modes(network: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in network.named_modules()}


OPTIONS: dict[str, dict[str, Any]] = {
    "equations": {},
    "plain": {"loss": PlainLoss()},
    "features": {"loss": SelfSupervisedLoss(features=True), "discriminator_mode": "frozen"},
    "regrown": {"regrow": 0.3},
    "in parts": {"accumulate": 2},
    "pruned D": {"prune_discriminator": True},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_frozen_parameters_and_modes_stay(frozen: tuple[nn.Module, nn.Module], options: str) -> None:
    generator, discriminator = frozen
    compressor = compressor_of(generator, discriminator, **OPTIONS[options])
    student, judge = compressor.task.student, compressor.task.discriminator
    assert modes(student) == modes(generator)
    seen: list[dict[str, bool]] = []
    student[2].register_forward_hook(lambda *_: seen.append(modes(student)))
    before = copy.deepcopy(student)
    running = {name: one.clone() for name, one in student[1].named_buffers()}
    judged = copy.deepcopy(judge.state_dict())
    result = compressor.fit(BATCHES)
    assert all(one == modes(generator) for one in seen)
    layer = result.generator[0]
    dense = generator[0].weight.detach()
    assert layer.sparsity >= 0.5
    assert torch.equal(layer.dense_weight(), dense * layer.mask())  # only pruned
    for index, name in ((3, "bias"), (4, "weight"), (7, "weight"), (7, "bias")):
        assert torch.equal(getattr(result.generator[index], name), getattr(before[index], name)), (index, name)
    for index, name in ((0, "bias"), (1, "weight"), (4, "bias")):
        assert not torch.equal(getattr(result.generator[index], name), getattr(before[index], name)), (index, name)
    assert all(torch.equal(one, running[name]) for name, one in result.generator[1].named_buffers())
    held = {parameter for group in result.optimizer.param_groups for parameter in group["params"]}
    assert held == {one for one in result.generator.parameters() if one.requires_grad}

    trained = options != "features"
    key = "0.values" if "0.values" in judged else "0.weight"
    after = judge.state_dict()
    if key == "0.weight":
        assert torch.equal(after[key], judged[key])
    assert torch.equal(after["1.running_mean"], judged["1.running_mean"])
    assert torch.equal(after["0.bias"], judged["0.bias"]) != trained
    assert [one.requires_grad for one in discriminator.parameters()] == [False, *[True] * 5]


def test_a_generator_in_evaluation_mode_is_trained_as_a_whole() -> None:
    generator, discriminator = gan()
    compressor = compressor_of(generator.eval(), discriminator.eval())
    assert all(modes(compressor.task.student).values())
    assert all(modes(compressor.task.discriminator).values())
    frozen_judge = compressor_of(generator, discriminator.train(), discriminator_mode="frozen").task.discriminator
    assert not any(modes(frozen_judge).values())
    assert not any(modes(generator).values())


def test_one_warning_names_the_frozen_layers_that_are_pruned(frozen: tuple[nn.Module, nn.Module]) -> None:
    with pytest.warns(UserWarning, match="pruned like the others") as said:
        Compressor(*frozen, OBJECTIVE, GradualPruning(6, 0.5), CompressionConfig(exclude=("7",)))
    assert len(said) == 1
    assert "trained: 0. Name" in str(said[0].message)


def test_everything_frozen_is_an_error() -> None:
    generator, discriminator = gan()
    with pytest.raises(ValueError, match=r"generator requires a gradient.*generator\.requires_grad_\(True\)"):
        compressor_of(copy.deepcopy(generator).requires_grad_(False), discriminator)
    discriminator.requires_grad_(False)
    with pytest.raises(ValueError, match=r'discriminator requires a gradient.*mode="frozen"'):
        compressor_of(generator, discriminator)
    compressor_of(generator, discriminator, discriminator_mode="frozen")
    with pytest.raises(ValueError, match="discriminator requires a gradient"):
        teach(discriminator, generator, OBJECTIVE, BATCHES, 1, lr=0.01)


def test_ordinary_training_and_a_taught_discriminator(frozen: tuple[nn.Module, nn.Module]) -> None:
    generator, discriminator = frozen
    before = [copy.deepcopy(network.state_dict()) for network in frozen]
    was = [modes(network) for network in frozen]
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in frozen]
    run_loop(AdversarialTask(generator, discriminator, OBJECTIVE, *optimizers), BATCHES, 3, quiet=True)
    assert [modes(network) for network in frozen] == was
    for network, old, kept in zip(frozen, before, (("0.weight", "7.bias"), ("0.weight",)), strict=True):
        assert all(torch.equal(network.state_dict()[name], old[name]) for name in kept)
        assert not torch.equal(network.state_dict()["0.bias"], old["0.bias"])
    teach(discriminator, generator, OBJECTIVE, BATCHES, 2, lr=0.01, quiet=True)
    assert torch.equal(discriminator[0].weight, before[1]["0.weight"])
    assert [one.requires_grad for one in discriminator.parameters()] == [False, *[True] * 5]


def test_functions_that_run_a_generator_restore_every_mode(frozen: tuple[nn.Module, nn.Module]) -> None:
    generator, _ = frozen
    was = modes(generator)
    held, free = generator[1].running_mean.clone(), generator[4].running_mean.clone()
    recalibrate_batch_norm(generator, lambda: generator(torch.randn(4, 4, 1, 1)), 2)
    assert modes(generator) == was
    assert torch.equal(generator[1].running_mean, held)
    assert not torch.equal(generator[4].running_mean, free)
    objective = replace(OBJECTIVE, own=lambda fake, batch: fake)
    images: Iterator[Tensor] = iter(GeneratedBatches(generator, objective, BATCHES))
    next(images)
    assert modes(generator) == was
    weight = generator[7].weight.clone()
    with pytest.warns(UserWarning, match="last convolution is frozen"):
        match_contrast(generator, copy.deepcopy(generator), lambda network: network(torch.randn(4, 4, 1, 1)))
    assert torch.equal(generator[7].weight, weight)
