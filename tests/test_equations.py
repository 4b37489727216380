"""Equations 7-9 under their switches: the original's mode, matching by sample and place, floors, the training of D."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sparsegan.compress import (
    RECIPES,
    CompressionConfig,
    Compressor,
    DistillationLoss,
    GeneratorLoss,
    RunConfig,
    SelfSupervisedLoss,
)
from sparsegan.compress.losses import Scores
from sparsegan.gans import GANS, Objective, dcgan, store
from sparsegan.gans.objective import drawing, reducing
from sparsegan.nn.replace import sparse_layers
from sparsegan.outermost import mapped
from sparsegan.pruning.schedule import GradualPruning, OneShot, Schedule

QUIET = RunConfig(quiet=True)
Gan = tuple[nn.Module, nn.Module, Objective, Any]

SIZES: dict[str, dict[str, Any]] = {
    "dcgan": {"nz": 8, "width": 2, "channels": 1},
    "pix2pix": {"width": 2, "downs": 6, "discriminator_layers": 1},
    "cyclegan": {"width": 2, "blocks": 1, "discriminator_layers": 1},
    "stargan": {"width": 2, "domains": 3, "blocks": 1, "image_size": 16, "discriminator_layers": 3},
    "srgan": {"width": 2, "blocks": 1, "scale": 2},
    "esrgan": {"width": 2, "blocks": 1, "scale": 2},
    "stylegan2": {"image_size": 16, "width": 2, "most": 4, "style_dim": 4, "mapping": 1},
    "hifigan": {
        "width": 4,
        "bands": 6,
        "rates": "4-2",
        "kernels": "8-4",
        "n_fft": 64,
        "window": 64,
        "discriminator_width": 4,
    },
}


class Foreign(nn.Module):
    """Noise [N, 8] -> images [N, 1, 16, 16], with batch norm, instance norm, dropout and two spectral norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.spectral_norm(nn.Linear(8, 6 * 16))
        self.body = nn.Sequential(
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.utils.spectral_norm(nn.ConvTranspose2d(6, 6, 4, 2, 1)),
            nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.ConvTranspose2d(6, 1, 4, 2, 1),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.body(self.first(noise).view(-1, 6, 4, 4))


def foreign() -> Gan:
    judge = nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(1, 4, 4, 2, 1)),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.3),
        nn.utils.spectral_norm(nn.Conv2d(4, 1, 8)),
        nn.Flatten(0),
        nn.Sigmoid(),
    )
    objective = Objective(
        dcgan.generator_terms, dcgan.discriminator_terms, lambda net, real: net(torch.randn(len(real), 8).to(real))
    )
    return Foreign(), judge, objective, torch.rand(4, 1, 16, 16) * 2 - 1


