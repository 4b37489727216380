"""Counted multiply-accumulates, FLOPs of torch's counter, bytes of a training state, and the rows of a profile."""

from __future__ import annotations

import masked
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparsegan as sg
from sparsegan.profiling.macs import masked_dense_bytes


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 4, 4, 2, 1),
        nn.Conv2d(4, 2, 1),
    )


@pytest.mark.parametrize("granularity", ["element", "vector:4", "input:4"])
def test_macs_and_flops_agree_with_torch(granularity: str) -> None:
    dense, x = net(), torch.randn(3, 4, 16, 16)
    with FlopCounterMode(display=False) as counter:
        dense(x)
    report = sg.count_macs(dense, x)
    assert 2 * report.dense == 2 * report.executed == counter.get_total_flops()

    model = sg.sparsify(net(), sparsity=0.9, granularity=granularity, exclude=("3",))
    for _, layer in sg.sparse_layers(model):
        layer.backend = "sparse"
    statistics = model[1].running_mean.clone()
    report = sg.count_macs(model, x)
    assert torch.equal(model[1].running_mean, statistics)
    assert 2 * report.dense == counter.get_total_flops()
    assert [r.executed / r.dense < 0.11 for r in report.rows] == [True, True, False]
    with FlopCounterMode(display=False) as counter:
        y = model(x)
    assert counter.get_total_flops() == 2 * report.executed
    first = report.rows[0].executed  # the input of this layer needs no gradient
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * report.executed - first)


@pytest.mark.parametrize(("granularity", "vector"), [("element", 1), ("vector:4", 4), ("input:4", 4)])
def test_training_bytes(granularity: str, vector: int) -> None:
    model = sg.sparsify(nn.Sequential(nn.Conv2d(16, 16, 3, bias=False)), sparsity=0.9, granularity=granularity)
    model[0].backend = "sparse"
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, 16, 8, 8)).sum().backward()
    optimizer.step()
    nnz = model[0].nnz
    size = sg.training_bytes(model, optimizer)
    assert nnz == 2304 // vector * vector - round(0.9 * 2304 / vector) * vector
    assert (size["parameters"], size["gradients"], size["support"]) == (4 * nnz, 4 * nnz, 4 * nnz // vector)
    assert size["optimizer"] == 8 * nnz + 4  # two moments, and the step count
    assert size["plans"] > 0


def test_masked_dense_bytes_are_those_of_the_masked_twin() -> None:
    model = sg.sparsify(net(), sparsity=0.9, exclude=("3",))
    model[1].weight.requires_grad_(False)
    twin = masked.sparsify(net(), 0.9, exclude=("3",))
    twin[1].weight.requires_grad_(False)
    trained = [p for p in twin.parameters() if p.requires_grad]
    held = sum(p.nbytes for p in twin.parameters()) + 3 * sum(p.nbytes for p in trained)
    held += sum(mask.mask.nbytes for _, _, mask in masked.masks(twin))
    assert masked_dense_bytes(model) == held


def test_profile_has_a_row_per_layer_and_tune_sets_its_backend() -> None:
    model, x = sg.sparsify(net(), sparsity=0.9), torch.randn(1, 4, 16, 16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = sg.profile(model, x, seconds=0.01)
    assert [row.name for row in report.rows] == ["0", "2", "3"]
    for row in report.rows:
        assert row.backend in ("sparse", "dense")
        assert row.why
        assert row.dense_ms > 0 < row.sparse_ms
        assert row.name in str(report)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    pinned = sg.tune(model, x, seconds=0.01)
    assert [model[int(row.name)].backend for row in pinned.rows] == [row.faster for row in pinned.rows]
