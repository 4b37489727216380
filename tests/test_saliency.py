"""Saliency: which units are dropped first, and how many of each layer under the budgets of weights and operations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import sparsegan as sg
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning import shrink
from sparsegan.pruning.allocation import LEAST
from sparsegan.pruning.saliency import counting_uses, ranked, sparsities_by_saliency


def net(granularity: str = "element") -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.ConvTranspose2d(8, 16, 4, 1, 0), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU()]
    layers.append(nn.Conv2d(8, 4, 3, padding=1))
    return sg.sparsify(nn.Sequential(*layers), 0.05, granularity)


def stepped(network: nn.Module, seed: int = 0) -> torch.optim.Adam:
    """An Adam whose average of squared gradients is random."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) ** 3
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("granularity", ["element", "vector:4", "input:4", "kernel", "filter"])
def test_fisher_drops_the_units_with_the_smallest_norm_of_weight_times_gradient(granularity: str) -> None:
    network = net(granularity)
    optimizer = stepped(network)
    for _, layer in sparse_layers(network):
        mask = layer.mask()
        squares = optimizer.state[layer.values]["exp_avg_sq"]
        numbers = layer.values.detach().double() * (squares.double().sqrt() + 1e-3 * squares.sqrt().mean().double())
        dense = torch.zeros(layer.weight_shape, dtype=torch.float64)
        dense.view(-1)[layer.positions()] = numbers
        transposed = isinstance(layer, sg.SparseConvTranspose2d)
        units = sg.nn.granularity.as_units(dense, granularity, transposed)
        norms = units.square().sum(-1).flatten()
        keep = round(0.5 * norms.numel())
        wanted = norms >= norms.sort(descending=True).values[keep - 1]
        shrink(layer, 0.5, optimizer, "fisher")
        left = sg.nn.granularity.as_units(layer.mask(), granularity, transposed)[..., 0].flatten()
        assert torch.equal(left, wanted)
        assert int(layer.mask().sum()) < int(mask.sum())


def test_fisher_needs_squared_gradients() -> None:
    network = net()
    with pytest.raises(ValueError, match="SGD has no average of squared gradients"):
        shrink(network, 0.5, torch.optim.SGD(network.parameters(), 1e-3), "fisher")
    with pytest.raises(ValueError, match="saliency is 'size'; it must be one of 'magnitude', 'fisher'"):
        shrink(network, 0.5, None, "size")
    assert all(layer.sparsity < 0.1 for _, layer in sparse_layers(network))


def test_uses_are_output_positions_and_for_transposed_layers_input_positions() -> None:
    network = net()
    with counting_uses(network) as uses:
        network(torch.randn(3, 8, 5, 6))
        network(torch.randn(1, 8, 5, 6))
    assert list(uses.values()) == [4 * 5 * 6, 4 * 8 * 9, 4 * 16 * 18]
    dense = sum(layer.values.numel() for _, layer in sparse_layers(network))
    assert dense > 0
    network(torch.randn(1, 8, 5, 6))
    assert uses["0"] == 120  # no longer counted


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("granularity", ["element", "vector:4", "input:2"])
def test_both_budgets_are_met(sparsity: float, granularity: str) -> None:
    network = net(granularity)
    optimizer = stepped(network)
    uses = {"0": 1, "2": 20, "4": 300}
    found = sparsities_by_saliency(network, sparsity, uses, [optimizer])
    shrink(network, found, optimizer, "fisher")
    layers = dict(sparse_layers(network))
    sizes = {name: math.prod(layer.weight_shape) for name, layer in layers.items()}
    units = max(layer.unit_size for layer in layers.values())
    weights = sum(layer.nnz for layer in layers.values())
    assert weights <= (1 - sparsity) * sum(sizes.values()) + 3 * units
    assert weights >= 0.98 * (1 - sparsity) * sum(sizes.values())
    spent = sum(layer.nnz * uses[name] for name, layer in layers.items())
    assert spent <= (1 - sparsity) * sum(sizes[name] * uses[name] for name in layers) * 1.001 + 3 * units * 300
    assert all(layer.nnz >= LEAST * sizes[name] for name, layer in layers.items())


def test_no_other_choice_within_the_budgets_keeps_more_saliency() -> None:
    network = net()
    optimizer = stepped(network, 3)
    layers, uses, sparsity = dict(sparse_layers(network)), {"0": 1, "2": 4, "4": 16}, 0.7
    scores = {n: ranked(one, "fisher", [optimizer]).square().sort(descending=True).values for n, one in layers.items()}
    sizes = {name: math.prod(layer.weight_shape) for name, layer in layers.items()}
    found = sparsities_by_saliency(network, sparsity, uses, [optimizer])
    kept = {name: round((1 - found[name]) * sizes[name]) for name in layers}
    best = sum(float(scores[name][: kept[name]].sum()) for name in layers)
    weights, spent = (1 - sparsity) * sum(sizes.values()), (1 - sparsity) * sum(sizes[n] * uses[n] for n in layers)
    for fractions in itertools.product([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.9], repeat=3):
        other = {name: int(part * sizes[name]) for name, part in zip(layers, fractions, strict=True)}
        if sum(other.values()) <= weights and sum(other[n] * uses[n] for n in layers) <= spent:
            assert sum(float(scores[name][: other[name]].sum()) for name in layers) <= best * 1.001


def test_a_layer_with_larger_gradients_keeps_more() -> None:
    network = net()
    optimizer = stepped(network)
    uses = {"0": 1, "2": 1, "4": 1}
    before = sparsities_by_saliency(network, 0.8, uses, [optimizer])
    values = dict(sparse_layers(network))["2"].values
    optimizer.state[values]["exp_avg_sq"] *= 100
    after = sparsities_by_saliency(network, 0.8, uses, [optimizer])
    assert after["2"] < before["2"] - 0.02
    assert after["0"] > before["0"]


def test_a_frozen_layer_is_pruned_like_the_whole_and_takes_nothing_from_the_others() -> None:
    network = net()
    frozen = dict(sparse_layers(network))["2"].values.requires_grad_(False)
    optimizer = torch.optim.Adam([one for one in network.parameters() if one is not frozen], 1e-3)
    network(torch.randn(2, 8, 5, 6)).square().mean().backward()
    optimizer.step()
    found = sparsities_by_saliency(network, 0.8, {"0": 1, "2": 4, "4": 16}, [optimizer])
    assert found["2"] == 0.8
    sizes = {name: math.prod(layer.weight_shape) for name, layer in sparse_layers(network)}
    dropped = sum(found[name] * sizes[name] for name in ("0", "4"))
    assert dropped == pytest.approx(0.8 * (sizes["0"] + sizes["4"]), rel=0.01)
