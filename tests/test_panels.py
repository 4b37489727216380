"""Panels that several sparse convolutions of an engine share (sparsegan/engine/panels.py)."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.engine import panels
from sparsegan.engine.steps import SparseConvStep


class DenseBlock(nn.Module):
    """Convolutions of one grid that each read all channels so far, and other readers of the same values."""

    def __init__(self, choose: random.Random) -> None:
        super().__init__()
        kernel = choose.choice([1, 3, 5])
        mode = choose.choice(["zeros", "reflect", "replicate", "circular"])
        widths = [choose.randint(1, 9) for _ in range(choose.randint(2, 5))]
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        self.grown = nn.ModuleList(
            nn.Conv2d(sum(widths[:i]), widths[i], kernel, padding=kernel // 2, padding_mode=mode)
            for i in range(1, len(widths))
        )
        self.activations = nn.ModuleList(
            choose.choice([nn.LeakyReLU(0.2), nn.PReLU(width), nn.ReLU(), nn.Identity()]) for width in widths
        )
        total = sum(widths)
        self.same = nn.Conv2d(total, 4, kernel, padding=kernel // 2, padding_mode=mode)
        self.strided = nn.Conv2d(total, 4, 4, stride=2, padding=1)
        self.transposed = nn.ConvTranspose2d(total, 4, 4, stride=2, padding=1)
        self.again = nn.ConvTranspose2d(total, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = [self.activations[0](self.first(x))]
        for conv, activation in zip(self.grown, self.activations[1:], strict=True):
            parts.append(activation(conv(torch.cat(parts, 1))))
        whole = torch.cat(parts, 1)
        return self.same(whole), self.strided(whole), self.transposed(whole) * self.again(whole).mean(1, keepdim=True)


def sparse(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    model = sg.sparsify(DenseBlock(random.Random(seed)), sparsity=0.6).to(dtype).eval()
    for layer in model.modules():
        if isinstance(layer, sg.SparseConv2d | sg.SparseConvTranspose2d):
            layer.backend = "sparse"
    return model


def shared(engine: Any) -> list[SparseConvStep]:
    return [step for step in engine.steps() if isinstance(step, SparseConvStep) and step.panel is not None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_shared_panel_changes_no_output(seed: int, threads: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense blocks of random widths, kernels, paddings, activations, batches and sizes equal the module."""
    monkeypatch.setattr(panels, "MOST_GROWTH", 10.0)
    model, choose = sparse(seed), random.Random(seed + 100)
    batch, height, width = choose.randint(1, 9), choose.randint(6, 41), choose.randint(6, 41)
    x = torch.randn(batch, 3, 2 * height, 2 * width, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            engine = sg.optimize_for_inference(model, x)
            assert len(shared(engine)) >= 3
            for size in (x, x[:1, :, 3:]):  # the second size is another program in the same memory
                for found, wanted in zip(engine(size), model(size), strict=True):
                    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    finally:
        torch.set_num_threads(before)


def test_each_channel_is_packed_once_and_read_from_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that believes that channels are packed, which no step has packed, gives other outputs."""
    monkeypatch.setattr(panels, "MOST_GROWTH", 10.0)
    model, x = sparse(3), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        engine = sg.optimize_for_inference(model, x)
        steps = shared(engine)
        packed: dict[Any, int] = {}
        for step in steps:
            assert step.panel is not None
            assert step.packed == min(packed.get(step.panel, 0), step.x.slot.shape[1])
            packed[step.panel] = max(packed.get(step.panel, 0), step.x.slot.shape[1])
        assert all(panel.channels == channels for panel, channels in packed.items())
        fresh = next(step for step in steps if step.packed < step.x.slot.shape[1] and step.packed > 0)
        fresh.packed = fresh.x.slot.shape[1]
        engine._workspaces.clear()  # steps read `packed` when they are bound to memory
        wrong = engine(x)
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(wrong, model(x), strict=True))


def test_a_dense_block_of_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(3, 8, 3, padding=1)
            self.grown = nn.ModuleList(nn.Conv1d(8 + 4 * i, 4, 3, padding=2, dilation=2) for i in range(4))

        def forward(self, x: Tensor) -> Tensor:
            parts = [self.first(x)]
            for conv in self.grown:
                parts.append(torch.relu(conv(torch.cat(parts, 1))))
            return torch.cat(parts, 1)

    monkeypatch.setattr(panels, "MOST_GROWTH", 10.0)
    torch.manual_seed(0)
    model = sg.sparsify(Block(), sparsity=0.6).double().eval()
    for _, layer in sg.sparse_layers(model):
        layer.backend = "sparse"
    x = torch.randn(3, 3, 40, dtype=torch.float64)
    with torch.no_grad():
        engine = sg.optimize_for_inference(model, x)
        assert len(shared(engine)) == 4
        for signals in (x, x[:1, :, 3:], x[:, :, :1]):
            torch.testing.assert_close(engine(signals), model(signals), rtol=1e-11, atol=1e-11)


def test_a_panel_that_is_too_large_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = sparse(3), torch.randn(2, 3, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        monkeypatch.setattr(panels, "MOST_GROWTH", 0.0)
        alone = sg.optimize_for_inference(model, x)
        assert not shared(alone)
        monkeypatch.setattr(panels, "MOST_GROWTH", 10.0)
        monkeypatch.setattr(panels, "MOST_BYTES", 100)
        assert not shared(sg.optimize_for_inference(model, x))
        for found, wanted in zip(alone(x), model(x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"panel": torch.zeros(8, dtype=torch.uint8)}, "panel has 8 bytes"),
        ({"panel": torch.zeros(1 << 20)}, "panel must be a contiguous uint8 tensor"),
        ({"panel_packed": 6}, "panel_packed is 6"),
        ({"panel_packed": -1}, "panel_packed is -1"),
        ({"panel_channels": 4}, "panel_channels is 4"),
        ({"panel_tile": [0, 4]}, "panel_tile"),
        ({"panel_tile": [4]}, "panel_tile"),
    ],
)
def test_the_op_refuses_a_panel_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    layer = sg.SparseConv2d(5, 4, 3, padding=1, sparsity=0.5)
    x, y = torch.randn(1, 5, 8, 8), torch.empty(1, 4, 8, 8)
    geometry, support = layer.geometry, layer.support
    plan, order = sg.ops.plan.compile_direct_plan(support, geometry, False)
    fixed = (
        x,
        None,
        None,
        None,
        layer.values.detach()[order],
        None,
        support,
        plan,
        geometry.numbers(),
        False,
        0,
        [0, 0],
    )
    tile, size = sg.ops.native.shared_panel(geometry.numbers(), False, len(support), 1, [8, 8], [8, 8], False, 5)
    panel = torch.empty(size, dtype=torch.uint8)
    given = {"panel": panel, "panel_channels": 5, "panel_packed": 0, "panel_tile": list(tile)}
    op = torch.ops.sparsegan.sparse_conv_fused.default
    op(*fixed, 1.0, 0, 1, None, None, 0.0, y, None, None, **given)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, layer.to_dense().weight, padding=1))
    with pytest.raises(RuntimeError, match=message):
        op(*fixed, 1.0, 0, 1, None, None, 0.0, y, None, None, **(given | change))
