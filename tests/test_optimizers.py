"""``shrink`` with every optimizer: the state follows the support, or the optimizer is refused before any change."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import masked
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

import sparsegan as sg
from sparsegan.pruning.surgery import move_support, shrink


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()


def step(model: nn.Module, optimizer: optim.Optimizer, number: int) -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    (model(x) - 0.3).square().mean().backward()
    optimizer.step()


# Optimizers that update each weight independently. Masked dense weights are the reference.
OPTIMIZERS: dict[str, Any] = {
    "SGD": partial(optim.SGD, lr=0.1),
    "SGD with momentum": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": partial(optim.Adam, lr=0.01),
    "Adam, amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True),
    "Adam, foreach": partial(optim.Adam, lr=0.01, foreach=True),
    "Adam, fused": partial(optim.Adam, lr=0.01, fused=True),
    "AdamW": partial(optim.AdamW, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": partial(optim.Adagrad, lr=0.01, initial_accumulator_value=0.1),
    "Adadelta": optim.Adadelta,
    "ASGD": partial(optim.ASGD, lr=0.01),
    "Rprop": optim.Rprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shrinking_follows_the_masked_dense_twin(name: str) -> None:
    sparse, dense = sg.sparsify(network(), 0.2), masked.sparsify(network(), 0.2)
    ours, theirs = OPTIMIZERS[name](sparse.parameters()), OPTIMIZERS[name](dense.parameters())
    schedule = optim.lr_scheduler.ExponentialLR(ours, 1.0)
    for sparsity in (0.5, 0.7, 0.9):
        for number in range(3):
            step(sparse, ours, number)
            step(dense, theirs, number)
        shrink(sparse, sparsity, schedule if sparsity == 0.7 else ours)
        masked.shrink(dense, sparsity)
        for number in range(3):
            step(sparse, ours, number)
            step(dense, theirs, number)
        for layer, (_, other, mask) in zip((sparse[0], sparse[2]), masked.masks(dense), strict=True):
            assert torch.equal(layer.mask(), mask.mask)
            torch.testing.assert_close(layer.dense_weight(), other.weight, rtol=1e-9, atol=1e-12)


def test_the_step_count_survives_in_a_layer_of_one_value() -> None:
    layer = sg.SparseConv2d(1, 2, 1, mask=torch.tensor([True, True]).view(2, 1, 1, 1), bias=False).double()
    optimizer = optim.Adam(layer.parameters(), capturable=False)
    layer(torch.ones(1, 1, 1, 1, dtype=torch.float64)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state[layer.values])
    shrink(layer, 0.5, optimizer)
    after = optimizer.state[layer.values]
    assert after["exp_avg"].shape == (1,)
    assert torch.equal(after["step"], before["step"])
    move_support(layer, layer.support, torch.tensor([-1]), optimizer)  # a new value: moments of 0, the same step count
    assert after["exp_avg"].item() == 0
    assert torch.equal(optimizer.state[layer.values]["step"], before["step"])


def test_any_state_of_the_shape_of_the_values_follows() -> None:
    """A user's optimizer may keep state in lists and dicts."""

    class Own(optim.Optimizer):
        def __init__(self, parameters: Any, extra: int = 1) -> None:
            super().__init__(parameters, {})
            self.extra = extra

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for one in group["params"]:
                    self.state[one] = {
                        "history": [one.detach().clone(), (one.detach().clone(), 3)],
                        "of": {"it": one.detach().clone(), "count": torch.zeros(1)},
                        "rows": torch.zeros(self.extra),
                    }

    layer = sg.SparseConv2d(3, 4, 3, sparsity=0.2)
    own = Own(layer.parameters())
    own.step()
    shrink(layer, 0.7, own)
    state, values = own.state[layer.values], layer.values.detach()
    for one in (state["history"][0], state["history"][1][0], state["of"]["it"]):
        assert torch.equal(one, values)
    assert state["history"][1][1] == 3

    other = Own(layer.parameters(), extra=5)
    other.step()
    with pytest.raises(ValueError, match=r"Own keeps 'rows' of shape \(5,\)"):
        shrink(layer, 0.9, other)
    assert torch.equal(layer.values, values)


def test_optimizers_that_do_not_hold_the_layers() -> None:
    model = sg.sparsify(network(), 0.3)
    before = [one.detach().clone() for one in model.parameters()]
    elsewhere = optim.Adam(network().parameters())
    first, second = optim.Adam(model[0].parameters()), optim.SGD(model[2].parameters(), 0.1, momentum=0.9)
    for optimizer, words in (
        (elsewhere, "does not hold the values of 0, 2"),
        (first, "does not hold the values of 2, so"),
        ([first, elsewhere], "does not hold the values of 2, so"),
        (optim.LBFGS(model.parameters()), "optimizer is LBFGS"),
    ):
        with pytest.raises(ValueError, match=words):
            shrink(model, 0.8, optimizer)
    for wrong in ("adam", torch.amp.GradScaler("cpu"), [first, 3]):
        with pytest.raises(TypeError, match="it must be a torch"):
            shrink(model, 0.8, wrong)
    assert all(torch.equal(one, old) for one, old in zip(model.parameters(), before, strict=True))
    step(model, first, 0)
    second.step()
    shrink(model, 0.8, [first, second])
    assert first.state[model[0].values]["exp_avg"].shape == model[0].values.shape
    assert second.state[model[2].values]["momentum_buffer"].shape == model[2].values.shape
    model[2].requires_grad_(False)
    shrink(model, 0.9, first)  # frozen values need no optimizer
    assert model[2].sparsity == pytest.approx(0.9, abs=0.02)


def test_under_distributed_data_parallel(tmp_path: Any) -> None:
    """The buckets of the wrapper have the old sizes, so the model must be wrapped again. Then it trains as before."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        _wrapped_again()  # in a function, so that the wrappers are deleted before the process group
    finally:
        dist.destroy_process_group()


def _wrapped_again() -> None:
    plain, inside = sg.sparsify(network(), 0.3), sg.sparsify(network(), 0.3)
    wrapped = nn.parallel.DistributedDataParallel(inside)
    optimizers = [optim.Adam(model.parameters(), 0.01) for model in (plain, inside)]
    step(plain, optimizers[0], 0)
    step(wrapped, optimizers[1], 0)
    with pytest.raises(ValueError, match=r"shrink its `\.module`.*wrap that module again"):
        shrink(wrapped, 0.7, optimizers[1])
    with pytest.raises(ValueError, match="0 is a DistributedDataParallel"):
        shrink(nn.Sequential(wrapped), 0.7, optimizers[1])
    for model, optimizer in zip((plain, inside), optimizers, strict=True):
        shrink(model, 0.7, optimizer)
    wrapped = nn.parallel.DistributedDataParallel(inside)
    for number in range(3):
        step(plain, optimizers[0], number)
        step(wrapped, optimizers[1], number)
    ours: list[Tensor] = list(inside.parameters())
    assert all(torch.equal(one, other) for one, other in zip(ours, plain.parameters(), strict=True))
