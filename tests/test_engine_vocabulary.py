"""The engine runs the operations that generators are made of, natively or as named steps of torch.

Each operation of `OPERATIONS` stands between two sparse convolutions. The table of docs/engine.md is generated from the
same dict: ``python tests/test_engine_vocabulary.py`` writes it.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.atomic_files import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "engine.md"
START, END = "<!-- made by tests/test_engine_vocabulary.py -->", "<!-- made -->"
WIDTH, STYLE = 8, 5


def conv(inside: int = WIDTH, outside: int = WIDTH, kernel: int = 3) -> nn.Module:
    layer = sg.SparseConv2d(inside, outside, kernel, padding=kernel // 2, sparsity=0.6)
    layer.backend = "sparse"  # "auto" would run such small layers dense
    return layer


def sparse_without_bias() -> Any:
    layer = sg.SparseConv2d(WIDTH, WIDTH, 3, padding=1, bias=False, sparsity=0.6)
    layer.backend = "sparse"
    return layer


class Function(nn.Module):
    """A function of the image, as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, style: Tensor) -> Any:
        return self.function(x)


class Styled(nn.Module):
    """A function of the image, a style vector, and layers."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.function(self, x, style)


class Plain(nn.Module):
    """A module that takes the image only."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.own = module

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.own(x)


class Generator(nn.Module):
    """An operation between two sparse convolutions."""

    def __init__(self, item: nn.Module) -> None:
        super().__init__()
        self.head, self.item, self.tail = conv(3), item, conv(WIDTH, 3)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.tail(self.item(self.head(x), style))


def pair(style: Tensor) -> tuple[Tensor, Tensor]:
    scale, shift = style[:, :, None, None].chunk(2, 1)
    return 1 + scale, shift


def by_hand(x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt()


def adaptive(self: Any, x: Tensor, style: Tensor) -> Tensor:
    scale, shift = pair(self.to_style(style))
    return self.norm(x) * scale + shift


def adaptive_by_hand(self: Any, x: Tensor, style: Tensor) -> Tensor:
    scale, shift = pair(self.to_style(style))
    return scale * by_hand(x) + shift


def of_another_image(self: Any, x: Tensor, style: Tensor) -> Tensor:
    other = self.other(x)
    return by_hand(x) * other.std((2, 3), keepdim=True) + other.mean((2, 3), keepdim=True)


def spatial(self: Any, x: Tensor, style: Tensor) -> Tensor:
    inner = F.relu(self.shared(x.roll(1, 3)))
    return self.norm(x) * (1 + self.gamma(inner)) + self.beta(inner)


def channels_first(self: Any, x: Tensor, style: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    normed = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    return self.weight[:, None, None] * normed + self.bias[:, None, None]


def snake(self: Any, x: Tensor, style: Tensor) -> Tensor:
    return x + torch.sin(self.a * x) ** 2 / self.a


def excited(self: Any, x: Tensor, style: Tensor) -> Tensor:
    n, c, _, _ = x.size()
    weights = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).view(n, c)))))
    return x * weights.view(n, c, 1, 1).expand_as(x)


def excited_by_convolutions(self: Any, x: Tensor, style: Tensor) -> Tensor:
    return x * self.weights(x)


def blurred(self: Any, x: Tensor, style: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 2, 1, 2), mode="reflect"), self.taps.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


