"""The inference engine computes the outputs of the module: reference GANs, modules in users' styles, and random
graphs."""

from __future__ import annotations

import copy
import math
import operator
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import sparsegan as sg
from sparsegan.calls import Call
from sparsegan.engine import gpu
from sparsegan.engine.steps import Pointwise, SparseConvStep, Statistics, Torch
from sparsegan.engine.tracing import NORMS
from sparsegan.gans import cyclegan, dcgan, esrgan, pix2pix, srgan, stargan, store
from sparsegan.nn.layer import DENSE_CLASSES

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"


def trained(model: nn.Module, *example: Any) -> nn.Module:
    """The model in float64, with random weights, statistics and affine parameters as after training."""
    model = model.double()
    for module in model.modules():
        if isinstance(module, DENSE_CLASSES) and "weight" in module._parameters:
            nn.init.normal_(module.weight, 0, (1.5 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, NORMS):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, 1, 0.3)
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def pruned(model: nn.Module, sparsity: float = 0.8, backend: str = "sparse") -> nn.Module:
    model = trained(model)
    if any(isinstance(module, DENSE_CLASSES) for module in model.modules()):
        sg.sparsify(model, sparsity=sparsity)
    for _, layer in sg.sparse_layers(model):
        layer.backend = backend
    return model


def check(model: nn.Module, *inputs: Any, rtol: float = 1e-9) -> sg.Engine:
    """Compiles the model for the inputs and compares the outputs; the model must stay unchanged."""
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(*[x.clone() if isinstance(x, Tensor) else x for x in inputs])
    engine = sg.optimize_for_inference(model, inputs)
    for _ in range(2):  # the second call reuses the memory of the first
        again = [x.clone() if isinstance(x, Tensor) else x for x in inputs]  # a model may change its inputs
        torch.testing.assert_close(engine(*again), expected, rtol=rtol, atol=rtol)
    for own, kept in zip(model.state_dict().values(), before.values(), strict=True):
        assert torch.equal(own, kept)
    return engine


def kinds(engine: sg.Engine) -> list[type]:
    return [type(step) for step in engine.steps()]


# ---------------------------------------------------------------------- the reference generators