def gan(name: str) -> Gan:
    """An untrained GAN in float64, with parameters and running statistics away from their first values, and a batch."""
    torch.manual_seed(0)
    if name == "foreign":
        generator, judge, objective, batch = foreign()
    else:
        reference = GANS[name]
        generator, judge = reference.build(**SIZES[name])
        objective = reference.objective(SIZES[name])
        side = {"dcgan": 64, "srgan": 32, "esrgan": 32, "pix2pix": 64}.get(name, 16)
        channels = SIZES[name].get("channels", 3)
        one, other = (torch.rand(3, channels, side, side) * 2 - 1 for _ in range(2))
        batch = {
            "dcgan": one,
            "stylegan2": one,
            "hifigan": one.flatten(1).unsqueeze(1),
            "stargan": (one, torch.tensor([0, 2, 1])),
            **dict.fromkeys(("srgan", "esrgan"), (one[:, :, ::2, ::2].contiguous(), one)),
        }.get(name, (one, other))
    for network in (generator, judge):
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.data += 0.05 * torch.rand_like(tensor)
        network.double()
    doubled = mapped(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    return generator, judge, objective, doubled


def compressor_of(made: Gan, loss: GeneratorLoss, schedule: Schedule, **settings: Any) -> Compressor:
    """A compressor whose layers run dense, so that equal weights give equal bits."""
    config = CompressionConfig(loss, **{"generator_lr": 1e-3, "discriminator_lr": 1e-3, **settings})
    compressor = Compressor(*made[:3], schedule, config, run=QUIET)
    for _, layer in sparse_layers(compressor.task.student):
        layer.backend = "dense"
    return compressor


# Both generators in one mode


LOSSES: dict[str, Callable[[], GeneratorLoss]] = {
    "equations": SelfSupervisedLoss,
    "patches": lambda: SelfSupervisedLoss(match="patch", relative_floor=0.1),
    "features": lambda: SelfSupervisedLoss(terms=0.5, features=1.0),
    "distillation": lambda: DistillationLoss(intermediate=1.0),
}


@pytest.mark.filterwarnings("ignore:computed parameters are plain")
@pytest.mark.parametrize("settings", [{}, {"stored_statistics": True}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("name", [*SIZES, "foreign"])
def test_dense_weights_have_no_loss_and_no_gradient_against_themselves(name: str, settings: dict[str, Any]) -> None:
    for kind, loss in LOSSES.items():
        made = gan(name)
        compressor = compressor_of(made, loss(), OneShot(1, 0.0), **settings)
        task = compressor.task
        before = copy.deepcopy(task.original.state_dict())
        figures = task.step(0, made[3])
        assert figures["loss"] == 0, kind
        for key, parameter in task.student.named_parameters():
            assert parameter.grad is None or not parameter.grad.any(), (kind, key)
        assert any(parameter.grad is not None for parameter in task.student.parameters()), kind
        for key, tensor in task.original.state_dict().items():
            assert torch.equal(tensor, before[key]), (kind, key)


@pytest.mark.parametrize("name", SIZES)
def test_gans_in_channels_last_as_they_are_loaded_differ_from_themselves_by_rounding_alone(name: str) -> None:
    """A dropout draws in the order of memory, and pix2pix has one behind a layer that is sparse in one generator."""
    made = gan(name)
    networks = tuple(map(store.channels_last, made[:2]))
    for loss in (SelfSupervisedLoss(match="patch"), DistillationLoss()):
        config = CompressionConfig(loss)
        task = Compressor(*networks, made[2], OneShot(1, 0.0), config, run=QUIET).task
        assert task.step(0, made[3])["loss"] < 1e-9


@pytest.mark.filterwarnings("ignore:computed parameters are plain")
def test_an_original_in_evaluation_mode_differs_from_its_own_weights() -> None:
    for name in ("dcgan", "pix2pix", "srgan", "foreign"):
        made = gan(name)
        for loss in (SelfSupervisedLoss(), DistillationLoss()):
            task = compressor_of(made, loss, OneShot(1, 0.0), original_mode="evaluation").task
            assert not any(module.training for module in task.original.modules())
            assert task.step(0, made[3])["loss"] > 0.01, name


# Matching by sample and place


def terms_of(made: Gan, fake: Any, batch: Any, match: str, share: Tensor) -> dict[str, Tensor]:
    """The terms of both kinds, with the same coefficients of a gradient penalty at each call."""
    functions = {"generator_terms", "discriminator_terms"}
    objective = reducing(drawing(made[2], lambda name, draw: share), match, functions)
    arguments = made[0], made[1], fake, batch
    return objective.generator_terms(*arguments) | objective.discriminator_terms(*arguments)


@pytest.mark.parametrize("name", SIZES)
def test_a_terms_samples_are_the_terms_of_single_samples_and_their_mean_is_the_term(name: str) -> None:
    made = gan(name)
    generator, judge, objective, batch = made
    generator.eval(), judge.eval()
    torch.manual_seed(1)
    fake, share = objective.generate(generator, batch), torch.rand(3, 1, 1, 1, dtype=torch.float64)
    means, samples, places = (terms_of(made, fake, batch, match, share) for match in ("batch", "sample", "patch"))
    assert means.keys() == samples.keys() == places.keys() != set()
    for key, value in means.items():
        assert value.dim() == 0, key
        assert samples[key].shape == (3,), key
        assert len(places[key]) == 3, key
        for unreduced in (samples[key], places[key]):
            torch.testing.assert_close(unreduced.mean(), value, rtol=1e-9, atol=1e-12)
        assert samples[key].std() > 0, key
    if name == "stylegan2":
        return  # its discriminator compares the images of a batch, so that a single image has other terms
    for index in range(3):
        rows = slice(index, index + 1)
        one_fake, one_batch = (mapped(value, lambda tensor, rows=rows: tensor[rows]) for value in (fake, batch))
        for key, value in terms_of(made, one_fake, one_batch, "batch", share[rows]).items():
            torch.testing.assert_close(samples[key][index], value, rtol=1e-9, atol=1e-12)
    by_place = {key for key, value in places.items() if value.numel() > 3}
    assert (
        by_place
        == {
            "dcgan": set(),
            "pix2pix": {"gen", "l1", "dis"},
            "cyclegan": {"gen", "cycle", "idt", "dis"},
            "stargan": {"gen", "rec", "dis"},
            "srgan": {"content"},
            "esrgan": {"content", "gen", "dis"},
            "stylegan2": set(),
            "hifigan": {"gen", "features", "mel", "dis"},
        }[name]
    )


def test_matching_by_sample_sees_what_the_mean_of_a_batch_hides() -> None:
    """The compressed generator's images are the original's in another order."""
    objective = Objective(*[lambda *_: {}] * 3, {"gen": 2.0})
    theirs = torch.tensor([1.0, -2.0, 6.0], dtype=torch.float64)
    ours = theirs.flip(0).requires_grad_()
    loss = SelfSupervisedLoss(lam=0)
    assert loss(objective, Scores({"gen": ours.mean()}), Scores({"gen": theirs.mean()})).item() == 0
    value = loss(objective, Scores({"gen": ours}), Scores({"gen": theirs}))
    assert value.item() == pytest.approx(2.0 * (10 / 3) / (9 / 3))
    (slope,) = torch.autograd.grad(value, ours)
    assert slope.tolist() == pytest.approx([2 / 9, 0, -2 / 9])
    one_sided = SelfSupervisedLoss(lam=0, one_sided=True)(objective, Scores({"gen": ours}), Scores({"gen": theirs}))
    (slope,) = torch.autograd.grad(one_sided, ours)
    assert slope.tolist() == pytest.approx([2 / 9, 0, 0])  # lower is better: the last sample may stay


def test_a_users_objective_is_matched_by_sample_through_its_argument_reduce() -> None:
    def terms(g: nn.Module, d: nn.Module, fake: Tensor, real: Tensor, reduce: Any) -> dict[str, Tensor]:
        return {"gen": reduce(-d(fake).log())}

    made = gan("dcgan")
    objective = Objective(terms, lambda g, d, fake, real: {"dis": d(fake).mean()}, dcgan.generate)
    with pytest.raises(ValueError, match="match is 'sample' and the objective's discriminator_terms has no argument"):
        compressor_of((*made[:2], objective, made[3]), SelfSupervisedLoss(match="sample"), OneShot(1))
    figures = {}
    for match in ("batch", "sample"):
        task = compressor_of((*made[:2], objective, made[3]), SelfSupervisedLoss(lam=0, match=match), OneShot(1)).task
        torch.manual_seed(2)
        figures[match] = task.step(0, made[3])
    assert figures["sample"]["gen"] == pytest.approx(figures["batch"]["gen"])
    assert figures["sample"]["loss"] > figures["batch"]["loss"]
    scalar = replace(objective, generator_terms=lambda g, d, fake, real, reduce: {"gen": reduce(d(fake).mean())})
    task = compressor_of((*made[:2], scalar, made[3]), SelfSupervisedLoss(lam=0, match="sample"), OneShot(1)).task
    with pytest.raises(ValueError, match="reduce got a scalar; it must get the values of a term"):
        task.step(0, made[3])


# The floor


def test_a_relative_floor_is_a_fraction_of_the_largest_size_of_the_term() -> None:
    objective = Objective(*[lambda *_: {}] * 3)

    def value_of(loss: SelfSupervisedLoss, size: float) -> float:
        theirs = torch.tensor(size, dtype=torch.float64)
        return loss(objective, Scores({"content": theirs + 0.004}), Scores({"content": theirs})).item()

    loss = SelfSupervisedLoss(lam=0, relative_floor=0.25)
    # Of size 0, `floor` counts; then the sizes 0.008 and 0.016 themselves; then a quarter of the largest, 0.016.
    for size, denominator in ((0.0, 0.05), (0.008, 0.008), (-0.016, 0.016), (0.001, 0.004), (0.008, 0.008)):
        assert value_of(loss, size) == pytest.approx(0.004 / denominator), size
    assert value_of(SelfSupervisedLoss(lam=0), 0.008) == pytest.approx(0.004 / 0.05)
    resumed = SelfSupervisedLoss(lam=0, relative_floor=0.25, denominator="running")
    resumed.load_state_dict(loss.state_dict() | {"generator.content": 0.002})
    assert value_of(resumed, 0.002) == pytest.approx(0.004 / 0.004)


# The training of D


def test_a_discriminator_waits_for_the_target_and_the_generator_does_not() -> None:
    """With generator_every 2, the generator is updated at every step of the ramp and at every other step after it."""
    made = gan("foreign")
    schedule = GradualPruning(12, 0.6, initial=0.1, every=1)
    compressor = compressor_of(made, SelfSupervisedLoss(), schedule, discriminator_from="target", generator_every=2)
    task = compressor.task
    judged: list[bool] = []
    task.discriminator[2].register_forward_hook(lambda module, *_: judged.append(module.training))
    for step in range(schedule.steps):
        before = copy.deepcopy(task.discriminator.state_dict())
        weights = [parameter.clone() for parameter in task.student.parameters()]
        judged.clear()
        figures = task.step(step, made[3])
        trained = schedule.sparsity(step) == 0.6
        assert trained == (step >= 6)
        assert ("dis" in figures) == trained
        assert ("gen" in figures) == (not trained or step % 2 == 0)
        moved = zip(weights, task.student.parameters(), strict=True)
        assert any(one.shape != new.shape or not torch.equal(one, new) for one, new in moved) == ("gen" in figures)
        after = task.discriminator.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()) == (not trained)
        assert set(judged) == {trained}
        assert all(module.training for module in task.discriminator.modules())


@pytest.mark.parametrize("images", ["unused", "real", "fake"])
def test_the_discriminator_learns_from_the_originals_images_as_it_is_told(images: str) -> None:
    """Its update is that of its loss on the compressed fakes, alone, plus Gen of the original's, or halved with Dis."""
    made = gan("pix2pix")
    task = compressor_of(made, SelfSupervisedLoss(), OneShot(1, 0.5), original_images=images).task
    judge, networks = copy.deepcopy(task.discriminator), (copy.deepcopy(task.student), copy.deepcopy(task.original))
    fakes = []
    for network in networks:
        torch.manual_seed(3)
        fakes.append(network(made[3][0]).detach())
    judge_terms = [made[2].discriminator_terms(networks[0], judge, fake, made[3])["dis"] for fake in fakes]
    wanted = {
        "unused": lambda: judge_terms[0],
        "real": lambda: judge_terms[0] + made[2].total(made[2].generator_terms(None, judge, fakes[1], made[3])),
        "fake": lambda: (judge_terms[0] + judge_terms[1]) / 2,
    }[images]()
    wanted.backward()
    task.discriminator_optimizer = torch.optim.SGD(task.discriminator.parameters(), lr=0.5)
    before = copy.deepcopy(task.discriminator.state_dict())
    torch.manual_seed(3)
    task.step(0, made[3])
    for name, parameter in task.discriminator.named_parameters():
        slope = dict(judge.named_parameters())[name].grad
        torch.testing.assert_close(before[name] - parameter, 0.5 * slope, rtol=1e-7, atol=1e-12)


def test_a_recipe_without_an_updated_discriminator_has_a_generator_step_at_every_step() -> None:
    for name, recipe in RECIPES.items():
        every = recipe.generator_every(5)
        assert every == (5 if recipe.discriminator_mode == "updated" else 1), name
        recipe.config(generator_every=every)
