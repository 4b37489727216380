"""Layer-wise reconstruction: each layer by least squares, held to torch.linalg.lstsq, and whole generators."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compress import small_gan
from test_nn import convolutions
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.cli.verdict import original_images
from sparsegan.compress import BlankBatches, CompressionConfig, Compressor, DistillationLoss, RunConfig, baseline
from sparsegan.compress import compressor as compressor_module
from sparsegan.compress.statistics import recalibrate_batch_norm
from sparsegan.gans import dcgan, store
from sparsegan.nn.layer import SparseConv
from sparsegan.nn.replace import sparse_layers
from sparsegan.profiling.macs import count_macs
from sparsegan.pruning import reconstruct as module
from sparsegan.pruning.reconstruct import Call, input_energies, least_squares, reconstruct
from sparsegan.pruning.schedule import OneShot

FILE = Path(__file__).parent.parent / "checkpoints" / "dcgan-emoji" / "generator.safetensors"


def columns(dense: Any, layer: SparseConv, x: Tensor) -> tuple[Tensor, Tensor]:
    """By torch's own layer: the inputs of each value at its channel's outputs [nnz, outputs], and the channel [nnz]."""
    dense = copy.deepcopy(dense)
    found, channels = [], []
    with torch.no_grad():
        if dense.bias is not None:
            dense.bias.zero_()
        for position in layer.positions():
            dense.weight.zero_()
            dense.weight.view(-1)[position] = 1
            y = dense(x).transpose(0, 1).flatten(1)
            # Where all outputs are 0 the weight meets padding alone, and any channel has that column.
            channels.append(int(y.abs().sum(1).argmax()))
            found.append(y[channels[-1]])
    return torch.stack(found), torch.tensor(channels)


def excess(dense: nn.Module, layer: SparseConv, x: Tensor, target: Tensor, ridge: float) -> float:
    """By how much the layer's minimised sum is above that of torch.linalg.lstsq, relative to the targets' squares."""
    inputs, _ = columns(dense, layer, x)
    channels = module.output_channels(layer)  # of weights without inputs too, which move no output
    gap = (layer(x) - target).transpose(0, 1).flatten(1)
    total = 0.0
    for channel in range(layer.out_channels):
        mine = (channels == channel).nonzero().flatten()
        design, wanted = inputs[mine].T, target[:, channel].flatten()
        weight = ridge * design.square().sum(0).mean() if len(mine) else torch.zeros(())
        ours = gap[channel].square().sum() + weight * layer.values[mine].square().sum()
        if layer.bias is not None:
            design = torch.cat([design, torch.ones(len(design), 1, dtype=design.dtype)], 1)
        if not design.shape[1]:
            continue
        penalty = weight.sqrt() * torch.eye(design.shape[1], dtype=design.dtype)[: len(mine)]
        rows, right = torch.cat([design, penalty]), torch.cat([wanted, wanted.new_zeros(len(mine))])
        best = torch.linalg.lstsq(rows, right, driver="gelsd").solution
        total += float(ours - (rows @ best - right).square().sum())
    return total / float(target.square().sum())


def problem_of(dense: nn.Module, x: Tensor, granularity: str) -> tuple[Any, Tensor]:
    layer = sg.sparsify(copy.deepcopy(dense), 0.6, granularity)
    with torch.no_grad():
        target = dense(x) + torch.randn(dense(x).shape, dtype=x.dtype) / 4
    return layer, target


@settings(max_examples=25)
@given(convolutions(), st.sampled_from([0.0, 1e-2]))
def test_a_layer_is_fitted_as_by_lstsq(problem: tuple[nn.Module, Tensor, str], ridge: float) -> None:
    dense, x, granularity = problem
    layer, target = problem_of(dense, x, granularity)
    halves = [Call(*both) for both in zip(x.split(5), target.split(5), strict=True)]
    with torch.no_grad():
        least_squares(layer, halves, 200, ridge)
        assert -1e-9 < excess(dense, layer, x, target, ridge) < 1e-6
        inputs, channels = columns(dense, layer, x)
        torch.testing.assert_close(input_energies(layer, halves), inputs.square().sum(1))
        met = inputs.abs().sum(1) > 0
        assert torch.equal(module.output_channels(layer)[met], channels[met])


@pytest.mark.parametrize("mistake", ["none", "a call is left out", "another ridge", "one iteration"])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_lstsq_finds_planted_mistakes(kind: Any, mistake: str) -> None:
    torch.manual_seed(0)
    dense, x = kind(6, 4, 3, 2, 1, groups=2).double(), torch.randn(4, 6, 9, 9, dtype=torch.float64)
    layer, target = problem_of(dense, x, "element")
    calls = [Call(*both) for both in zip(x.split(2), target.split(2), strict=True)]
    calls = calls[:1] if mistake == "a call is left out" else calls
    with torch.no_grad():
        least_squares(
            layer, calls, 1 if mistake == "one iteration" else 200, 0.02 if mistake == "another ridge" else 0.01
        )
        assert (excess(dense, layer, x, target, 0.01) < 1e-6) == (mistake == "none")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_support_that_can_represent_the_target_recovers_it(kind: Any, bias: bool) -> None:
    torch.manual_seed(1)
    truth = sg.sparsify(kind(8, 8, 4, 2, 1, groups=2, bias=bias).double(), 0.7)
    layer, x = copy.deepcopy(truth), torch.randn(6, 8, 12, 12, dtype=torch.float64).relu()
    with torch.no_grad():
        layer.values.normal_()
        least_squares(layer, [Call(x, truth(x))], 100, 0.0)
    torch.testing.assert_close(layer.values, truth.values)
    torch.testing.assert_close(layer.bias, truth.bias)


def test_what_is_frozen_stays_and_the_rest_makes_up_for_it() -> None:
    torch.manual_seed(2)
    dense, x = nn.Conv2d(3, 4, 3).double(), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    layer, target = problem_of(dense, x, "element")
    with torch.no_grad():
        layer.bias.add_(1).requires_grad_(False)
        before = layer.bias.clone()
        least_squares(layer, [Call(x, target)], 100, 0.0)
        assert torch.equal(layer.bias, before)
        free = copy.deepcopy(dense)
        free.bias = None
        layer.bias, shifted = None, target - before.view(1, -1, 1, 1)
        assert -1e-9 < excess(free, layer, x, shifted, 0.0) < 1e-8


class Twice(nn.Module):
    """Calls one layer twice in a forward, and another one never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.never = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.one(x).relu_())