GENERATORS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "dcgan": (lambda: dcgan.Generator(nz=10, ngf=8), lambda n: (torch.randn(n, 10, 1, 1),)),
    "pix2pix": (lambda: pix2pix.UnetGenerator(ngf=4, downs=5), lambda n: (torch.randn(n, 3, 32, 64),)),
    "pix2pix instance norm": (
        lambda: pix2pix.UnetGenerator(ngf=4, downs=5, norm="instance"),
        lambda n: (torch.randn(n, 3, 64, 64),),
    ),
    "cyclegan": (lambda: cyclegan.ResnetGenerator(ngf=4, blocks=2), lambda n: (torch.randn(n, 3, 20, 28),)),
    "stargan": (
        lambda: stargan.Generator(conv_dim=4, domains=3, repeat_num=2),
        lambda n: (torch.randn(n, 3, 16, 20), torch.eye(3)[torch.arange(n) % 3]),
    ),
    "srgan": (lambda: srgan.Generator(width=8, blocks=2), lambda n: (torch.randn(n, 3, 9, 7),)),
    "esrgan": (lambda: esrgan.RRDBNet(width=8, blocks=1), lambda n: (torch.randn(n, 3, 9, 7),)),
    "esrgan compact": (lambda: esrgan.Compact(width=8, convs=2, scale=3), lambda n: (torch.randn(n, 3, 9, 7),)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_reference_generators(name: str) -> None:
    build, inputs = GENERATORS[name]
    model = pruned(build())
    engine = check(model, *(x.double() for x in inputs(2)))
    layers = [module for module in model.modules() if isinstance(module, sg.SparseConv2d | sg.SparseConvTranspose2d)]
    assert kinds(engine).count(SparseConvStep) == len(layers)
    assert Statistics not in kinds(engine)
    heavy = [s for s in engine.steps() if (isinstance(s, Torch) and "Norm" in s.why) or "cat" in s.why]
    assert not heavy
    assert not any("Tanh" in step.why or "tanh" in step.why for step in engine.steps())
    for n in (1, 3):  # the same engine at other batch sizes
        other = tuple(x.double() for x in inputs(n))
        with torch.no_grad():
            torch.testing.assert_close(engine(*other), model(*other), rtol=1e-9, atol=1e-9)


def test_float32_is_as_exact_as_torch() -> None:
    model = pruned(cyclegan.ResnetGenerator(ngf=8, blocks=3))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        exact = model(x)
        single = sg.densify(copy.deepcopy(model)).float()
        torchs = (single(x.float()) - exact).abs().max()
        ours = (sg.optimize_for_inference(copy.deepcopy(model).float(), x.float())(x.float()) - exact).abs().max()
    assert ours <= 2 * torchs + 1e-6


def test_bfloat16() -> None:
    model = pruned(srgan.Generator(width=8, blocks=1)).bfloat16()
    x = torch.randn(1, 3, 12, 12).bfloat16()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        engine = sg.optimize_for_inference(model, x)
        assert (engine(x).double() - exact).abs().max() <= 2 * (model(x).double() - exact).abs().max() + 1e-2


@pytest.mark.parametrize("name", ["dcgan-mnist", "pix2pix-openmoji", "cyclegan-emoji", "stargan-emoji", "srgan-photos"])
def test_trained_generators_make_the_same_images(name: str) -> None:
    """With this project's trained weights, outputs agree within a hundredth of a step of 8-bit images."""
    gan = store.load(CHECKPOINTS / name)
    model, inputs = sg.sparsify(gan.generator, sparsity=0.5).eval(), store.example(gan, 2)
    with torch.no_grad():
        pictures, ours = model(*inputs), sg.optimize_for_inference(model, inputs)(*inputs)
    for one, other in zip(_list(pictures), _list(ours), strict=True):
        assert one.std() > 0.1  # an image, not a uniform grey
        assert (one - other).abs().max() < 0.01 * 2 / 255


def _list(images: Any) -> list[Tensor]:
    return [images] if isinstance(images, Tensor) else list(images.values())


# ---------------------------------------------------------------------- modules in users' styles


class Functional(nn.Module):
    """A forward that only calls torch.nn.functional, in place where that is possible."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.bias = nn.Parameter(torch.randn(8))
        self.up = nn.Parameter(torch.randn(8, 2, 4, 4))
        self.gamma, self.slope = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.tensor([-0.3]))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(F.pad(x, (1, 2, 0, 1), mode="reflect"), self.weight * 0.1, self.bias, stride=(2, 1), groups=1)
        skip = y
        F.relu(y, inplace=True)
        y = F.instance_norm(y, weight=self.gamma, eps=1e-3)
        y = F.prelu(F.prelu(y, self.slope), self.slope)
        y = F.dropout(y, 0.5, self.training)
        y += skip
        y = torch.cat([y, skip, y * 2 - 1], dim=-3).contiguous()
        a, b, c = y.chunk(3, 1)
        gated = F.interpolate(a * torch.sigmoid(b), scale_factor=2) + F.interpolate(c, scale_factor=2, mode="nearest")
        return F.conv_transpose2d(gated, self.up, stride=2, padding=1).clamp(-1, 1), skip.mean((2, 3))


class Wrapped(nn.Module):
    """Computed weights, other norms, a layer called twice, a padding that depends on a shape, a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular"))
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, dilation=2, groups=4))
        self.norm, self.own = nn.GroupNorm(2, 8), nn.BatchNorm2d(8, track_running_stats=False)
        self.pre, self.twice = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        n, _, height, _ = x.shape
        y = self.norm(self.conv(x)) * scale
        y = self.twice(self.twice(F.leaky_relu(self.pre(y), 0.2, True)))
        y = self.own(self.spectral(F.pad(y, [0, height % 3, 1, 1], value=0.5)))
        return {"image": y.view(n, 2, 4, *y.shape[2:]).mean(1), "first": x}


class Twice(nn.Module):
    """One tensor is in two concatenations, twice in one of them. The input is part of a sum that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.c = nn.InstanceNorm2d(4), nn.Conv2d(16, 4, 3, padding=1)
        self.d = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        raw = self.a(x)
        y = self.norm(raw)
        z = self.b(F.relu(y))
        inner = torch.cat([y, z], 1)
        first = torch.cat([y, z, y, raw], 1)
        second = torch.cat([x, inner, F.relu(first[:, :8])], 1)
        return [self.c(F.leaky_relu(first)), self.d(second), inner + inner, x + y, first]


class Frames(nn.Module):
    """The batch inside differs from the batch of the input: each frame of [N, T, C, H, W] becomes an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.view(2, 3, 3, 3, 11).flatten(0, 1)
        return self.last(F.relu(self.norm(self.conv(frames)))).unflatten(0, (2, 3))


