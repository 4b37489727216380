"""Random hostile input: state_dicts for a layer, and calls of the ops. Each raises or gives a right result.

``SPARSEGAN_FUZZ=200000`` sets how many of each are tried. ``make sanitize`` reports accesses outside of tensors.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import SMALLS
from test_fused import arguments, bent, direct
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.ops import OUTPUT_ACTIVATIONS, PADDING_MODES, reference
from sparsegan.ops.plan import compile_plan

ROUNDS = int(os.environ.get("SPARSEGAN_FUZZ", "1500"))
#: The exceptions that an op or load_state_dict may raise.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, OverflowError)
HUGE = (0, 1, -1, 2, 3, 7, 64, 65, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8)
DTYPES += (torch.bool, torch.complex64)  # type: ignore[assignment]


def _unsorted(t: Tensor) -> Tensor:
    return t.flip(0) if t.dim() else t


def _put(number: float) -> Callable[[Tensor], Tensor]:
    def put(t: Tensor) -> Tensor:
        t = t.clone()
        if t.numel():
            t.view(-1)[random.randrange(t.numel())] = number
        return t

    return put


def _resized(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(random.choice([0, t.element_size()]))
    return t


#: Changes of any tensor.
CHANGES: list[Callable[[Tensor], Any]] = [
    _unsorted,
    _put(-1),
    _put(0),
    _put(2**31 - 1),
    _put(5),
    lambda t: t.to(random.choice(DTYPES)),
    lambda t: t[:-1] if t.dim() else t,
    lambda t: t[:0] if t.dim() else t,
    lambda t: torch.cat([t, t]) if t.dim() else t,
    lambda t: torch.cat([t[:1], t[:-1]]) if t.dim() else t,
    lambda t: t.unsqueeze(0),
    lambda t: t.sum(),
    lambda t: t.reshape(-1),
    lambda t: t.transpose(0, -1) if t.dim() > 1 else t,
    lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t,  # the same numbers, not contiguous
    lambda t: t[..., :1].expand(t.shape) if t.dim() else t,  # one storage element per row
    lambda t: torch.zeros(1, dtype=t.dtype).expand(*random.choices(HUGE[1:4:2], k=3), 2**40),
    lambda t: t.to("meta"),
    lambda t: t.tolist(),
    lambda t: None,
    lambda t: 3,
    lambda t: "text",
    lambda t: torch.randn(8, 4, 3, 3),
    lambda t: torch.rand(8, 4, 3, 3) < 0.5,
]
#: Changes of an entry of a state_dict.
ENTRY_CHANGES = [
    *CHANGES,
    _put(float("nan")),
    _resized,
    lambda t: t.numpy(),
    lambda t: t.to_sparse() if t.dim() else t,
    nn.Parameter,
]


def _changed(change: Callable[[Tensor], Any], t: Tensor) -> Any:
    if t.numel() > 10**6 or (t.layout == torch.strided and not t.is_meta and t.untyped_storage().nbytes() < t.numel()):
        return t  # torch's functions would read outside its storage
    try:
        return change(t)
    except (RuntimeError, TypeError, ValueError):  # this change does not fit this tensor
        return t


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_load_state_dict() -> None:
    random.seed(0)
    layers = [
        sg.SparseConv2d(4, 8, 3, padding=1, sparsity=0.5),
        sg.SparseConv2d(4, 8, 3, sparsity=0.5, granularity="vector:2"),
        sg.SparseConv2d(4, 8, 3, sparsity=0.5, granularity="input:2"),
        sg.SparseConv2d(4, 8, 3, sparsity=0.5, granularity="2:4"),
        sg.SparseConvTranspose2d(8, 4, 3, sparsity=0.5, granularity="filter"),
        sg.SparseConvTranspose2d(8, 4, 3, sparsity=0.7, bias=False),
        sg.SparseConv2d(4, 8, 3, mask=torch.rand(8, 4, 3, 3) < 0.5),
    ]
    states = []
    for layer in layers:
        dense = layer.to_dense().state_dict()
        mask = (torch.rand(dense["weight"].shape) < 0.5).float()
        pruned = {"weight_orig": torch.randn_like(mask), "weight_mask": mask}
        pruned |= {key: value for key, value in dense.items() if key != "weight"}
        states.append([layer.state_dict(), dense, pruned])
    states = copy.deepcopy(states)
    refused = taken = 0
    for _ in range(ROUNDS):
        kind = random.randrange(len(layers))
        layer, state = layers[kind], dict(random.choice(states[kind]))
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            key = random.choice(list(state))
            entry = state[key]
            if random.random() < 0.1:
                del state[key]
            elif random.random() < 0.1:
                state[random.choice(["weight", "values", "support", "bias", "weight_mask", "else"])] = entry
            elif random.random() < 0.1:
                state[key] = getattr(layer, key, entry)  # shares memory with the layer
            elif isinstance(entry, Tensor):
                state[key] = _changed(random.choice(ENTRY_CHANGES), entry)
            if not state:
                break
        before = copy.deepcopy(layer.state_dict())
        strict, assign = random.random() < 0.5, random.random() < 0.3
        try:
            layer.load_state_dict(state, strict=strict, assign=assign)
            taken += 1
        except REFUSALS as error:
            refused += 1
            if "key(s) in state_dict" not in str(error):  # torch loads the matching keys before it raises
                for name, value in layer.state_dict().items():
                    assert torch.equal(before[name], value) or bool(before[name].isnan().any()), name
        _check_works(layer)
        if assign or any(not torch.isfinite(p).all() for p in layer.parameters()):
            layers[kind] = fresh = copy.deepcopy(layer).float()
            with torch.no_grad():
                for parameter in fresh.parameters():
                    parameter.copy_(parameter.nan_to_num(0.5, 0.5, -0.5))
    assert refused > ROUNDS // 8
    assert taken > ROUNDS // 8


def _check_works(layer: Any) -> None:
    x = torch.randn(1, layer.in_channels, 5, 5, dtype=layer.values.dtype)
    layer.backend = random.choice(["auto", "dense", *(["sparse"] if x.dtype in (torch.float32, torch.float64) else [])])
    if layer.bias is not None and layer.bias.dtype != x.dtype:
        return  # after assign=True; torch's layers need equal dtypes too
    y, expected = layer(x), layer.to_dense()(x)
    if not all(bool(p.isfinite().all()) for p in layer.parameters()):
        return  # backends may or may not multiply infinities by the padding's zeros
    torch.testing.assert_close(
        y, expected, rtol=1e-2, atol=1e-2 * (1 + expected.abs().max().nan_to_num(1)).item(), equal_nan=True
    )


#: Another form of an argument of an op, often a wrong one.
def _mutated(name: str, value: Any, call: dict[str, Any]) -> Any:
    tensors = [one for one in call.values() if isinstance(one, Tensor)]
    if isinstance(value, Tensor):
        roll = random.random()
        if roll < 0.15:
            return random.choice(tensors)  # one tensor for two arguments
        if roll < 0.3:
            return _alias(random.choice(tensors), value)
        if roll < 0.4 and value.dtype == torch.int32:
            units = value.numel()
            return torch.randint(-2, max(units, 1) + 2, (units,), dtype=torch.int32).sort().values
        return _changed(random.choice(CHANGES), value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        value = list(value)
        if random.random() < 0.2:
            return value[:-1]
        if value:
            value[random.randrange(len(value))] = random.choice(HUGE)
        return value
    if isinstance(value, float):
        return random.choice([-1.0, 0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")])
    return random.choice([*HUGE, None])


def _alias(memory: Tensor, like: Tensor) -> Tensor:
    """A tensor like `like` in the memory of `memory`, at an offset of a few elements; `like` where it does not fit."""
    if memory.is_meta or like.is_meta:
        return like
    storage = torch.tensor([], dtype=like.dtype).set_(memory.untyped_storage()) if memory.numel() else memory
    start = random.choice([0, 0, 1, 3])
    if storage.dtype != like.dtype or storage.numel() < like.numel() + start:
        return like
    return storage[start : start + like.numel()].view(like.shape)


#: Arguments whose wrong values an op cannot always detect: a plan may belong to another support.
UNKNOWABLE = {"support", "plan", "adjoint_plan", "geometry", "adjoint"}


def _sparse_conv_calls() -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []
    for p in SMALLS.values():
        fused = arguments(p, dtype=torch.float32)
        calls += [("sparse_conv_fused", fused), ("sparse_conv_fused", direct(fused, p))]
        support = p.support()
        other = compile_plan(torch.arange(len(support), dtype=torch.int32), p.geometry, p.adjoint)
        calls.append(("sparse_conv_fused", fused | {"support": support, "plan": other, "values": fused["values"]}))
        taps = dict(zip(("plan", "adjoint_plan"), p.plans(support), strict=True))
        common = {"support": support, **taps, "geometry": p.numbers, "adjoint": p.adjoint}
        padding = {"padding_mode": PADDING_MODES.index(p.padding_mode), "pad_before": list(p.pad_before)}
        x, values = torch.randn(p.x_shape), torch.randn(len(support) * p.geometry.vector)
        bias, size = torch.randn(p.y_shape[1]), list(p.y_shape[1:])
        sparse_conv = {"x": x, "values": values, "bias": bias, **common, "output_size": size, **padding}
        calls.append(("sparse_conv", sparse_conv | {"negative_slope": 0.5}))
        calls.append(("wgrad", {"gy": torch.randn(p.y_shape), "x": x, **common, **padding}))
    return calls


def _pointwise_calls() -> list[tuple[str, dict[str, Any]]]:
    calls = []
    for repeat in (1, 2):
        x, other, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.empty(2, 3, 4 * repeat, 5 * repeat)
        maps = {name: torch.rand(2, 3) for name in ("scale", "shift", "other_scale", "other_shift")}
        call = {"x": x, "scale": maps["scale"], "shift": maps["shift"], "slope": torch.rand(3), "other": other}
        call |= {"other_scale": maps["other_scale"], "other_shift": maps["other_shift"], "other_slope": torch.rand(3)}
        calls.append(("pointwise", call | {"output_activation": 0, "repeat": repeat, "y": y}))
    return calls


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", [_sparse_conv_calls, _pointwise_calls], ids=["sparse_conv", "pointwise"])
def test_ops(family: Callable[[], list[tuple[str, dict[str, Any]]]]) -> None:
    random.seed(0)
    calls = family()
    refused = taken = compared = 0
    for _ in range(ROUNDS):
        op, call = random.choice(calls)
        call = {name: value.clone() if isinstance(value, Tensor) else value for name, value in call.items()}
        changed = random.sample(list(call), random.choice([1, 1, 2]))
        for name in changed:
            call[name] = _mutated(name, call[name], call)
        # The expected result is computed from copies, so an op that writes to an input is detected.
        before = {name: _copy(value) for name, value in call.items()}
        if _too_much(call):
            continue
        try:
            result = getattr(torch.ops.sparsegan, op).default(*call.values())
            taken += 1
        except REFUSALS:
            refused += 1
            continue
        if op in ("pointwise", "sparse_conv") and not UNKNOWABLE & set(changed):
            expected = _expected(op, before)
            torch.testing.assert_close(
                call["y"] if op == "pointwise" else result, expected, rtol=1e-3, atol=1e-3, equal_nan=True
            )
            compared += 1
    assert refused > ROUNDS // 8
    assert taken > ROUNDS // 40
    assert compared > ROUNDS // 80


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.numel() < 10**6 else value


def _too_much(call: dict[str, Any]) -> bool:
    """True for a valid output that is large and takes long to fill."""
    size = call.get("output_size", [])
    return isinstance(size, list) and len(size) == 3 and all(n > 0 for n in size) and 10**6 < size[1] * size[2] < 10**13


def _expected(op: str, call: dict[str, Any]) -> Tensor:
    if op == "sparse_conv":
        p = next(p for p in SMALLS.values() if p.numbers == call["geometry"] and p.adjoint == call["adjoint"])
        padding = (PADDING_MODES[call["padding_mode"]], tuple(call["pad_before"]))
        taps = (call["values"], call["bias"], call["support"], p.geometry, p.adjoint, call["output_size"])
        y = reference.sparse_conv(call["x"], *taps, *padding)
        return torch.where(y > 0, y, y * call["negative_slope"])

    def mapped(x: Tensor, scale: Tensor | None, shift: Tensor | None, slope: Tensor | None) -> Tensor:
        if scale is not None and shift is not None:
            x = x * scale[:, :, None, None] + shift[:, :, None, None]
        return x if slope is None else torch.where(x <= 0, x * slope[:, None, None], x)

    y = mapped(call["x"], call["scale"], call["shift"], call["slope"])
    if call["other"] is not None:
        y = y + mapped(call["other"], call["other_scale"], call["other_shift"], call["other_slope"])
    y = bent(y, OUTPUT_ACTIVATIONS[call["output_activation"]])
    return y.repeat_interleave(call["repeat"], 2).repeat_interleave(call["repeat"], 3)


def test_an_output_in_the_memory_of_an_input_is_refused() -> None:
    """Equal and overlapping memory and memory of the plan are refused. Other channels of one buffer are accepted."""
    p = SMALLS["fine to coarse"]
    p = replace(p, geometry=replace(p.geometry, padding=(1, 0)))
    call = arguments(p, dtype=torch.float32) | {"y_scale": None, "y_shift": None}
    call |= {name: call[name].contiguous() for name in ("scale", "shift")}
    op = torch.ops.sparsegan.sparse_conv_fused.default
    n, channels = call["y"].shape[:2]
    both = torch.zeros(n, channels + p.x_shape[1], 5, 5)
    floats = torch.zeros(10000)
    inside = floats[: call["y"].numel()].view(call["y"].shape)
    for name in ("x", "scale", "shift", "slope", "values", "bias", "norm_weight"):
        own = call[name]
        memory = floats[3 : 3 + own.numel()].view(own.shape)
        memory.copy_(own)
        with pytest.raises(RuntimeError, match=f"y shares memory with {name}; it must have memory of its own"):
            op(*(call | {name: memory, "y": inside}).values())
    plan = torch.zeros(10000, dtype=torch.int32)
    plan[: call["plan"].numel()] = call["plan"]
    into = plan.view(torch.float32)[: call["y"].numel()].view(call["y"].shape)
    with pytest.raises(RuntimeError, match="y shares memory with plan"):
        op(*(call | {"plan": plan[: call["plan"].numel()], "y": into}).values())
    maps = torch.zeros(n, channels)
    with pytest.raises(RuntimeError, match="y_shift shares memory with y_scale"):
        op(*(call | {"y_scale": maps, "y_shift": maps}).values())
    pointwise = torch.ops.sparsegan.pointwise.default
    nothing = (None, None, None)
    apart, beside = both[:, :2], both[:, 2:4]
    pointwise(apart, *nothing, None, *nothing, 0, 1, beside)
    pointwise(apart, *nothing, beside, *nothing, 0, 1, apart)  # in place
    with pytest.raises(RuntimeError, match="y shares memory with x"):
        pointwise(both[:, :2], *nothing, None, *nothing, 0, 1, both[:, 1:3])
    with pytest.raises(RuntimeError, match="y shares memory with other"):
        pointwise(torch.zeros(n, 2, 5, 5), *nothing, both[:, :2], *nothing, 0, 1, both[:, 1:3])