def modulated(self: Any, x: Tensor, style: Tensor) -> Tensor:
    n, c, h, w = x.shape
    weight = self.weight * self.to_scale(style)[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
    return F.conv2d(x.reshape(1, n * c, h, w), weight.view(n * c, c, 3, 3), padding=1, groups=n).view(n, c, h, w)


def attended(self: Any, x: Tensor, style: Tensor) -> Tensor:
    n, c, h, w = x.size()
    query, key, value = self.query(x).flatten(2).mT, self.key(x).view(n, -1, h * w), self.value(x).view(n, c, h * w)
    found = torch.softmax(torch.matmul(query, key), -1)
    return x + self.gamma * torch.matmul(value, found.transpose(1, 2)).view(n, c, h, w)


def attended_by_heads(self: Any, x: Tensor, style: Tensor) -> Tensor:
    n, c, h, w = x.shape
    query, key, value = self.three(self.norm(x)).reshape(n, 3, 2, c // 2, h * w).transpose(3, 4).unbind(1)
    found = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(n, c, h, w)
    return x + self.out(found)


def attended_by_module(self: Any, x: Tensor, style: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    found, _ = self.attention(tokens, tokens, tokens)
    return (tokens + found).transpose(1, 2).reshape(x.shape)


def windows(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    inside = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c).softmax(1)
    return inside.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def parts(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([first * torch.sigmoid(second), second], 1)


def up(mode: str, corners: bool | None) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, scale_factor=1.5, mode=mode, align_corners=corners)


def styled(function: Callable[..., Tensor], **layers: Callable[[], nn.Module | Tensor]) -> Callable[[], nn.Module]:
    return lambda: Styled(function, **{name: layer() for name, layer in layers.items()})


def plain(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Plain(module())


def function(of: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Function(of)


def to_style() -> nn.Module:
    return nn.Linear(STYLE, 2 * WIDTH)


#: Each operation by its name in the table of the page.
OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "`nn.BatchNorm2d`": plain(lambda: nn.BatchNorm2d(WIDTH)),
    "`nn.InstanceNorm2d`": plain(lambda: nn.InstanceNorm2d(WIDTH, affine=True)),
    "`nn.GroupNorm`": plain(lambda: nn.GroupNorm(2, WIDTH)),
    "`nn.GroupNorm`, one group": plain(lambda: nn.GroupNorm(1, WIDTH)),
    "`F.group_norm`": function(lambda x: F.group_norm(x, 4)),
    "`nn.GroupNorm` behind an activation": plain(lambda: nn.Sequential(nn.ReLU(), nn.GroupNorm(2, WIDTH))),
    "`nn.GroupNorm` with an eps below 1e-12": plain(lambda: nn.GroupNorm(2, WIDTH, 1e-20)),
    "layer norm over whole images": function(lambda x: F.layer_norm(x, x.shape[1:])),
    "`nn.LayerNorm` over channels, between two permutations": styled(
        lambda self, x, style: self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=lambda: nn.LayerNorm(WIDTH)
    ),
    "layer norm over channels, by hand": styled(
        channels_first, weight=lambda: torch.rand(WIDTH), bias=lambda: torch.rand(WIDTH)
    ),
    "pixel norm": function(lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-8)),
    "`F.normalize`": function(lambda x: F.normalize(x, dim=1)),
    "AdaIN: an instance norm, scale and shift from a style": styled(
        adaptive, norm=lambda: nn.InstanceNorm2d(WIDTH), to_style=to_style
    ),
    "AdaIN by hand": styled(adaptive_by_hand, to_style=to_style),
    "AdaIN by the statistics of another image": styled(of_another_image, other=conv),
    "modulated convolution of StyleGAN2, one weight per image": styled(
        modulated,
        weight=lambda: torch.randn(1, WIDTH, WIDTH, 3, 3),
        to_scale=lambda: nn.Linear(STYLE, WIDTH),
    ),
    "`sg.ModulatedConv`, the same convolution with the scales on the images": styled(
        lambda self, x, style: self.modulated(x, self.to_scale(style)),
        modulated=lambda: sg.ModulatedConv(sparse_without_bias()),
        to_scale=lambda: nn.Linear(STYLE, WIDTH),
    ),
    "noise of StyleGAN2: one plane for all channels": styled(
        lambda self, x, style: x + self.strength * torch.cos(x[:, :1]), strength=lambda: torch.rand(1)
    ),
    "conditional batch norm of BigGAN": styled(
        adaptive, norm=lambda: nn.BatchNorm2d(WIDTH, affine=False), to_style=to_style
    ),
    "SPADE: a norm, scale and shift per element": styled(
        spatial, norm=lambda: nn.InstanceNorm2d(WIDTH), shared=conv, gamma=conv, beta=conv
    ),
    "`nn.ReLU`, `nn.LeakyReLU`, `nn.PReLU`": plain(
        lambda: nn.Sequential(nn.LeakyReLU(0.2), conv(), nn.PReLU(WIDTH), conv(), nn.ReLU(True))
    ),
    "`nn.SiLU`": plain(nn.SiLU),
    "`x * torch.sigmoid(x)`": function(lambda x: x * torch.sigmoid(x)),
    "`nn.GELU`": plain(nn.GELU),
    "`F.gelu`, approximated by tanh": function(lambda x: F.gelu(x, approximate="tanh")),
    "`nn.Hardswish`": plain(nn.Hardswish),
    "`nn.Hardtanh`": plain(nn.Hardtanh),
    "`nn.ReLU6(inplace=True)`": plain(lambda: nn.ReLU6(True)),
    "`x.clamp(...)`": function(lambda x: x.clamp(-0.3, 0.5)),
    "`nn.Softplus`": plain(nn.Softplus),
    "`nn.Softplus` with another beta": plain(lambda: nn.Softplus(beta=2)),
    "`nn.InstanceNorm2d`, `nn.SiLU(inplace=True)`": plain(
        lambda: nn.Sequential(nn.InstanceNorm2d(WIDTH), nn.SiLU(inplace=True))
    ),
    "Snake": styled(snake, a=lambda: torch.rand(1, WIDTH, 1, 1) + 0.5),
    "`nn.ELU`": plain(nn.ELU),
    "`nn.SELU`": plain(nn.SELU),
    "`nn.Mish`": plain(nn.Mish),
    "`nn.Upsample`, nearest and nearest-exact, by a whole factor": plain(
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(), nn.Upsample(scale_factor=2, mode="nearest-exact"))
    ),
    "`nn.Upsample`, bilinear": plain(lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "`nn.Upsample`, bicubic, `align_corners=True`": plain(
        lambda: nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True)
    ),
    "`F.interpolate`, bilinear": function(up("bilinear", False)),
    "`F.interpolate`, bilinear, `align_corners=True`": function(up("bilinear", True)),
    "`F.interpolate`, bicubic": function(up("bicubic", False)),
    "`F.interpolate`, nearest, to a size that is no multiple": function(lambda x: F.interpolate(x, size=(21, 21))),
    "blur: a depthwise convolution with a constant filter": styled(
        blurred, taps=lambda: torch.tensor([1.0, 3, 3, 1]).outer(torch.tensor([1.0, 3, 3, 1]))[None, None] / 64
    ),
    "depthwise and pointwise convolution": plain(
        lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), conv(kernel=1))
    ),
    "`nn.AvgPool2d`": plain(lambda: nn.AvgPool2d(3, 2, 1)),
    "`F.avg_pool2d`": function(lambda x: F.avg_pool2d(x, (3, 2), padding=(1, 0))),
    "`nn.AvgPool2d`, `count_include_pad=False`": plain(lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "`nn.AvgPool2d`, `ceil_mode=True`": plain(lambda: nn.AvgPool2d(3, 2, ceil_mode=True)),
    "`F.avg_pool2d` with another divisor": function(lambda x: F.avg_pool2d(x, [2], divisor_override=3)),
    "`nn.MaxPool2d`": plain(lambda: nn.MaxPool2d(3, 2, 1)),
    "`nn.MaxPool2d` behind a reflection padding": plain(
        lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.MaxPool2d(3, 1))
    ),
    "`nn.AdaptiveAvgPool2d`": plain(lambda: nn.AdaptiveAvgPool2d(4)),
    "`nn.AdaptiveMaxPool2d`": plain(lambda: nn.AdaptiveMaxPool2d((3, 5))),
    "squeeze-and-excitation, linear layers": styled(
        excited, down=lambda: nn.Linear(WIDTH, 2), up=lambda: nn.Linear(2, WIDTH)
    ),
    "squeeze-and-excitation, convolutions": styled(
        excited_by_convolutions,
        weights=lambda: nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(WIDTH, 2, 1), nn.ReLU(), conv(2, kernel=1), nn.Sigmoid()
        ),
    ),
    "self-attention of SAGAN: matmul, softmax": styled(
        attended,
        query=lambda: conv(WIDTH, 2, 1),
        key=lambda: conv(WIDTH, 2, 1),
        value=lambda: conv(kernel=1),
        gamma=lambda: torch.tensor([0.7]),
    ),
    "self-attention: `F.scaled_dot_product_attention`": styled(
        attended_by_heads,
        norm=lambda: nn.GroupNorm(2, WIDTH),
        three=lambda: conv(WIDTH, 3 * WIDTH, 1),
        out=lambda: conv(kernel=1),
    ),
    "self-attention: `nn.MultiheadAttention`": styled(
        attended_by_module, attention=lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    ),
    "attention in windows: view, permute, softmax": function(windows),
    "`chunk`, gate and `torch.cat`": function(parts),
    "`torch.split`, reversed and joined": function(lambda x: torch.cat(torch.split(x, [3, 5], 1)[::-1], 1)),
    "`torch.cat` along rows": function(lambda x: torch.cat([x, x.flip(2)], 2)),
    "`nn.PixelShuffle`": plain(lambda: nn.Sequential(conv(WIDTH, 4 * WIDTH), nn.PixelShuffle(2))),
    "`F.pixel_unshuffle`": function(lambda x: F.pixel_unshuffle(x, 2)[:, :WIDTH]),
    "`torch.roll`": function(lambda x: torch.roll(x, (1, -2), (2, 3))),
    "`torch.flip`": function(lambda x: torch.flip(x, [3])),
    "`F.pad` with zeros": function(lambda x: F.pad(x, (1, 2, 0, 1))),
    "`F.pad` with another number": function(lambda x: F.pad(x, (1, 2, 0, 1), value=0.5)),
    "`F.pad` that crops": function(lambda x: F.pad(x, (-1, 1, -1, -1))),
    "`torch.where`": function(lambda x: torch.where(x > 0, x, 0.2 * x - 1)),
    "`torch.einsum`": styled(
        lambda self, x, style: torch.einsum("nchw,cd->ndhw", x, self.mix), mix=lambda: torch.rand(WIDTH, WIDTH)
    ),
    "reshape and permute, as in channel shuffle": function(
        lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).reshape(x.shape)
    ),
    "arithmetic with numbers": function(lambda x: 1 - (-x) * 0.5),
    "arithmetic with one number per channel": styled(
        lambda self, x, style: (x / self.a - self.a[0]) * self.a, a=lambda: torch.rand(1, WIDTH, 1, 1) + 0.5
    ),
    "dropout, `contiguous`, and a cast to the same dtype": styled(
        lambda self, x, style: self.drop(x).type_as(x).to(x.dtype).contiguous(), drop=lambda: nn.Dropout(0.5)
    ),
    "sum of two images": function(lambda x: x + x.roll(1, 2)),
    "product of two images": function(lambda x: x * x.roll(1, 2)),
}