class InPlace(nn.Module):
    """A forward with an in-place op that the engine does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.clamp_(-0.5, 0.5)
        return y


class ReadTwice(nn.Module):
    """An op fused into a convolution must not reach other readers of its output, which an Identity renames."""

    def __init__(self) -> None:
        super().__init__()
        self.bent, self.shuffled, self.same = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Identity()
        self.tanh_, self.relu_ = nn.Tanh(), nn.ReLU()  # the names look like in-place ops; these modules are not

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = self.bent(x), self.shuffled(x)
        c = a + b
        named = self.tanh_(c), self.relu_(c), c * 1
        return torch.tanh(self.same(a)), a * 1, F.pixel_shuffle(self.same(b), 2).sigmoid_(), b * 1, *named


@pytest.mark.parametrize("build", [Functional, Wrapped, Twice, Frames, InPlace])
def test_other_ways_to_write_a_module(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = trained(build())
    channels = 4 if build is Twice else 3
    check(model, torch.randn(2, channels, 9, 11, dtype=torch.float64))


def test_outputs_that_are_read_twice() -> None:
    check(pruned(ReadTwice()), torch.randn(1, 3, 6, 7, dtype=torch.float64))


def test_models_that_run_in_torch_say_why() -> None:
    engine = check(trained(InPlace()), torch.randn(1, 3, 5, 5, dtype=torch.float64))
    (step,) = engine.steps()
    assert (
        step.why
        == "the whole model runs in torch: clamp_ changes its input in place, and the engine has no rule for it"
    )
    assert step.why in str(engine)

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            F.relu_(y[:, :2])
            return y * 1

    engine = check(trained(Viewing()), torch.randn(1, 3, 5, 5, dtype=torch.float64))
    assert "relu_ changes a tensor in place, and another tensor shares its memory" in engine.steps()[0].why

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    engine = check(Branching(), torch.randn(1, 1, 2, 2))
    assert "torch.fx cannot trace it" in engine.steps()[0].why


def test_a_function_with_a_keyword_input_runs_in_torch() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(input=self.first(x)))

    engine = check(pruned(ByKeyword()), torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert kinds(engine) == [SparseConvStep, Torch, SparseConvStep]


def test_state_that_tracing_does_not_see_is_an_error() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(ValueError, match="differ from the model's"):
        sg.optimize_for_inference(Counting(), torch.ones(1, 1, 2, 2))


def test_a_pinned_dense_backend_and_dense_layers() -> None:
    model = pruned(cyclegan.ResnetGenerator(ngf=4, blocks=1), 0.5, backend="dense")
    engine = check(model, torch.randn(1, 3, 16, 16, dtype=torch.float64))
    assert SparseConvStep not in kinds(engine)
    assert Statistics in kinds(engine)
    transposed = trained(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()))
    check(transposed, torch.randn(2, 4, 5, 3, dtype=torch.float64))


def test_vectors_and_filters() -> None:
    for granularity in ("vector:4", "input:2", "input:4", "kernel", "2:4"):
        sparsity = 0.5 if granularity == "2:4" else 0.7
        model = sg.sparsify(
            trained(srgan.Generator(width=8, blocks=1)),
            sparsity=sparsity,
            granularity=granularity,
            exclude=("block1.0", "block4.2"),
        )
        check(model, torch.randn(1, 3, 6, 5, dtype=torch.float64))


@pytest.mark.parametrize("granularity", ["vector:4", "input:2", "input:4"])
def test_units_of_several_channels_on_their_kernels(granularity: str) -> None:
    """Transposed layers with batch norms folded in, and a convolution with groups."""
    grouped = trained(nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=2), nn.InstanceNorm2d(16), nn.ReLU()))
    for net, last, x in (
        (trained(dcgan.Generator(nz=8, ngf=4)), ("main.12",), torch.randn(2, 8, 1, 1, dtype=torch.float64)),
        (grouped, (), torch.randn(2, 16, 9, 7, dtype=torch.float64)),
    ):
        sg.sparsify(net, 0.7, granularity, exclude=last)
        for _, layer in sg.sparse_layers(net):
            layer.backend = "sparse"
        assert kinds(check(net, x)).count(SparseConvStep) >= len(list(sg.sparse_layers(net)))


def test_a_shuffle_after_input_units_is_fused() -> None:
    """Only output channels lie in the blocks of a PixelShuffle; the 3 input channels of a unit do not matter."""
    net = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.PixelShuffle(2), nn.Tanh())
    sg.sparsify(trained(net), 0.7, "input:3")[0].backend = "sparse"
    engine = check(net, torch.randn(2, 6, 5, 4, dtype=torch.float64))
    assert kinds(engine) == [SparseConvStep]


# ---------------------------------------------------------------------- random graphs


class Random(nn.Module):
    """Runs a program. Each step is (kind, indices of earlier tensors, module or numbers) and gives one more tensor."""

    def __init__(self, program: list[tuple[str, tuple[int, ...], Any]]) -> None:
        super().__init__()
        self.program = program
        self.parts = nn.ModuleDict({str(n): one for n, (*_, one) in enumerate(program) if isinstance(one, nn.Module)})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        tensors = [x]
        for n, (what, sources, part) in enumerate(self.program):
            first = tensors[sources[0]]
            if what == "module":
                y = self.parts[str(n)](first)  # pruning replaces the module of the program
            elif what == "add":
                y = first + tensors[sources[1]]
            elif what == "add in place":
                y = operator.iadd(first * 1, tensors[sources[1]])
            elif what == "modulate":
                y = part(first, tensors[sources[1]].amax((2, 3), keepdim=True) + 0.5)
            elif what == "concatenate":
                y = torch.cat([tensors[source] for source in sources], 1)
            elif what == "slice":
                y = first[:, : max(1, first.shape[1] // 2)]
            else:
                y = first * part[0] + part[1]
            tensors.append(y)
        return tensors[-1], tensors[len(tensors) // 2]


def random_part(r: random.Random, shape: tuple[int, ...]) -> nn.Module | None:
    """A random module that accepts ``shape``; None where no such module was drawn."""
    _, c, h, w = shape
    kind = r.choice(("conv", "conv", "conv", "transposed", "norm", "norm", "act", "act", "act", "pad", "up", "shuffle"))
    if kind == "conv":
        groups = r.choice([g for g in (1, 1, 2) if c % g == 0])
        kernel, padding = (r.randint(1, min(3, h)), r.randint(1, min(3, w))), r.choice((0, 0, 1))
        mode = r.choice(("zeros", "zeros", "reflect", "replicate", "circular"))
        if mode == "reflect" and min(h, w) == 1:
            padding = 0  # too few elements for the padding mode
        width = 4 * groups if r.random() < 0.7 else groups * r.randint(1, 4)
        return nn.Conv2d(c, width, kernel, r.choice((1, 1, 2)), padding, 1, groups, r.random() < 0.5, mode)
    if kind == "transposed":
        return nn.ConvTranspose2d(c, r.randint(1, 4), r.randint(1, 4), r.randint(1, 2), bias=r.random() < 0.5)
    if kind == "norm":
        if h * w > 1 and r.random() < 0.3:
            return nn.GroupNorm(r.choice([g for g in range(1, c + 1) if c % g == 0]), c, affine=r.random() < 0.5)
        return r.choice((nn.BatchNorm2d, nn.InstanceNorm2d if h * w > 1 else nn.BatchNorm2d))(
            c, affine=r.random() < 0.5
        )
    if kind == "act":
        in_place = r.random() < 0.5
        acts = (nn.ReLU(in_place), nn.LeakyReLU(0.2, in_place), nn.PReLU(c, 0.3), nn.PReLU(1, -0.2))
        return r.choice((*acts, nn.Tanh(), nn.Sigmoid()))
    if kind == "pad":
        sizes = [min(r.randint(0, 2), h - 1, w - 1) for _ in range(4)]
        return r.choice((nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d))(tuple(sizes))
    if kind == "up":
        return nn.Upsample(scale_factor=r.randint(1, 2)) if h * w < 100 else nn.Dropout(0.5)
    return nn.PixelShuffle(2) if c % 4 == 0 else None


#: Arithmetic on an image and one number per image and channel, as in AdaIN and squeeze-and-excitation.
MODULATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    operator.add,
    operator.sub,
    operator.mul,
    lambda x, one: x / (one * one + 1),
    lambda x, one: one - x,
    lambda x, one: one[:1, :, 0, 0, None, None] * x,
    lambda x, one: operator.imul(x * 1, one),
    lambda x, one: x + 0.5,
    lambda x, one: operator.isub(x * one, 0.5),
)


def random_graph(seed: int) -> tuple[Random, Tensor]:
    """A model and its input."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(r.randint(1, 3), r.randint(1, 4), r.randint(4, 9), r.randint(4, 9))
    shapes, program = [tuple(x.shape)], []
    while len(program) < r.randint(3, 14):
        source = r.randrange(max(0, len(shapes) - 3), len(shapes))
        n, _, h, w = shapes[source]
        alike = [i for i, other in enumerate(shapes) if other == shapes[source]]
        same_channels = [i for i, other in enumerate(shapes) if other[:2] == shapes[source][:2]]
        beside = [i for i, other in enumerate(shapes) if (other[0], *other[2:]) == (n, h, w)]
        others = (
            "add",
            "add in place",
            "concatenate",
            "concatenate",
            "slice",
            "number",
            "identity",
            "modulate",
            "modulate",
        )
        kind = r.choice(("module",) * 7 + others)
        sources, part = (source,), None
        if kind == "identity":
            part, kind = nn.Identity(), "module"
        elif kind == "module":
            part = random_part(r, shapes[source])
            if part is None or (source == 0 and getattr(part, "inplace", False)):  # the input must stay unchanged
                continue
        elif kind == "number":
            part = (r.choice((-1.0, 0.5)), r.uniform(0.1, 1))  # other numbers each time, so that nothing cancels
        elif kind == "modulate":
            sources, part = (source, r.choice(same_channels)), r.choice(MODULATIONS)
        else:
            chosen = alike if kind.startswith("add") else beside
            sources = (source, *(r.choice(chosen) for _ in range(1 if kind.startswith("add") else r.randint(1, 2))))
        step = (kind, sources, part)
        with torch.no_grad():
            shape = tuple(Random([*program, step]).eval()(x)[0].shape)
        if 0 < math.prod(shape) <= 20000 and min(shape[2:]) > 0:
            program.append(step)
            shapes.append(shape)
    return Random(program), x.double()


