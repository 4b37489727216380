"""Model surgery: sparsify, densify, shrink, and what they must not lose."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import sparsegan as sg
from sparsegan.granularity import magnitude_mask


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
    again = sg.sparsify(net)  # without a sparsity: the zeros that are there
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
    ):
        with pytest.raises(ValueError, match=words):
            sg.sparsify(net, **how)
    tied = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="share one weight"):
        sg.sparsify(tied, 0.5)
    assert not list(sg.sparse_layers(net))
    assert not list(sg.sparse_layers(tied))


class Padded(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def test_a_layer_with_a_forward_of_its_own_stays_dense_and_is_named() -> None:
    net = nn.Sequential(Padded(3, 4, 3), nn.Conv2d(4, 3, 3))
    with pytest.warns(UserWarning, match="0 is a .*Padded, not torch.nn's own layer"):
        sg.sparsify(net, 0.5)
    assert [name for name, _ in sg.sparse_layers(net)] == ["1"]
    with pytest.raises(ValueError, match="parametrization"):
        sg.sparsify(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))), 0.5)


def test_magnitude_ties_are_broken_by_position() -> None:
    assert magnitude_mask(torch.tensor([1.0, -1.0, 1.0, 0.5, 2.0]), 0.4).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_shrinking_carries_the_optimizer_state(make: object) -> None:
    """What survives has the moments it had: the same as a masked-dense layer's, position by position."""
    layer = sg.SparseConv2d(4, 8, 3, sparsity=0.5)
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
    assert layer.nnz == 288 - round(0.8 * 288)
    stayed = torch.isin(support, layer.support)
    assert int(stayed.sum()) == layer.nnz
    assert values[stayed].abs().min() >= values[~stayed].abs().max()
    assert torch.equal(layer.values, values[stayed])
    assert torch.equal(parameter.grad, grad[stayed])
    assert state
    for name, before in state.items():
        assert torch.equal(optimizer.state[parameter][name], before[stayed])
    optimizer.step()
    nnz = layer.nnz
    sg.shrink(layer, 0.3, optimizer)  # never revives
    assert layer.nnz == nnz


def test_shrinking_while_a_graph_of_the_last_step_lives() -> None:
    layer, x = sg.SparseConv2d(4, 8, 3, sparsity=0.2), torch.randn(1, 4, 6, 6)
    loss = layer(x).sum()
    loss.backward()
    sg.shrink(layer, 0.5)
    layer(x).sum().backward()
    assert layer.values.grad.shape == layer.values.shape
    assert loss.requires_grad
