"""Allocation of sparsity to layers: every allocation meets its total, empties no layer, and follows its definition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.nn.granularity import unit_size
from sparsegan.pruning.allocation import LEAST, allocate, sensitivity, total_sparsity

GRANULARITIES = ["element", "vector:2", "input:2", "kernel", "filter", {"0": "filter", "2": "2:4", "*": "kernel"}]


def network(widths: tuple[int, int, int] = (4, 8, 6)) -> nn.Sequential:
    a, b, c = widths
    return nn.Sequential(
        nn.Conv2d(4, a, 3), nn.BatchNorm2d(a), nn.ConvTranspose2d(a, b, 4, 2), nn.ReLU(), nn.Conv2d(b, c, (3, 2))
    )


def total(model: nn.Module) -> tuple[int, int]:
    """The number of dropped weights and of all weights in the sparse layers."""
    sizes = [layer.mask().numel() for _, layer in sg.sparse_layers(model)]
    return sum(sizes) - sum(layer.nnz for _, layer in sg.sparse_layers(model)), sum(sizes)


@given(
    st.tuples(*[st.sampled_from([2, 4, 6, 20])] * 3),
    st.sampled_from([0.1, 0.5, 0.75, 0.9]),
    st.sampled_from(GRANULARITIES),
    st.sampled_from(["global", "global-normalized", "sensitivity"]),
)
@settings(max_examples=60)
def test_the_total_is_met_and_no_layer_is_empty(widths, sparsity, granularity, allocation) -> None:
    net = network(widths)
    for layer, scale in ((net[0], 10.0), (net[4], 0.1)):
        layer.weight.data *= scale
    x, before = torch.randn(2, 4, 6, 6), copy.deepcopy(net.state_dict())
    exact = net.eval()(x)

    def loss(model: nn.Module) -> Tensor:
        return (model(x) - exact).square().mean()

    def find() -> dict[str, float]:
        if allocation == "sensitivity":
            return sensitivity(net, loss, sparsity, granularity)
        return allocate(net, sparsity, granularity, allocation=allocation)

    budget, room, half = 0.0, 0, 0.0
    for name in ("0", "2", "4"):
        weight, own = net.get_submodule(name).weight, granularity
        if isinstance(granularity, dict):
            own = granularity.get(name, "kernel")
        size = unit_size(weight.shape, own, transposed=name == "2")
        budget += (sparsity - (0.5 if own == "2:4" else 0)) * weight.numel()
        if own != "2:4":
            units = weight.numel() // size
            room += (units - max(1, math.ceil(LEAST * units))) * size
            half = max(half, size / 2)
    if not -half <= budget <= room + half:
        with pytest.raises(ValueError, match=r"units stay|weights too many"):
            find()
        return
    shares = find()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    sg.sparsify(net, shares, granularity)
    dropped, weights = total(net)
    largest = max(layer.unit_size for _, layer in sg.sparse_layers(net))
    assert abs(dropped - sparsity * weights) <= largest
    for _, layer in sg.sparse_layers(net):
        units = layer.mask().numel() // layer.unit_size
        assert layer.nnz >= max(1, LEAST * units) * layer.unit_size


def test_one_threshold_for_all_layers() -> None:
    net = network()
    net[0].weight.data *= 3
    weights = [net[i].weight.detach().abs() for i in (0, 2, 4)]
    sg.sparsify(net, 0.6, allocation="global")
    masks = [layer.mask() for _, layer in sg.sparse_layers(net)]
    kept, gone = (torch.cat([w[m == side] for w, m in zip(weights, masks, strict=True)]) for side in (True, False))
    assert kept.min() >= gone.max()
    assert net[0].sparsity < 0.4 < net[2].sparsity < 0.95


def test_normalized_scores_do_not_depend_on_a_layers_scale() -> None:
    one, other = network(), network()
    other.load_state_dict(one.state_dict())
    other[0].weight.data *= 1024
    other[4].weight.data /= 256
    assert allocate(one, 0.7, "kernel", allocation="global-normalized") == allocate(
        other, 0.7, "kernel", allocation="global-normalized"
    )
    assert allocate(one, 0.7, "kernel", allocation="global") != allocate(other, 0.7, "kernel", allocation="global")


def test_sensitivity_spares_the_costly_layer_and_balances_losses() -> None:
    net = nn.Sequential(*[nn.Conv2d(8, 8, 3) for _ in range(3)])
    costs = {"0": 4.0, "1": 1.0, "2": 0.0}
    dense = {name: net.get_submodule(name).weight.detach().clone() for name in costs}

    def lost(model: nn.Module, name: str) -> Tensor:
        weight = model.get_submodule(name).weight
        return ((weight - dense[name]) != 0).float().mean()

    shares = sensitivity(
        net,
        lambda model: 5 + sum(c * lost(model, n) for n, c in costs.items()),
        0.5,
        levels=[0.1 * i for i in range(1, 10)],
    )
    assert shares["2"] == pytest.approx(1 - LEAST, abs=0.002)  # the loss does not depend on this layer
    assert sum(shares.values()) == pytest.approx(1.5, abs=1 / 576)
    assert 4 * shares["0"] == pytest.approx(shares["1"], abs=4 / 576)
    draws = []
    sensitivity(net, lambda model: draws.append(torch.rand(()).item()) or 0.0, 0.5)
    assert len(draws) == 1 + 3 * 5
    assert len(set(draws)) == 1  # each measurement saw the same random numbers


def test_costs_make_the_total_one_of_costs() -> None:
    """With the multiply-accumulates of a weight as costs, the network keeps those of uniform sparsities."""
    torch.manual_seed(0)
    net, x = network().eval(), torch.randn(2, 4, 6, 6)
    exact = net(x)
    costs = {"0": 16.0, "2": 16.0, "4": 90.0}

    def kept(sparsities: dict[str, float]) -> float:
        return sum((1 - own) * net.get_submodule(name).weight.numel() * costs[name] for name, own in sparsities.items())

    def loss(model: nn.Module) -> Tensor:
        return (model(x) - exact).square().mean()

    for granularity, filters in (("element", None), ("filter", {"0": 4, "2": 8, "4": 6})):
        found = sensitivity(net, loss, 0.6, granularity, costs=costs)
        units = {name: net.get_submodule(name).weight.numel() / filters[name] if filters else 1.0 for name in costs}
        half = max(costs[name] * units[name] for name in costs) / 2
        assert abs(kept(found) - kept(dict.fromkeys(costs, 0.6))) <= half * 1.001
        assert filters or found != sensitivity(net, loss, 0.6, granularity)
        weights = {name: net.get_submodule(name).weight.numel() for name in found}
        mean = sum(found[name] * weights[name] for name in found) / sum(weights.values())
        assert total_sparsity(net, found) == pytest.approx(mean)
    with pytest.raises(ValueError, match="costs lacks '4'; it must hold the cost of a weight of every layer"):
        sensitivity(net, loss, 0.6, costs={"0": 1.0, "2": 1.0})


def test_sparse_layers_count_in_the_total_and_stay_sparse() -> None:
    net = network((4, 8, 20))
    sg.sparsify(net, 0.6, "kernel", exclude=["4"])
    before = {name: layer.mask() for name, layer in sg.sparse_layers(net)}
    sg.sparsify(net, 0.7, "element", allocation="global")
    dropped, weights = total(net)
    assert abs(dropped - 0.7 * weights) <= 16
    for name, mask in before.items():
        assert not bool((net.get_submodule(name).mask() & ~mask).any())
    assert [layer.granularity for _, layer in sg.sparse_layers(net)] == ["kernel", "kernel", "element"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"allocation": "fair"}, "allocation is 'fair'; it must be one of 'uniform', 'global', 'global-normalized'"),
        ({"sparsity": {"*": 0.5}, "allocation": "global"}, "allocation is 'global' and sparsity is given by layer"),
        ({"sparsity": None, "allocation": "global"}, "allocation is 'global' and sparsity is None"),
        ({"sparsity": 0.999, "granularity": "filter", "allocation": "global"}, "1% of each layer's units stay"),
        ({"granularity": "2:4", "sparsity": 0.75, "allocation": "global"}, "'2:4' would .* and they can drop 0"),
        ({"granularity": "vector:4", "allocation": "global"}, "4: granularity is 'vector:4' and the layer has 6"),
    ],
)
def test_allocations_that_do_not_fit(how: dict, words: str) -> None:
    net = network()
    with pytest.raises(ValueError, match=words):
        sg.sparsify(net, **{"sparsity": 0.5, **how})
    assert not list(sg.sparse_layers(net))
    with pytest.raises(ValueError, match="the loss is nan of the unpruned model"):
        sensitivity(net, lambda model: float("nan"), 0.5)
    assert allocate(net, 0.5, "2:4", allocation="global") == {"0": 0.5, "2": 0.5, "4": 0.5}


def test_uniform_never_empties_a_layer() -> None:
    net = sg.sparsify(nn.Sequential(nn.Conv2d(4, 3, 3)), 0.9, "filter")
    assert net[0].nnz == 36
    sg.shrink(net, 0.99)
    assert net[0].nnz == 36
