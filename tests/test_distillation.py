"""The distances of distillation against float64 references, and the recipe that is made of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_compress import images, small_gan
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.compress import RECIPES, RunConfig, baseline
from sparsegan.compress.baselines import DEFAULT
from sparsegan.compress.losses import relative, scales, sharpness
from sparsegan.gans import dcgan
from sparsegan.nn.replace import sparse_layers
from sparsegan.profiling.macs import count_macs


def pair(size: int = 20, channels: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(size)
    ours, theirs = torch.rand(2, 4, channels, size, size, generator=source, dtype=torch.float64) * 2 - 1
    return ours, theirs


def gradients(images: Tensor) -> Tensor:
    """Sobel gradients by differences of shifted images: [2, N, C, H, W]."""
    x = torch.cat([images[..., :1], images, images[..., -1:]], -1)
    x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
    down = (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 8
    across = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 8
    return torch.stack([down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]])


@pytest.mark.parametrize("channels", [1, 3])
def test_scales_is_four_sizes_and_the_edges(channels: int) -> None:
    ours, theirs = pair(24, channels)
    wanted = (gradients(ours) - gradients(theirs)).abs().mean() + 4 * (ours - theirs).square().mean()
    for size in (1, 2, 4, 8):
        blocks = (ours - theirs).unfold(2, size, size).unfold(3, size, size).mean((-1, -2))
        wanted = wanted + blocks.abs().mean()
    torch.testing.assert_close(scales(ours, theirs), wanted)
    torch.testing.assert_close(
        scales(ours[..., :3, :], theirs[..., :3, :]), scales(ours[..., :3, :], theirs[..., :3, :])
    )
    assert scales(ours, ours).item() == 0


def test_sharpness_compares_strengths_and_not_places() -> None:
    _, theirs = pair()
    assert sharpness(theirs, theirs).item() == 0
    assert sharpness(theirs.flip(1), theirs).item() == pytest.approx(0, abs=0.05)
    blurred, sharper = F.avg_pool2d(theirs, 3, 1, 1), theirs + (theirs - F.avg_pool2d(theirs, 3, 1, 1))
    assert sharpness(blurred, theirs) > sharpness(theirs * 0.9, theirs) > 0.01
    assert sharpness(sharper, theirs) > 0.05
    squares = torch.stack([gradients(one).square() for one in (blurred, theirs)])
    whole = squares.sum((1, 3, 4, 5))
    windows = squares.unfold(-1, 7, 4).unfold(-3, 7, 4).mean((-1, -2))
    first, second = (windows + 1e-4).sqrt()
    ratio = (whole[0] - whole[1]).abs() / (whole[0] + whole[1])
    torch.testing.assert_close(sharpness(blurred, theirs), (first - second).abs().mean() + ratio.mean() / 10)


@pytest.mark.parametrize("distance", [scales, sharpness, relative])
def test_blank_images_give_finite_numbers_and_slopes(distance: object) -> None:
    for theirs in (torch.zeros(2, 1, 6, 6), torch.cat([torch.zeros(1, 1, 6, 6), torch.rand(1, 1, 6, 6)])):
        for ours in (torch.zeros(2, 1, 6, 6), torch.rand(2, 1, 6, 6)):
            ours = ours.clone().requires_grad_()
            value = distance(ours, theirs)  # type: ignore[operator]
            (slope,) = torch.autograd.grad(value, ours)
            assert value.isfinite()
            assert slope.isfinite().all()


def test_relative_does_not_depend_on_the_scale() -> None:
    ours, theirs = pair()
    gap = ours - theirs
    wanted = gap.square().mean() / theirs.square().mean() + gap.abs().mean() / theirs.abs().mean()
    torch.testing.assert_close(relative(ours, theirs), wanted)
    torch.testing.assert_close(relative(1e3 * ours, 1e3 * theirs), wanted)


def test_the_default_recipe_needs_no_discriminator_and_meets_both_budgets(tmp_path: Path) -> None:
    generator, broken = small_gan()
    broken.forward = None  # type: ignore[assignment]  # nobody may call it
    made = baseline(
        DEFAULT, generator, broken, dcgan.objective, steps=30, sparsity=0.8, every=3, run=RunConfig(quiet=True)
    )
    noise = dcgan.noise(generator, 1)
    result = made.fit([images()]).generator
    layers = dict(sparse_layers(result))
    weights = sum(torch.Size(layer.weight_shape).numel() for layer in layers.values())
    assert sum(layer.nnz for layer in layers.values()) == pytest.approx(0.2 * weights, rel=0.02)
    uniform = sg.sparsify(copy.deepcopy(generator), 0.8)
    assert count_macs(result, noise).executed <= 1.02 * count_macs(uniform, noise).executed
    assert len({round(layer.sparsity, 3) for layer in layers.values()}) > 1


def test_a_resumed_run_of_the_default_recipe_gives_the_same_bits(tmp_path: Path) -> None:
    generator, judge = small_gan()

    def fit(folder: str, resume: bool = False, limit: float = 1e4) -> dict[str, Tensor]:
        run = RunConfig(tmp_path / folder, resume=resume, checkpoint_every=7, quiet=True, limit=limit)
        made = baseline(DEFAULT, generator, judge, dcgan.objective, steps=21, sparsity=0.8, every=3, run=run)
        return made.fit([images()]).generator.state_dict()

    whole = fit("whole")
    (
        tmp_path / "whole" / "checkpoints" / sorted(p.name for p in (tmp_path / "whole" / "checkpoints").iterdir())[-1]
    ).unlink()
    resumed = fit("whole", resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_rates_rise_and_follow_half_a_cosine() -> None:
    generator, judge = small_gan()
    made = baseline(DEFAULT, generator, judge, dcgan.objective, steps=40, sparsity=0.5, lr_warm_up=0.25)
    rates = [made.task._rate(step) for step in range(40)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert rates[20] == pytest.approx(0.5)


def test_the_former_name_of_feature_distillation_works_with_a_warning() -> None:
    generator, judge = small_gan()
    with pytest.warns(DeprecationWarning, match="'self-supervised-features' is now called 'feature-distillation'"):
        made = baseline("self-supervised-features", generator, judge, dcgan.objective, steps=20)
    assert made.config.loss == RECIPES["feature-distillation"].config().loss


class Functional(nn.Module):
    """A generator without activation modules, whose forward has dropout of its own."""

    nz = 8

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(8, 6, 8)
        self.last = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, noise: Tensor) -> Tensor:
        return torch.tanh(self.last(F.dropout(F.relu(self.first(noise)), 0.1, self.training)))


def test_a_generator_without_activation_modules_is_distilled_by_its_convolutions() -> None:
    torch.manual_seed(0)
    generator = Functional()
    made = baseline(DEFAULT, generator, nn.Linear(1, 1), dcgan.objective, steps=40, sparsity=0.5, every=4)
    result = made.fit([torch.zeros(6, 3, 8, 8)])
    assert {name for name, _ in sparse_layers(result.generator)} == {"first", "last"}
    assert result.history[-1]["loss"] < 1.5 * result.history[12]["loss"]
