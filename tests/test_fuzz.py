"""State_dicts and ops given anything: an error leaves everything as it was, and nothing reads where it must not."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.engine.steps import Gather, Pointwise


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.Conv2d(4, 3, 1))
    return sg.sparsify(net, 0.7).eval().to(dtype)


def image(n: int = 2, size: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n)).to(dtype)


def test_any_state_dict() -> None:
    """A thousand damaged ones: an error leaves the model as it was, and working."""
    net = network()
    draw = np.random.default_rng(0)
    good = copy.deepcopy(net.state_dict())
    wanted = net(image())

    def spoiled(name: str, one: Tensor) -> Any:
        how = draw.integers(11)
        support = name.endswith("support")
        if how == 0:
            return one[: int(draw.integers(len(one)))] if one.dim() else one
        if how == 1:
            return torch.cat([one, one[-1:]])
        if how == 2:
            return one.flip(0)
        if how == 3:
            return one - 10**6 if support else one * float("nan")
        if how == 4:
            return one + 10**6 if support else one.to(torch.int64)
        if how == 5:
            return one.double() if support else one.to(torch.complex64)
        if how == 6:
            return one.to("meta")
        if how == 7:
            return one.view(1, -1)
        if how == 8:
            return [1, 2, 3]
        if how == 9:
            return one[:1].expand(one.shape)
        return one.to(torch.int64) * 2**40 if support else None

    refused = 0
    for _ in range(1000):
        state: dict[str, Any] = dict(good)
        for name in draw.choice(list(state), draw.integers(1, 3), replace=False):
            if draw.random() < 0.1:
                del state[name]
            else:
                state[name] = spoiled(name, state[name])
        try:
            net.load_state_dict(state)
        except (RuntimeError, ValueError, TypeError, AttributeError):
            refused += 1
            layers = dict(sg.sparse_layers(net))
            for name, layer in layers.items():
                assert layer.values.shape[0] == layer.support.shape[0], name
        assert net(image()).shape == wanted.shape
        net.load_state_dict(good)
        torch.testing.assert_close(net(image()), wanted)
    assert refused > 500


def test_any_arguments_of_the_engines_ops() -> None:
    """Tensors of other shapes and dtypes, of other layers, that share memory, cut short: an error, or nothing bad."""
    net = network()
    for _, layer in sg.sparse_layers(net):
        layer.kernel = "sparse"
    engine = sg.optimize_for_inference(net, image())
    other = sg.optimize_for_inference(
        sg.sparsify(nn.Sequential(nn.Conv2d(8, 8, 5)), 0.5).eval(), torch.randn(1, 8, 9, 9)
    )
    steps = [step for step in (*engine.steps(), *other.steps()) if isinstance(step, Gather | Pointwise)]
    draw = np.random.default_rng(1)
    calls: list[tuple[Any, list[Any]]] = []

    for step in steps:
        if isinstance(step, Gather):
            x, y = (torch.randn(one.shape) for one in (step.x.slot, step.y))
            none: list[Any] = [None] * 3
            taps = [step.values, step.bias, step.support, step.plan, step.geometry, step.adjoint]
            args = [x, *none, *taps, 0, list(step.pad_before), 1.0, 0, step.shuffle, None, None, 0.0, y, None, None]
            calls.append((torch.ops.sparsegan.gather_fused.default, args))
    x = torch.randn(2, 3, 4, 4)
    calls.append((torch.ops.sparsegan.pointwise.default, [x, None, None, None, x + 1, None, None, None, 0, 1, x * 0]))
    tensors = [one for _, args in calls for one in args if isinstance(one, Tensor)]
    for op, args in calls:
        op(*args)
        refused = 0
        for _ in range(400):
            bad = list(args)
            for at in draw.choice(len(bad), draw.integers(1, 3), replace=False):
                one = bad[at]
                how = draw.integers(7)
                if isinstance(one, Tensor) and how == 0:
                    bad[at] = one[: len(one) // 2]
                elif isinstance(one, Tensor) and how == 1:
                    bad[at] = one.double() if one.is_floating_point() else one.long()
                elif isinstance(one, Tensor) and how == 2:
                    bad[at] = tensors[int(draw.integers(len(tensors)))]
                elif isinstance(one, Tensor) and how == 3 and one.dim() == 4:
                    bad[at] = one.transpose(2, 3)
                elif isinstance(one, Tensor) and how == 4:
                    bad[at] = (one * 0 + 2**30).to(one.dtype) if not one.is_floating_point() else one.flatten()
                elif isinstance(one, list) and one:
                    bad[at] = [int(number) for number in draw.integers(-3, 40, len(one) - int(how == 5))]
                elif isinstance(one, bool):
                    bad[at] = not one
                elif isinstance(one, int):
                    bad[at] = int(draw.integers(-2, 9))
            try:
                op(*[one.clone() if isinstance(one, Tensor) and draw.random() < 0.8 else one for one in bad])
            except (RuntimeError, ValueError, TypeError):
                refused += 1
        assert refused > 100