@pytest.mark.parametrize("operator", ["+=", "-=", "*=", "/=", "**="])
@pytest.mark.parametrize("other", ["image", "float32 image", "channels", "number"])
def test_augmented_assignment_changes_the_tensor_for_all_its_readers(operator: str, other: str) -> None:
    class Augmented(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.after = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            t = self.conv(x)
            same = t
            y: Any = 2.5
            if "image" in other:
                y = self.after(t).float() if "float32" in other else self.after(t)
            elif other == "channels":
                y = t.mean((2, 3), keepdim=True)
            if operator == "+=":
                t += y
            elif operator == "-=":
                t -= y
            elif operator == "*=":
                t *= y
            elif operator == "/=":
                t /= y
            else:
                t.abs_()
                t **= y
            return self.after(t) + same

    check(pruned(Augmented()), torch.randn(2, 3, 9, 9, dtype=torch.float64))


def test_a_result_that_cancels_to_zero_is_no_difference() -> None:
    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return (x - x.mean((2, 3), keepdim=True)).sum((2, 3))

    check(pruned(Zero()), torch.randn(2, 3, 9, 9, dtype=torch.float64))


@settings(max_examples=150, deadline=None)
@example(4781)
@given(st.integers(0, 2**32))
def test_random_graphs(seed: int) -> None:
    model, x = random_graph(seed)
    model = pruned(model, 0.6)
    engine = check(model, x)
    assert engine._whole is None or "in place" in engine._whole, "the model has to run in the engine"
    if list(sg.sparse_layers(model)) and engine._whole is None:
        assert SparseConvStep in kinds(engine)
    with torch.no_grad():
        torch.testing.assert_close(
            gpu.fused(model, Call.of((x,), {}))[0](x.clone()), copy.deepcopy(model).eval()(x.clone())
        )


# ---------------------------------------------------------------------- use of an engine


def test_shapes_are_kept_up_to_a_bound() -> None:
    model = pruned(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.InstanceNorm2d(3)))
    engine = sg.optimize_for_inference(model, torch.randn(1, 2, 4, 4, dtype=torch.float64), plans=2)
    for size in (4, 5, 6, 7, 4):
        x = torch.randn(1, 2, size, size, dtype=torch.float64)
        torch.testing.assert_close(engine(x), model(x).detach())
    assert len(engine._compiled) == 2
    with pytest.raises(ValueError, match="plans is 0; it must be at least 1"):
        sg.optimize_for_inference(model, torch.randn(1, 2, 4, 4, dtype=torch.float64), plans=0)