def sample(network: nn.Module, index: int) -> Tensor:
    return network(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(index)))


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls_and_one_without_a_call_is_pruned() -> None:
    original = Twice().train()
    model: Any = sg.sparsify(copy.deepcopy(original), 0.0)
    weights = copy.deepcopy(original.state_dict())
    errors = reconstruct(model, original, sample, 4, {"one": 0.5, "never": 0.75})
    assert [*errors] == ["one"]
    assert 0 < errors["one"] < 1
    assert model.one.nnz in (40, 41)  # of 81
    magnitudes = sg.sparsify(copy.deepcopy(original.never), 0.75)
    assert torch.equal(model.never.values, magnitudes.values)
    assert all(torch.equal(weights[name], value) for name, value in original.state_dict().items())
    for network in (original, model):
        assert network.training
        assert not network.one._forward_hooks

    frozen: Any = sg.sparsify(copy.deepcopy(original), 0.0)
    frozen.one.values.requires_grad_(False)
    kept = frozen.one.dense_weight()
    reconstruct(frozen, original, sample, 4, 0.5)
    assert torch.equal(frozen.one.dense_weight(), kept * frozen.one.mask())
    assert frozen.one.sparsity > 0.4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": 0}, "batches is 0; it must be at least 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"ridge": -1.0}, "ridge is -1.0; it must be a number of at least 0"),
        ({"ridge": math.nan}, "ridge is nan"),
        ({"sparsity": 1.0}, "sparsity is 1.0; it must be at least 0 and below 1"),
        ({"sparsity": {"two": 0.5}}, r"sparsity has 'two'; it must be for the sparse layers \['never', 'one'\]"),
        ({"original": nn.Conv2d(3, 3, 3)}, "original has no module 'never'"),
        ({"model": Twice()}, "Twice has no sparse layer to fit"),
        ({"model": sg.sparsify(Twice().bfloat16(), 0.5)}, "one has dtype torch.bfloat16"),
    ],
)
def test_wrong_arguments_are_errors(changes: dict[str, Any], words: str) -> None:
    usual = {"model": sg.sparsify(Twice(), 0.5), "original": Twice(), "sample": sample, "batches": 2}
    with pytest.raises(ValueError, match=words):
        reconstruct(**{**usual, **changes})


class Once(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)


