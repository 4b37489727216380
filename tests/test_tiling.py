"""Large images by tiles give the result of the whole image in the memory of a tile, or the model is refused."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from simulated_gpu import SimulatedGpu
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.calls import Call
from sparsegan.cli import main
from sparsegan.engine import gpu
from sparsegan.engine.tiles import tiling
from sparsegan.engine.tiles.images import Images
from sparsegan.engine.tiles.receptive import Field
from sparsegan.gans import cyclegan, pix2pix, srgan

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"


class Plain:
    """An engine that calls the model itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.double().eval().requires_grad_(False)
        self.tiles = tiling.Tiles(self.model)
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        if keywords:
            given = {"tile": None, "overlap": None, "approximate": False} | keywords
            return tiling.run(self, inputs, {}, **given)
        self.seen.append(tuple(inputs[0].shape))
        return self.model(*inputs)


class Calls(nn.Module):
    """A module with the given forward and the given submodules."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Any) -> Any:
        return self._forward(self, *inputs)


def image(*size: int, images: int = 1, channels: int = 3) -> Tensor:
    return torch.randn(images, channels, *size, dtype=torch.float64)


def field(engine: Any, *inputs: Any) -> Field:
    return engine.tiles.field(Images(inputs, {}))


def check(engine: Any, *inputs: Any, **keywords: Any) -> Any:
    """Checks without a warning that tiles give the result of the whole image, and returns the result."""
    whole = engine(*inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = engine(*inputs, **keywords)
    torch.testing.assert_close(made, whole, rtol=1e-9, atol=1e-9)
    return made


def trained(model: nn.Module) -> nn.Module:
    """The model in float64 and evaluation mode, half sparse, with random statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return sg.sparsify(model.double().eval(), sparsity=0.5)


# ---------------------------------------------------------------------- the result of the whole image


@pytest.mark.parametrize(
    ("build", "small", "size", "tile"),
    [
        (lambda: srgan.Generator(width=4, blocks=2), 16, (61, 90), 40),
        (lambda: srgan.Generator(width=4, blocks=1, scale=2), 16, (61, 90), (64, 37)),
        (lambda: cyclegan.ResnetGenerator(ngf=4, blocks=1, norm="batch"), 16, (97, 132), 67),
        (lambda: pix2pix.UnetGenerator(ngf=4, downs=5), 32, (352, 192), 161),
    ],
)
def test_reference_generators(
    build: Callable[[], nn.Module], small: int, size: tuple[int, int], tile: int | tuple[int, int]
) -> None:
    engine = sg.optimize_for_inference(trained(build()), image(small, small))
    x = image(*size, images=2)
    check(engine, x, tile=tile)
    wider = max(field(engine, x).overlap(axis) for axis in (0, 1)) + 5
    check(engine, x, tile=wider + 2 * field(engine, x).stride[0], overlap=wider)