def test_calls_at_the_same_time() -> None:
    model = pruned(cyclegan.ResnetGenerator(ngf=4, blocks=1))
    inputs = [torch.randn(1, 3, 16, 16, dtype=torch.float64) for _ in range(4)]
    engine = sg.optimize_for_inference(model, inputs[0])
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    results: list[list[Tensor]] = [[] for _ in inputs]
    barrier = threading.Barrier(len(inputs))

    def serve(i: int) -> None:
        barrier.wait()
        for _ in range(5):
            results[i].append(engine(inputs[i]))

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, right in zip(results, expected, strict=True):
        assert len(own) == 5
        for one in own:
            torch.testing.assert_close(one, right)


def test_results_stay_unchanged_by_later_calls() -> None:
    model = pruned(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()))
    engine = sg.optimize_for_inference(model, torch.randn(1, 2, 6, 6, dtype=torch.float64))
    first = engine(torch.ones(1, 2, 6, 6, dtype=torch.float64))
    kept = first.clone()
    engine(torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    assert torch.equal(first, kept)


def test_tensors_reuse_the_arena() -> None:
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU()) for _ in range(6)]
    x = torch.randn(1, 8, 16, 16, dtype=torch.float64)
    engine = check(pruned(nn.Sequential(*blocks, nn.Conv2d(8, 8, 1))), x)
    assert engine.memory()["arena"] == 2 * x.numel() * 8
    residual = check(pruned(cyclegan.ResnetGenerator(ngf=8, blocks=4)), torch.randn(1, 3, 32, 32, dtype=torch.float64))
    largest = max(step.writes[0].bytes for step in residual.steps() if isinstance(step, SparseConvStep | Pointwise))
    assert residual.memory()["arena"] <= 2 * largest


