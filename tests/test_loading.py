"""A sparse layer loads state_dicts: of dense weights, of pruned weights, of sparse layers, partial and wrong ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import sparsegan as sg

GRANULARITIES = ["element", "vector:2", "input:2", "kernel", "filter", "2:4"]


def dense_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1, groups=2)),
    )


def pruned(weight: Tensor, fraction: float) -> Tensor:
    """The weight with a random `fraction` of its elements set to zero, independent of magnitude."""
    return weight * (torch.rand(weight.shape) >= fraction)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("nest", ["", "module."], ids=["bare", "wrapped"])
def test_sparsify_then_load_is_load_then_sparsify(granularity: str, nest: str) -> None:
    checkpoint = {nest + key: value for key, value in dense_model().state_dict().items()}

    def model() -> nn.Module:
        return nn.ModuleDict({"module": dense_model()}) if nest else dense_model()

    ours, theirs = sg.sparsify(model(), 0.5, granularity=granularity), model()
    parameters = list(ours.parameters())
    ours.load_state_dict(checkpoint)
    theirs.load_state_dict(checkpoint)
    sg.sparsify(theirs, 0.5, granularity=granularity)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
    # The support now comes from a checkpoint. New dense weights are again pruned to the sparsity of the layer.
    ours.load_state_dict(theirs.state_dict())
    other = {key: torch.randn_like(value) for key, value in checkpoint.items()}
    ours.load_state_dict(other)
    theirs = model()
    theirs.load_state_dict(other)
    sg.sparsify(theirs, 0.5, granularity=granularity)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("fraction", [0.5, 0.8])
@pytest.mark.parametrize("pair", [(sg.SparseConv2d, nn.Conv2d), (sg.SparseConvTranspose2d, nn.ConvTranspose2d)])
def test_the_zeros_of_a_pruned_weight_are_the_mask(fraction: float, pair: Any) -> None:
    cls, theirs = pair
    dense, layer = theirs(6, 8, 3), cls(6, 8, 3, sparsity=0.5)
    with torch.no_grad():
        dense.weight.copy_(pruned(dense.weight, fraction + 0.1))
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.mask(), dense.weight != 0)
    assert torch.equal(layer.dense_weight(), dense.weight)


@pytest.mark.parametrize("granularity", ["element", "vector:2", "filter"])
def test_a_tool_says_which_weights_stay(granularity: str) -> None:
    """The mask of torch's pruning decides, though it keeps zeros and more weights than the layer. Biases have masks."""
    dense = nn.Conv2d(4, 8, 3)
    mask = (torch.rand(8, 1, 1, 1) < 0.8).expand(8, 4, 3, 3).float() if granularity != "element" else None
    if granularity == "vector:2":
        mask = mask[::2].repeat_interleave(2, 0)
    if mask is None:
        mask = (torch.rand(8, 4, 3, 3) < 0.8).float()
    with torch.no_grad():
        dense.weight[0] = 0.0
    torch_prune.custom_from_mask(dense, "weight", mask)
    torch_prune.l1_unstructured(dense, "bias", 0.5)
    given = torch.rand(4, 1, 1, 1) < 0.5
    own_mask = given.repeat_interleave(2, 0).expand(8, 4, 3, 3) if granularity == "vector:2" else None
    for layer in (
        sg.SparseConv2d(4, 8, 3, sparsity=0.5, granularity=granularity),
        sg.SparseConv2d(4, 8, 3, mask=own_mask, granularity=granularity),
    ):
        layer.load_state_dict(dense.state_dict())
        assert torch.equal(layer.mask(), mask.bool())
        assert torch.equal(layer.dense_weight(), dense.weight)
        assert torch.equal(layer.bias, dense.bias)


def test_a_weight_of_zeros_and_a_layer_that_keeps_all_weights() -> None:
    layer = sg.SparseConv2d(4, 8, 3, sparsity=0.5)
    layer.load_state_dict({"weight": torch.zeros(8, 4, 3, 3), "bias": torch.zeros(8)})
    assert layer.nnz == 144  # all weights are zero: pruned as by sparsify
    layer, weight = sg.SparseConv2d(4, 8, 3), torch.randn(8, 4, 3, 3)
    weight[0] = 0
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(8)})
    assert layer.nnz == 288
    assert torch.equal(layer.dense_weight(), weight)


