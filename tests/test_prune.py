"""Model surgery: sparsify, densify and shrink keep modes, hooks, shared layers and optimizer state."""

from __future__ import annotations

import masked
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import sparsegan as sg
from sparsegan.nn.granularity import check_granularity, magnitude_mask


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2)), nn.Conv2d(4, 3, 1)
    )


def test_sparsify_and_back() -> None:
    net = model().eval()
    net[0].weight.requires_grad_(False)
    assert sg.sparsify(net, sparsity=0.9, exclude=("3",)) is net
    assert [name for name, _ in sg.sparse_layers(net)] == ["0", "2.0"]
    assert not net[0].training
    assert not net[0].values.requires_grad
    assert type(net[3]) is nn.Conv2d
    x = torch.randn(2, 3, 8, 8)
    y = net(x)
    assert sg.densify(net) is net
    assert type(net[2][0]) is nn.ConvTranspose2d
    torch.testing.assert_close(net(x), y)
    assert (net[0].weight == 0).float().mean() == pytest.approx(0.9, abs=0.01)
    again = sg.sparsify(net)  # without a sparsity, the existing zeros are the mask
    assert again[0].sparsity == pytest.approx(0.9, abs=0.01)


def test_a_bare_layer_a_shared_layer_and_hooks() -> None:
    assert isinstance(sg.sparsify(nn.Conv2d(3, 4, 3), 0.5), sg.SparseConv2d)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    torch_prune.random_unstructured(conv, "weight", 0.5)
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    net = sg.sparsify(nn.Sequential(conv, nn.Sequential(conv)))
    assert net[0] is net[1][0]
    net(torch.randn(1, 4, 5, 5))
    assert calls == [1, 1]
    assert net[0].sparsity == pytest.approx(0.5, abs=0.01)


def test_refusals_leave_the_model_alone() -> None:
    net = model()
    for how, words in (
        ({"sparsity": 2}, "sparsity is 2"),
        ({"sparsity": 0.5, "granularity": "x"}, "granularity is 'x'"),
        ({"sparsity": 0.5, "exclude": ("nothing*",)}, "nothing"),
        (
            {"sparsity": 0.5, "granularity": "vector:4"},
            r"3: granularity is 'vector:4' and the layer has 3 output.*excl",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            sg.sparsify(net, **how)
    tied = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="share one weight"):
        sg.sparsify(tied, 0.5)
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=4))
    with pytest.raises(ValueError, match=r"1: .* 2 output channels in each of its 4 groups, .* no multiple of 4"):
        sg.sparsify(grouped, 0.5, "vector:4")
    for untouched in (net, tied, grouped):
        assert not list(sg.sparse_layers(untouched))


class Padded(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def test_a_subclass_with_another_forward_stays_dense_and_is_named() -> None:
    net = nn.Sequential(Padded(3, 4, 3), nn.Conv2d(4, 3, 3))
    with pytest.warns(UserWarning, match="0 is a .*Padded, not torch.nn's own layer"):
        sg.sparsify(net, 0.5)
    assert [name for name, _ in sg.sparse_layers(net)] == ["1"]


def test_magnitude_ties_are_broken_by_position() -> None:
    assert magnitude_mask(torch.tensor([1.0, -1.0, 1.0, 0.5, 2.0]), 0.4).tolist() == [True, True, False, False, True]
    vectors = torch.tensor([[3.0, 1.0], [4.0, 1.0], [-5.0, 0.0], [0.0, 7.0]])  # norms [[5, 1.41], [5, 7]]
    for weight, transposed in ((vectors, False), (vectors.T, True)):
        mask = magnitude_mask(weight, 0.5, "vector:2", transposed)
        assert (mask.T if transposed else mask).tolist() == [[True, False], [True, False], [False, True], [False, True]]


@pytest.mark.parametrize(
    "granularity",
    [*"vector vector:1 vector:65 vector:04 input:1 input:65 input inputs:4 Element".split(), "vector:4 ", "", 4],
)
def test_invalid_granularities_are_refused(granularity: object) -> None:
    with pytest.raises(
        ValueError, match=r"accepted: 'element', 'vector:V' with V from 2 to 64, 'input:D' .* 'kernel', 'fil"
    ):
        check_granularity(granularity)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("granularity", "vector"), [("element", 1), ("vector:2", 2), ("vector:4", 4), ("input:2", 2), ("input:4", 4)]
)
def test_pruning_step_by_step_follows_the_masked_dense_twin(granularity: str, vector: int) -> None:
    """Masks and weights are those of the twin, and each layer keeps its granularity."""
    nets = [nn.Sequential(nn.Conv2d(4, 8, 3, groups=1), nn.ConvTranspose2d(8, 8, 4, 2, groups=2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours, theirs = sg.sparsify(nets[0], 0.3, granularity), masked.sparsify(nets[1], 0.3, granularity)
    for sparsity in (0.3, 0.55, 0.9):
        sg.sparsify(ours, sparsity, "vector:64")  # this granularity is for dense layers, and there are none
        masked.shrink(theirs, sparsity)
        for name, module, mask in masked.masks(theirs):
            layer = ours.get_submodule(name)
            assert layer.granularity == granularity
            assert torch.equal(layer.mask(), mask.mask)
            assert torch.equal(layer.dense_weight(), module.weight)
            assert layer.nnz == int(mask.mask.sum()) == vector * layer.support.shape[0]


@pytest.mark.parametrize("granularity", ["element", "vector:4", "input:4"])
@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_shrinking_carries_the_optimizer_state(make: object, granularity: str) -> None:
    """Values that stay keep their moments and gradients."""
    layer = sg.SparseConv2d(4, 8, 3, sparsity=0.5, granularity=granularity)
    vector = layer.geometry.vector
    optimizer = make(layer.parameters())  # type: ignore[operator]
    x = torch.randn(2, 4, 6, 6)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    values, parameter = layer.values.detach().clone(), layer.values
    moments = {k: v for k, v in optimizer.state[parameter].items() if torch.is_tensor(v) and v.shape == values.shape}
    state = {k: v.clone() for k, v in moments.items()}
    grad, support = parameter.grad.clone(), layer.support.clone()
    sg.shrink(layer, 0.8, optimizer)
    assert layer.values is parameter
    assert layer.nnz == 288 - round(0.8 * 288 / vector) * vector
    stayed = torch.isin(support, layer.support)
    norms = values.view(-1, vector).norm(dim=1)
    assert norms[stayed].min() >= norms[~stayed].max()
    stayed = stayed.repeat_interleave(vector)
    assert int(stayed.sum()) == layer.nnz
    assert torch.equal(layer.values, values[stayed])
    assert torch.equal(parameter.grad, grad[stayed])
    assert state
    for name, before in state.items():
        assert torch.equal(optimizer.state[parameter][name], before[stayed])
    optimizer.step()
    nnz = layer.nnz
    sg.shrink(layer, 0.3, optimizer)  # a lower sparsity brings no weight back
    assert layer.nnz == nnz


def test_shrinking_while_a_graph_of_the_last_step_lives() -> None:
    layer, x = sg.SparseConv2d(4, 8, 3, sparsity=0.2), torch.randn(1, 4, 6, 6)
    loss = layer(x).sum()
    loss.backward()
    sg.shrink(layer, 0.5)
    layer(x).sum().backward()
    assert layer.values.grad.shape == layer.values.shape
    assert loss.requires_grad
