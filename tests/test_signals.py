"""Layers of signals beyond ``tests/test_nn.py``, which draws them too: a vocoder through the whole package, long and
short signals, tools and dtypes, and the twin of a 1-D model, the 2-D model with kernels of one row."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, assert_exact
from test_engine import check, pruned, trained
from test_nn import CLASSES, assert_same_as_dense, sparse
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sparsegan as sg
from sparsegan.calls import Call
from sparsegan.copying import copy_model
from sparsegan.engine import gpu
from sparsegan.engine.steps import Pointwise, SparseConvStep
from sparsegan.pruning.regrow import dense_gradients, regrow
from sparsegan.pruning.saliency import counting_uses

Norm = Callable[[nn.Module], nn.Module]


def hooked(conv: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(conv)


def plain(conv: nn.Module) -> nn.Module:
    return conv


class Residual(nn.Module):
    """Dilated convolutions, each added to its input."""

    def __init__(self, channels: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2)) for d in (1, 3, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, 0.1))
        return x


class Vocoder(nn.Module):
    """The generator of HiFi-GAN (Kong, Kim and Bae, arXiv 2010.05646), small: ``[N, 6, L]`` to ``[N, 1, 16 * L]``."""

    def __init__(self, norm: Norm = plain) -> None:
        super().__init__()
        self.pre = norm(nn.Conv1d(6, 16, 7, padding=3))
        self.ups = nn.ModuleList([norm(nn.ConvTranspose1d(16, 8, 16, 8, 4)), norm(nn.ConvTranspose1d(8, 4, 4, 2, 1))])
        self.blocks = nn.ModuleList(nn.ModuleList(Residual(c, k, norm) for k in (3, 7)) for c in (8, 4))
        self.post = norm(nn.Conv1d(4, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for up, blocks in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(block(x) for block in blocks) / len(blocks)
        return torch.tanh(self.post(F.leaky_relu(x)))


def mel(n: int = 2, length: int = 11) -> Tensor:
    return torch.randn(n, 6, length, dtype=torch.float64)


@pytest.mark.parametrize("norm", [plain, hooked, parametrizations.weight_norm])
def test_a_vocoder_from_its_weight_norm_to_the_engine(norm: Norm, tmp_path: Path) -> None:
    model, x = Vocoder(norm).double(), mel()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # g is no longer the norm of v
        wanted = model(x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        same = sg.sparsify(copy_model(model))
        sg.sparsify(model, 0.7)
    folded = [str(one.message) for one in said if "are plain from now on" in str(one.message)]
    assert len(folded) == (0 if norm is plain else 2)  # one warning for each call
    assert all("pre: weight norm of weight; ups.0: weight norm of weight" in one for one in folded)
    assert_exact(same(x), wanted)
    layers = dict(sg.sparse_layers(model))
    assert len(layers) == 16
    assert {name.rpartition(".")[2] for name in model.state_dict()} == {"values", "support", "bias"}

    # A step of training is that of the masked dense model.
    for layer in layers.values():
        layer.backend = "sparse"
    dense = sg.densify(copy.deepcopy(model))
    masks = {name: layer.mask() for name, layer in layers.items()}
    for one in (model, dense):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
        one(x).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_submodule(name).weight.mul_(mask)
            assert_exact(layers[name].dense_weight(), dense.get_submodule(name).weight)
    assert_exact(model(x), dense(x))

    # The file fits a new vocoder, folded or not, and a model on the meta device.
    sg.save(model, tmp_path / "vocoder.safetensors", values="float64")
    with torch.device("meta"):
        empty = Vocoder()
    for fresh in (Vocoder(norm).double(), Vocoder().double(), empty.double()):
        loaded = sg.load(fresh, tmp_path / "vocoder.safetensors")
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for key, entry in loaded.state_dict().items():
            assert torch.equal(entry, model.state_dict()[key])
    report = sg.checkpoint.file_report(tmp_path / "vocoder.safetensors")
    assert report["bytes"] < report["dense_bytes"]

    # The engine: every convolution is a sparse step, and nothing runs in torch, at any length.
    engine = check(model, x)
    assert [type(step) for step in engine.steps()].count(SparseConvStep) == 16
    assert {type(step) for step in engine.steps()} == {SparseConvStep, Pointwise}
    assert engine.fallbacks == []
    for n, length in ((1, 1), (3, 2), (1, 333)):
        other = mel(n, length)
        assert_exact(engine(other), model(other).detach())


def test_a_trainers_file_with_weight_norm(tmp_path: Path) -> None:
    model, x = Vocoder(hooked).double(), mel()
    wanted = model(x).detach()
    torch.save({"generator": model.state_dict()}, tmp_path / "g_02500000.pth")
    for other in (Vocoder().double(), sg.sparsify(Vocoder().double(), 0.0)):
        assert_exact(sg.load(other, tmp_path / "g_02500000.pth")(x).detach(), wanted)


# ---------------------------------------------------------------------- lengths, dtypes, tools


@pytest.mark.parametrize("stride", range(2, 9))
def test_upsampling_and_downsampling_with_kernel_16(isa: str, stride: int) -> None:
    up = sparse(nn.ConvTranspose1d(3, 4, 16, stride, (16 - stride) // 2, output_padding=stride - 1).double())
    down = sparse(nn.Conv1d(4, 3, 16, stride, 7, dilation=stride % 5 + 1).double())
    for length in (1, 2, 31, 1001):
        assert_same_as_dense(up, torch.randn(2, 3, length, dtype=torch.float64))
        assert_same_as_dense(down, torch.randn(2, 4, length + 64, dtype=torch.float64))
    least = up(torch.randn(1, 3, 5).double()).shape[-1] - (stride - 1)
    for size in ([least], [1, 4, least + stride - 1]):
        assert_same_as_dense(up, torch.randn(1, 3, 5).double(), size)
    with pytest.raises(ValueError, match=f"it must be from {least} to {least + stride - 1}"):
        up(torch.randn(1, 3, 5).double(), [least + stride])


def test_long_signals() -> None:
    for layer in (sparse(nn.Conv1d(2, 3, 11, padding=25, dilation=5)), sparse(nn.ConvTranspose1d(2, 3, 16, 8, 4))):
        x = torch.randn(1, 2, 300_007)
        exact = layer.to_dense().double()(x.double())
        magnitude = copy.deepcopy(layer.to_dense()).double()
        for parameter in magnitude.parameters():
            parameter.data.abs_()
        assert_close(layer(x).detach(), exact.detach(), layer.to_dense()(x), magnitude(x.double().abs()).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_and_autocast(dtype: torch.dtype) -> None:
    for ours, theirs in CLASSES:
        if ours.dims == 2:
            continue
        exact = theirs(4, 6, 5, 2, 1)
        layer = ours.from_dense(exact, sparsity=0.5).to(dtype)
        assert layer.support.dtype == torch.int32
        x = torch.randn(2, 4, 33).to(dtype)
        double = layer.to_dense().double()
        y, rounding = layer(x), 4 * torch.finfo(dtype).eps
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), double(x.double()), rtol=rounding, atol=rounding)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sparse(nn.Conv1d(4, 6, 3))(torch.randn(2, 4, 9)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compile_export_trace_and_double_backward(tmp_path: Path) -> None:
    parts = (nn.Conv1d(6, 8, 7, padding=3, padding_mode="reflect"), nn.ConvTranspose1d(8, 4, 16, 8, 4))
    model, x = sg.sparsify(nn.Sequential(*parts, Residual(4, 3, plain)).double(), 0.7), mel(3, 12)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager", dynamic=True)
    for other in (mel(2, 12), mel(2, 17)):
        assert_exact(compiled(other), model(other))
    compiled(x).square().sum().backward()
    model(x).square().sum().backward()
    for (name, a), (_, b) in zip(compiled.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)

    sizes = {0: torch.export.Dim("batch", min=2, max=64), 2: torch.export.Dim("length", min=4, max=4096)}
    program = torch.export.export(model.eval(), (x,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "vocoder.pt2")
    again = mel(5, 29)
    assert_exact(torch.export.load(tmp_path / "vocoder.pt2").module()(again), model(again))
    assert_exact(torch.jit.trace(model, (x,))(again), model(again))
    report = sg.export_onnx(copy.deepcopy(model).float(), mel().float(), tmp_path / "vocoder.onnx")
    assert report.inputs == {"input": ("batch", 6, "length")}

    for dense in (nn.Conv1d(3, 6, 16, 8, 5), nn.ConvTranspose1d(3, 6, 16, 8, 4), nn.Conv1d(3, 6, 5, padding=2)):
        layer, grads = sparse(dense.double()), []
        x = torch.randn(2, 3, 24, dtype=torch.float64)
        for module in (layer, layer.to_dense()):
            given = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(module(given).tanh().sum(), given, create_graph=True)
            (slope.square().sum((1, 2)).sqrt() - 1).square().mean().backward()
            grads.append(next(module.parameters()).grad)
        assert_exact(grads[0], grads[1].flatten()[layer.positions()])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.randn(1, 5, 8), "input has 5 channels; the layer has in_channels=4"),
        (torch.randn(8), r"input has 1 dimensions; it must be \[N, C, L\] or \[C, L\]"),
        (torch.randn(1, 4, 8, 8), r"input has 4 dimensions; it must be \[N, C, L\] or \[C, L\]"),
        (torch.randn(1, 4, 1), "input is of length 1; with its padding it must be .* reach, 7 along dimension 2"),
    ],
)
def test_bad_signals(x: Tensor, words: str) -> None:
    layer = sg.SparseConv1d(4, 6, 4, padding=1, dilation=2, sparsity=0.5)
    with pytest.raises(ValueError, match=words):
        layer(x)


def test_wrong_modules_and_masks() -> None:
    with pytest.raises(TypeError, match=r"module is a Conv2d; SparseConv1d is made from a torch\.nn\.Conv1d"):
        sg.SparseConv1d.from_dense(nn.Conv2d(3, 4, 3))
    with pytest.raises(TypeError, match=r"module is a Conv1d; SparseConv2d is made from a torch\.nn\.Conv2d"):
        sg.SparseConv2d.from_dense(nn.Conv1d(3, 4, 3))
    with pytest.raises(ValueError, match=r"mask has shape \(4, 3, 1, 3\); it must have the weight's shape \(4, 3, 3\)"):
        sg.SparseConv1d(3, 4, 3, mask=torch.ones(4, 3, 1, 3, dtype=torch.bool))


# ---------------------------------------------------------------------- the twin with kernels of one row


def one_row(model: nn.Module) -> nn.Module:
    """A copy of a dense 1-D model for maps of one row, with the same weights."""
    twin = copy.deepcopy(model)
    for name, conv in list(model.named_modules()):
        if not isinstance(conv, nn.Conv1d | nn.ConvTranspose1d):
            continue
        kind = nn.ConvTranspose2d if conv.transposed else nn.Conv2d
        sizes = {one: (rows, *getattr(conv, one)) for one, rows in (("stride", 1), ("padding", 0), ("dilation", 1))}
        other = kind(conv.in_channels, conv.out_channels, (1, *conv.kernel_size), **sizes, dtype=torch.float64)
        with torch.no_grad():
            other.weight.copy_(conv.weight.unsqueeze(2))
            other.bias.copy_(conv.bias)
        twin.set_submodule(name, other)
    return twin


@pytest.mark.parametrize("granularity", ["element", "vector:2", "kernel", "filter", "2:4"])
def test_pruning_and_counting_are_those_of_maps_of_one_row(granularity: str, tmp_path: Path) -> None:
    signals = Vocoder().double()
    signals.post = nn.Conv1d(4, 2, 7, padding=3).double()
    maps, x = one_row(signals), mel()
    start, how = (0.5, {"exclude": "pre"}) if granularity == "2:4" else (0.4, {"allocation": "global-normalized"})
    sides = []
    for model, given in ((signals, x), (maps, x.unsqueeze(2))):
        sg.sparsify(model, start, granularity, **how)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        watched = dense_gradients(model) if granularity == "element" else nullcontext({})
        with counting_uses(model) as uses, watched as slopes:
            model(given).square().sum().backward()
        optimizer.step()
        if slopes:
            regrow(model, slopes, 0.2, optimizer)
        if granularity != "2:4":
            sg.shrink(model, 0.8, optimizer, "fisher")
        macs = sg.count_macs(model, given)
        sg.save(model, tmp_path / "file", values="float64")
        sides.append((model, uses, macs, (tmp_path / "file").stat().st_size))
    (_, uses, macs, size), (_, other_uses, other_macs, other_size) = sides
    assert uses == other_uses
    assert (macs.dense, macs.executed) == (other_macs.dense, other_macs.executed)
    assert 0 < macs.executed < 0.7 * macs.dense
    assert abs(size - other_size) < 0.1 * size  # only the descriptions of the layers differ
    for (name, one), (_, other) in zip(sg.sparse_layers(signals), sg.sparse_layers(maps), strict=True):
        assert torch.equal(one.support, other.support), name
        assert_exact(one.values, other.values)
        assert one.mask().shape == one.weight_shape == (*other.weight_shape[:2], other.weight_shape[3])
    assert_exact(signals(x), maps(x.unsqueeze(2)).squeeze(2))
    rows = {row.name: row for row in sg.profile(signals, x, seconds=0.001).rows}
    assert {name: row.nnz for name, row in rows.items()} == {n: layer.nnz for n, layer in sg.sparse_layers(signals)}
    assert rows["ups.0"].geometry == "16->8 16 s8 @11 batch 2"


# ---------------------------------------------------------------------- the engine and the analysis of channels


class Parts(nn.Module):
    """The ways to write a 1-D model that the engine has rules for, and some that it has none for."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(
            *(nn.ConstantPad1d((1, 0), 0.0), nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.PReLU(8)),
            nn.Dropout1d(0.5),
        )
        self.middle = nn.Sequential(nn.ReflectionPad1d(2), nn.Conv1d(8, 8, 5), nn.InstanceNorm1d(8, affine=True))
        self.padded = nn.Sequential(nn.CircularPad1d((2, 1)), nn.Conv1d(8, 8, 4, padding=1), nn.ReLU())
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv1d(8, 4, 3, padding="same", padding_mode="circular")
        )
        self.kernel = nn.Parameter(torch.randn(4, 4, 3))
        self.back = nn.Parameter(torch.randn(4, 2, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.start(F.leaky_relu(x.transpose(1, 2), 0.3).transpose(1, 2)))
        y = self.padded(F.pad(x, (1, 0), mode="replicate"))
        x = self.up(torch.cat([x, y[:, :, 1:] * 0.5], 2) + torch.cat([y[:, :, 1:], 1 - x], -1))
        x = torch.cat([F.conv1d(x, self.kernel, padding=1), x], -2).relu().chunk(2, 1)[0]
        return F.conv_transpose1d(x, self.back, stride=8, padding=4).sigmoid()


def test_rules_of_the_engine_for_signals() -> None:
    model = pruned(Parts())
    by_batch = nn.BatchNorm1d(8, track_running_stats=False).double().eval()
    check(nn.Sequential(*model.start, by_batch), torch.randn(2, 3, 15, dtype=torch.float64))
    engine = check(model, torch.randn(2, 3, 15, dtype=torch.float64))
    assert [type(step) for step in engine.steps()].count(SparseConvStep) >= 4
    torchs = {step.why for step in engine.steps() if step.backend == "torch"}
    assert not [why for why in torchs if "conv" in why.lower() or "BatchNorm" in why or "PReLU" in why]


def snake(x: Tensor, a: Tensor) -> Tensor:
    return x + torch.sin(a * x) ** 2 / a


def adaptive(x: Tensor, a: Tensor) -> Tensor:
    """A norm whose scale and shift each run computes, as in AdaIN and squeeze-and-excitation."""
    style = x.mean(2, keepdim=True)
    return F.group_norm(x, 2) * (1 + style) - (style.sigmoid() * a).expand_as(x)


BETWEEN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[str], list[str]]] = {
    "group norm": (lambda x, a: F.group_norm(x, 4, a.flatten(), bias=a.flatten()), ["channels"], []),
    "group norm behind an activation": (lambda x, a: F.group_norm(x.relu(), 2), ["pointwise"], ["mean and variance"]),
    "group norm, then one number per channel": (lambda x, a: 2 * F.group_norm(x, 1) / a, ["channels"] * 3, []),
    "layer norm over signals": (lambda x, a: F.layer_norm(x, x.shape[1:]), ["channels"], []),
    "layer norm over the length": (lambda x, a: F.layer_norm(x, x.shape[2:]), [], ["layer_norm"]),
    "layer norm over channels": (
        lambda x, a: F.layer_norm(x.mT, x.shape[1:2]).mT,
        [],
        ["mT", "layer_norm", "mT"],
    ),
    "adaptive": (adaptive, ["channels"] * 3 + ["pointwise"] * 3, ["mean"]),
    "SiLU, written by the convolution": (lambda x, a: F.silu(x), [], []),
    "SiLU behind a norm": (lambda x, a: F.silu(F.group_norm(x, 2), inplace=True), ["channels", "pointwise"], []),
    "average pooling": (lambda x, a: F.avg_pool1d(x, 4, 2, padding=2), None, []),  # sparse or dense
    "Snake": (snake, ["pointwise"] * 2, ["sin", "pow"]),
    "a number per channel in place": (lambda x, a: F.group_norm(x, 2).mul_(a[0]).sub_(1), ["channels"] * 3, []),
    "a copy changed in place": (lambda x, a: (y := F.group_norm(x, 2)) + (y * 1).mul_(3.0), None, []),
    "a number per element of the length": (lambda x, a: x * torch.ones_like(x[0, 0]).cumsum(0), None, None),
}