def test_half_precision_and_a_given_mask() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        weight = torch.randn(8, 4, 3, 3).to(dtype)
        layer = sg.SparseConv2d(4, 8, 3, sparsity=0.75)
        layer.load_state_dict({"weight": weight, "bias": torch.zeros(8, dtype=dtype)})
        assert layer.values.dtype == torch.float32
        assert layer.nnz == 72
        assert weight.abs()[layer.mask()].min() >= weight.abs()[~layer.mask()].max()
        assert torch.equal(layer.dense_weight(), weight.float() * layer.mask())
    mask = torch.rand(8, 4, 3, 3) < 0.5
    layer = sg.SparseConv2d.from_dense(nn.Conv2d(4, 8, 3), mask=mask)
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(8)})
    assert torch.equal(layer.mask(), mask)
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(8)})  # also at a second load
    assert torch.equal(layer.mask(), mask)
    layer = sg.SparseConv2d.from_dense(torch_prune.l1_unstructured(nn.Conv2d(4, 8, 3), "weight", 0.75))
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(8)})  # the mask of torch's pruning is not kept
    assert layer.nnz == 72
    assert weight.abs()[layer.mask()].min() >= weight.abs()[~layer.mask()].max()


@pytest.mark.parametrize("kind", ["values", "weight", "weight_orig"])
def test_assign(kind: str) -> None:
    """Loads a checkpoint of another dtype into a layer on the meta device, as is usual for huge models."""
    source = sg.SparseConv2d(4, 8, 3, sparsity=0.75).double()
    state = source.state_dict()
    if kind == "weight":
        state = source.to_dense().state_dict()
    elif kind == "weight_orig":
        dense = source.to_dense()
        torch_prune.custom_from_mask(dense, "weight", source.mask())
        state = dense.state_dict()
    with torch.device("meta"):
        layer = nn.Sequential(sg.SparseConv2d(4, 8, 3, sparsity=0.75).requires_grad_(False))
    state = {f"0.{key}": value for key, value in state.items()}
    before = layer[0].values
    with pytest.raises(RuntimeError, match="meta device and cannot hold numbers; give assign=True"):
        layer.load_state_dict(state)
    layer.load_state_dict(state, assign=True)
    assert layer[0].values is not before
    assert not layer[0].values.requires_grad
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), source(x))
    if kind == "values":  # as in torch, assign does not copy
        assert layer[0].values.data_ptr() == source.values.data_ptr()
        assert layer[0].support.data_ptr() != source.support.data_ptr()


def test_a_model_on_the_meta_device() -> None:
    model = sg.sparsify(dense_model(), 0.5)
    x = torch.randn(2, 4, 6, 6)
    expected = model(x)
    empty = copy.deepcopy(model).to("meta")
    assert empty(x.to("meta")).shape == expected.shape
    with torch.no_grad():
        assert empty(x.to("meta")).shape == expected.shape
    with pytest.raises(RuntimeError, match="has lost its positions; load its values and support"):
        empty.load_state_dict({"0.values": model[0].values}, strict=False, assign=True)
    moved = empty.to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"SparseConv2d\(4, 8.* has no valid support: support\[0\] is -1"):
        moved(x)
    moved.load_state_dict(model.state_dict())
    torch.testing.assert_close(moved(x), expected)
    with torch.device("meta"):
        for granularity, kept in (("element", 72), ("vector:2", 36), ("input:2", 36), ("kernel", 72), ("filter", 72)):
            layer = sg.SparseConv2d(4, 8, 3, sparsity=0.75, granularity=granularity)
            assert layer.support.shape == (kept,)
            assert layer.values.shape == (72,)
        assert sg.SparseConv2d(4, 8, 3, sparsity=0.5, granularity="2:4").values.shape == (144,)
        with pytest.raises(ValueError, match="mask is given and the weight is on the meta device"):
            sg.SparseConv2d(4, 8, 3, mask=torch.ones(8, 4, 3, 3, dtype=torch.bool, device="cpu"))
        with pytest.raises(ValueError, match="give sparsity="):
            sg.SparseConv2d.from_dense(nn.Conv2d(4, 8, 3))