def random_model(r: random.Random) -> nn.Module:
    """A chain of layers with local receptive fields: strides, dilations, every kind of padding, several scales."""

    def layer(channels: int) -> tuple[nn.Module, int]:
        kernel, dilation = r.randint(1, 4), r.randint(1, 2)
        sides = tuple(r.randint(0, 3) for _ in range(4))
        out = r.choice((2, 4))
        kinds: list[Callable[[], tuple[nn.Module, int]]] = [
            lambda: (nn.Conv2d(channels, out, kernel, r.choice((1, 1, 2, 3)), r.randint(0, 2), dilation), out),
            lambda: (nn.Conv2d(channels, out, 3, 1, 1, padding_mode=r.choice(("zeros", "reflect", "replicate"))), out),
            lambda: (nn.ConvTranspose2d(channels, out, r.randint(2, 5), r.choice((1, 2)), r.randint(0, 1)), out),
            lambda: (r.choice((nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d))(sides), channels),
            lambda: (nn.Upsample(scale_factor=2, mode=r.choice(("nearest", "bilinear", "bicubic"))), channels),
            lambda: (r.choice((nn.MaxPool2d, nn.AvgPool2d))(2), channels),
            lambda: (nn.AvgPool2d(3, 1, 1, count_include_pad=False), channels),
            lambda: (r.choice((nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Hardswish())), channels),
            lambda: (nn.BatchNorm2d(channels), channels),
            lambda: (nn.Sequential(nn.Conv2d(channels, 4 * out, 3, padding=1), nn.PixelShuffle(2)), out),
            lambda: (nn.PixelUnshuffle(2), 4 * channels) if channels < 8 else (nn.Identity(), channels),
            lambda: (Residual(nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)), channels),
        ]
        return r.choice(kinds)()

    layers, channels = [], 2
    for _ in range(r.randint(1, 5)):
        made, channels = layer(channels)
        layers.append(made)
    return nn.Sequential(*layers)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).relu()


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_random_generators(seed: int) -> None:
    r = random.Random(seed)
    torch.manual_seed(seed)
    engine = Plain(random_model(r))
    try:
        engine(image(64, 64, channels=2))
    except RuntimeError:  # the image is too small, or a size is odd before a PixelUnshuffle
        assume(False)
    try:
        found = field(engine, image(64, 64, channels=2))
    except ValueError:
        assume(not any(isinstance(module, nn.PixelUnshuffle) for module in engine.model))
        raise
    assert found.whole is None
    tile = [max(found.overlap(axis), found.thin[axis]) + found.stride[axis] * r.randint(1, 3) for axis in (0, 1)]
    x = image(*(max(side + r.randint(-8, 60), 8) for side in tile), images=r.randint(1, 2), channels=2)
    try:
        engine(x)
    except RuntimeError:
        assume(False)
    engine.seen.clear()
    check(engine, x, tile=(tile[0] + r.randint(0, 3), tile[1]))
    seen = [shape[2:] for shape in engine.seen[1:] if shape[0] == x.shape[0]]
    assert all(own <= side + 3 for shape in seen for own, side in zip(shape, tile, strict=True))
    assert len(set(seen)) <= 4 + 4  # 4 sizes of tiles, and 4 for the runs of `disagreement`


def test_outputs_of_every_scale_in_any_structure() -> None:
    def forward(model: Any, x: Tensor, row: Tensor, extra: dict[str, Any]) -> Any:
        y = model.full(torch.cat([x, extra["mask"].unsqueeze(1).to(x)], 1)) * row[:, :, None, None]
        return {"full": y, "others": (model.halved(y), [model.doubled(y)], None, 3), "bright": y > 0}

    model = Calls(
        forward,
        full=nn.Conv2d(4, 3, 3, padding=1),
        halved=nn.Conv2d(3, 2, 3, 2, 1),
        doubled=nn.ConvTranspose2d(3, 2, 4, 2, 1),
    )
    engine = Plain(model)
    for size in ((64, 48), (53, 71)):
        made = check(
            engine, image(*size, images=2), image(1, images=2)[:, :, 0], {"mask": torch.rand(2, *size) > 0.5}, tile=20
        )
        assert made["others"][2:] == (None, 3)


def haar(model: Any, x: Tensor) -> Tensor:
    parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    y = torch.zeros_like(x)
    for place, part in enumerate(model.conv(torch.cat(parts, 1)).chunk(4, 1)):
        y[..., place // 2 :: 2, place % 2 :: 2] = part
    return y


def windows(model: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    tokens = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
    return model.conv(tokens.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w))


def padded_to_32(model: Any, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    y = F.pad(x, (0, -width % 32, 0, -height % 32), "reflect")
    return model.up(model.down(y))[..., :height, :width]


def by_value_of_a_weight(model: Any, x: Tensor) -> Tensor:
    return model.conv(x) if model.conv.weight.sum() < 1e9 else x


def conv(inside: int = 3, outside: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, **{"padding": 1, **options})


LOCAL: dict[str, Callable[[], nn.Module]] = {
    "where": lambda: Calls(lambda m, x: m.conv(torch.where(x > 0, x, torch.zeros_like(x))), conv=conv()),
    "times a comparison": lambda: Calls(lambda m, x: m.conv(x * (m.conv(x) > 0)), conv=conv()),
    "nan_to_num": lambda: Calls(lambda m, x: m.conv(torch.nan_to_num(m.conv(x))), conv=conv()),
    "rounded to bytes": lambda: Calls(lambda m, x: m.conv((m.conv(x) * 99).to(torch.uint8).double()), conv=conv()),
    "every other pixel": lambda: Calls(haar, conv=conv(12, 12)),
    "attention in windows": lambda: Calls(windows, conv=conv()),
    "padded to a multiple": lambda: Calls(padded_to_32, down=conv(stride=2), up=nn.ConvTranspose2d(3, 3, 4, 2, 1)),
    "a branch on a weight": lambda: Calls(by_value_of_a_weight, conv=conv()),
    "channels normed": lambda: Calls(lambda m, x: m.conv(F.normalize(x)), conv=conv()),
    "scripted": lambda: nn.Sequential(torch.jit.script(nn.Sequential(conv(), nn.ReLU(), conv()).double())),
    "thirds of thirds": lambda: nn.Sequential(conv(stride=3), conv(stride=3), nn.Upsample(scale_factor=9)),
    "patches": lambda: Calls(lambda m, x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)),
    "cropped, then counted": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 3, 2, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.AvgPool2d(2)
    ),
    "constant": lambda: Calls(lambda m, x: torch.ones_like(x)),
}


