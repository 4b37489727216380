"""Self-supervised compression: the equations, the loop on compressed weights, and the errors of wrong settings."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import masked
import pytest
import torch
from torch import Tensor, nn

from sparsegan.compress import (
    RECIPES,
    ROWS,
    CompressionConfig,
    Compressor,
    DistillationLoss,
    GeneratorLoss,
    PlainLoss,
    RunConfig,
    SelfSupervisedLoss,
    baseline,
    gap,
    match_contrast,
    of_size,
    recalibrate_batch_norm,
)
from sparsegan.compress.baselines import kept_parameters
from sparsegan.compress.losses import Scores
from sparsegan.compress.step import CompressionTask, split
from sparsegan.data import Batches
from sparsegan.gans import Objective, dcgan
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning.allocation import Targets, allocate, sensitivity
from sparsegan.pruning.schedule import GradualPruning, OneShot, Rounds, prunings
from sparsegan.pruning.surgery import sparsify
from sparsegan.training import Diverged

SMALL: dict[str, Any] = {"generator_lr": 1e-3, "discriminator_lr": 1e-3}
QUIET = RunConfig(quiet=True)


def small_gan(dtype: torch.dtype = torch.float32, width: int = 3) -> tuple[dcgan.Generator, dcgan.Discriminator]:
    torch.manual_seed(0)
    return dcgan.Generator(8, width, 1).to(dtype), dcgan.Discriminator(1, 2).to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(12, 1, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype) * 2 - 1


# The schedule


def test_gradual_pruning_is_zhu_and_guptas_cubic_reaching_the_target_at_half_the_run() -> None:
    schedule = GradualPruning(steps=200, target=0.9, initial=0.05, every=1)
    for step in (0, 1, 37, 99):
        assert schedule.sparsity(step) == pytest.approx(0.9 + (0.05 - 0.9) * (1 - step / 100) ** 3, abs=1e-12)
    assert schedule.sparsity(0) == pytest.approx(0.05)
    assert schedule.sparsity(100) == schedule.sparsity(10_000) == 0.9
    coarse = GradualPruning(steps=200, every=7)
    values = [coarse.sparsity(step) for step in range(200)]
    assert values == sorted(values)
    assert {i for i in range(1, 100) if values[i] != values[i - 1]} == set(range(7, 100, 7))
    for steps, ramp in ((1, 0.5), (2, 0.7), (7, 0.9), (25, 1.0)):  # no run ends below its target
        assert GradualPruning(steps, ramp=ramp).sparsity(steps - 1) == 0.9
    for bad, why in (
        ({"target": 1.0}, "target is 1.0"),
        ({"initial": 0.95}, "at most target"),
        ({"ramp": 0}, "ramp is 0"),
    ):
        with pytest.raises(ValueError, match=why):
            GradualPruning(**{"steps": 10, **bad})


# Equations 7-9


def terms(gen: float, rec: float, dis: float, gp: float) -> tuple[Scores, list[Tensor]]:
    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (gen, rec, dis, gp)]
    return Scores({"gen": leaves[0], "rec": leaves[1]}, {"dis": leaves[2], "gp": leaves[3]}), leaves


def weighted() -> Objective:
    return Objective(dcgan.generator_terms, dcgan.discriminator_terms, dcgan.generate, {"rec": 10.0, "gp": 5.0})


def test_the_loss_and_its_gradient_are_the_written_equations() -> None:
    compressed, leaves = terms(2.0, 0.5, -3.0, 0.001)
    original, _ = terms(1.0, 0.8, -2.0, 0.004)
    loss = SelfSupervisedLoss(lam=0.5, floor=0.01)(weighted(), compressed, original)
    matched = 1 / 1 + 10 * 0.3 / 0.8 + 0.5 * (1 / 2 + 5 * 0.003 / 0.01)  # the denominator of gp is the floor
    assert loss.item() == pytest.approx(matched)
    loss.backward()
    # sign(l_C - l_O) w / |l_O|: the sign is negative where the compressed generator scores lower.
    assert [leaf.grad.item() for leaf in leaves] == pytest.approx([1.0, -10 / 0.8, -0.5 / 2, -0.5 * 5 / 0.01])


def test_distances_count_beside_features_when_terms_are_off() -> None:
    objective = replace(weighted(), distances=("rec",))
    compressed, leaves = terms(2.0, 0.5, -3.0, 0.001)
    original, _ = terms(1.0, 0.8, -2.0, 0.004)
    compressed.features, original.features = [torch.tensor([3.0])], [torch.tensor([2.0])]
    loss = SelfSupervisedLoss(terms=0, features=2)(objective, compressed, original)
    assert loss.item() == pytest.approx(2 * 0.5 + 10 * 0.3 / 0.8)
    loss.backward()
    assert [leaf.grad is not None for leaf in leaves] == [False, True, False, False]


def test_one_sided_gives_no_gradient_where_the_compressed_generator_is_better() -> None:
    compressed, leaves = terms(2.0, 0.5, 3.0, 0.1)  # gen worse, rec better, dis higher (better), gp lower (worse)
    original, _ = terms(1.0, 0.8, 2.0, 0.4)
    SelfSupervisedLoss(one_sided=True)(weighted(), compressed, original).backward()
    assert [leaf.grad.item() for leaf in leaves] == pytest.approx([1.0, 0.0, 0.0, -0.5 * 5 / 0.4])


def test_a_running_denominator_averages_over_steps_and_is_part_of_the_state() -> None:
    loss = SelfSupervisedLoss(lam=0, denominator="running", momentum=0.5, floor=0.01)
    for expected, value in ((4.0, 4.0), (3.0, 2.0)):
        original, _ = terms(value, value, 1, 1)
        compressed, leaves = terms(value + 1, value, 1, 1)
        loss(weighted(), compressed, original).backward()
        assert leaves[0].grad.item() == pytest.approx(1 / expected)
    again = SelfSupervisedLoss(lam=0, denominator="running", momentum=0.5, floor=0.01)
    again.load_state_dict(loss.state_dict())
    assert again(weighted(), compressed, original).item() == loss(weighted(), compressed, original).item()


def test_stop_gradient_changes_the_discriminators_gradient_and_never_the_compressed_generators() -> None:
    (generator, judge), real = small_gan(torch.float64), images(torch.float64)[:4]
    student = sparsify(copy.deepcopy(generator), 0.5)
    noise = torch.randn(4, 8, 1, 1, dtype=torch.float64)
    found = []
    for stop in (True, False):
        ours, theirs = student(noise), generator(noise)
        both = [
            Scores(
                dcgan.generator_terms(net, judge, fake, real),
                dcgan.discriminator_terms(net, judge, fake, real),
            )
            for net, fake in ((student, ours), (generator, theirs))
        ]
        loss = SelfSupervisedLoss(stop_gradient=stop)(dcgan.objective, *both)
        networks = (student, judge)
        grads = [torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for net in networks]
        found.append([torch.cat([g.flatten() for g in part]) for part in grads])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0)
    assert found[0][0].abs().max() > 0
    assert (found[0][1] - found[1][1]).abs().max() > 1e-6


def test_features_are_matched_image_by_image_and_layer_by_layer() -> None:
    ours = [torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True), torch.tensor([5.0, 5.0], requires_grad=True)]
    theirs = [torch.tensor([[2.0, 1.0], [4.0, 3.0]]), torch.tensor([5.0, 10.0])]
    loss = SelfSupervisedLoss(terms=0, features=3.0)
    assert not loss.matches_discriminator_terms
    value = loss(weighted(), Scores({}, {}, ours), Scores({}, {}, theirs))
    # The means of the first layer agree (2.5 and 2.5), so a loss of means would be 0 there.
    assert value.item() == pytest.approx(3.0 / 2 * (1.0 / 2.5 + 2.5 / 7.5))
    value.backward()
    assert ours[0].grad.flatten().tolist() == pytest.approx([-0.15, 0.15, -0.15, 0.15])
    with pytest.raises(ValueError, match="2 activations for the compressed generator and 1"):
        loss(weighted(), Scores({}, {}, ours), Scores({}, {}, theirs[:1]))


def test_matching_features_brings_the_compressed_generators_images_back_to_the_originals() -> None:
    """The discriminator is frozen and no term counts, so only the features can reduce the loss. The noise is fixed."""
    generator, judge = small_gan(width=4)
    noise = torch.randn(12, 8, 1, 1, generator=torch.Generator().manual_seed(2))
    objective = replace(dcgan.objective, generate=lambda network, batch: network(noise))
    loss = SelfSupervisedLoss(terms=0, features=1.0)
    config = CompressionConfig(loss, discriminator_mode="frozen", generator_lr=1e-2)
    compressor = Compressor(generator, judge, objective, OneShot(60, 0.5), config, run=QUIET)
    history = compressor.fit(Batches(images(), 12)).history
    first, last = (sum(row["loss"] for row in rows) / 5 for rows in (history[:5], history[-5:]))
    assert last < 0.6 * first
    assert "dis_original" not in history[0]  # terms of weight 0 are not computed
    with pytest.raises(ValueError, match=r"feature_layers has 'main\.99'"):
        Compressor(generator, judge, dcgan.objective, OneShot(1), CompressionConfig(loss, feature_layers=("main.99",)))
    plain = nn.Sequential(nn.Conv2d(1, 1, 64), nn.Flatten(0))
    with pytest.raises(ValueError, match="no activation modules to match; name its layers"):
        Compressor(generator, plain, dcgan.objective, OneShot(1), CompressionConfig(loss))


@pytest.mark.parametrize(
    "bad",
    [
        {"denominator": "none"},
        {"lam": -1},
        {"floor": 0},
        {"momentum": 1.0},
        {"features": -1},
        {"match": "image"},
        {"relative_floor": 1.5},
    ],
)
def test_loss_settings_out_of_range_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*must be"):
        SelfSupervisedLoss(**bad)


# One step


def step_parts(loss: GeneratorLoss, discriminator_lr: float | None = 1e-3) -> CompressionTask:
    generator, judge = small_gan(torch.float64)
    student = sparsify(copy.deepcopy(generator), 0.5)
    updates = None if discriminator_lr is None else torch.optim.SGD(judge.parameters(), discriminator_lr)
    optimizer = torch.optim.SGD(student.parameters(), 1.0)
    original = generator.requires_grad_(False)
    settings = OneShot(1, 0.5), CompressionConfig(loss), Targets.of(generator, 0.5)
    return CompressionTask(original, student, judge, dcgan.objective, *settings, optimizer, updates)


def test_the_discriminator_terms_add_a_gradient_for_the_generator() -> None:
    changes = []
    for lam in (0.0, 0.5):
        task = step_parts(SelfSupervisedLoss(lam=lam))
        before = [p.detach().clone() for p in task.student.parameters()]
        torch.manual_seed(3)
        task.step(0, images(torch.float64)[:4])
        changes.append(torch.cat([(p - b).flatten() for p, b in zip(task.student.parameters(), before, strict=True)]))
    assert changes[0].abs().max() > 0
    assert (changes[1] - changes[0]).abs().max() > 1e-3 * changes[0].abs().max()


def test_discriminator_terms_that_detach_the_fakes_are_an_error() -> None:
    def detaching(generator: nn.Module, judge: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        return dcgan.discriminator_terms(generator, judge, fake.detach(), real)

    objective = Objective(dcgan.generator_terms, detaching, dcgan.generate)
    compressor = Compressor(*small_gan(), objective, GradualPruning(4), CompressionConfig(**SMALL), run=QUIET)
    with pytest.raises(ValueError, match=r"'dis' give the generator no gradient.*must not detach"):
        compressor.fit(Batches(images(), 4))


def test_both_generators_see_the_same_noise_batch_and_penalty_coefficient() -> None:
    seen: list[tuple[Tensor, ...]] = []

    def generate(generator: nn.Module, real: Tensor) -> Tensor:
        noise = torch.randn(len(real), 8, 1, 1)
        seen.append((noise, real))
        return generator(noise)

    def discriminator_terms(generator: nn.Module, judge: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        mix = torch.rand(len(real), 1, 1, 1)
        if not next(judge.parameters()).requires_grad:  # the step of the generator, not of the discriminator
            seen.append((mix, real))
        judged = judge(mix * real + (1 - mix) * fake)
        return {"dis": judged.mean()}

    objective = Objective(dcgan.generator_terms, discriminator_terms, generate)
    generator, judge = small_gan()
    config = CompressionConfig(**SMALL)
    Compressor(generator, judge, objective, GradualPruning(1), config, run=QUIET).fit(Batches(images(), 4))
    student_noise, student_mix, original_noise, original_mix = seen
    for one, other in ((student_noise, original_noise), (student_mix, original_mix)):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_given_networks_and_a_frozen_discriminator_stay_unchanged() -> None:
    generator, judge = small_gan()
    kept = [copy.deepcopy(net.state_dict()) for net in (generator, judge)]
    for mode in ("updated", "frozen"):
        config = CompressionConfig(discriminator_mode=mode, **SMALL)
        compressor = Compressor(generator, judge, dcgan.objective, GradualPruning(3), config, run=QUIET)
        compressor.fit(Batches(images(), 4))
        for net, state in zip((generator, judge), kept, strict=True):
            assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
        copied = compressor.task.discriminator.state_dict()
        same = [torch.equal(tensor, kept[1][name]) for name, tensor in copied.items()]
        assert all(same) if mode == "frozen" else not any(same)


# The loop on compressed weights


@pytest.mark.parametrize(
    ("name", "granularity", "exclude"),
    [
        ("self-supervised", "element", ()),
        ("gan-loss", "element", ()),
        ("self-supervised", "vector:4", ("main.12",)),  # the last layer has one output channel
        ("self-supervised", "input:4", ()),
    ],
)
def test_fifty_steps_on_compressed_weights_follow_the_masked_dense_twin(
    name: str, granularity: str, exclude: tuple[str, ...]
) -> None:
    """With gradual pruning, the losses of every step and the final supports are the same."""
    dtype, steps = torch.float64, 50
    vector = 1 if granularity == "element" else 4
    generator, judge = small_gan(dtype, width=4)  # channels divide into whole vectors
    options = {"granularity": granularity, "exclude": exclude, "seed": 5, "run": QUIET, **SMALL}
    compressor = baseline(name, generator, judge, dcgan.objective, steps=steps, sparsity=0.9, every=3, **options)
    for _, layer in sparse_layers(compressor.task.student):
        layer.backend = "sparse"  # "auto" would run a low sparsity dense
    loader = Batches(images(dtype), 4)
    ours = compressor.fit(loader)

    schedule = GradualPruning(steps, 0.9, every=3)
    student = masked.sparsify(copy.deepcopy(generator), schedule.sparsity(0), granularity, exclude)
    twin = MaskedTask(
        copy.deepcopy(generator).requires_grad_(False) if RECIPES[name].matched else None,
        student.train(),
        copy.deepcopy(judge),
        dcgan.objective,
        schedule,
        RECIPES[name].config(),
        Targets.of(generator, 0.9, granularity, exclude),
        torch.optim.Adam(student.parameters(), 1e-3, (0.5, 0.999)),
        torch.optim.Adam((judge_copy := copy.deepcopy(judge)).parameters(), 1e-3, (0.5, 0.999)),
    )
    twin.discriminator = judge_copy
    from sparsegan.training import run_loop

    theirs = run_loop(twin, loader, steps, seed=5, quiet=True)
    for mine, other in zip(ours.history, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-6, abs=1e-9)
    layers = dict(sparse_layers(ours.generator))
    assert len(layers) == 5 - len(exclude)
    for layer_name, _, mask in masked.masks(student):
        assert torch.equal(layers[layer_name].mask(), mask.mask)
        # 90 % of the memory is saved: values, gradient and Adam's moments have nnz elements each
        values = layers[layer_name].values
        state = ours.optimizer.state[values]
        assert values.shape == values.grad.shape == state["exp_avg"].shape == state["exp_avg_sq"].shape
        assert len(values) == pytest.approx(0.1 * mask.mask.numel(), abs=vector)


class MaskedTask(CompressionTask):
    """The step of compression on dense weights times masks."""

    def step(self, step: int, batch: Tensor) -> dict[str, float]:
        wanted = self.schedule.sparsity(step)
        if wanted > self._sparsity:
            masked.shrink(self.student, wanted)
            self._sparsity = wanted
        return super().step(step, batch)


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "vector:2", "exclude": ("main.12",)},
        {"loss": SelfSupervisedLoss(denominator="running", match="sample", relative_floor=0.5)},
        {"loss": SelfSupervisedLoss(features=1.0), "discriminator_mode": "frozen"},
        {"loss": DistillationLoss(own=1, intermediate=1), "prune_discriminator": True, "original_images": "real"},
        {"original_images": "fake", "discriminator_from": "target", "generator_every": 2},
    ],
)
def test_a_resumed_compression_continues_bit_for_bit(tmp_path: Path, options: dict) -> None:
    class Stopped(Exception):
        pass

    def compressor(folder: Path, resume: bool = False, **more: Any) -> Compressor:
        config = CompressionConfig(**{"seed": 2, **SMALL, **copy.deepcopy(options), **more})
        run = RunConfig(folder, resume, checkpoint_every=4, quiet=True)
        return Compressor(*small_gan(width=4), dcgan.objective, GradualPruning(16, every=3), config, run=run)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loader = Batches(images(), 4)
        whole = compressor(tmp_path / "a").fit(loader)
        stopped = compressor(tmp_path / "b")
        inner = stopped.task.step

        def step(number: int, batch: Tensor) -> dict[str, float]:
            if number == 7:
                raise Stopped
            return inner(number, batch)

        stopped.task.step = step
        with pytest.raises(Stopped):
            stopped.fit(loader)
        resumed = compressor(tmp_path / "b", resume=True).fit(loader)
    finally:
        torch.set_num_threads(threads)
    assert resumed.history == whole.history
    for name, tensor in whole.generator.state_dict().items():
        assert torch.equal(tensor, resumed.generator.state_dict()[name]), name
    with pytest.raises(ValueError, match="cannot be resumed with other settings: generator_lr was"):
        compressor(tmp_path / "b", resume=True, generator_lr=1.0)


def test_a_granularity_that_does_not_fit_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"main\.12: granularity is 'vector:4' and the layer has 1 output channel,"):
        Compressor(
            *small_gan(width=4),
            dcgan.objective,
            OneShot(1),
            CompressionConfig(granularity="vector:4"),
            run=RunConfig(tmp_path / "a"),
        )
    assert not (tmp_path / "a").exists()


def test_each_layer_follows_the_schedule_to_its_target() -> None:
    networks = small_gan(width=4)
    granularity = {"main.0": "2:4", "main.3": "filter", "*": "element"}
    targets = allocate(networks[0], 0.6, granularity, allocation="global")
    for allocation in ("global", targets):
        compressor = Compressor(
            *networks,
            dcgan.objective,
            GradualPruning(8, 0.6, initial=0.3, every=1),
            CompressionConfig(granularity=granularity, allocation=allocation, **SMALL),
            run=QUIET,
        )
        layers = dict(sparse_layers(compressor.task.student))
        assert layers["main.0"].sparsity == 0.5  # 2:4 has no intermediate sparsity
        for name, layer in layers.items():
            assert name == "main.0" or layer.sparsity == pytest.approx(targets[name] / 2, abs=1 / 8)
        result = compressor.fit(Batches(images(), 4))
        assert [row["sparsity"] for row in result.history[-4:]] == [0.6] * 4
        for name, layer in sparse_layers(result.generator):
            assert layer.sparsity == pytest.approx(targets[name], abs=1e-12), name
    for allocation, words in (
        ("uniform", "main.0: sparsity is 0.6; with granularity '2:4' it must be 0.5"),
        ({**targets, "main.6": 0.0, "main.9": 0.0}, r"a sparsity of 0\.\d+; the target is 0.6"),
    ):
        with pytest.raises(ValueError, match=words):
            Compressor(
                *networks,
                dcgan.objective,
                OneShot(1, 0.6),
                CompressionConfig(granularity=granularity, allocation=allocation),
            )


def test_sensitivity_by_the_methods_own_loss() -> None:
    generator, judge = small_gan(torch.float64)  # its images have little contrast
    batches = list(images(torch.float64).split(6))
    measure = gap(generator.eval(), judge, dcgan.objective, batches)
    state = torch.get_rng_state()
    assert measure(generator) == 0
    halved = sparsify(copy.deepcopy(generator), 0.5)
    assert measure(halved) == measure(halved) > 0
    assert torch.equal(state, torch.get_rng_state())
    found = sensitivity(generator, measure, 0.7)
    assert len(set(found.values())) > 2
    config = CompressionConfig(allocation=found, **SMALL)
    compressor = Compressor(generator, judge, dcgan.objective, GradualPruning(4, 0.7), config, run=QUIET)
    for name, layer in sparse_layers(compressor.fit(Batches(images(torch.float64), 4)).generator):
        assert layer.sparsity == pytest.approx(found[name], abs=1e-9)
    with pytest.raises(ValueError, match="batches is empty"):
        gap(generator, judge, dcgan.objective, [])


def test_a_loss_that_is_not_a_number_stops_the_compression(tmp_path: Path) -> None:
    calls = []

    def generator_terms(generator: nn.Module, judge: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        return {"gen": judge(fake).mean() * (float("nan") if len(calls) > 10 else 1.0)}

    objective = Objective(generator_terms, dcgan.discriminator_terms, dcgan.generate)
    run = RunConfig(tmp_path, checkpoint_every=2, quiet=True)
    compressor = Compressor(*small_gan(), objective, GradualPruning(20), CompressionConfig(**SMALL), run=run)
    with pytest.raises(Diverged, match=r"gen is nan and is not finite; the last good checkpoint is .*step-0000004.pt"):
        compressor.fit(Batches(images(), 4))


#: Rows of the paper's table: start of the generator, discriminator, pruning, and the minimised losses.
TABLE = {
    "b": ("dense", "pretrained updated", "gradual", {"matched"}),
    "c": ("small", "random updated", "none", {"own"}),
    "c2": ("small", "pretrained updated", "none", {"own"}),
    "d": ("dense", "pretrained updated", "one-shot", {"own"}),
    "e": ("dense", "random updated", "gradual", {"own"}),
    "f": ("fresh", "random updated", "gradual", {"own"}),
    "g": ("dense", "none", "one-shot", {"l1"}),
    "h": ("dense", "pretrained updated", "gradual", {"own", "l1"}),
    "i": ("dense", "pretrained frozen", "one-shot", {"own", "l1"}),
    "j": ("fresh", "random updated told", "gradual", {"own", "l1"}),
    "k": ("dense", "random updated", "gradual", {"own", "mse"}),
    "l": ("dense", "pretrained frozen", "gradual", {"intermediate"}),
    "m": ("dense", "pretrained updated pruned", "rounds", {"own", "l1"}),
    "n": ("dense", "pretrained updated pruned", "gradual", {"own", "l1"}),
}


def makers() -> dict:
    return {
        "fresh": lambda: dcgan.Discriminator(1, 2),
        "fresh_generator": lambda: dcgan.Generator(8, 3, 1),
        "small": lambda parameters: of_size(lambda width: dcgan.Generator(8, width, 1), parameters, 3),
    }


@pytest.mark.parametrize("row", TABLE)
def test_a_row_is_set_up_as_the_table_says(row: str) -> None:
    start, judging, pruning, minimised = TABLE[row]
    generator, judge = small_gan()
    options = {**makers(), **SMALL, "run": QUIET}
    compressor = baseline(ROWS[row], generator, judge, dcgan.objective, steps=8, sparsity=0.8, **options)
    task = compressor.task
    student, dense = task.student.state_dict(), generator.state_dict()
    assert torch.equal(student["main.1.weight"], dense["main.1.weight"]) == (start == "dense")
    weights = sum(parameter.numel() for parameter in task.student.parameters())
    if start == "small":
        assert not list(sparse_layers(task.student))
        assert weights < 0.5 * sum(parameter.numel() for parameter in generator.parameters())
    else:
        assert len(list(sparse_layers(task.student))) == 5

    kinds = {"gradual": GradualPruning, "rounds": Rounds, "one-shot": OneShot, "none": OneShot}
    assert type(task.schedule) is kinds[pruning]
    assert task.schedule.sparsity(7) == (0 if pruning == "none" else 0.8)
    first = {"gradual": 0.05, "rounds": 0.2, "one-shot": 0.8, "none": 0.0}[pruning]
    assert task.schedule.sparsity(0) == pytest.approx(first)

    words = judging.split()
    assert (task.discriminator_optimizer is not None) == ("updated" in words)
    assert bool(list(sparse_layers(task.discriminator))) == task.config.prune_discriminator == ("pruned" in words)
    assert task.config.original_images == ("real" if "told" in words else "unused")
    if "pruned" not in words and judging != "none":
        same = torch.equal(task.discriminator.main[0].weight, judge.main[0].weight)
        assert same == ("pretrained" in words)

    loss = task.loss
    found = {"matched"} if isinstance(loss, SelfSupervisedLoss) else set()
    if isinstance(loss, PlainLoss):
        found = {"own"}
    if isinstance(loss, DistillationLoss):
        parts = {"own": loss.own, loss.distance: loss.outputs, "intermediate": loss.intermediate}
        found = {name for name, weight in parts.items() if weight > 0}
    assert found == minimised
    assert (task.original is not None) == bool(minimised - {"own"})


def test_recipes_differ_only_in_the_settings_of_their_rows() -> None:
    def differences(one: str, other: str) -> set[str]:
        a, b = (asdict(RECIPES[ROWS.get(name, name)]) for name in (one, other))
        return {key for key in a if a[key] != b[key]} - {"text", "row"}

    method = "self-supervised"
    for one, other, fields in (
        (method, f"{method}-frozen", {"discriminator_mode"}),
        (method, f"{method}-fresh", {"fresh_discriminator"}),
        (method, f"{method}-attached", {"stop_gradient"}),
        (method, f"{method}-no-discriminator-gradient", {"discriminator_gradient"}),
        (f"{method}-frozen", "feature-distillation", {"features", "settings", "ramp"}),
        (method, "gan-loss", {"matched", "own"}),
        ("c", "c2", {"fresh_discriminator"}),
        ("c", "f", {"start", "pruning"}),
        ("d", "gan-loss", {"pruning"}),
        ("d", "one-shot", {"fine_tune"}),
        ("e", "gan-loss", {"fresh_discriminator"}),
        ("e", "f", {"start"}),
        ("e", "k", {"outputs"}),
        ("g", "i", {"own", "discriminator_mode"}),
        ("h", "d", {"pruning", "outputs"}),
        ("h", "i", {"pruning", "discriminator_mode"}),
        ("h", "k", {"outputs", "fresh_discriminator"}),
        ("h", "n", {"prune_discriminator"}),
        ("j", "f", {"outputs", "original_images"}),
        ("l", f"{method}-frozen", {"matched", "intermediate"}),
        ("m", "n", {"pruning"}),
    ):
        assert differences(one, other) == fields, (one, other)
    assert all(differences(one, other) for one, other in combinations(RECIPES, 2))
    assert set(ROWS) == set(TABLE)
    for name, recipe in RECIPES.items():
        assert name == ROWS.get(recipe.row, name)
        assert recipe.text.startswith(f"{recipe.row}: " if recipe.row else recipe.text[0])


@pytest.mark.filterwarnings("ignore:no scale of the last layer")  # the generators are hardly trained
def test_every_recipe_runs_and_ends_at_its_sparsity() -> None:
    generator, judge = small_gan()
    before = copy.deepcopy([network.state_dict() for network in (generator, judge)])
    for name, recipe in RECIPES.items():
        compressor = baseline(
            name, generator, judge, dcgan.objective, steps=3, sparsity=0.8, every=1, **makers(), **SMALL, run=QUIET
        )
        result = compressor.fit(Batches(images(), 4))
        assert len(result.history) == (3 if recipe.fine_tune else 0)
        for row in result.history:
            assert math.isfinite(row["loss"])
            assert ("gen" in row) == (recipe.own or recipe.matched or recipe.features)
            assert ("dis" in row) == (recipe.discriminator_mode == "updated")
        assert len(list(sparse_layers(result.generator))) == (0 if recipe.pruning == "none" else 5)
        pruned = [layer for _, layer in sparse_layers(result.generator)]
        if pruned:
            sizes = sum(math.prod(layer.weight_shape) for layer in pruned)
            assert sum(layer.nnz for layer in pruned) / sizes == pytest.approx(0.2, abs=1 / 32)
        each = [] if compressor.config.allocation == "saliency" else pruned
        for layer in (*each, *(layer for _, layer in sparse_layers(compressor.task.discriminator))):
            assert layer.sparsity == pytest.approx(0.8, abs=1 / 32)
        if recipe.fine_tune:
            moved = dict(compressor.task.student.named_parameters())["main.1.weight"]
            assert not torch.equal(moved, generator.main[1].weight)
    for network, state in zip((generator, judge), before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match="'magic' is not known; it must be one of self-supervised"):
        baseline("magic", generator, judge, dcgan.objective, steps=1)
    for name, argument in (("gan-loss-fresh", "fresh"), ("gan-loss-scratch", "fresh_gen"), ("small-dense", "small")):
        given = {key: make for key, make in makers().items() if not key.startswith(argument)}
        with pytest.raises(ValueError, match=f"needs {argument}"):
            baseline(name, generator, judge, dcgan.objective, steps=1, **given)


def test_a_small_dense_network_has_as_many_parameters() -> None:
    generator, _ = small_gan(width=8)
    wanted = kept_parameters(generator, 0.75)
    assert wanted == sum(parameter.numel() for parameter in sparsify(copy.deepcopy(generator), 0.75).parameters())
    sizes = [sum(p.numel() for p in dcgan.Generator(8, width, 1).parameters()) for width in range(1, 9)]
    best = min(range(8), key=lambda index: abs(sizes[index] - wanted))
    found = of_size(lambda width: dcgan.Generator(8, width, 1), wanted, 8)
    assert sum(parameter.numel() for parameter in found.parameters()) == sizes[best]
    assert of_size(lambda width: dcgan.Generator(8, width, 1), 1, 8).main[9].out_channels == 1
    with pytest.raises(ValueError, match="parameters is 0 and widest is 8"):
        of_size(lambda width: nn.Conv2d(1, width, 1), 0, 8)


def test_distillation_by_hand() -> None:
    (ours, theirs), objective = torch.randn(2, 3, 1, 4, 4), Objective(*[lambda *_: {}] * 3)
    ours.requires_grad_()
    inner = [torch.randn(2, 3, 2, 2) for _ in range(4)]
    compressed = Scores({"gen": torch.tensor(2.0)}, images={"x": ours}, intermediate=inner[:2])
    original = Scores({}, images={"x": theirs}, intermediate=inner[2:])
    gap = ours - theirs
    between = sum((a - b).square().mean() for a, b in zip(inner[:2], inner[2:], strict=True)) / 2
    for loss, value in (
        (DistillationLoss(), gap.abs().mean()),
        (DistillationLoss(own=3, outputs=10, distance="mse"), 6 + 10 * gap.square().mean()),
        (DistillationLoss(outputs=0, intermediate=1), between),
    ):
        torch.testing.assert_close(loss(objective, compressed, original), value)
    (slope,) = torch.autograd.grad(DistillationLoss()(objective, compressed, original), ours)
    torch.testing.assert_close(slope, gap.sign() / gap.numel())
    with pytest.raises(
        ValueError, match=r"images of the compressed generator have shape \(3, 1, 4, 4\), of the ori.* None"
    ):
        DistillationLoss()(objective, compressed, Scores({}))
    with pytest.raises(ValueError, match="gave no activations"):
        DistillationLoss(intermediate=1)(
            objective, Scores({}, images={"x": ours}), original.__class__({}, images={"x": theirs})
        )
    for bad, why in (({"distance": "l3"}, "'l1', 'mse'"), ({"own": -1}, "own is -1"), ({"outputs": 0}, "all 0")):
        with pytest.raises(ValueError, match=why):
            DistillationLoss(**bad)


def test_without_its_gradient_l_dc_is_only_a_number() -> None:
    values = {}
    for name, loss in (
        ("both", SelfSupervisedLoss()),
        ("detached", SelfSupervisedLoss(discriminator_gradient=False)),
        ("none", SelfSupervisedLoss(lam=0)),
    ):
        (compressed, ours), (original, _) = terms(2.0, 0.5, -3.0, 0.1), terms(1.0, 0.8, -2.0, 0.4)
        value = loss(weighted(), compressed, original)
        gradients = torch.autograd.grad(value, ours, allow_unused=True)
        values[name] = (value.item(), [None if one is None else one.item() for one in gradients])
    assert values["both"][0] == values["detached"][0] > values["none"][0]
    assert values["detached"][1] == values["none"][1] != values["both"][1]


def test_the_discriminator_learns_to_tell_the_original_from_the_student() -> None:
    """The discriminator's gradient is that of Dis for the student's images plus Gen for the original's images."""
    generator, judge = small_gan(torch.float64)
    batch = images(torch.float64)[:4]
    compressor = baseline(
        "adversarial-distillation",
        generator,
        judge,
        dcgan.objective,
        steps=4,
        every=1,
        **{
            **makers(),
            "fresh": lambda: dcgan.Discriminator(1, 2).double(),
            "fresh_generator": lambda: dcgan.Generator(8, 3, 1).double(),
        },
        **SMALL,
        run=QUIET,
    )
    task = compressor.task
    copied, student = copy.deepcopy(task.discriminator), copy.deepcopy(task.student)
    torch.manual_seed(3)
    fake = dcgan.generate(student, batch).detach()
    torch.manual_seed(3)
    told = dcgan.generate(task.original, batch).detach()
    wanted = torch.optim.SGD(copied.parameters(), lr=0.1)
    terms = dcgan.discriminator_terms(student, copied, fake, batch)["dis"]
    (terms + dcgan.generator_terms(student, copied, told, batch)["gen"]).backward()
    wanted.step()
    task.discriminator_optimizer = torch.optim.SGD(task.discriminator.parameters(), lr=0.1)
    torch.manual_seed(3)
    task.step(0, batch)
    for name, parameter in task.discriminator.named_parameters():
        torch.testing.assert_close(parameter, dict(copied.named_parameters())[name], rtol=1e-9, atol=1e-12)


