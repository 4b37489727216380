"""StyleGAN2: the networks against a plain definition in float64, gradients, public files, engine and commands."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.cli import main
from sparsegan.gans import store, stylegan2
from sparsegan.gans.recognition import recognise
from sparsegan.nn.replace import sparse_layers

State = dict[str, Tensor]
SIZES: dict[str, Any] = {"image_size": 16, "width": 3, "most": 5, "style_dim": 6, "mapping": 2}


def port(state: State) -> State:
    """The names and shapes of the public port, from those of the networks here."""
    found = {}
    for key, tensor in state.items():
        name = key.replace(".modulated.convolution.weight", ".weight")
        if name != key:
            up = re.match(r"convs\.(\d+)\.", key)
            tensor = (tensor.transpose(0, 1) if up and int(up[1]) % 2 == 0 else tensor)[None]
        found[name] = tensor
    return found


def basicsr(state: State) -> State:
    """The names of BasicSR's layout, whose files do not hold the filters."""
    found = {}
    for key, tensor in port(state).items():
        for pattern, name in (
            (r"^style\.", "style_mlp."),
            (r"^input\.input", "constant_input.weight"),
            (r"^conv(1|s\.\d+)\.noise\.", r"style_conv\1."),
            (r"^conv(1|s\.\d+)\.conv\.", r"style_conv\1.modulated_conv."),
            (r"^conv(1|s\.\d+)\.activate\.", r"style_conv\1.activate."),
            (r"^to_rgb(1|s\.\d+)\.conv\.", r"to_rgb\1.modulated_conv."),
            (r"noise_", "noise"),
        ):
            key = re.sub(pattern, name, key)
        if not key.endswith(".kernel"):
            found[key] = tensor
    return found


# A plain definition, written from the paper. It reads a state_dict in the port's layout and no module.


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def linear(state: State, name: str, x: Tensor, rate: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"]
    return x @ weight.T * (rate / math.sqrt(weight.shape[1])) + state[f"{name}.bias"] * rate


def filtered(x: Tensor, kernel: Tensor, up: int, before: int, after: int) -> Tensor:
    """Puts zeros between pixels, pads, and convolves (with the filter turned) each channel."""
    n, c, h, w = x.shape
    spaced = x.new_zeros(n, c, h * up, w * up)
    spaced[:, :, ::up, ::up] = x
    padded = F.pad(spaced, (before, after, before, after)).flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel.flip(0, 1)[None, None])[:, 0].unflatten(0, (n, c))