class Between(nn.Module):
    """An operation between two convolutions of signals. The length 8 is also the number of channels and of signals."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 2, 3, padding=1)
        self.operation, self.a = BETWEEN[name][0], nn.Parameter(torch.rand(1, 8, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.operation(self.head(x), self.a))


@pytest.mark.parametrize("name", BETWEEN)
def test_operations_between_convolutions_of_signals(name: str) -> None:
    torch.manual_seed(0)
    model = pruned(Between(name))
    engine = check(model, torch.randn(2, 3, 12, dtype=torch.float64))
    assert engine._whole is None
    for n, length in ((1, 12), (8, 8), (3, 21)):
        other = torch.randn(n, 3, length, dtype=torch.float64)
        assert_exact(engine(other), model(other).detach())
    _, native, torchs = BETWEEN[name]
    steps = engine.steps()[1:-1]
    if native is not None:
        assert sorted(step.backend for step in steps if step.backend != "torch") == native
    if torchs is not None:
        assert [step.why.split(" run")[0] for step in steps if step.backend == "torch"] == torchs


class Unbatched(nn.Module):
    """Tensors of three dimensions that are no signals: one image, and tokens ``[N, tokens, features]``."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.ReflectionPad2d(1)
        )
        self.shuffle = nn.Sequential(nn.Conv2d(8, 8, 3), nn.PixelShuffle(2), nn.LeakyReLU(0.2))
        self.tokens = nn.Sequential(nn.Linear(12, 6), nn.PReLU(12), nn.Conv1d(12, 8, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(F.pad(self.image(x), (1, 1, 1, 1)))
        tokens = self.tokens(y.reshape(2, 12, 12).transpose(1, 2).contiguous().view(288).view(2, 12, 12))
        return torch.cat([torch.cat([tokens, tokens * 2], -3), torch.cat([tokens, 1 - tokens], 0)], 2)


def test_three_dimensions_that_are_no_signal() -> None:
    model = pruned(Unbatched())
    engine = check(model, torch.randn(3, 4, 4, dtype=torch.float64))
    assert len(engine.steps()) > 10  # the model is cut into steps: it does not run in torch as a whole


def test_fusing_signals_for_a_gpu_keeps_the_outputs() -> None:
    model = pruned(nn.Sequential(nn.ConvTranspose1d(3, 8, 16, 8, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 2, 3)))
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    ours, lines = gpu.fused(model, Call.of((x,), {}))
    assert lines == ["0: with 1, 2"]
    assert_exact(ours(x), model(x).detach())


def test_zero_filters_of_signals_are_removed_and_channels_reordered() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.LeakyReLU(0.1)),
        *(nn.ConvTranspose1d(8, 8, 16, 8, 4), nn.PReLU(8), nn.ReflectionPad1d(1), nn.Conv1d(8, 8, 3), nn.ReLU()),
        nn.Conv1d(8, 2, 1),
    )
    model, x = trained(model), torch.randn(2, 3, 6, dtype=torch.float64)
    for index, (conv, zeros) in enumerate(zip((model[0], model[3], model[6]), (3, 2, 4), strict=True)):
        with torch.no_grad():
            (conv.weight.transpose(0, 1) if conv.transposed else conv.weight)[index : index + zeros] = 0
    small = sg.remove_filters(model, x)
    assert_exact(small(x), model(x))
    # Before the transposed layer, whose reach over zeros depends on the place, one constant channel stays.
    assert [small[at].out_channels for at in (0, 3, 6)] == [8 - 3 + 1, 8 - 2, 8 - 4]
    turned = sg.reorder_channels(model, x, "vector:2", 0.5)
    assert_exact(turned(x), model(x))
    assert not torch.equal(turned[0].weight, model[0].weight)
