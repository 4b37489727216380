"""Input units, kernels, filters and 2:4: layers, pruning and files agree on the units. Settings by layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import assert_exact
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsegan as sg
from sparsegan import checkpoint
from sparsegan.nn.granularity import kept, magnitude_mask, parse_granularity, units_of
from sparsegan.nn.kept_weights import KeptWeights
from sparsegan.ops import native

Layer = nn.Conv2d | nn.ConvTranspose2d


def units(layer: Layer, granularity: str) -> list[Tensor]:
    """The flat positions of each unit in the weight, one output channel after the other."""
    index = torch.arange(layer.weight.numel()).view(layer.weight.shape)
    found = []
    for channel in range(layer.out_channels):
        per_group = layer.out_channels // layer.groups
        if isinstance(layer, nn.ConvTranspose2d):
            group, rows = channel // per_group, layer.in_channels // layer.groups
            weights = index[group * rows : (group + 1) * rows, channel % per_group]
        else:
            weights = index[channel]
        if granularity.startswith("input:"):
            for block in weights.split(int(granularity[6:])):  # [D, rows, columns]
                found += block.flatten(1).unbind(1)
            continue
        size = {"filter": weights.numel(), "kernel": weights[0].numel(), "2:4": 4}[granularity]
        found += weights.flatten().split(size)
    return found


@st.composite
def layers(draw: st.DrawFn, granularity: str) -> Layer:
    small = st.integers(1, 3)
    groups, kernel = draw(st.sampled_from([1, 1, 2])), (draw(small), draw(small))
    units = {"2:4": 4, "input:2": 2, "input:4": 4}.get(granularity, 1)
    c_in, c_out = groups * draw(small) * units, groups * draw(small)
    cls = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))
    return cls(c_in, c_out, kernel, draw(small), groups=groups, bias=draw(st.booleans()), dtype=torch.float64)


GRANULARITIES = ["input:2", "input:4", "kernel", "filter", "2:4"]
problems = st.sampled_from(GRANULARITIES).flatmap(lambda g: st.tuples(layers(g), st.just(g)))


def sparse(dense: nn.Module, granularity: str, **how: Any) -> Any:
    cls = sg.SparseConvTranspose2d if isinstance(dense, nn.ConvTranspose2d) else sg.SparseConv2d
    return cls.from_dense(dense, granularity=granularity, **how)


@given(problems, st.sampled_from([0.0, 0.3, 0.5, 0.9]))
@settings(max_examples=80)
def test_kept_units_and_computed_results(problem: tuple[Layer, str], sparsity: float) -> None:
    dense, granularity = problem
    pattern = granularity == "2:4"
    layer = sparse(dense, granularity, sparsity=0.5 if pattern else sparsity)
    mask, weight = layer.mask().flatten(), dense.weight.detach().flatten()
    every = units(dense, granularity)
    assert sorted(torch.cat(every).tolist()) == list(range(weight.numel()))
    if pattern:
        for unit in every:
            chosen = weight[unit].abs()[mask[unit]]
            assert len(chosen) == 2
            assert chosen.min() >= weight[unit].abs()[~mask[unit]].max()
    else:
        keep = [bool(mask[unit].all()) for unit in every]
        assert keep == [bool(mask[unit].any()) for unit in every]
        assert sum(keep) == kept(len(every), sparsity)
        norms = torch.stack([weight[unit].norm() for unit in every])
        if 0 < sum(keep) < len(every):
            assert norms[torch.tensor(keep)].min() >= norms[~torch.tensor(keep)].max()
    assert layer.nnz == int(mask.sum()) == layer.support.shape[0] * units_of(granularity).entry
    assert repr(granularity) in repr(layer)
    assert torch.equal(layer.dense_weight().flatten(), weight * mask)

    layer.backend = "sparse"
    x = torch.randn(2, dense.in_channels, 4, 5, dtype=torch.float64, requires_grad=True)
    twin = layer.to_dense()
    y, expected = layer(x), twin(x)
    assert_exact(y, expected)
    y.square().sum().backward()
    ours, x.grad = x.grad, None
    expected.square().sum().backward()
    assert_exact(ours, x.grad)
    assert_exact(layer.values.grad, twin.weight.grad.flatten()[layer.positions()])
    report = sg.count_macs(layer, x.detach())
    assert report.executed * weight.numel() == report.dense * layer.nnz

    for again in (sparse(dense, granularity, mask=layer.mask()), sparse(twin, granularity)):
        assert torch.equal(again.support, layer.support)
    other = type(dense)(
        dense.in_channels, dense.out_channels, dense.kernel_size, groups=dense.groups, bias=dense.bias is not None
    )
    fresh = sparse(other, granularity, sparsity=0.5)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.mask(), layer.mask())


@given(problems)
@settings(max_examples=40)
def test_a_unit_is_never_cut(problem: tuple[Layer, str]) -> None:
    dense, granularity = problem
    layer = sparse(dense, granularity, sparsity=0.5)
    every, mask = units(dense, granularity), layer.mask()
    assume(len(every[0]) > 1)
    mask.view(-1)[every[0][0]] ^= True
    noun = {"2:4": "quadruple", "input:2": "input unit", "input:4": "input unit"}.get(granularity, granularity)
    with pytest.raises(ValueError, match=f"mask cuts 1 of {len(every)} {noun}s; with granularity '{granularity}'"):
        sparse(dense, granularity, mask=mask)
    if units_of(granularity).listed:
        return  # such a support cannot cut a unit
    support, before = mask.flatten().nonzero().flatten().int(), layer.values.clone()
    with pytest.raises(ValueError, match=f"mask cuts 1 of {len(every)} {noun}s"):
        layer.set_support(support, torch.ones(len(support)))
    assert torch.equal(layer.values, before)


@given(problems, st.sampled_from([torch.optim.Adam, torch.optim.SGD]))
@settings(max_examples=40)
def test_shrinking_keeps_units_whole(problem: tuple[Layer, str], optimizer_class: Any) -> None:
    dense, granularity = problem
    layer = sparse(dense, granularity, sparsity=0.5)
    optimizer = optimizer_class(
        layer.parameters(), lr=0.1, **({"momentum": 0.9} if optimizer_class is torch.optim.SGD else {})
    )
    layer(torch.randn(2, dense.in_channels, 4, 5, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    if granularity == "2:4":
        support = layer.support.clone()
        sg.shrink(layer, 0.4, optimizer)
        assert torch.equal(layer.support, support)
        with pytest.raises(ValueError, match=r"sparsity is 0\.9; with granularity '2:4' it is 0\.5, always"):
            sg.shrink(layer, 0.9, optimizer)
        return
    state = {k: v for k, v in optimizer.state[layer.values].items() if torch.is_tensor(v) and v.dim() == 1}
    scattered = {k: torch.zeros(dense.weight.numel(), dtype=v.dtype) for k, v in state.items()}
    for key, value in state.items():
        scattered[key][layer.positions()] = value
    weight, before = layer.dense_weight().detach().flatten(), layer.mask().flatten()
    sg.shrink(layer, 0.8, optimizer)
    mask, every = layer.mask().flatten(), units(dense, granularity)
    survivors = [bool(mask[unit].all()) for unit in every]
    assert survivors == [bool(mask[unit].any()) for unit in every]
    assert sum(survivors) == kept(len(every), 0.8)
    assert not bool((mask & ~before).any())
    gone = [weight[unit].norm() for unit, stays in zip(every, survivors, strict=True) if not stays and before[unit[0]]]
    if gone and any(survivors):
        assert min(weight[unit].norm() for unit, s in zip(every, survivors, strict=True) if s) >= max(gone)
    assert torch.equal(layer.dense_weight().flatten(), weight * mask)
    for key, value in scattered.items():
        assert torch.equal(optimizer.state[layer.values][key], value[layer.positions()])


@given(problems, st.booleans())
@settings(max_examples=30)
def test_files(tmp_path: Path, problem: tuple[Layer, str], into_sparse: bool) -> None:
    dense, granularity = problem
    model, path = nn.Sequential(sparse(dense, granularity, sparsity=0.5)), tmp_path / "g.safetensors"
    sg.save(model, path, values="float64")
    target = nn.Sequential(copy.deepcopy(dense))
    if into_sparse:
        sg.sparsify(target, 0.5, granularity)
    nn.init.constant_(next(target.parameters()), float("nan"))
    sg.load(target, path)
    assert target[0].granularity == granularity
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_hostile_files_with_a_fitting_hash(tmp_path: Path) -> None:
    def code(positions: list[int], size: int) -> Tensor:
        return torch.tensor(bytearray(native.encode_support(torch.tensor(positions).int().numpy(), size))).byte()

    path = tmp_path / "g"
    edits = {
        "nnz is 7, which is no multiple of 4": ("kernel", {"nnz": 7}, None),
        "nnz is 7, which is no multiple of 16": ("filter", {"nnz": 7}, None),
        "bad support for layer 0: .*past the end": ("filter", {}, code([0, 9], 10)),
        "bad support for layer 0: mask cuts 2 of 8 quadruples": ("2:4", {}, code([0, 1, 2, *range(4, 29, 2)], 32)),
        "8 weights per output channel|groups 2 for layer 0": ("2:4", {"groups": 2}, None),
        "groups is 3; it must be a positive integer that divides 4": ("filter", {"groups": 3}, None),
        "groups is True": ("filter", {"groups": True}, None),
    }
    for words, (granularity, fields, support) in edits.items():
        sg.save(sg.sparsify(nn.Sequential(nn.ConvTranspose2d(4, 2, 2)), 0.5, granularity), path)
        file = checkpoint._File(path)
        meta, tensors = copy.deepcopy(file.meta), dict(file.tensors)
        meta["layers"]["0"].update(fields)
        if "nnz" in fields:
            tensors["0.values"] = torch.ones(fields["nnz"])
        if support is not None:
            tensors["0.support"] = support
        if granularity == "filter" and support is not None:
            meta["layers"]["0"]["nnz"], tensors["0.values"] = 32, torch.ones(32)
        meta["sha256"] = checkpoint._digest(meta, tensors)
        path.write_bytes(safetensors.torch.save(tensors, {checkpoint.FORMAT: checkpoint._canonical(meta)}))
        target = nn.Sequential(nn.ConvTranspose2d(4, 2, 2))
        before = target[0].weight.detach().clone()
        with pytest.raises(sg.CheckpointError, match=words):
            sg.load(target, path)
        assert torch.equal(target[0].weight, before)


def test_two_of_four_is_always_half_sparse() -> None:
    conv = nn.Conv2d(4, 4, 3)
    for sparsity in (0.0, 0.4, 0.9):
        with pytest.raises(ValueError, match=f"sparsity is {sparsity}; with granularity '2:4' it must be 0.5"):
            sparse(conv, "2:4", sparsity=sparsity)
    with pytest.raises(
        ValueError, match=r"36 of the weight's 36 quadruples have more than 2 nonzeros, .* sparsity=0.5"
    ):
        sparse(conv, "2:4")
    with pytest.raises(
        ValueError, match=r"1: granularity is '2:4' and the layer has 27 weights per output channel, .* 4; "
    ):
        sg.sparsify(nn.Sequential(nn.Conv2d(4, 3, 3), nn.Conv2d(3, 4, 3)), 0.5, "2:4")
    conv.weight.data.view(-1)[:4] = torch.tensor([0.0, 0, 0, 3])
    layer = sparse(sparse(conv, "2:4", sparsity=0.5).to_dense(), "2:4")  # with one nonzero, the first zero is kept too
    assert layer.mask().flatten()[:4].tolist() == [True, False, False, True]
    initial = sg.SparseConv2d(4, 4, 3, sparsity=0.5, granularity="2:4")
    initial.load_state_dict(conv.state_dict())
    assert torch.equal(initial.mask(), sparse(conv, "2:4", sparsity=0.5).mask())
    conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="contain NaN"):
        sparse(conv, "2:4", sparsity=0.5)


@given(
    st.sampled_from([2, 3, 4]), st.integers(1, 3), st.integers(1, 2), st.booleans(), st.sampled_from([0.25, 0.5, 0.9])
)
def test_masks_of_input_units_by_their_definition(
    depth: int, blocks: int, groups: int, transposed: bool, sparsity: float
) -> None:
    """Unit (o, b, i, j) is the weights of the channels b * D to b * D + D - 1 of o's group at (i, j)."""
    c_in, c_out, kernel = depth * blocks, 3, (2, 3)  # per group
    shape = (groups * c_in, c_out, *kernel) if transposed else (groups * c_out, c_in, *kernel)
    weight = np.random.default_rng(blocks).normal(size=shape)

    def place(o: int, c: int, i: int, j: int) -> tuple[int, ...]:
        return (o // c_out * c_in + c, o % c_out, i, j) if transposed else (o, c, i, j)

    norms = np.array(
        [
            sum(weight[place(o, b * depth + d, i, j)] ** 2 for d in range(depth))
            for o, b, i, j in np.ndindex(groups * c_out, blocks, *kernel)
        ]
    )
    expected, least = np.zeros(shape, bool), np.sort(norms)[round(sparsity * norms.size)]
    for norm, (o, b, i, j) in zip(norms, np.ndindex(groups * c_out, blocks, *kernel), strict=True):
        for d in range(depth):
            expected[place(o, b * depth + d, i, j)] = norm >= least
    mask = magnitude_mask(torch.from_numpy(weight), sparsity, f"input:{depth}", transposed, groups)
    assert np.array_equal(mask.numpy(), expected)


@pytest.mark.parametrize("single", [False, True], ids=["units", "as on a GPU"])
@pytest.mark.parametrize("granularity", ["input:2", "input:4"])
@pytest.mark.parametrize("cls", [nn.Conv2d, nn.ConvTranspose2d])
def test_second_derivatives_of_input_units(
    cls: Any, granularity: str, single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient penalty, on the kernels for units and on those for single weights, which a GPU runs."""
    monkeypatch.setattr(KeptWeights, "runs_single", single)
    layer = sparse(cls(8, 6, (4, 3), 2, 1, groups=2, dtype=torch.float64), granularity, sparsity=0.6)
    layer.backend, twin = "sparse", layer.to_dense()
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for one, weight, kept_ones in (
        (layer, layer.values, slice(None)),
        (twin, twin.weight, layer.positions()),
    ):
        y = one(x)
        gx, gw = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        gw = gw.flatten()[kept_ones]
        ggx, ggw = torch.autograd.grad(gx.square().sum() + gw.square().sum(), (x, weight))
        found.append((y, gx, gw, ggx, ggw.flatten()[kept_ones]))
    for ours, theirs in zip(*found, strict=True):
        assert_exact(ours / theirs.abs().max(), theirs / theirs.abs().max())
    plans = layer.plan_cache().plans
    assert len(plans) == 2
    assert (layer.plan_cache().single is not None) == single
    before = layer.support.shape[0]
    sg.shrink(layer, 0.8)
    assert layer.support.shape[0] < before
    assert_exact(layer(x), layer.to_dense()(x))
    assert layer.plan_cache().plans is not plans


@pytest.mark.parametrize("warm", [False, True])
def test_input_units_as_on_a_gpu_are_exported(warm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expanded support is a constant of the graph where the layer has run before, else the graph computes it."""
    monkeypatch.setattr(KeptWeights, "runs_single", True)
    layer = sg.SparseConvTranspose2d(8, 6, 4, 2, 1, sparsity=0.8, granularity="input:4")
    layer.backend, x = "sparse", torch.randn(2, 8, 5, 5)
    if warm:
        layer(x)
    exported = torch.export.export(layer, (x,))
    assert ("sort" in str(exported.graph)) != warm
    torch.testing.assert_close(exported.module()(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)


def test_a_state_of_vectors_is_not_read_as_one_of_input_units() -> None:
    """Both have supports and values of the same shapes."""
    for ours, theirs, words in (("input:2", "vector:2", "without"), ("vector:2", "input:2", "with")):
        layer, other = (sparse(nn.Conv2d(4, 6, 3), granularity, sparsity=0.5) for granularity in (ours, theirs))
        assert layer.support.shape == other.support.shape
        before = layer.dense_weight()
        with pytest.raises(
            RuntimeError, match=f"support comes from a layer {words} input units; this layer has .*{ours}"
        ):
            nn.Sequential(layer).load_state_dict(nn.Sequential(other).state_dict())
        assert torch.equal(layer.dense_weight(), before)
        again = sparse(nn.Conv2d(4, 6, 3), ours, sparsity=0.7)
        again.load_state_dict(layer.state_dict())
        assert torch.equal(again.dense_weight(), before)


@pytest.mark.parametrize(
    ("cls", "groups", "words"),
    [
        (nn.Conv2d, 1, "granularity is 'input:4' and the layer has 6 input channels, which is no multiple of 4; leave"),
        (nn.ConvTranspose2d, 1, "the layer has 6 input channels, which is no multiple of 4"),
        (nn.Conv2d, 2, "3 input channels in each of its 2 groups, which is no multiple of 4"),
        (nn.ConvTranspose2d, 6, "1 input channel in each of its 6 groups, which is no multiple of 4"),
    ],
)
def test_input_channels_that_are_no_whole_units(cls: Any, groups: int, words: str) -> None:
    net = nn.Sequential(cls(6, 12, 3, groups=groups))
    with pytest.raises(ValueError, match=f"0: .*{words}"):
        sg.sparsify(net, 0.5, "input:4")
    assert isinstance(net[0], cls)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2), nn.Conv2d(8, 4, 3)))