def test_saving_an_engine_saves_the_model(tmp_path: Any) -> None:
    model = pruned(dcgan.Generator(nz=6, ngf=4)).float()
    x = torch.randn(2, 6, 1, 1)
    engine = sg.optimize_for_inference(model, x)
    sg.save(engine, tmp_path / "g.safetensors")
    fresh = sg.load(dcgan.Generator(nz=6, ngf=4), tmp_path / "g.safetensors")
    torch.testing.assert_close(sg.optimize_for_inference(fresh, x)(x), engine(x))


def test_wrong_inputs_are_named() -> None:
    model = pruned(nn.Sequential(nn.Conv2d(2, 3, 3)))
    engine = sg.optimize_for_inference(model, torch.randn(1, 2, 6, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"input 0 has dtype torch\.float32; the example has dtype torch\.float64"):
        engine(torch.randn(1, 2, 6, 6))
    with pytest.raises(TypeError, match="too many positional arguments"):
        engine(*[torch.randn(1, 2, 6, 6, dtype=torch.float64)] * 2)


# ---------------------------------------------------------------------- the rewriting for a GPU, run on the CPU


def test_fusing_for_a_gpu_keeps_the_outputs() -> None:
    for backend in ("sparse", "dense"):
        model = pruned(dcgan.Generator(nz=6, ngf=4), backend=backend)
        x = torch.randn(2, 6, 1, 1, dtype=torch.float64)
        ours, lines = gpu.fused(model, Call.of((x,), {}))
        assert lines[0] == "main.0: with main.1, main.2"
        assert not [one for one in ours.modules() if isinstance(one, nn.BatchNorm2d | nn.ReLU)]
        torch.testing.assert_close(ours(x), model(x).detach())
    unet = pruned(pix2pix.UnetGenerator(ngf=4, downs=5))  # its activations stand before the layers, or are in place
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(gpu.fused(unet, Call.of((x,), {}))[0](x), unet(x).detach())
    layer = nn.Conv2d(2, 2, 3, padding=1)  # the ReLU follows only the first call
    twice = pruned(nn.Sequential(layer, nn.ReLU(), layer))
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    ours, lines = gpu.fused(twice, Call.of((x,), {}))
    assert lines == []
    torch.testing.assert_close(ours(x), twice(x).detach())