def test_a_discriminator_that_no_loss_needs_is_never_called() -> None:
    class Refusing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    generator, _ = small_gan()
    for row in ("g", "l"):
        compressor = baseline(ROWS[row], generator, Refusing(), dcgan.objective, steps=2, **SMALL, run=QUIET)
        compressor.fit(Batches(images(), 4))
    for options, words in (
        ({"discriminator_mode": "none"}, "SelfSupervisedLoss needs a discriminator's terms"),
        ({"discriminator_mode": "frozen", "prune_discriminator": True}, "prune_discriminator is True and"),
        ({"discriminator_mode": "frozen", "original_images": "fake"}, "original_images is 'fake' and"),
        ({"discriminator_mode": "frozen", "discriminator_from": "target"}, "discriminator_from is 'target' and"),
        ({"discriminator_mode": "frozen", "generator_every": 2}, "generator_every is 2 and .* it must be 1, because"),
        ({"discriminator_mode": "on"}, "it must be one of 'updated', 'frozen', 'none'"),
    ):
        with pytest.raises(ValueError, match=words):
            CompressionConfig(**options)


def test_rounds_prune_and_train_in_turns() -> None:
    schedule = Rounds(steps=80, target=0.8, rounds=4)
    assert [schedule.sparsity(step) for step in (0, 9, 10, 19, 20, 30, 79, 80)] == pytest.approx(
        [0.2, 0.2, 0.4, 0.4, 0.6, 0.8, 0.8, 0.8]
    )
    for bad in ({"rounds": 0}, {"target": 1.0}, {"ramp": 2}, {"steps": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
            Rounds(**{"steps": 8, **bad})


def test_rewound_learning_rates_restart_at_every_pruning() -> None:
    rates: list[float] = []
    config = CompressionConfig(decay=True, rewind=True, generator_lr=1.0)
    ours = Compressor(*small_gan(), dcgan.objective, Rounds(16, 0.8), config)
    ours.task.optimizer.register_step_pre_hook(lambda *_: rates.append(ours.task.optimizer.param_groups[0]["lr"]))
    for at in range(16):
        ours.task.step(at, torch.zeros(2, 1, 64, 64))
    assert prunings(ours.schedule) == [0, 2, 4, 6, 16]
    short = [1.0, 1.0]  # two steps between prunings are too few for a decay
    last = [1.0] * 5 + [1.0, 0.8, 0.6, 0.4, 0.2]
    assert rates == pytest.approx(3 * short + last)
    with pytest.raises(ValueError, match="rewind is set and decay is not"):
        CompressionConfig(rewind=True)


def test_recalibration_makes_running_statistics_those_of_the_pruned_network() -> None:
    generator, _ = small_gan()
    noise = torch.randn(64, 8, 1, 1)
    for _ in range(50):
        generator(noise)
    pruned = sparsify(generator, 0.8)
    with torch.no_grad():
        expected = pruned.train()(noise)
        stale = pruned.eval()(noise)
        recalibrate_batch_norm(pruned, lambda: pruned(noise), batches=3)
        torch.testing.assert_close(pruned(noise), expected, atol=2e-2, rtol=0)  # variances by n or n - 1
        assert (stale - expected).abs().max() > 0.1
    assert not pruned.training
    assert pruned.main[1].momentum == 0.1


def test_contrast_is_matched_by_scaling_the_last_layer() -> None:
    generator, _ = small_gan()
    noise = torch.randn(32, 8, 1, 1)
    original = copy.deepcopy(generator).eval()
    for sparse in (False, True):
        pale = sparsify(copy.deepcopy(original), 0.0) if sparse else copy.deepcopy(original)
        weight = pale.main[12].values if sparse else pale.main[12].weight
        weight.data *= 0.8
        assert match_contrast(pale, original, lambda net: net(noise)) == pytest.approx(1.25, rel=1e-3)
        torch.testing.assert_close(pale(noise), original(noise), rtol=2e-3, atol=1e-5)
    weight.data *= 0.1
    with pytest.warns(UserWarning, match="no scale of the last layer"):
        assert match_contrast(pale, original, lambda net: net(noise)) == 1.0


# A user's GAN


def test_a_wasserstein_gan_of_the_user_needs_two_functions() -> None:
    class MakeImage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)))
            self.head = nn.Sequential(
                nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1), nn.Tanh()
            )

        def forward(self, noise: Tensor) -> Tensor:
            return self.head(self.body(noise))

    def generate(generator: nn.Module, real: Tensor) -> Tensor:
        return generator(torch.randn(len(real), 4))

    def generator_terms(generator: nn.Module, critic: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        return {"gen": -critic(fake).mean()}

    def discriminator_terms(generator: nn.Module, critic: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        mix = torch.rand(len(real), 1, 1, 1)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return {
            "dis": critic(fake).mean() - critic(real).mean(),
            "gp": ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean(),
        }

    torch.manual_seed(0)
    generator = MakeImage()
    critic = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32, 1))
    real = torch.rand(16, 3, 4, 4) * 2 - 1
    objective = Objective(generator_terms, discriminator_terms, generate, weights={"gp": 10.0})
    schedule, config = GradualPruning(steps=30, target=0.8, every=5), CompressionConfig(generator_every=2)
    result = Compressor(generator, critic, objective, schedule, config, run=QUIET).fit(Batches(real, 8))
    assert {"dis", "gp", "gen", "gp_original", "gp_compressed"} <= result.history[0].keys()
    assert "gen" not in result.history[1]  # the critic steps twice as often
    assert [round(layer.sparsity, 2) for _, layer in sparse_layers(result.generator)] == [0.8, 0.8]
    assert result.generator(torch.randn(2, 4)).shape == (2, 3, 4, 4)