def test_granularity_and_sparsity_by_layer() -> None:
    net = sg.sparsify(network(), {"1.*": 0.5, "*": 0.25}, parse_granularity("1.0=filter,kernel,1.1=2:4"))
    found = {name: (layer.granularity, round(layer.sparsity, 2)) for name, layer in sg.sparse_layers(net)}
    assert found == {"0": ("kernel", 0.25), "1.0": ("filter", 0.5), "1.1": ("2:4", 0.5)}
    sg.shrink(net, {"1.0": 0.75, "*": 0.5})
    sg.sparsify(net, {"0": 0.75, "*": 0.5})  # the layers are sparse already
    assert [round(layer.sparsity, 2) for _, layer in sg.sparse_layers(net)] == [0.75, 0.75, 0.5]
    before = [layer.nnz for _, layer in sg.sparse_layers(net)]
    with pytest.raises(ValueError, match=r"1\.1: sparsity is 0\.9; with granularity '2:4'"):
        sg.shrink(net, 0.9)
    assert [layer.nnz for _, layer in sg.sparse_layers(net)] == before


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"granularity": {"1*": "filter"}}, r"granularity has no pattern that matches layer 0; its patterns are '1\*'"),
        (
            {"granularity": {"*": "element", "0": "filter"}},
            r"granularity has the patterns \['0'\], which no layer takes",
        ),
        ({"granularity": {"*": "element", "7": "atom"}}, "granularity is 'atom'"),
        ({"sparsity": {"0": 0.5, "9": 0.5, "*": 0.5}}, r"sparsity has the patterns \['9'\], which no layer takes"),
        ({"sparsity": {"0": 0.5, "1*": 1.0}}, "sparsity is 1.0; it must be"),
        ({"sparsity": {"0": 0.5}}, "sparsity has no pattern that matches layer 1.0"),
    ],
)
def test_settings_by_layer_that_do_not_fit(how: dict, words: str) -> None:
    net = network()
    with pytest.raises(ValueError, match=words):
        sg.sparsify(net, **{"sparsity": 0.5, **how})
    assert not list(sg.sparse_layers(net))


def test_the_granularity_option_of_the_command() -> None:
    assert parse_granularity("vector:8") == "vector:8"
    assert parse_granularity("a=input:4,input:2") == {"a": "input:4", "*": "input:2"}
    assert parse_granularity("element,model.1*=filter") == {"model.1*": "filter", "*": "element"}
    assert parse_granularity("a=2:4,b=kernel") == {"a": "2:4", "b": "kernel"}
    for text, words in (("a=filter,a=kernel", "the pattern 'a' twice"), ("a=", "granularity is ''"), ("", "is ''")):
        with pytest.raises(ValueError, match=words):
            parse_granularity(text)
