"""The layers against those of torch.nn: every argument, all gradients, copies, state, compile and export, bad input."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from conftest import assert_exact
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import sparsegan as sg
from sparsegan.nn.granularity import units_of
from sparsegan.ops import reference

#: Each sparse class with the class of torch.nn that it replaces.
CLASSES = [(ours, theirs) for theirs, ours in sg.nn.SPARSE_CLASSES.items()]


def sparse(dense: nn.Module, **how: Any) -> sg.nn.SparseConv:
    layer = sg.nn.SPARSE_CLASSES[type(dense)].from_dense(dense, **(how or {"sparsity": 0.7}))
    layer.backend = "sparse"
    return layer


def assert_same_as_dense(layer: sg.nn.SparseConv, x: Tensor, *args: Any) -> None:
    """Compares forward and all gradients with the torch.nn layer whose pruned weights are zero."""
    dense = layer.to_dense()
    layer.zero_grad()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(ours, *args), dense(theirs, *args)
    assert_exact(y, expected)
    gy = torch.randn_like(y)
    y.backward(gy)
    expected.backward(gy)
    assert_exact(ours.grad, theirs.grad)
    assert_exact(layer.values.grad, dense.weight.grad.flatten()[layer.positions()])
    if layer.bias is not None:
        assert_exact(layer.bias.grad, dense.bias.grad)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor, str]:
    """Draws a convolution of torch.nn in float64, a small input that it accepts, and a granularity.

    Signals have the longer kernels, strides and dilations of vocoders.
    """
    dims = draw(st.sampled_from([1, 2]))

    def numbers(least: int, most_of_image: int, most_of_signal: int) -> tuple[int, ...]:
        each = st.integers(least, most_of_image if dims == 2 else most_of_signal)
        return draw(st.tuples(*[each] * dims))

    small = st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 2]))
    granularity = draw(st.sampled_from(["element", "vector:2", "vector:4", "input:2", "input:4"]))
    units = units_of(granularity)
    c_in, c_out = groups * units.inputs * draw(small), groups * units.outputs * draw(small)
    kernel, stride, dilation = numbers(1, 5, 16), numbers(1, 3, 8), numbers(1, 3, 5)
    common = {"groups": groups, "bias": draw(st.booleans()), "dtype": torch.float64}
    x = torch.randn(draw(st.sampled_from([1, 2, 9])), c_in, *numbers(1, 14, 70), dtype=torch.float64)
    if draw(st.booleans()):
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        kind = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose1d
        dense: nn.Module = kind(c_in, c_out, kernel, stride, numbers(0, 2, 7), extra, dilation=dilation, **common)
    else:
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        padding_kind = draw(st.sampled_from(["same", "valid", "numbers", "int"]))
        if padding_kind == "same":
            stride = (1,) * dims
        padding = {"numbers": numbers(0, 3, 9), "int": draw(st.integers(0, 3))}.get(padding_kind, padding_kind)
        kind = nn.Conv2d if dims == 2 else nn.Conv1d
        dense = kind(c_in, c_out, kernel, stride, padding, dilation, padding_mode=mode, **common)
    try:
        dense(x)
    except RuntimeError:  # the input is too small for the kernel or for the reflection
        assume(False)
    return dense, x, granularity


@given(convolutions(), st.sampled_from([0.0, 0.5, 0.9]))
def test_every_argument_of_torch(isa: str, problem: tuple[nn.Module, Tensor, str], sparsity: float) -> None:
    dense, x, granularity = problem
    assert_same_as_dense(sparse(dense, sparsity=sparsity, granularity=granularity), x)


@given(convolutions())
def test_dense_path(problem: tuple[nn.Module, Tensor, str]) -> None:
    dense, x, granularity = problem
    layer = sparse(dense, sparsity=0.5, granularity=granularity)
    layer.backend = "dense"
    assert_same_as_dense(layer, x)
    with torch.no_grad():
        for _ in range(2):  # the second call reuses the dense weight
            assert_exact(layer(x), layer.to_dense()(x))


def test_an_output_in_freshly_mapped_memory() -> None:
    torch.manual_seed(0)
    layer, x = sparse(nn.Conv2d(1, 9, 1), sparsity=0.5), torch.randn(1, 1, 1001, 1000)  # 36 MB
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


@given(convolutions(), st.sampled_from([0.0, 0.5, 0.9]))
def test_values_support_and_mask_of_a_layer(problem: tuple[nn.Module, Tensor, str], sparsity: float) -> None:
    dense, _, granularity = problem
    layer = sparse(dense, sparsity=sparsity, granularity=granularity)
    weight, mask, vector = dense.weight.detach(), layer.mask(), layer.geometry.vector
    assert granularity.rpartition(":")[2] == ("element" if vector == 1 else str(vector))
    assert layer.nnz == int(mask.sum()) == vector * layer.support.shape[0]
    assert layer.sparsity == pytest.approx(1 - layer.nnz / weight.numel())
    assert torch.equal(layer.dense_weight(), weight * mask)
    flat = reference.dense_weight(layer.values, layer.support, layer.geometry)  # of a signal: with one row
    assert torch.equal(flat.view(weight.shape), weight * mask)
    for again in (sparse(dense, mask=mask, granularity=granularity), sparse(layer.to_dense(), granularity=granularity)):
        assert torch.equal(again.support, layer.support)
        assert torch.equal(again.values, layer.values)
    if vector > 1 and layer.nnz:
        mask.view(-1)[layer.positions()[0]] = False
        units = weight.numel() // vector
        nouns, side = ("vectors", "output") if granularity.startswith("vector") else ("input units", "input")
        with pytest.raises(ValueError, match=f"mask cuts 1 of {units} {nouns}; .* each {vector} consecutive {side}"):
            sparse(dense, mask=mask, granularity=granularity)


def test_constructor_prunes_the_initial_weight_of_torch() -> None:
    for cls, theirs in CLASSES:
        args = (6, 8, (3, 2)[: cls.dims], 2, 1)
        torch.manual_seed(3)
        layer = cls(*args, sparsity=0.75)
        torch.manual_seed(3)
        dense = theirs(*args)
        weight = dense.weight.detach()
        assert layer.nnz == weight.numel() // 4
        assert torch.equal(
            layer.mask(), weight.abs() >= weight.abs().flatten().sort(descending=True).values[layer.nnz - 1]
        )
        assert torch.equal(layer.dense_weight(), weight * layer.mask())
        assert torch.equal(layer.bias, dense.bias)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            assert getattr(layer, name) == getattr(dense, name)
        assert repr(layer).startswith(f"Sparse{repr(dense)[:-1]}, sparsity=0.7500, nnz={layer.nnz}")
        assert cls(*args).sparsity == 0


def test_output_size_unbatched_input_and_empty_layers() -> None:
    t = sparse(nn.ConvTranspose2d(3, 4, 3, stride=3, dtype=torch.float64))
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    for size in ([16, 13], [2, 4, 17, 12]):
        assert_same_as_dense(t, x, size)
    with pytest.raises(ValueError, match="from 15 to 17"):
        t(x, [18, 12])
    for size in ([16, 13], [4, 16, 13]):
        torch.testing.assert_close(t(x[0], size), t(x, size[-2:])[0])
    with pytest.raises(ValueError, match="output_size has 4 numbers; it must have 2, or one per dimension"):
        t(x[0], [2, 4, 16, 13])
    assert t(x[:0]).shape == (0, 4, 15, 12)
    empty = sparse(nn.Conv2d(3, 4, 3, dtype=torch.float64), mask=torch.zeros(4, 3, 3, 3, dtype=torch.bool))
    assert empty.nnz == 0
    assert_same_as_dense(empty, x)


def test_existing_zeros_are_the_mask() -> None:
    conv = nn.Conv2d(4, 6, 3)
    torch_prune.l1_unstructured(conv, "weight", 0.5)
    layer = sparse(conv, granularity="element")
    assert torch.equal(layer.mask(), conv.weight_mask.bool())
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), conv(x))
    fresh = sg.SparseConv2d(4, 6, 3, sparsity=0.5)
    fresh.load_state_dict(conv.state_dict())
    torch.testing.assert_close(fresh(x), conv(x))


@pytest.mark.parametrize("granularity", ["element", "vector:2", "input:2"])
def test_state_dict_round_trip_keeps_the_parameter(granularity: str) -> None:
    a, b = (sg.SparseConv2d(4, 6, 3, sparsity=sparsity, granularity=granularity) for sparsity in (0.9, 0.2))
    parameter = b.values
    b.load_state_dict(a.state_dict())
    assert b.values is parameter
    assert torch.equal(a.dense_weight(), b.dense_weight())
    with pytest.raises(RuntimeError, match="bias"):
        b.load_state_dict({k: v for k, v in a.state_dict().items() if k != "bias"})
    with pytest.raises(RuntimeError, match="unrelated"):
        b.load_state_dict({**a.state_dict(), "unrelated": torch.zeros(1)})
    broken = a.state_dict()
    broken["support"] = broken["support"].flip(0)
    before = b.dense_weight().clone()
    with pytest.raises(RuntimeError, match="support"):
        b.load_state_dict(broken)
    for other in ("element", "vector:2", "vector:3", "input:2", "input:4"):
        if other != granularity:
            with pytest.raises(RuntimeError, match=r"values has shape|support"):
                b.load_state_dict(sg.SparseConv2d(4, 6, 3, sparsity=0.9, granularity=other).state_dict())
    assert torch.equal(b.dense_weight(), before)


@pytest.mark.parametrize(("granularity", "vector"), [("element", 1), ("vector:3", 3), ("input:3", 3)])
def test_load_a_dense_checkpoint(granularity: str, vector: int) -> None:
    for cls, theirs in CLASSES:
        dense = theirs(6, 6, 3)
        layer = cls(6, 6, 3, sparsity=0.5, granularity=granularity)
        layer.load_state_dict(dense.state_dict())  # magnitudes of the weight choose the support
        expected = cls.from_dense(dense, sparsity=0.5, granularity=granularity)
        assert torch.equal(layer.dense_weight(), expected.dense_weight())
        axis = int(layer.transposed != (granularity == "input:3"))
        mask = torch.rand(*(6 // vector if d == axis else n for d, n in enumerate(dense.weight.shape))) < 0.5
        mask = mask.repeat_interleave(vector, axis)
        masked = cls(6, 6, 3, mask=mask, granularity=granularity)
        masked.load_state_dict(dense.state_dict())  # a given mask is not replaced
        assert torch.equal(masked.dense_weight(), dense.weight * mask)
        with pytest.raises(RuntimeError, match="the layer's dense weight is"):
            masked.load_state_dict(theirs(6, 6, 5).state_dict())


@pytest.mark.parametrize("granularity", ["element", "vector:3", "input:2"])
def test_copies_casts_pickles_and_hooks(granularity: str) -> None:
    layer = sg.SparseConvTranspose2d(4, 6, 4, 2, 1, sparsity=0.8, granularity=granularity)
    x = torch.randn(2, 4, 5, 5)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        assert twin.values.data_ptr() != layer.values.data_ptr()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = sg.SparseConvTranspose2d(4, 6, 4, 2, 1, granularity=granularity)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), y)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.support.dtype == torch.int32
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(copy.deepcopy(layer).double()(x.double()).float(), y)
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out[0].shape))
    layer(x.requires_grad_()).sum().backward()
    assert seen == [y.shape, y.shape]


def test_autocast() -> None:
    layer = sg.SparseConv2d(4, 6, 3, sparsity=0.8)
    x = torch.randn(2, 4, 5, 5)
    for layer.backend in ("sparse", "dense"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), layer.to_dense()(x), rtol=0.05, atol=0.05)


def generator() -> nn.Module:
    return nn.Sequential(
        sg.SparseConvTranspose2d(10, 8, 4, sparsity=0.8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        sg.SparseConvTranspose2d(8, 4, 4, 2, 1, sparsity=0.8, granularity="vector:4"),
        sg.SparseConv2d(4, 3, 3, padding=1, padding_mode="reflect", sparsity=0.3, granularity="input:2"),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_without_a_graph_break() -> None:
    torch.compiler.reset()
    model, z = generator(), torch.randn(3, 10, 1, 1)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), model(z))
    compiled(z).square().sum().backward()
    model(z).square().sum().backward()
    for (name, a), (_, b) in zip(compiled.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_export_with_a_dynamic_batch(tmp_path: Any) -> None:
    model, z = generator().eval(), torch.randn(3, 10, 1, 1)
    program = torch.export.export(model, (z,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    torch.export.save(program, tmp_path / "generator.pt2")
    z = torch.randn(7, 10, 1, 1)
    torch.testing.assert_close(torch.export.load(tmp_path / "generator.pt2").module()(z), model(z))


def test_auto_takes_dense_below_the_break_even() -> None:
    x = torch.randn(1, 64, 32, 32)
    for sparsity, backend in ((0.0, "dense"), (0.95, "sparse")):
        layer = sg.SparseConv2d(64, 64, 3, padding=1, sparsity=sparsity)
        choice = layer.choose(tuple(x.shape), (32, 32))
        assert choice.backend == backend
        assert "cycles" in choice.why
        torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)


def test_dense_path_follows_the_values() -> None:
    layer = sg.SparseConv2d(4, 4, 3, sparsity=0.2)
    layer.backend = "dense"
    x = torch.randn(1, 4, 6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(layer(x), layer.to_dense()(x))
        layer.values.data.mul_(0.5)  # `.data` does not move the version counter
        with mode:
            torch.testing.assert_close(layer(x), layer.to_dense()(x))
        optimizer.zero_grad()
        (layer(x).square().sum() + layer(2 * x).sum()).backward()
        optimizer.step()


def test_evaluation_before_training() -> None:
    for backend in ("sparse", "dense"):
        layer, x = sg.SparseConv2d(4, 6, 3, sparsity=0.5), torch.randn(1, 4, 6, 6)
        layer.backend = backend
        with torch.inference_mode():
            layer(x)
        layer(x.requires_grad_()).sum().backward()


def test_a_forward_makes_no_plan_for_the_input_gradient() -> None:
    for layer in (sparse(nn.Conv2d(4, 6, 3)), sparse(nn.ConvTranspose2d(4, 6, 3))):
        x = torch.randn(1, 4, 6, 6, requires_grad=True)
        with torch.no_grad():
            layer(x)
        layer(x.detach()).sum().backward()
        forward = layer.plan_bytes()
        assert len(layer.plan_cache().plans) == 1
        layer(x).sum().backward()
        assert len(layer.plan_cache().plans) == 2
        assert layer.plan_bytes() > forward > 0


def test_double_backward_through_a_layer() -> None:
    """The gradient of a gradient penalty, as for the critic of a WGAN."""
    for mode, granularity in (("zeros", "element"), ("reflect", "vector:2"), ("circular", "input:3")):
        dense = nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode=mode, dtype=torch.float64)
        layer = sparse(dense, sparsity=0.7, granularity=granularity)
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        grads = []
        for module in (layer, layer.to_dense()):
            given = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(module(given).tanh().sum(), given, create_graph=True)
            (slope.square().sum((1, 2, 3)).sqrt() - 1).square().mean().backward()
            grads.append(next(module.parameters()).grad)
        assert_exact(grads[0], grads[1].flatten()[layer.positions()])


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.randn(1, 5, 8, 8), ValueError, "input has 5 channels; the layer has in_channels=4"),
        (torch.randn(8, 8), ValueError, "input has 2 dimensions"),
        (torch.randn(1, 4, 8, 8).double(), TypeError, "input has dtype torch.float64; the layer has torch.float32"),
        (torch.randn(1, 4, 8, 8, device="meta"), ValueError, "input is on meta; the layer is on cpu"),
        (torch.randn(1, 4, 2, 8), ValueError, "input is 2 x 8"),
    ],
)
def test_bad_input(x: Tensor, error: type[Exception], words: str) -> None:
    layer = sg.SparseConv2d(4, 6, 3, sparsity=0.5)
    with pytest.raises(error, match=words):
        layer(x)


@pytest.mark.parametrize(("mode", "least"), [("reflect", 4), ("circular", 3), ("replicate", 1)])
@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_images_too_small_for_their_padding_mode(mode: str, least: int, backend: str) -> None:
    dense = nn.Conv2d(2, 4, (1, 3), padding=(0, 3), padding_mode=mode, dtype=torch.float64)
    layer = sparse(dense, sparsity=0.5)
    layer.backend = backend
    assert_same_as_dense(layer, torch.randn(1, 2, 5, least, dtype=torch.float64))
    x = torch.randn(1, 2, 5, least - 1, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        dense(x)
    with pytest.raises(ValueError, match=f"'{mode}' with a padding of 3 needs at least {least} along dimension 3"):
        layer(x)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"sparsity": 1.0}, ValueError, "sparsity is 1.0; it must be at least 0 and below 1"),
        ({"sparsity": -0.1}, ValueError, "sparsity is -0.1"),
        ({"sparsity": float("nan")}, ValueError, "sparsity is nan"),
        ({"granularity": "row"}, ValueError, "granularity is 'row'; accepted: 'element'"),
        ({"granularity": "vector:4"}, ValueError, "the layer has 6 output channels, which is no multiple of 4"),
        ({"granularity": "input:3"}, ValueError, "the layer has 4 input channels, which is no multiple of 3"),
        ({"mask": torch.ones(6, 4, 3, dtype=torch.bool)}, ValueError, "it must have the weight's shape"),
        ({"mask": torch.ones(6, 4, 3, 3)}, TypeError, "dtype torch.bool"),
        ({"mask": torch.ones(6, 4, 3, 3, dtype=torch.bool), "sparsity": 0.5}, ValueError, "both given"),
    ],
)
def test_bad_construction(how: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sg.SparseConv2d(4, 6, 3, **how)
    with pytest.raises(error, match=words):
        sg.SparseConv2d.from_dense(nn.Conv2d(4, 6, 3), **how)


def test_wrong_modules() -> None:
    with pytest.raises(TypeError, match="module is a Linear"):
        sg.SparseConv2d.from_dense(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="NaN"):
        sg.SparseConv2d.from_dense(_with_nan(), sparsity=0.5)
    with pytest.raises(AttributeError, match="dense_weight"):
        _ = sg.SparseConv2d(3, 4, 3).weight


def _with_nan() -> nn.Conv2d:
    conv = nn.Conv2d(3, 4, 3)
    conv.weight.data[0, 0, 0, 0] = float("nan")
    return conv