# Memory and precision


def steps_of(parts: list[Tensor], **options: Any) -> tuple[list[dict[str, float]], nn.Module]:
    generator, discriminator = small_gan(torch.float64)
    schedule = OneShot(len(parts), 0.5)
    config = CompressionConfig(**SMALL, **options)
    compressor = Compressor(generator, discriminator, dcgan.objective, schedule, config, run=QUIET)
    result = compressor.fit(parts)
    return result.history, result.generator


def test_a_batch_in_parts_has_the_mean_of_their_terms_and_the_sum_of_their_gradients() -> None:
    """The parts have equal images and noise, so batch norm finds in each part the statistics of the whole batch."""
    half = images(torch.float64)[:6]
    twice = torch.cat([half, half])
    noise = torch.linspace(-1, 1, 48).double().view(6, 8, 1, 1)
    objective = Objective(
        dcgan.generator_terms,
        dcgan.discriminator_terms,
        lambda generator, batch: generator(noise.repeat(len(batch) // 6, 1, 1, 1)),
    )
    found = []
    for accumulate in (1, 2):
        generator, discriminator = small_gan(torch.float64)
        compressor = Compressor(
            generator,
            discriminator,
            objective,
            OneShot(3, 0.5),
            CompressionConfig(accumulate=accumulate, **SMALL),
            run=QUIET,
        )
        result = compressor.fit([twice])
        found.append((result.history, list(result.generator.parameters())))
    (history, parameters), (in_parts, theirs) = found
    for one, other in zip(history, in_parts, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    for ours, other in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="accumulate is 0"):
        steps_of([twice], accumulate=0)


@pytest.mark.parametrize("accumulate", [2, 5, 7, 50])
def test_parts_of_unequal_size_count_by_their_images(accumulate: int) -> None:
    """For losses that are means over images, the parts give the gradient of the batch. The last batch is smaller."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    objective = Objective(
        lambda generator, discriminator, fake, batch: {"gen": -discriminator(fake).mean()},
        lambda generator, discriminator, fake, batch: {
            "dis": discriminator(fake).square().mean() - discriminator(batch).mean()
        },
        lambda generator, batch: generator(batch),
    )
    found = []
    for parts in (1, accumulate):
        torch.manual_seed(0)
        config = CompressionConfig(PlainLoss(), accumulate=parts, **SMALL)
        compressor = Compressor(Mean().double(), Mean().double(), objective, OneShot(4, 0.5), config, run=QUIET)
        result = compressor.fit(list(images(torch.float64).split(7)))
        found.append((result.history, [*result.generator.parameters(), *compressor.task.discriminator.parameters()]))
    (history, parameters), (in_parts, theirs) = found
    for one, other in zip(history, in_parts, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    for ours, other in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)


def test_tensors_of_different_batch_sizes_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="tensors of 3, 4 images; accumulate=2"):
        split({"a": torch.zeros(4), "b": torch.zeros(3)}, 2)
    assert [part.parts for part in split("no tensor", 3)] == [1]


def test_autocast_computes_in_bfloat16_and_keeps_float32() -> None:
    found = []
    for dtype in (None, torch.bfloat16):
        generator, discriminator = small_gan()
        compressor = Compressor(
            generator,
            discriminator,
            dcgan.objective,
            OneShot(3, 0.5),
            CompressionConfig(autocast=dtype, **SMALL),
            run=QUIET,
        )
        seen = set()
        (layer,) = [layer for name, layer in sparse_layers(compressor.task.student) if name == "main.3"]
        layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.add(output.dtype))
        result = compressor.fit([images()])
        assert seen == {dtype or torch.float32}
        assert all(p.dtype == torch.float32 for p in result.generator.parameters())
        assert result.generator(torch.randn(2, 8, 1, 1)).dtype == torch.float32  # autocast ended with `fit`
        found.append(result.history)
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=0.1, abs=0.02)
    assert found[0] != found[1]
    with pytest.raises(ValueError, match=r"autocast is torch\.float64"):
        steps_of([images()], autocast=torch.float64)


# ---- users' discriminators and objectives


class _Judge(nn.Module):
    """A discriminator that draws in its forward where `drop` is above 0. It takes images by position or by name."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 4, 3), nn.Dropout(drop)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.conv(images)).mean((1, 2, 3))


def _one_step(objective: Objective, judge: nn.Module, **options: Any) -> dict[str, float]:
    """The figures of one step of a compressed generator that equals the original."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    schedule = OneShot(steps=1, target=0.0)
    config = CompressionConfig(generator_lr=0.0, **options)
    compressor = Compressor(generator, judge, objective, schedule, config, run=QUIET)
    return compressor.fit([torch.randn(4, 1, 8, 8)]).history[0]


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_discriminator_that_draws_scores_equal_generators_alike(drop: float) -> None:
    """Both terms use the real images, so the discriminator sees these images several times."""
    objective = Objective(
        lambda g, d, fake, batch: {"gen": (d(batch).mean() - d(images=fake).mean()).square()},
        lambda g, d, fake, batch: {"dis": d(fake).mean() - d(batch).mean()},
        lambda g, batch: g(torch.randn_like(batch)),
    )
    assert _one_step(objective, _Judge(drop), discriminator_lr=0.0)["loss"] == pytest.approx(0, abs=1e-5)


def test_a_cached_score_is_used_only_for_unchanged_images() -> None:
    seen: dict[str, Tensor] = {}

    def generator_terms(g: nn.Module, d: nn.Module, fake: Tensor, batch: Tensor) -> dict[str, Tensor]:
        mine = batch.clone()
        seen["first"] = d(mine).detach()
        seen["again"] = d(mine).detach()
        mine.mul_(3)
        seen["changed input"] = d(mine).detach()
        answer = d(batch)
        seen["whole"] = answer.detach().clone()
        answer.detach().mul_(10)
        seen["changed answer"] = d(batch).detach()
        return {"gen": -d(fake).mean()}

    terms = lambda g, d, fake, batch: {"dis": d(fake).mean() - d(batch).mean()}  # noqa: E731
    _one_step(Objective(generator_terms, terms, lambda g, batch: g(batch)), _Judge(0.0))
    assert seen["first"] is not seen["changed input"]
    torch.testing.assert_close(seen["first"], seen["again"])
    assert not torch.allclose(seen["first"], seen["changed input"])
    torch.testing.assert_close(seen["whole"], seen["changed answer"])


def test_subclasses_of_objective_with_another_constructor() -> None:
    class Mine(Objective):
        def __init__(self, weight: float) -> None:
            super().__init__(self.terms, lambda g, d, fake, batch: {"dis": d(fake).mean()}, self.make)
            object.__setattr__(self, "scale", weight)

        def terms(self, g: nn.Module, d: nn.Module, fake: Tensor, batch: Tensor, *, draws: Any) -> dict[str, Tensor]:
            return {"gen": d(fake + draws("n", lambda: torch.randn_like(fake))).mean()}

        def make(self, g: nn.Module, batch: Tensor, draws: Any) -> Tensor:
            return g(draws("n", lambda: torch.randn(4, 1, 8, 8)))

    assert _one_step(Mine(2.0), _Judge(0.0), discriminator_lr=0.0)["loss"] == pytest.approx(0, abs=1e-5)


def test_batch_norm_counts_every_part_of_a_batch() -> None:
    for momentum in (0.1, None):
        found = []
        for accumulate in (1, 2):
            torch.manual_seed(0)
            generator = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=momentum), nn.Conv2d(4, 1, 1)
            )
            objective = Objective(
                lambda g, d, fake, batch: {"gen": d(fake).mean()},
                lambda g, d, fake, batch: {"dis": d(fake).mean() - d(batch).mean()},
                lambda g, batch: g(batch),
            )
            schedule, config = OneShot(3, 0.0), CompressionConfig(accumulate=accumulate, generator_lr=0.0)
            compressor = Compressor(generator, _Judge(0.0), objective, schedule, config, run=QUIET)
            result = compressor.fit([torch.randn(1, 1, 8, 8).repeat(2, 1, 1, 1)])  # both parts are equal
            found.append(result.generator[1])
        assert found[1].num_batches_tracked == 2 * found[0].num_batches_tracked
        if momentum is None:
            torch.testing.assert_close(found[0].running_var, found[1].running_var, rtol=0.1, atol=0)