def built(name: str, dtype: torch.dtype = torch.float64) -> Generator:
    torch.manual_seed(0)
    model = Generator(OPERATIONS[name]())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm | nn.LayerNorm):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 1, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.to(dtype).eval()


def arguments(n: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return (
        torch.randn(n, 3, height, width, dtype=dtype, generator=generator),
        torch.randn(n, STYLE, dtype=dtype, generator=generator),
    )


def compiled(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a convolution that runs in torch would be a warning
        warnings.filterwarnings("ignore", r".*\(conv2d runs in torch, because each run computes its weight\)")
        return sg.optimize_for_inference(built(name), arguments(2, 12, 8))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_between_convolutions(name: str) -> None:
    model, engine = built(name), compiled(name)
    assert engine._whole is None
    assert engine._opaque == {}
    assert engine._shapes.why_not is None  # other sizes are compiled without running the model
    for n, height, width in ((2, 12, 8), (3, 12, 8), (1, 16, 20)):
        with torch.no_grad():
            wanted = model(*arguments(n, height, width))
            torch.testing.assert_close(engine(*arguments(n, height, width)), wanted, rtol=1e-9, atol=1e-9)
    for one in engine.fallbacks:
        assert re.fullmatch(r"item(\.\w+)*(: \w+)?", one.name)
        assert "in torch" in one.why


def test_the_page_says_how_each_operation_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(START) == text.count(END) == 1
    page = text.split(START)[1].split(END)[0].strip()
    assert page == table(), "run python tests/test_engine_vocabulary.py"


def table() -> str:
    """The table of the page: the steps between the two convolutions around an operation."""
    lines = [
        "| operation between two sparse convolutions | native steps for it | steps in torch for it |",
        "| --- | --- | --- |",
    ]
    for name in OPERATIONS:
        steps = compiled(name).steps()[1:-1]
        native = [  # the model of the times chooses by the machine; the layers of the tests have their backend set
            "sparse or dense" if step.why.startswith("model:") else step.backend
            for step in steps
            if step.backend != "torch"
        ]
        counted = [one + f" x{native.count(one)}" * (native.count(one) > 1) for one in sorted(set(native))]
        torchs = [step.why.removesuffix(" runs in torch").split(" run")[0] for step in steps if step.backend == "torch"]
        lines.append(f"| {name} | {', '.join(counted) or '-'} | {', '.join(torchs) or '-'} |")
    return "\n".join(lines)


# ---------------------------------------------------------------------- prints, precision, threads, outputs


def test_the_report_names_the_steps_of_torch() -> None:
    report = str(compiled("`nn.LayerNorm` over channels, between two permutations"))
    for name, why in (("item: permute", "permute"), ("item.norm", "LayerNorm"), ("item: permute_1", "permute")):
        assert re.search(rf"^{name} +torch .*{why} runs in torch$", report, re.MULTILINE)
    padded = str(compiled("`nn.MaxPool2d` behind a reflection padding"))
    why = r"padding runs in torch, because item\.own\.1 cannot do it while it reads"
    assert re.search(rf"^item\.own\.0 +torch .*{why}$", padded, re.MULTILINE)
    group = str(compiled("self-attention: `F.scaled_dot_product_attention`"))
    assert re.search(r"^head +sparse .*mean and variance for item\.norm; ", group, re.MULTILINE)
    assert re.search(r"^item\.norm +channels ", group, re.MULTILINE)


NORMS = ("`nn.GroupNorm`", "`nn.GroupNorm` behind an activation", "AdaIN by hand", "layer norm over whole images")


@pytest.mark.parametrize("name", NORMS)
def test_norms_in_float32_are_as_exact_as_those_of_torch(name: str) -> None:
    """On channels whose means are far from 0 and from each other, where sums of squares would lose all digits."""
    exact = built(name)
    with torch.no_grad():
        assert exact.head.bias is not None
        exact.head.bias.copy_(torch.linspace(-300, 300, WIDTH))
    x = arguments(2, 12, 8)
    single = tuple(one.float() for one in x)
    with torch.no_grad():
        wanted = exact(*x)
        model = built(name, torch.float32)
        model.head.bias.copy_(exact.head.bias)
        torchs = (sg.densify(model)(*single) - wanted).abs().max()
        model = built(name, torch.float32)
        model.head.bias.copy_(exact.head.bias)
        ours = (sg.optimize_for_inference(model, single)(*single) - wanted).abs().max()
    assert ours <= 2 * torchs + 1e-6 * wanted.abs().max()


def test_a_group_of_constant_channels() -> None:
    """Their variance is 0, and only eps keeps the scale finite."""
    for name in ("`nn.GroupNorm`", "`nn.GroupNorm`, one group", "`F.group_norm`"):
        model = built(name)
        with torch.no_grad():
            for _, layer in sg.sparse_layers(model):
                layer.values.zero_()
            engine = sg.optimize_for_inference(model, arguments(2, 12, 8))
            found, wanted = (one(*arguments(2, 12, 8)) for one in (engine, model))
        assert found.isfinite().all()
        torch.testing.assert_close(found, wanted)


def test_several_threads_and_scales_that_each_run_computes() -> None:
    name = "AdaIN: an instance norm, scale and shift from a style"
    model, engine = built(name), compiled(name)
    calls = [arguments(n, 12, 8) for n in (1, 2, 3, 4)]
    with torch.no_grad():
        wanted = [model(*call) for call in calls]
    found: list[list[Tensor]] = [[] for _ in calls]
    barrier = threading.Barrier(len(calls))

    def serve(place: int) -> None:
        barrier.wait()
        found[place] += [engine(*calls[place]) for _ in range(5)]

    threads = [threading.Thread(target=serve, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, right in zip(found, wanted, strict=True):
        assert len(own) == 5
        for one in own:
            torch.testing.assert_close(one, right, rtol=1e-9, atol=1e-9)


def test_outputs_whose_scale_is_deferred() -> None:
    """Tuples and dicts of images, each with its own scale; one is changed in place, one is a part of another."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm, self.to_style = conv(3), nn.GroupNorm(2, WIDTH), to_style()

        def forward(self, x: Tensor, style: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
            scale, shift = pair(self.to_style(style))
            image = self.norm(self.head(x))
            changed = image * 1
            changed *= scale
            changed -= shift
            joined = torch.cat([image / scale, F.relu(image + shift), changed], 1)
            return {"image": image, "scaled": scale * image, "style": scale}, joined, changed.tanh()

    torch.manual_seed(0)
    model = Several().double().eval()
    engine = sg.optimize_for_inference(model, arguments(2, 12, 8))
    assert engine._whole is None
    for n, height, width in ((2, 12, 8), (1, 7, 9)):
        with torch.no_grad():
            wanted = model(*arguments(n, height, width))
        torch.testing.assert_close(engine(*arguments(n, height, width)), wanted, rtol=1e-9, atol=1e-9)


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    write_text(PAGE, f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}")