def test_networks_that_do_not_agree_are_errors() -> None:
    model = sg.sparsify(Twice(), 0.5)
    with pytest.raises(ValueError, match="one is called 2 times in model and 1 times in original"):
        reconstruct(model, Once(), sample, 2)
    other = Twice()
    other.one = nn.Conv2d(3, 3, 3)
    with pytest.raises(ValueError, match=r"one gives \(8, 3, 8, 8\) in model and \(8, 3, 6, 6\) in original"):
        reconstruct(model, other, sample, 2)
    with torch.no_grad():
        other.one = nn.Conv2d(3, 3, 3, padding=1)
        other.one.weight[0, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match="not finite"):
        reconstruct(model, other, sample, 2)


@pytest.fixture(scope="module")
def emoji() -> store.Gan:
    """A colour DCGAN of 64x64 pixels of which a file of the generator is all there is."""
    return store.load_public(FILE)[0]


def fitted(gan: store.Gan, sparsity: float, recipe: str = "reconstruction", **settings: Any) -> nn.Module:
    made = baseline(
        recipe,
        gan.generator,
        gan.discriminator,
        gan.objective,
        steps=1,
        sparsity=sparsity,
        run=RunConfig(quiet=True),
        **settings,
    )
    return made.fit(BlankBatches(16, 3, 64)).generator


def test_a_generator_of_colour_images_comes_nearer_than_by_new_statistics(
    emoji: store.Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENOUGH_OUTPUTS", 16)  # a quick fit
    dense = copy.deepcopy(emoji.generator.state_dict())
    generator = fitted(emoji, 0.75, reconstruct=8)
    noise = torch.randn(1, 100, 1, 1)
    assert sum(layer.nnz for _, layer in sparse_layers(generator)) == pytest.approx(0.25 * 1099264, rel=1e-3)
    assert count_macs(generator, (noise,)).executed < 0.2505 * count_macs(emoji.generator, (noise,)).executed
    repaired = sg.sparsify(copy.deepcopy(emoji.generator), 0.75)
    torch.manual_seed(0)
    recalibrate_batch_norm(repaired, lambda: repaired(torch.randn(64, 100, 1, 1)))
    original = original_images(emoji, None, 64, 5)
    ours, theirs = (original.compare(one)["samples"] for one in (generator, repaired))
    assert ours.psnr > theirs.psnr + 2
    assert ours.psnr > ours.mean_image + 4
    assert all(torch.equal(dense[name], value) for name, value in emoji.generator.state_dict().items())


def test_a_run_starts_from_the_fit_and_a_resumed_run_does_not_fit_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[str] = []
    right = compressor_module.reconstruct

    def counted(*arguments: Any) -> dict[str, float]:
        found = right(*arguments)
        fits.extend(found)
        return found

    monkeypatch.setattr(compressor_module, "reconstruct", counted)
    generator, judge = small_gan()

    def run(folder: str, resume: bool = False) -> Compressor:
        config = CompressionConfig(
            DistillationLoss(),
            {"main.3": "2:4", "*": "element"},
            exclude=("main.12",),
            reconstruct=2,
            discriminator_mode="none",
            ema=0.5,
        )
        how = RunConfig(tmp_path / folder, resume, checkpoint_every=2, quiet=True)
        return Compressor(generator, judge, dcgan.objective, OneShot(4, 0.5), config, run=how)

    loader = BlankBatches(4, 1, 64)
    whole = run("whole").fit(loader).generator
    broken = run("broken")
    step = broken.task.step

    def stops(number: int, batch: Any) -> dict[str, float]:
        if number == 2:
            raise KeyboardInterrupt
        return step(number, batch)

    monkeypatch.setattr(broken.task, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(loader)
    assert fits == 2 * ["main.0", "main.3", "main.6", "main.9"]
    resumed = run("broken", True).fit(loader).generator
    assert len(fits) == 8
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [round(layer.sparsity, 2) for _, layer in sparse_layers(resumed)] == [0.5] * 4


def test_an_initial_sparsity_needs_a_gradual_schedule(emoji: store.Gan) -> None:
    with pytest.raises(ValueError, match=r"initial is 0\.7; recipe reconstruction prunes 'one-shot'"):
        fitted(emoji, 0.9, initial=0.7)
    with pytest.raises(ValueError, match=r"initial is 0\.7; it must be at most target, 0\.5"):
        fitted(emoji, 0.5, "distillation", initial=0.7)
