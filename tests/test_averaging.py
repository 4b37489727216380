"""The moving average of the weights, while the support shrinks and moves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsegan as sg
from sparsegan.compress import CompressionConfig, Compressor, RunConfig
from sparsegan.gans import dcgan
from sparsegan.pruning.schedule import GradualPruning
from sparsegan.pruning.surgery import move_support


def network(granularity: str = "element") -> nn.Module:
    torch.manual_seed(0)
    first, last = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 3, 1)
    net = nn.Sequential(first, nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 4, 2), last).double()
    return sg.sparsify(net, 0.5 if granularity == "2:4" else 0.2, granularity, exclude=("3",))


def moved(net: nn.Module) -> None:
    with torch.no_grad():
        for one in (*net.parameters(), net[1].running_mean):
            one.add_(torch.randn_like(one))
        net[1].num_batches_tracked += 1


@pytest.mark.parametrize("granularity", ["element", "vector:4", "input:4", "kernel", "2:4"])
def test_the_average_is_that_of_dense_weights_at_kept_positions(granularity: str) -> None:
    """The reference averages dense weights, and begins with the current value where a weight is new in the support."""
    net = network(granularity)
    average = sg.Average(net, decay=0.7)
    dense = {index: net[index].dense_weight().detach().clone() for index in (0, 2)}
    others = {
        name: one.clone() for name, one in net.state_dict().items() if "values" not in name and "support" not in name
    }
    kept = {index: net[index].mask() for index in (0, 2)}
    for n in range(12):
        moved(net)
        if granularity != "2:4" and n in (3, 7):
            sg.shrink(net, 0.2 + 0.1 * n)
        if granularity == "element" and n == 9:  # a few weights move
            layer = net[0]
            absent = (~layer.mask()).flatten().nonzero().flatten()[:5]
            positions = torch.cat([layer.positions()[5:], absent]).sort().values
            index = torch.full((layer.mask().numel(),), -1)
            index[layer.positions()] = torch.arange(layer.nnz)
            move_support(layer, positions.int(), index[positions])
        average.update(net)
        d = min(0.7, (1 + n) / (10 + n))
        for index in (0, 2):
            now, mask = net[index].dense_weight().detach(), net[index].mask()
            dense[index] = torch.where(kept[index], dense[index], now) * mask
            dense[index] = d * dense[index] + (1 - d) * now
            kept[index] = mask
        for name, one in net.state_dict().items():
            if name in others:
                others[name] = d * others[name] + (1 - d) * one if one.is_floating_point() else one.clone()
    assert not average.model.training
    for index in (0, 2):
        assert torch.equal(average.model[index].mask(), net[index].mask())
        torch.testing.assert_close(average.model[index].dense_weight(), dense[index], rtol=1e-12, atol=1e-12)
    for name, one in others.items():
        torch.testing.assert_close(average.model.state_dict()[name], one, rtol=1e-12, atol=1e-12)
    average.model(torch.randn(1, 4, 6, 6, dtype=torch.float64))


def test_saved_and_resumed() -> None:
    net = network()
    average = sg.Average(net, 0.9)
    moved(net)
    average.update(net)
    sg.shrink(net, 0.6)
    average.update(net)
    state = copy.deepcopy(average.state_dict())
    again = sg.Average(network(), 0.9)  # its support is larger than the saved one
    again.load_state_dict(state)
    moved(net)
    for one in (average, again):
        one.update(net)
    assert all(
        torch.equal(a, b)
        for a, b in zip(average.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )


def test_what_cannot_be_averaged() -> None:
    average = sg.Average(network())
    with pytest.raises(ValueError, match=r"the average was made of one with 0, 2"):
        average.update(nn.Sequential(nn.Conv2d(3, 8, 3)))
    other = network()
    other[3] = nn.Conv2d(4, 5, 1).double()
    with pytest.raises(ValueError, match=r"3\.(weight|bias) has shape .* in the model and"):
        average.update(other)
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match="decay is"):
            sg.Average(network(), decay)


def test_torchs_average_raises_after_a_shrink() -> None:
    net = network()
    average = torch.optim.swa_utils.AveragedModel(net)
    average.update_parameters(net)
    sg.shrink(net, 0.8)
    with pytest.raises(RuntimeError, match="size"):
        average.update_parameters(net)


def compressed(tmp_path: Path | None = None, steps: int = 8, resume: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    generator, discriminator = dcgan.Generator(8, 3, 1), dcgan.Discriminator(1, 2)
    schedule = GradualPruning(steps=steps, target=0.8, every=1)
    config = CompressionConfig(**{"generator_lr": 1e-3, **options})
    run = RunConfig(tmp_path, resume, checkpoint_every=4, quiet=True)
    return Compressor(generator, discriminator, dcgan.objective, schedule, config, run=run)


def batches() -> list[torch.Tensor]:
    return list(torch.randn(12, 1, 64, 64, generator=torch.Generator().manual_seed(1)).split(4))


@pytest.mark.parametrize("more", [{}, {"regrow": 0.3}, {"generator_every": 2}])
def test_a_compressors_result_is_the_average(more: dict[str, Any]) -> None:
    plain = compressed(**more)
    seen: list[nn.Module] = []
    step = plain.task.step

    def watched(number: int, batch: Any) -> dict[str, float]:
        figures = step(number, batch)
        if number % more.get("generator_every", 1) == 0:
            seen.append(copy.deepcopy(plain.task.student))
        return figures

    plain.task.step = watched
    result = plain.fit(batches())
    ours = compressed(ema=0.8, **more).fit(batches())
    assert ours.history == result.history  # averaging does not change the training
    average = sg.Average(compressed(**more).task.student, 0.8)
    for one in seen:
        average.update(one)
    for a, b in zip(average.model.state_dict().values(), ours.generator.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all(one.requires_grad for one in ours.generator.parameters())


def test_a_resumed_run_has_the_same_average(tmp_path: Path) -> None:
    whole = compressed(tmp_path / "whole", ema=0.9).fit(batches())
    stopped = compressed(tmp_path / "parts", ema=0.9)
    step = stopped.task.step

    def fails(number: int, batch: Any) -> dict[str, float]:
        if number == 6:
            raise KeyboardInterrupt
        return step(number, batch)

    stopped.task.step = fails
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(batches())
    resumed = compressed(tmp_path / "parts", ema=0.9, resume=True).fit(batches())
    for a, b in zip(whole.generator.state_dict().values(), resumed.generator.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="ema is 1"):
        compressed(ema=1.0)