def normed(kind: str) -> nn.Module:
    conv = nn.Conv2d(4, 8, 3)
    return {
        "spectral hooks": nn.utils.spectral_norm,
        "weight hooks": nn.utils.weight_norm,
        "spectral": parametrizations.spectral_norm,
        "weight": parametrizations.weight_norm,
        "other": lambda module: parametrize.register_parametrization(module, "weight", nn.Identity()),
    }[kind](conv)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["spectral hooks", "weight hooks", "spectral", "weight", "other"])
@pytest.mark.parametrize("strict", [True, False])
def test_computed_weights_are_named(kind: str, strict: bool) -> None:
    layer = sg.SparseConv2d(4, 8, 3, sparsity=0.5)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"computes its weight .*\.remove_parametrizations"):
        layer.load_state_dict(normed(kind).state_dict(), strict=strict)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))


def test_partial_keys() -> None:
    layer = sg.SparseConv2d(4, 8, 3, sparsity=0.5)
    own = copy.deepcopy(layer.state_dict())
    longer = sg.SparseConv2d(4, 8, 3, sparsity=0.2).state_dict()
    for state, words in (
        ({"values": longer["values"]}, "comes without its support"),
        ({"support": longer["support"]}, "support comes without its values"),
        ({"weight_orig": torch.randn(8, 4, 3, 3)}, "weight_orig comes without its weight_mask"),
        ({"weight_mask": torch.ones(8, 4, 3, 3)}, "weight_mask comes without its weight_orig"),
        ({**longer, "weight": torch.randn(8, 4, 3, 3)}, "both a dense weight and values"),
        ({**longer, "bias": torch.zeros(7)}, "bias has shape"),
        ({"weight": torch.randn(8, 4, 3, 3).int(), "bias": own["bias"]}, "weight has dtype torch.int32"),
    ):
        for strict in (True, False):
            with pytest.raises(RuntimeError, match=words):
                layer.load_state_dict(state, strict=strict)
            assert all(torch.equal(own[key], value) for key, value in layer.state_dict().items())
    # Present keys are loaded; the other tensors stay.
    layer.load_state_dict({"values": own["values"] + 1}, strict=False)
    assert torch.equal(layer.values, own["values"] + 1)
    layer.load_state_dict({"bias": torch.ones(8)}, strict=False)
    assert torch.equal(layer.bias, torch.ones(8))
    assert torch.equal(layer.values, own["values"] + 1)
    # As in torch, missing and unexpected keys raise, but the other keys are loaded.
    for state, words in (
        ({**longer, "extra": torch.zeros(1)}, "Unexpected .*extra"),
        ({k: v for k, v in longer.items() if k != "bias"}, "Missing .*bias"),
        ({k: v for k, v in own.items() if k != "support"}, "Missing .*support"),
    ):
        with pytest.raises(RuntimeError, match=words):
            layer.load_state_dict(state)
        assert torch.equal(layer.values, state["values"])
        layer.load_state_dict(own)


def test_hooks_that_rename_keys_run() -> None:
    layer = sg.SparseConv2d(4, 8, 3, sparsity=0.5)

    def rename(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")

    layer.register_load_state_dict_pre_hook(rename)
    weight = torch.randn(8, 4, 3, 3)
    layer.load_state_dict({"kernel": weight, "bias": torch.zeros(8)})
    assert torch.equal(layer.dense_weight(), weight * layer.mask())


def test_an_optimizer_continues_with_the_same_parameter() -> None:
    model = sg.sparsify(dense_model(), 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    x, target = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 12, 12)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
        model.load_state_dict(dense_model().state_dict())
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    (model(x) - target).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before["0.values"], model[0].values)


def test_loading_under_distributed_data_parallel(tmp_path: Any) -> None:
    """A DistributedDataParallel of world size 1 loads a dense state_dict and computes a backward pass."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        # In a function, because objects that outlive their process group can wait for its threads for ever.
        _load_and_step()
    finally:
        torch.distributed.destroy_process_group()


def _load_and_step() -> None:
    wrapped = nn.parallel.DistributedDataParallel(sg.sparsify(dense_model(), 0.5))
    dense = dense_model()
    wrapped.load_state_dict({f"module.{key}": value for key, value in dense.state_dict().items()})
    expected = sg.sparsify(dense, 0.5)
    x = torch.randn(2, 4, 6, 6)
    y = wrapped(x)
    torch.testing.assert_close(y, expected(x))
    y.sum().backward()
    expected(x).sum().backward()
    torch.testing.assert_close(wrapped.module[0].values.grad, expected[0].values.grad)
