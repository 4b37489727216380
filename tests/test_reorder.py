"""Reordering channels for vectors: the function stays, and pruning keeps more of the weights' norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_gans
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.gans import dcgan, store
from sparsegan.nn.granularity import magnitude_mask
from sparsegan.pruning.reorder import similar_order

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"


def convolutions(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}


def norm_kept(weight: Tensor, granularity: str, sparsity: float, transposed: bool) -> float:
    mask = magnitude_mask(weight, sparsity, granularity, transposed)
    return float(weight[mask].square().sum() / weight.square().sum())


def test_a_trained_generator_keeps_more_at_the_same_sparsity() -> None:
    generator = store.load(CHECKPOINTS / "dcgan-mnist").generator
    noise = dcgan.noise(generator, 4, 0)
    granularity = {"main.12": "element", "*": "vector:16"}
    changed = sg.reorder_channels(generator, noise, granularity, 0.9)
    with torch.no_grad():
        torch.testing.assert_close(changed(noise), generator(noise), rtol=1e-4, atol=1e-4)
    ours, theirs = convolutions(changed), convolutions(generator)
    for name in ("main.0", "main.3", "main.6"):  # 64 to 256 output channels
        before, after = (norm_kept(net[name].weight.detach(), "vector:16", 0.9, True) for net in (theirs, ours))
        assert after > 1.1 * before, name
    assert sg.sparsify(changed, 0.9, granularity) is changed


@pytest.mark.parametrize("unit", ["input:2", "input:4"])
def test_the_channels_that_input_units_read_come_together(unit: str) -> None:
    """Every layer but the last orders its output by the layer that reads it; the noise keeps its order."""
    generator = store.load(CHECKPOINTS / "dcgan-mnist").generator
    noise = dcgan.noise(generator, 4, 0)
    changed = sg.reorder_channels(generator, noise, unit, 0.9)
    with torch.no_grad():
        torch.testing.assert_close(changed(noise), generator(noise), rtol=1e-4, atol=1e-4)
    ours, theirs = convolutions(changed), convolutions(generator)
    ratios = {}
    for name in theirs:
        before, after = (norm_kept(net[name].weight.detach(), unit, 0.9, True) for net in (theirs, ours))
        ratios[name] = after / before
    assert ratios.pop("main.0") == pytest.approx(1)
    assert min(ratios.values()) > 1.01


class Skips(nn.Module):
    """A concatenation, a residual sum, both kinds of norm, PReLU per channel, padding, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8))
        self.inner = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True))
        self.last_inner = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 4, 2, 1)
        self.beside = nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False)
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y + self.last_inner(torch.relu(self.inner(y)))
        return torch.tanh(self.out(torch.cat([self.beside(x), torch.relu(self.up(y))], 1)))


@given(st.integers(0, 2**20), st.sampled_from(["vector:4", {"out": "input:4", "*": "vector:2"}]))
def test_the_function_stays_and_only_free_channels_move(seed: int, granularity: str | dict[str, str]) -> None:
    torch.manual_seed(seed)
    model = Skips().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.InstanceNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    model = model.double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    changed = sg.reorder_channels(model, x, granularity, 0.7)
    with torch.no_grad():
        torch.testing.assert_close(changed(x), model(x), rtol=1e-9, atol=1e-9)
    ours, theirs = convolutions(changed), convolutions(model)
    for name in ("first.0", "last_inner"):  # their outputs are added, so their channels must match
        assert torch.equal(ours[name].bias, theirs[name].bias)
    assert torch.equal(ours["out"].bias, theirs["out"].bias)  # the output of the model
    assert torch.equal(ours["inner.1"].bias.sort().values, theirs["inner.1"].bias.sort().values)


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan", "stargan", "srgan"])
def test_reference_generators(name: str) -> None:
    torch.manual_seed(0)
    gan = store.build({"network": {"gan": name, **test_gans.TINY[name], "width": 4}})
    generator = gan.generator.double().eval()
    inputs = {
        "stargan": (torch.randn(2, 3, 16, 16).double(), torch.eye(3)[:2].double()),
        "srgan": (torch.randn(2, 3, 8, 8).double(),),
    }.get(name, (torch.randn(2, 3, 32, 32).double(),))
    if name == "cyclegan":
        generator = generator.a_to_b
    changed = sg.reorder_channels(generator, inputs, {"*": "vector:2"}, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(changed(*inputs), generator(*inputs), rtol=1e-8, atol=1e-8)
    assert any(
        not torch.equal(ours.weight, theirs.weight)
        for ours, theirs in zip(convolutions(changed).values(), convolutions(generator).values(), strict=True)
    )


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 99))
def test_an_order_is_a_permutation(vector: int, groups: int, sparsity: float, seed: int) -> None:
    torch.manual_seed(seed)
    order = similar_order(torch.randn(vector * groups, 6), vector, sparsity)
    assert sorted(order) == list(range(vector * groups))


def test_similar_channels_come_together() -> None:
    pattern = torch.eye(3).repeat(4, 1)  # 0 1 2 0 1 2 ...
    order = torch.tensor(similar_order(pattern, 4, 2 / 3)).view(3, 4) % 3
    assert all(len(set(group.tolist())) == 1 for group in order)