def modulated(state: State, name: str, x: Tensor, w: Tensor, demodulate: bool, up: bool) -> Tensor:
    """One weight per image: equations 1 and 3."""
    weight = state[f"{name}.weight"]
    inside, size = weight.shape[2:4]
    style = linear(state, f"{name}.modulation", w)
    weights = weight / math.sqrt(inside * size**2) * style[:, None, :, None, None]
    if demodulate:
        weights = weights / (weights.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    images = []
    for image, own in zip(x, weights, strict=True):
        if up:
            images.append(F.conv_transpose2d(image[None], own.transpose(0, 1), stride=2))
        else:
            images.append(F.conv2d(image[None], own, padding=size // 2))
    y = torch.cat(images)
    return filtered(y, state[f"{name}.blur.kernel"], 1, 1, 1) if up else y


def plain_generator(state: State, w: Tensor, noise: list[Tensor]) -> Tensor:
    def layer(name: str, x: Tensor, index: int, up: bool) -> Tensor:
        y = modulated(state, f"{name}.conv", x, w[:, index], True, up) + state[f"{name}.noise.weight"] * noise[index]
        return lrelu(y + state[f"{name}.activate.bias"][:, None, None])

    x = layer("conv1", state["input.input"].repeat(len(w), 1, 1, 1), 0, False)
    image = modulated(state, "to_rgb1.conv", x, w[:, 1], False, False) + state["to_rgb1.bias"]
    for level in range(len(noise) // 2):
        x = layer(f"convs.{2 * level}", x, 2 * level + 1, True)
        x = layer(f"convs.{2 * level + 1}", x, 2 * level + 2, False)
        name = f"to_rgbs.{level}"
        own = modulated(state, f"{name}.conv", x, w[:, 2 * level + 3], False, False) + state[f"{name}.bias"]
        image = own + filtered(image, state[f"{name}.upsample.kernel"], 2, 2, 1)
    return image


def plain_mapping(state: State, z: Tensor) -> Tensor:
    w = z / (z.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
    for index in range(1, 9):
        if f"style.{index}.weight" in state:
            w = lrelu(linear(state, f"style.{index}", w, 0.01))
    return w


def plain_discriminator(state: State, images: Tensor) -> Tensor:
    def conv(name: str, index: int, x: Tensor, down: bool = False) -> Tensor:
        weight = state[f"{name}.{index}.weight"]
        size = weight.shape[2]
        weight = weight / math.sqrt(weight.shape[1] * size**2)
        if down:
            pads = (size + 1) // 2
            y = F.conv2d(filtered(x, state[f"{name}.{index - 1}.kernel"], 1, pads, pads), weight, stride=2)
        else:
            y = F.conv2d(x, weight, padding=size // 2)
        bias = state.get(f"{name}.{index + 1}.bias")
        return y if bias is None else lrelu(y + bias[:, None, None])

    x = conv("convs.0", 0, images)
    block = 1
    while f"convs.{block}.skip.1.weight" in state:
        name = f"convs.{block}"
        deep = conv(f"{name}.conv2", 1, conv(f"{name}.conv1", 0, x), down=True)
        x, block = (deep + conv(f"{name}.skip", 1, x, down=True)) / math.sqrt(2), block + 1
    n = len(x)
    groups = n // next(size for size in (4, 3, 2, 1) if n % size == 0)
    spread = torch.empty(n, 1, *x.shape[2:], dtype=x.dtype)
    for index in range(n):
        members = x[index % groups :: groups]
        spread[index] = (members.var(0, correction=0) + 1e-8).sqrt().mean()
    hidden = conv("final_conv", 0, torch.cat([x, spread], 1)).flatten(1)
    return linear(state, "final_linear.1", lrelu(linear(state, "final_linear.0", hidden)))


def built(**sizes: Any) -> tuple[Any, Any]:
    """Networks in float64 and evaluation mode, with random numbers in every tensor, filters included."""
    torch.manual_seed(0)
    networks = stylegan2.build(**{**SIZES, **sizes})
    for network in networks:
        network.double().eval()
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data += 0.3 * torch.randn_like(tensor)
    return networks


@pytest.mark.parametrize("sizes", [{}, {"image_size": 32, "channels": 1, "widths": "4,3,5,2", "mapping": 1}])
def test_the_generator_is_the_plain_definition(sizes: dict[str, Any]) -> None:
    net, _ = built(**sizes)
    state = port(net.state_dict())
    z = torch.randn(3, 6, dtype=torch.float64)
    fixed = [net.state_dict()[f"noises.noise_{layer}"] for layer in range(net.layers)]
    w = plain_mapping(state, z)[:, None].expand(-1, net.layers + 1, -1)
    torch.testing.assert_close(net(z), plain_generator(state, w, fixed))
    z, noise = stylegan2.random_inputs(net, 3)
    w = plain_mapping(state, z)[:, None].expand(-1, net.layers + 1, -1)
    torch.testing.assert_close(net(z, noise), plain_generator(state, w, noise))
    assert (net(z, noise) - net(z)).abs().max() > 1e-3
    w = torch.randn_like(w)
    torch.testing.assert_close(net.synthesis(w, noise), plain_generator(state, w, noise))


@pytest.mark.parametrize("count", [1, 4, 5, 6, 8])
def test_the_discriminator_is_the_plain_definition(count: int) -> None:
    _, judge = built(discriminator_width=4)
    images = torch.randn(count, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(judge(images), plain_discriminator(judge.state_dict(), images))
    with pytest.raises(ValueError, match="images are 8x8; they must be 16x16"):
        judge(images[:, :, :8, :8])


# Modulated convolutions


def by_groups(layer: Any, x: Tensor, scales: Tensor, eps: float) -> Tensor:
    """A modulated convolution by a dense weight per image, in one grouped convolution."""
    weight, n, transposed = layer.weight, len(x), layer.transposed
    groups = layer.groups
    dims = weight.dim() - 2
    per_input = scales.expand(n, -1)
    if transposed:  # [in, out / groups, ...]
        weights = weight * per_input.view(n, -1, *[1] * (1 + dims))
        squares = weights.pow(2).unflatten(1, (groups, -1)).sum((2, *range(4, 4 + dims)))
        factors = (squares + eps).rsqrt()  # [N, groups, out / groups]
        weights = weights.unflatten(1, (groups, -1)) * factors.view(n, groups, 1, -1, *[1] * dims)
        weights = weights.flatten(0, 2)
    else:  # [out, in / groups, ...]
        weights = weight.unflatten(0, (groups, -1)) * per_input.view(n, groups, 1, -1, *[1] * dims)
        weights = weights * (weights.pow(2).sum(tuple(range(3, 4 + dims)), keepdim=True) + eps).rsqrt()
        weights = weights.flatten(0, 2)
    function = {
        (False, 1): F.conv1d,
        (False, 2): F.conv2d,
        (True, 1): F.conv_transpose1d,
        (True, 2): F.conv_transpose2d,
    }[transposed, dims]
    y = function(x.flatten(0, 1)[None], weights, None, layer.stride, layer.padding, groups=n * groups)
    return y[0].unflatten(0, (n, -1))


CONVOLUTIONS: dict[str, tuple[Any, str]] = {
    "3x3": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), "element"),
    "vectors, two groups": (lambda: nn.Conv2d(4, 4, 3, stride=2, bias=False, groups=2), "vector:2"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), "element"),
    "transposed, input units, two groups": (
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, bias=False, groups=2),
        "input:2",
    ),
    "signal": (lambda: nn.Conv1d(4, 6, 3, padding=1, bias=False), "element"),
    "transposed signal": (lambda: nn.ConvTranspose1d(4, 2, 4, stride=2, bias=False), "vector:2"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_modulated_convolution_and_its_gradients(name: str) -> None:
    torch.manual_seed(0)
    make, granularity = CONVOLUTIONS[name]
    net = sg.sparsify(nn.Sequential(sg.ModulatedConv(make(), eps=1e-3).double()), 0.5, granularity)
    layer: Any = net[0].convolution
    assert isinstance(layer, tuple(sg.nn.SPARSE_CLASSES.values()))
    dense = layer.to_dense()
    assert 0.4 < (dense.weight == 0).double().mean() < 0.6
    grid = [4] * layer.dims
    x = torch.randn(2, 4, *grid, dtype=torch.float64, requires_grad=True)
    scales = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def ours(x: Tensor, scales: Tensor, values: Tensor) -> Tensor:
        return torch.func.functional_call(net[0], {"convolution.values": values}, (x, scales))

    wanted = by_groups(dense, x, scales, 1e-3)
    for backend in ("sparse", "dense"):
        layer.backend = backend
        made = net[0](x, scales)
        torch.testing.assert_close(made, wanted)
        direction = torch.randn_like(made)
        got = torch.autograd.grad((made * direction).sum(), (x, scales, layer.values))
        want = torch.autograd.grad((wanted * direction).sum(), (x, scales, dense.weight), retain_graph=True)
        want = (*want[:2], want[2].flatten()[layer.positions()])
        torch.testing.assert_close(got, want)
    layer.backend = "sparse"
    inputs = (x, scales, layer.values)
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, inputs, fast_mode=True)
    shared = net[0](x, scales[:1])  # one row of scales for all images
    torch.testing.assert_close(shared, by_groups(dense, x, scales[:1], 1e-3))
    torch.testing.assert_close(sg.densify(net)[0](x, scales), wanted)


def test_a_modulated_convolution_refuses_bad_arguments() -> None:
    for module, error, why in (
        (nn.Linear(2, 2), TypeError, "convolution is a Linear; it must be a convolution"),
        (nn.Conv2d(2, 2, 1), ValueError, "convolution has a bias"),
    ):
        with pytest.raises(error, match=why):
            sg.ModulatedConv(module)  # type: ignore[arg-type]
    layer = nn.Conv2d(2, 3, 1, bias=False)
    with pytest.raises(ValueError, match="eps is -1; it must be at least 0"):
        sg.ModulatedConv(layer, eps=-1)
    for shape in ((2,), (2, 3), (1, 1, 2)):
        with pytest.raises(ValueError, match=r"scales has shape .*; for 3 image\(s\) it must be \(3, 2\) or \(1, 2\)"):
            sg.ModulatedConv(layer)(torch.ones(3, 2, 4, 4), torch.ones(shape))


def test_half_precision_sums_squares_in_float32() -> None:
    torch.manual_seed(0)
    exact = sg.ModulatedConv(nn.Conv2d(64, 8, 3, padding=1, bias=False)).double()
    x, scales = torch.randn(2, 64, 6, 6, dtype=torch.float64), 300 * torch.randn(2, 64, dtype=torch.float64)
    wanted = exact(x, scales)
    half = exact.to(torch.bfloat16)(x.bfloat16(), scales.bfloat16())
    assert (half - wanted).abs().max() < 0.05 * wanted.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        auto = exact.float()(x.float(), scales.float())
    assert (auto - wanted).abs().max() < 0.05 * wanted.abs().max()


# Terms


def test_the_terms_are_their_equations() -> None:
    net, judge = built()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    fake = stylegan2.generate(net, images)
    on_real, on_fake = (judge(one).sigmoid() for one in (images, fake))
    arguments = net, judge, fake, images
    torch.testing.assert_close(stylegan2.objective.generator_terms(*arguments), {"gen": -on_fake.log().mean()})
    jacobian = torch.autograd.functional.jacobian(lambda x: judge(x).sum(), images)
    wanted = {"dis": -on_real.log().mean() - (1 - on_fake).log().mean(), "r1": jacobian.pow(2).sum() / 4}
    made = stylegan2.objective.discriminator_terms(*arguments)
    torch.testing.assert_close(made, wanted)
    made["r1"].backward()  # the penalty trains the discriminator
    assert judge.convs[0][0].weight.grad.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(stylegan2.objective.discriminator_terms(*arguments), wanted)
    assert [stylegan2.objective.weight(term) for term in ("gen", "dis", "r1", "path")] == [1, 1, 5, 2]


def test_path_lengths_and_their_gradient_on_kept_values() -> None:
    """The penalty's gradient is a second derivative through every sparse layer."""
    net, _ = built(image_size=8)
    sg.sparsify(net, 0.5)
    _, noise = stylegan2.random_inputs(net, 2)
    w = torch.randn(2, net.layers + 1, 6, dtype=torch.float64)
    direction = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda w: net.synthesis(w, noise), w)
    slope = torch.einsum("nchw,nchwmld->mld", direction, jacobian) / 8
    found, gradients = {}, {}
    for backend in ("sparse", "dense"):
        for _, layer in sparse_layers(net):
            layer.backend = backend
        found[backend] = stylegan2.path_lengths(net, w, noise, direction)
        torch.testing.assert_close(found[backend], slope.pow(2).sum(2).mean(1).sqrt())
        values = [layer.values for _, layer in sparse_layers(net)]
        gradients[backend] = torch.autograd.grad(found[backend].pow(2).sum(), values)
    torch.testing.assert_close(gradients["sparse"], gradients["dense"])
    assert all(one.abs().max() > 0 for one in gradients["sparse"])
    torch.manual_seed(3)
    terms = stylegan2.objective_with_path_length(0.5).generator_terms
    judge = stylegan2.build(**{**SIZES, "image_size": 8})[1].double()
    images = torch.zeros(4, 3, 8, 8, dtype=torch.float64)
    path = terms(net, judge, stylegan2.generate(net, images), images)["path"]
    assert path > 0
    path.backward()
    assert net.conv1.conv.modulated.convolution.values.grad.abs().max() > 0
    with pytest.raises(ValueError, match="part is 0; it must be above 0"):
        stylegan2.objective_with_path_length(0)


# Files

LAYOUTS = {"port": port, "basicsr": basicsr}


def test_the_layouts_have_the_public_names() -> None:
    state = stylegan2.build(**{**SIZES, "image_size": 8})[0].state_dict()
    styled = ("conv.weight", "conv.modulation.weight", "conv.modulation.bias", "noise.weight", "activate.bias")
    rgb = ("conv.weight", "conv.modulation.weight", "conv.modulation.bias", "bias")
    wanted = {f"{layer}.{name}" for layer in ("conv1", "convs.0", "convs.1") for name in styled}
    wanted |= {f"{layer}.{name}" for layer in ("to_rgb1", "to_rgbs.0") for name in rgb}
    wanted |= {f"style.{index}.{name}" for index in (1, 2) for name in ("weight", "bias")}
    wanted |= {"input.input", "noises.noise_0", "noises.noise_1", "noises.noise_2"}
    wanted |= {"convs.0.conv.blur.kernel", "to_rgbs.0.upsample.kernel"}
    assert port(state).keys() == wanted
    assert port(state)["convs.0.conv.weight"].shape == (1, 3, 5, 3, 3)
    judge = stylegan2.build(**{**SIZES, "image_size": 8})[1].state_dict()
    block = ("conv1.0.weight", "conv1.1.bias", "conv2.0.kernel", "conv2.1.weight", "conv2.2.bias")
    wanted = {f"convs.1.{name}" for name in (*block, "skip.0.kernel", "skip.1.weight")}
    wanted |= {"convs.0.0.weight", "convs.0.1.bias", "final_conv.0.weight", "final_conv.1.bias"}
    wanted |= {f"final_linear.{index}.{name}" for index in (0, 1) for name in ("weight", "bias")}
    assert judge.keys() == wanted
    names = basicsr(state).keys()
    assert {"style_mlp.1.weight", "constant_input.weight", "style_conv1.weight", "noises.noise2"} <= names
    assert {"style_convs.0.modulated_conv.weight", "to_rgbs.0.modulated_conv.modulation.bias"} <= names
    assert not any("kernel" in name for name in names)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("size", [8, 32, 64, 256, 1024])
def test_the_published_sizes_are_recognised_by_shapes(size: int, multiplier: int) -> None:
    levels = [4 * 2**level for level in range(size.bit_length() - 2)]
    channels = {64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}  # times the multiplier, as the port has it
    widths = [channels.get(level, 512) * (multiplier if level > 32 else 1) for level in levels]
    with torch.device("meta"):
        state = stylegan2.Generator(widths).state_dict()
        judge = stylegan2.Discriminator(widths).state_dict()
    for layout in LAYOUTS.values():
        network = recognise(layout(state), judge)
        assert (network["gan"], network["image_size"], network["width"]) == ("stylegan2", size, widths[-1])
        assert (network["style_dim"], network["mapping"], network["channels"]) == (512, 8, 3)
        assert network.get("widths", "") == ""
        sizes = [network.get(key, other) for key, other in (("most", 512), ("widths", ""))]
        assert stylegan2.widths_of(size, network["width"], *sizes) == widths


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": 16, "width": 3, "most": 5},
        {"image_size": 8, "width": 2, "most": 512, "channels": 1, "mapping": 1},
        {"image_size": 32, "width": 3, "widths": "4,5,2,3", "style_dim": 7},
    ],
)
def test_public_files_are_recognised(layout: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"style_dim": 4, "mapping": 2, **sizes}
    net, judge = stylegan2.build(**sizes, discriminator_width=4)
    for tensor in net.parameters():
        tensor.data += 0.1 * torch.randn_like(tensor)
    state = LAYOUTS[layout](net.state_dict())
    raw = {key: tensor + 1 for key, tensor in state.items()}
    file = tmp_path / "000100.pt"
    entries = {"g": raw, "d": judge.state_dict(), "g_ema": state, "latent_avg": torch.zeros(4)}
    torch.save({**entries, "g_optim": {"state": {}, "param_groups": []}, "args": {"size": 16}}, file)
    with pytest.warns(UserWarning, match="moving average g_ema; the average is taken"):
        gan, given = store.load_public(file, file)
    assert given
    for key, tensor in net.state_dict().items():
        assert torch.equal(gan.generator.state_dict()[key], tensor), key
    for key, tensor in judge.state_dict().items():
        assert torch.equal(gan.discriminator.state_dict()[key], tensor), key
    assert {key: gan.config["network"].get(key) for key in sizes if key != "most"} == {
        key: value for key, value in sizes.items() if key != "most"
    }
    again, _ = store.load_public({"g_ema": {key: one.half() for key, one in state.items()}})
    assert again.config["network"]["width"] == sizes["width"]


def test_files_that_do_not_fit_are_refused_with_a_reason() -> None:
    state = port(stylegan2.build(**SIZES)[0].state_dict())
    for change, why in (
        ({"extra": torch.ones(1)}, "extra is not in the network"),
        ({"convs.1.conv.weight": torch.ones(1, 5, 5, 5, 5)}, r"convs.1.conv.modulated.convolution.weight has shape"),
        ({"convs.1.conv.weight": torch.ones(5, 5, 3, 3)}, "convs.1.conv.weight is not in the network"),
        ({"convs.0.conv.blur.kernel": torch.ones(3, 3)}, r"convs.0.conv.blur.kernel has shape \[3, 3\] where"),
        ({"noises.noise_0": torch.ones(1, 1, 8, 8)}, r"noises.noise_0 has shape \[1, 1, 8, 8\]"),
        ({f"to_rgbs.{index}.bias": torch.ones(1) for index in range(64)}, "does not fit|fits no known|must be"),
        ({"to_rgb1.conv.modulation.weight": torch.ones(0, 0)}, "fits no known architecture"),
    ):
        with pytest.raises(ValueError, match=why):
            store.load_public({**state, **change})
    del state["noises.noise_3"]
    with pytest.raises(ValueError, match=r"noises\.noise_3 is missing"):
        store.load_public(state)


def test_bad_sizes_are_named() -> None:
    for sizes, why in (
        ({"image_size": 24}, "image_size is 24; it must be a power of two, at least 8"),
        ({"image_size": 4}, "image_size is 4; it must be a power of two, at least 8"),
        ({"width": 0}, "width is 0; it must be an integer, at least 1"),
        ({"widths": "4,4"}, "widths is '4,4'; it must be 3 numbers joined by commas, for 4 to 16 pixels"),
        ({"widths": "4,4,0"}, "widths is '4,4,0'; it must be 3 numbers"),
        ({"discriminator_widths": "4"}, "discriminator_widths is '4'; it must be 3 numbers"),
        ({"mapping": 0}, "mapping is 0; it must be an integer, at least 1"),
    ):
        with pytest.raises(ValueError, match=why):
            stylegan2.build(**{**SIZES, **sizes})
    net, _ = built()
    with pytest.raises(ValueError, match=r"z has shape \(2, 6, 1, 1\); it must be \[N, 6\]"):
        net(torch.zeros(2, 6, 1, 1))
    with pytest.raises(ValueError, match="noise has 1 tensors; it must have 5, one per layer"):
        net(torch.zeros(2, 6, dtype=torch.float64), [torch.zeros(1, 1, 4, 4)])


# Engine


@pytest.mark.parametrize("kept", ["dense", "sparse"])
@pytest.mark.parametrize("given", [False, True])
def test_an_engine_gives_the_generators_images(kept: str, given: bool) -> None:
    """With the fixed noise of the file, and with noise as arguments, which the engine must not keep."""
    net, _ = built()
    if kept == "sparse":
        sg.sparsify(net, 0.6)
    calls = [stylegan2.random_inputs(net, count)[: 2 if given else 1] for count in (2, 2, 3, 1)]
    engine = sg.optimize_for_inference(net, calls[0])
    assert engine._shapes.why_not is None  # other sizes are compiled without running the model
    for call in calls:
        torch.testing.assert_close(engine(*call), net(*call), rtol=1e-9, atol=1e-9)
    steps = {step.name: step.backend for step in engine.steps()}
    for name, module in net.named_modules():
        if isinstance(module, sg.ModulatedConv):
            assert steps[f"{name}.convolution"] in ("sparse", "dense")
            assert steps[f"{name}: scales"] == "channels"
            assert (steps.get(name) == "channels") == module.demodulate
    assert {name for name in steps if "blur" in name or "upsample" in name} >= {"convs.0.conv.blur: conv2d"}
    torchs = {re.sub(r".* (?=\w+$)", "", one.why.removesuffix(" runs in torch")) for one in engine.fallbacks}
    assert not torchs & {"conv2d", "conv_transpose2d", "ModulatedConv"}


def test_an_engine_of_modules_that_a_user_wrote() -> None:
    """Groups, scales that are one row for all images or a constant, signals, and a hook that must run."""

    class Two(nn.Module):
        def __init__(self, first: nn.Module, second: nn.Module) -> None:
            super().__init__()
            self.first, self.second = sg.ModulatedConv(first), sg.ModulatedConv(second, eps=0.1)
            self.scales = nn.Parameter(torch.rand(1, 4) - 0.5)

        def forward(self, x: Tensor, scales: Tensor) -> Tensor:
            y = self.first(F.leaky_relu(x, 0.3) * 2, self.scales)
            return self.second(F.leaky_relu(y, 0.2) * 1.5, scales) - y.mean(1, keepdim=True)

    torch.manual_seed(0)
    for make, grid in ((nn.Conv2d, (6, 5)), (nn.Conv1d, (9,))):
        model = Two(*(make(4, 4, 3, padding=1, bias=False, groups=groups) for groups in (2, 1))).double()
        sg.sparsify(model, 0.4)
        calls: list[int] = []
        for count in (2, 1):
            x, scales = torch.randn(count, 4, *grid).double(), torch.randn(1, 4).double()
            engine = sg.optimize_for_inference(model, (x, scales))
            torch.testing.assert_close(engine(x, scales), model(x, scales), rtol=1e-9, atol=1e-9)
            assert engine._whole is None
        model.second.convolution.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        with pytest.warns(UserWarning, match=r"run in torch.*second \(ModulatedConv runs in torch\)"):
            engine = sg.optimize_for_inference(model, (x, scales))
        before = len(calls)
        torch.testing.assert_close(engine(x, scales), model(x, scales), rtol=1e-9, atol=1e-9)
        assert len(calls) == before + 2


@pytest.mark.parametrize("slope", [0.2, 0.0, 3.0])
def test_one_image_needs_no_pass_between_an_activation_and_its_scales(slope: float) -> None:
    """With a negative scale the kernels read the mirrored activation, which has another slope."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, 3, padding=1)
            self.second = sg.ModulatedConv(nn.Conv2d(6, 4, 3, padding=1, bias=False))

        def forward(self, x: Tensor, scales: Tensor) -> Tensor:
            return self.second(F.leaky_relu(self.first(x) / 3 + 0.1, slope), scales)

    torch.manual_seed(0)
    model = sg.sparsify(Chain().double(), 0.5)
    for _, layer in sparse_layers(model):
        layer.backend = "sparse"
    scales = torch.tensor([[0.0, -1.0, 2.0, -3.0, 0.5, -0.1], [1.0, -1.0, 0.0, 3.0, -0.5, 0.2]], dtype=torch.float64)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    engine = sg.optimize_for_inference(model, (x[:1], scales[:1]))
    passes = sum(step.backend == "pointwise" for step in engine.steps())
    assert passes == (2 if slope == 0 else 1)  # the last one is the demodulation of the result
    for rows in (slice(1), slice(1, 2), slice(2)):
        torch.testing.assert_close(engine(x[rows], scales[rows]), model(x[rows], scales[rows]), rtol=1e-9, atol=1e-12)


# From one file to pictures


def test_one_public_file_is_compressed_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("matplotlib", "torchmetrics"):
        pytest.importorskip(package)
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    source, dense, file, small = (tmp_path / name for name in ("data", "dense", "g.pt", "small"))
    source.mkdir()
    for index in range(4):
        image.fromarray(torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()).save(source / f"{index}.png")
    sizes = ["--network", "most=8", "style_dim=8", "mapping=2"]
    common = ["--batch", "2", "--steps", "2", "--quiet", "--out"]
    train = ["train", "stylegan2", "--data", str(source), "--size", "16", "--width", "4", *sizes]
    assert main([*train, *common, str(dense)]) == 0
    assert image.open(dense / "samples.png").mode == "RGB"
    trained = store.load(dense)
    state = port(trained.generator.state_dict())
    torch.save({"g_ema": state, "d": trained.discriminator.state_dict(), "latent_avg": torch.zeros(8)}, file)
    command = ["compress", "--generator", str(file), "--sparsity", "0.7"]
    assert main([*command, "--data-free", *common, str(small)]) == 0
    network = json.loads((small / "config.json").read_text())["network"]
    assert (network["gan"], network["image_size"], network["width"]) == ("stylegan2", 16, 4)
    result = json.loads((small / "result.json").read_text())
    assert result["generators"]["compressed"]["sparsity"] == pytest.approx(0.7, abs=0.01)
    judged = ["--discriminator", str(file), "--data", str(source), "--recipe", "self-supervised"]
    assert main([*command, *judged, *common, str(tmp_path / "judged")]) == 0
    assert main([*command, "--data", str(source), "--size", "8", *common, str(tmp_path / "other")]) == 1
    assert "--size is 8; it must be 16" in capsys.readouterr().err
    assert main(["generate", str(small), "--count", "3", "--seed", "5", "--out", str(tmp_path / "made.png")]) == 0
    assert image.open(tmp_path / "made.png").mode == "RGB"
    assert main(["profile", str(small), "--batch", "1"]) == 0
    assert "convs.0.conv.modulated.convolution" in capsys.readouterr().out