@pytest.mark.parametrize("name", LOCAL)
def test_forwards_that_are_not_a_chain_of_layers(name: str) -> None:
    engine = Plain(LOCAL[name]())
    for size in ((160, 104), (96, 196)):
        check(engine, image(*size), tile=(80, 72))


def test_steps_that_run_in_torch_and_other_dtypes() -> None:
    hooked = nn.Sequential(conv(), nn.ReLU(), conv())
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    engine = sg.optimize_for_inference(trained(hooked), image(8, 8))
    check(engine, image(30, 30), tile=12)
    single = sg.optimize_for_inference(trained(srgan.Generator(width=4, blocks=1)).bfloat16(), image(8, 8).bfloat16())
    x = image(40, 40).bfloat16()
    torch.testing.assert_close(single(x, tile=32), single(x), rtol=0.02, atol=0.02)
    bytes_ = Plain(Calls(lambda m, x: (m.conv(x / 255.0) * 9).round().clamp(-99, 99).to(torch.int8), conv=conv()))
    x = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
    bytes_.model.float()
    assert torch.equal(bytes_(x, tile=16), bytes_(x))


# ---------------------------------------------------------------------- wrong receptive fields are detected


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("much", [1, 100])
def test_a_receptive_field_that_is_too_small_is_detected(side: str, much: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100 elements less, results at the zeros around a tile would count as results of the image."""
    engine, x = Plain(nn.Sequential(conv(padding=2, dilation=2), nn.ReLU(), conv())), image(40, 57)
    found = field(engine, x)
    reach = found.outputs[0][0]
    less = replace(reach, **{side: max(getattr(reach, side) - much, 0)})
    believed, tile = replace(found, outputs=((less, less),)), found.overlap(0) + 3
    why = engine.tiles.disagreement(Images((x,), {}), believed, 0, [(0, tile), (31, 40)])
    assert why is not None
    assert "something else for a part of an image" in why

    monkeypatch.setattr(tiling, "disagreement", lambda *arguments: None)
    engine.tiles = tiling.Tiles(engine.model, dict.fromkeys(engine.tiles.fields, believed))
    assert (engine(x) - engine(x, tile=tile)).abs().max() > 1e-6
    engine.tiles = tiling.Tiles(engine.model, dict.fromkeys(engine.tiles.fields, found))
    check(engine, x, tile=tile)


def test_a_stride_that_is_too_small_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Plain(nn.Sequential(conv(stride=2), nn.ConvTranspose2d(3, 3, 4, 2, 1)))
    x = image(40, 56)
    found = field(engine, x)
    assert found.stride == (2, 2)
    monkeypatch.setattr(tiling, "disagreement", lambda *arguments: None)
    engine.tiles.fields = dict.fromkeys(engine.tiles.fields, replace(found, stride=(1, 1)))
    assert (engine(x) - engine(x, tile=12, overlap=5)).abs().max() > 1e-6


# ---------------------------------------------------------------------- refused, or approximate


def quantised(model: Any, x: Tensor) -> Tensor:
    z = model.conv(x).movedim(1, -1)
    return model.conv(model.table(z[..., :2].argmax(-1)).movedim(-1, 1))


def branching(model: Any, x: Tensor) -> Tensor:
    return model.conv(x / 255 if x.max() > 2 else x)


def warped(model: Any, x: Tensor) -> Tensor:
    return F.grid_sample(x, model.conv(x)[:, :2].movedim(1, -1).tanh(), align_corners=False)


def with_positions(model: Any, x: Tensor) -> Tensor:
    return model.conv(x + torch.linspace(0, 1, x.shape[3], dtype=x.dtype))


GLOBAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "instance norm": (lambda: nn.Sequential(conv(), nn.InstanceNorm2d(3)), r"1 \(InstanceNorm2d\) looks at the whole"),
    "group norm": (lambda: nn.Sequential(conv(), nn.GroupNorm(1, 3)), r"1 \(GroupNorm\) looks at the whole image"),
    "batch statistics": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(3, track_running_stats=False)),
        r"1 \(BatchNorm2d\) looks at the whole image",
    ),
    "pooling": (
        lambda: Calls(lambda m, x: x * m.gate(x), gate=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1))),
        r"gate.0 \(AdaptiveAvgPool2d\) looks at the whole image",
    ),
    "attention": (
        lambda: Calls(lambda m, x: (x.flatten(2).mT @ x.flatten(2)).softmax(-1).mean(-1).view(len(x), 1, *x.shape[2:])),
        r"aten.bmm in the model \(Calls\) looks at the whole|aten._softmax in the model \(Calls\) looks at the whole",
    ),
    "standardised": (lambda: Calls(lambda m, x: x - x.mean()), r"aten.mean in the model \(Calls\) looks at the whole"),
    "own weights": (
        lambda: Calls(lambda m, x: F.conv2d(x, m.conv.weight * x[:1, :1, :3, :3].cos(), padding=1), conv=conv()),
        "has a weight that depends on the image|looks at the whole image|depends on pixels",
    ),
    "table": (
        lambda: Calls(quantised, conv=conv(), table=nn.Embedding(2, 3)),
        r"table \(Embedding\) hides which pixels its result depends on",
    ),
    "branch": (lambda: Calls(branching, conv=conv()), "reads a number that depends on the whole image"),
    "warp": (lambda: Calls(warped, conv=conv()), "aten.grid_sampler_2d in the model .* hides which pixels"),
    "circular": (lambda: nn.Sequential(conv(padding_mode="circular")), r"0 \(Conv2d\) joins opposite borders"),
    "mirror": (lambda: Calls(lambda m, x: x.flip(3)), "an output depends on pixels that are more than 1024 away"),
    "positions": (lambda: Calls(with_positions, conv=conv()), "it uses positions or the image's size"),
    "size": (lambda: Calls(lambda m, x: m.conv(x) * x[0, 0].numel() ** 0.5, conv=conv()), "or the image's size"),
    "stretched": (
        lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        "it uses positions or the image's size",
    ),
    "noise": (lambda: Calls(lambda m, x: x + torch.randn_like(x)), "it uses random numbers or a state of its own"),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_models_that_look_at_the_whole_image_are_refused(name: str) -> None:
    build, why = GLOBAL[name]
    engine, x = Plain(build()), image(70, 50)
    with pytest.raises(ValueError, match=rf"({why}).*approximate=True"):
        engine(x, tile=32)
    whole = engine(x)
    made = engine(x, tile=32, approximate=True)
    assert made.shape == whole.shape
    assert made.isfinite().all()


def test_batch_statistics_of_an_engine_are_those_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(pix2pix.UnetGenerator(ngf=4, downs=5))
    engine = sg.optimize_for_inference(model, image(32, 32), statistics="batch")
    with pytest.raises(ValueError, match=r"\(BatchNorm2d\) looks at the whole image"):
        engine(image(352, 64), tile=192)
    SimulatedGpu(monkeypatch)
    on_gpu = gpu.GpuEngine(model, Call.of((image(32, 32),), {}), 8, "batch")
    with pytest.raises(ValueError, match=r"\(BatchNorm2d\) looks at the whole image"):
        on_gpu(image(352, 64), tile=192)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x)


def test_finding_a_receptive_field_leaves_the_model_unchanged() -> None:
    engine = Plain(Counting())
    check(engine, image(32, 20), tile=20)
    assert engine.model.calls == len(engine.seen) == 3
    assert not engine.model._forward_hooks


def test_an_image_of_one_tile_is_the_whole_image() -> None:
    engine = Plain(nn.Sequential(conv(), nn.InstanceNorm2d(3)))
    check(engine, image(32, 20), tile=32)
    assert not engine.tiles.fields
    narrow = Plain(nn.Sequential(conv(), nn.ReLU(), conv()))
    check(narrow, image(100, 5), tile=16)
    assert {shape[3] for shape in narrow.seen if shape[2] == 16} == {5}


def test_blending_hides_seams() -> None:
    engine = Plain(nn.Sequential(conv(), nn.InstanceNorm2d(3)))
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 96), torch.linspace(0, 2, 128), indexing="ij")
    x = torch.stack([rows.sin(), columns.cos(), rows * columns])[None].double()
    steps = {}
    for overlap in (0, None):
        made = engine(x, tile=32, overlap=overlap, approximate=True)[..., 2:-2, 2:-2]
        steps[overlap] = max(made.diff(dim=dim).abs().max() for dim in (2, 3))
    assert steps[None] < steps[0] / 3
    whole = engine(x)[..., 2:-2, 2:-2]
    assert max(whole.diff(dim=dim).abs().max() for dim in (2, 3)) < steps[None]


@pytest.mark.parametrize("overlap", [0, 1, 5, 13, (3, 20)])
def test_weights_of_a_blend_add_up_to_one(overlap: int | tuple[int, int]) -> None:
    """A model without a neighbourhood is blended: any weights that add up to one give its exact output."""
    engine, x = Plain(nn.Upsample(scale_factor=2)), image(75, 64, images=2)
    engine.tiles.fields[Images((x,), {}).key] = replace(field(engine, x), whole="it looks at the whole image")
    torch.testing.assert_close(engine(x, tile=24, overlap=overlap, approximate=True), engine(x), rtol=1e-12, atol=1e-12)


def test_an_overlap_below_the_receptive_field_is_blended_with_one_warning() -> None:
    engine, x = Plain(nn.Sequential(conv(), nn.ReLU(), conv(), nn.Tanh())), image(40, 40)
    with pytest.warns(
        UserWarning, match="overlap is 2; for the result of the whole image this model needs 4 rows and 4"
    ):
        made = engine(x, tile=16, overlap=2)
    difference = (made - engine(x)).abs()
    assert difference.max() > 1e-6
    assert difference[..., :12, :12].max() < 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(x, tile=16, overlap=2)
        engine(x, tile=16, overlap=3, approximate=True)
    check(engine, x, tile=16, overlap=4)
    check(engine, x, tile=16, approximate=True)  # changes nothing where tiles are exact


def test_wrong_arguments_are_named() -> None:
    engine = Plain(nn.Sequential(conv(stride=2), nn.ConvTranspose2d(3, 3, 4, 2, 1)))
    x = image(64, 64)
    for keywords, message in (
        ({"tile": 0}, r"tile is 0; it must be a whole number of pixels, at least 1, or two of them"),
        ({"tile": 3.5}, r"tile is 3.5; it must"),
        ({"tile": (8, 8, 8)}, r"tile is \(8, 8, 8\); it must"),
        ({"tile": 16, "overlap": -1}, r"overlap is -1; it must be a whole number of pixels, at least 0"),
        ({"overlap": 4}, "overlap or approximate is given without tile"),
        ({"tile": 1}, "tile is 1 rows; this model needs tiles of 2 rows, or a multiple"),
        (
            {"tile": 4},
            r"tile is 4 rows; with the 4 rows that .* share it must be at least 6; a smaller overlap= blends",
        ),
        ({"tile": 16, "overlap": 16}, "tile is 16 rows; with overlap=16 it must be at least 18"),
    ):
        with pytest.raises(ValueError, match=message):
            engine(x, **keywords)
    cropping = Plain(nn.Sequential(nn.Conv2d(3, 3, 5)))
    check(cropping, x, tile=16)
    with pytest.raises(ValueError, match="overlap is 2 rows; it must be at least 4, or tiles leave gaps"):
        cropping(x, tile=16, overlap=2)


def test_outputs_that_tiles_cannot_assemble_are_named() -> None:
    x = image(40, 40)
    for forward, message in (
        (lambda m, x: (x, x.mean((2, 3))), r"output 1 is no image \[N, C, H, W\]"),
        (lambda m, x: x.mT, r"output 0 is no image"),
        (lambda m, x: F.adaptive_avg_pool2d(x, 4), "output 0 does not grow with the image"),
        (lambda m, x: None, "the model puts out no image"),
        (
            lambda m, x: x.flatten(1) @ x.new_ones(4800, 4800),
            "takes images of other sizes; this one says: .*reduction dim",
        ),
        (lambda m, x: x if x.shape[2] < 9000 else x * 1, "does something else for images of another size"),
    ):
        with pytest.raises(ValueError, match=message):
            Plain(Calls(forward))(x, tile=16)
    two = Plain(Calls(lambda m, x, y: x))
    with pytest.raises(ValueError, match="there is images of 20x20 and 40x40"):
        two(x, image(20, 20), tile=16)
    with pytest.raises(ValueError, match="there is no image"):
        two(image(1, 1), image(1, 1), tile=16)


# ---------------------------------------------------------------------- memory, threads, GPU, command line


def test_memory_does_not_grow_with_the_image() -> None:
    engine = sg.optimize_for_inference(trained(srgan.Generator(width=4, blocks=1)), image(16, 16))
    arenas = {
        size: engine.memory(image(1, 1).expand(1, 3, *size), tile=48)["arena"] for size in ((60, 70), (3000, 4000))
    }
    assert len(set(arenas.values())) == 1
    assert arenas[60, 70] == engine.memory(image(48, 48))["arena"] < engine.memory(image(60, 70))["arena"]
    engine = sg.optimize_for_inference(trained(srgan.Generator(width=4, blocks=1)), image(16, 16), plans=2)
    engine(image(150, 130), tile=48)
    assert max(compiled.layout.bytes for compiled in engine._compiled.values()) == arenas[60, 70]


def test_threads_that_start_together() -> None:
    engine = sg.optimize_for_inference(trained(cyclegan.ResnetGenerator(ngf=4, blocks=1, norm="batch")), image(16, 16))
    inputs = [image(60 + 4 * index, 90) for index in range(4)]
    expected = [engine.model(x) for x in inputs]
    results: list[Tensor | None] = [None] * len(inputs)
    barrier = threading.Barrier(len(inputs))

    def serve(index: int) -> None:
        barrier.wait()
        results[index] = engine(inputs[index], tile=56)

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, right in zip(results, expected, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-9, atol=1e-9)


def test_inputs_and_random_state_stay_unchanged() -> None:
    engine = Plain(nn.Sequential(nn.ReLU(inplace=True), conv()))
    x = image(30, 40, channels=3)
    before, state = x.clone(), torch.get_rng_state()
    engine(x, tile=16)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not engine.model[0]._forward_hooks


def test_an_engine_on_a_gpu_runs_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated, model = SimulatedGpu(monkeypatch), trained(srgan.Generator(width=4, blocks=1))
    for _, layer in sg.sparse_layers(model):
        layer.backend = "sparse"
    with simulated.running():
        engine = gpu.GpuEngine(model, Call.of((image(16, 16),), {}), 8, "stored")
        check(engine, image(61, 50), tile=40)
    assert {key[0][0][0][0] for key in engine._compiled} >= {(1, 3, 40, 40)}


def test_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    pillow.fromarray(pixels).save(inputs / "0.png")
    pictures = []
    for name, more in (("whole", []), ("tiles", ["--tile", "48"])):
        out = ["--images", str(inputs), "--quiet", "--out", str(tmp_path / name)]
        assert main(["generate", str(CHECKPOINTS / "srgan-photos"), *out, *more]) == 0
        pictures.append(np.asarray(pillow.open(tmp_path / name / "0.png")).astype(int))
    assert pictures[0].shape == (280, 360, 3)
    assert abs(pictures[0] - pictures[1]).max() <= 1
    command = ["generate", str(CHECKPOINTS / "cyclegan-emoji"), *out, "--direction", "a_to_b"]
    capsys.readouterr()
    assert main([*command, "--tile", "48"]) == 1
    assert "model.2 (InstanceNorm2d) looks at the whole image" in capsys.readouterr().err
    assert main([*command, "--tile", "48", "--overlap", "16", "--approximate"]) == 0
    assert main([*command, "--overlap", "16"]) == 1
    assert "without --tile" in capsys.readouterr().err
