"""ESRGAN: the networks against plain twins in float64, the public layouts of files, and one file from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsegan.cli import main
from sparsegan.gans import esrgan, store

State = dict[str, Tensor]

# The twins are written from the papers' public code, for images in [0, 1]. They read a state_dict and no module.


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, 1)


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def nearest(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def unshuffled(x: Tensor, r: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4).reshape(n, c * r * r, h // r, w // r)


def dense_block(state: State, name: str, x: Tensor) -> Tensor:
    x1 = lrelu(conv(state, f"{name}.conv1", x))
    x2 = lrelu(conv(state, f"{name}.conv2", torch.cat((x, x1), 1)))
    x3 = lrelu(conv(state, f"{name}.conv3", torch.cat((x, x1, x2), 1)))
    x4 = lrelu(conv(state, f"{name}.conv4", torch.cat((x, x1, x2, x3), 1)))
    return conv(state, f"{name}.conv5", torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


def rrdb_twin(state: State, x: Tensor, blocks: int, doublings: int, unshuffle: int) -> Tensor:
    first = trunk = conv(state, "conv_first", unshuffled(x, unshuffle))
    for block in range(blocks):
        out = trunk
        for part in (1, 2, 3):
            out = dense_block(state, f"body.{block}.rdb{part}", out)
        trunk = out * 0.2 + trunk
    x = first + conv(state, "conv_body", trunk)
    for up in range(1, doublings + 1):
        x = lrelu(conv(state, f"conv_up{up}", nearest(x, 2)))
    return conv(state, "conv_last", lrelu(conv(state, "conv_hr", x)))


def compact_twin(state: State, x: Tensor, convs: int, scale: int) -> Tensor:
    out = conv(state, "body.0", x)
    for index in range(1, convs + 2):
        slopes = state[f"body.{2 * index - 1}.weight"][:, None, None]
        out = conv(state, f"body.{2 * index}", torch.where(out > 0, out, slopes * out))
    n, _, h, w = out.shape
    shuffled = out.view(n, -1, scale, scale, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, scale * h, scale * w)
    return shuffled + nearest(x, scale)


def judge_twin(state: State, x: Tensor) -> Tensor:
    plain = {key: tensor for key, tensor in state.items() if key.split(".")[1] in ("weight", "bias")}
    for index in range(1, 9):
        weight, u, v = (state[f"conv{index}.weight_{part}"] for part in ("orig", "u", "v"))
        plain[f"conv{index}.weight"] = weight / (u @ weight.flatten(1) @ v)
    x0 = lrelu(conv(plain, "conv0", x))
    x1, x2, x3 = x0, x0, x0
    x1 = lrelu(conv(plain, "conv1", x0, 2))
    x2 = lrelu(conv(plain, "conv2", x1, 2))
    x3 = lrelu(conv(plain, "conv3", x2, 2))
    for name, skip in (("conv4", x2), ("conv5", x1), ("conv6", x0)):
        x3 = lrelu(conv(plain, name, F.interpolate(x3, scale_factor=2, mode="bilinear"))) + skip
    return conv(plain, "conv9", lrelu(conv(plain, "conv8", lrelu(conv(plain, "conv7", x3)))))


def drawn(network: nn.Module) -> nn.Module:
    """The network in float64 and evaluation mode, with random values in every parameter."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return network.double().eval()


def images(*size: int) -> Tensor:
    return torch.rand(2, *size, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(
    ("blocks", "doublings", "scale", "channels"),
    [(2, 2, 4, 3), (1, 2, 2, 3), (1, 2, 1, 1), (1, 0, 1, 3), (1, 1, 2, 3), (1, 3, 8, 1)],
)
def test_rrdbnet_is_its_twin(blocks: int, doublings: int, scale: int, channels: int) -> None:
    torch.manual_seed(0)
    net = drawn(esrgan.RRDBNet(4, blocks, 3, scale, channels, doublings))
    x, unshuffle = images(channels, 8, 12), 2**doublings // scale
    made = net(x)
    assert made.shape == (2, channels, 8 * scale, 12 * scale)
    wanted = 2 * rrdb_twin(net.state_dict(), (x + 1) / 2, blocks, doublings, unshuffle) - 1
    torch.testing.assert_close(made, wanted)
    if unshuffle > 1:
        odd = x[:, :, :, :11]
        padded = torch.cat([odd, odd[:, :, :, 9:10]], 3)  # the column before the last, by reflection
        torch.testing.assert_close(net(odd), net(padded)[:, :, :, : 11 * scale])


@pytest.mark.parametrize(("convs", "scale", "channels"), [(2, 4, 3), (1, 1, 3), (3, 3, 1)])
def test_the_compact_network_is_its_twin(convs: int, scale: int, channels: int) -> None:
    torch.manual_seed(0)
    net = drawn(esrgan.Compact(5, convs, scale, channels))
    x = images(channels, 6, 7)
    torch.testing.assert_close(net(x), 2 * compact_twin(net.state_dict(), (x + 1) / 2, convs, scale) - 1)


def test_the_discriminator_is_its_twin_and_takes_any_size() -> None:
    torch.manual_seed(0)
    judge = drawn(esrgan.Discriminator(3))
    x = images(3, 16, 24)
    torch.testing.assert_close(judge(x), judge_twin(judge.state_dict(), (x + 1) / 2))
    assert judge(images(3, 9, 15)).shape == (2, 1, 9, 15)


# Files


def oldest(state: State) -> State:
    """The names of ESRGAN's first release, whose layers outside the blocks are numbered."""
    ups = sum(key.startswith("conv_up") for key in state) // 2
    blocks = sum(key.endswith("rdb1.conv1.weight") for key in state)
    names = {"conv_first": 0, "conv_hr": 3 * ups + 2, "conv_last": 3 * ups + 4, "conv_body": f"1.sub.{blocks}"}
    names |= {f"conv_up{up}": 3 * up for up in range(1, ups + 1)}
    found = {}
    for key, tensor in state.items():
        layer, part = key.rsplit(".", 1)
        block = re.fullmatch(r"body\.(\d+)\.rdb(\d)\.(conv\d)", layer)
        name = f"1.sub.{block[1]}.RDB{block[2]}.{block[3]}.0" if block else names[layer]
        found[f"model.{name}.{part}"] = tensor
    return found


def older(state: State) -> State:
    """The names of ESRGAN's later releases."""
    pairs = (("conv_body", "trunk_conv"), ("body", "RRDB_trunk"), ("rdb", "RDB"), ("conv_up", "upconv"))
    found = {}
    for key, tensor in state.items():
        for new, old in (*pairs, ("conv_hr", "HRconv")):
            key = key.replace(new, old)
        found[key] = tensor
    return found


LAYOUTS = {"new": lambda state: state, "older": older, "oldest": oldest}


def test_the_layouts_have_the_public_names() -> None:
    state = esrgan.RRDBNet(2, 1, 1).state_dict()
    blocks = {f"RDB{part}.conv{index}" for part in (1, 2, 3) for index in range(1, 6)}
    layers = {layout: {key.rpartition(".")[0] for key in rename(state)} for layout, rename in LAYOUTS.items()}
    assert layers["oldest"] == {f"model.1.sub.0.{block}.0" for block in blocks} | {
        f"model.{name}" for name in ("0", "1.sub.1", "3", "6", "8", "10")
    }
    outside = {"conv_first", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"}
    assert layers["older"] == {f"RRDB_trunk.0.{block}" for block in blocks} | outside
    outside = {"conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"}
    assert layers["new"] == {f"body.0.{block.lower()}" for block in blocks} | outside


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    width, channels = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 4]))
    network = {"gan": "esrgan", "width": width, "channels": channels, "discriminator_width": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        return network | {"generator": "compact", "convs": draw(st.integers(1, 5)), "scale": draw(st.integers(1, 5))}
    sizes = {"blocks": draw(st.integers(1, 3)), "growth": draw(st.integers(1, 4)), "doublings": draw(st.integers(0, 3))}
    return network | {"generator": "rrdb", **sizes, "scale": 2 ** draw(st.integers(0, sizes["doublings"]))}


@settings(max_examples=12)
@given(
    networks(),
    st.sampled_from(list(LAYOUTS)),
    st.sampled_from([(), ("params",), ("params_ema",), ("generator",), ("state_dict",), ("net", "params")]),
    st.sampled_from(["", "module."]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_public_files_are_recognised(
    network: dict[str, Any], layout: str, nested: tuple[str, ...], prefix: str, dtype: torch.dtype
) -> None:
    made = store.build({"network": network})
    state, judged = made.generator.state_dict(), made.discriminator.state_dict()
    rename = LAYOUTS[layout] if network["generator"] == "rrdb" else LAYOUTS["new"]
    file: Any = {prefix + key: tensor.to(dtype) for key, tensor in rename(state).items()}
    for key in reversed(nested):
        file = {key: file}
    read, has_discriminator = store.load_public(file, {"params": {prefix + k: v for k, v in judged.items()}})
    assert has_discriminator
    assert read.config["network"] == network
    for key, tensor in read.generator.state_dict().items():
        assert torch.equal(tensor, state[key].to(dtype).float())
    for key, tensor in read.discriminator.state_dict().items():
        assert torch.equal(tensor, judged[key])


def test_a_moving_average_is_taken_over_the_weights() -> None:
    net = esrgan.RRDBNet(2, 1)
    raw = net.state_dict()
    average = {key: tensor + 1 for key, tensor in raw.items()}
    with pytest.warns(UserWarning, match="moving average params_ema; the average is taken"):
        gan, _ = store.load_public({"params": older(raw), "params_ema": older(average)})
    assert torch.equal(gan.generator.conv_hr.bias, average["conv_hr.bias"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_do_not_fit_are_refused_with_a_reason(layout: str) -> None:
    state = esrgan.RRDBNet(4, 2, 2).state_dict()
    file = LAYOUTS[layout](state)
    second = next(key for key in file if re.search("(?i)1.rdb2.conv3(.0)?.weight", key))
    last = list(file)[-1]  # the bias of the last layer
    for change, why in (
        (
            {"extra.weight": torch.ones(1)},
            r"nearest is esrgan \(generator rrdb.*but extra.weight is not in the net",
        ),
        ({second: torch.ones(2, 5, 3, 3)}, r"body.1.rdb2.conv3.weight has shape \[2, 5, 3, 3\] where the network has"),
        ({last: torch.ones(3, dtype=torch.int64)}, "conv_last.bias has dtype torch.int64"),
        ({"trunk_conv.bias": torch.ones(4), "conv_body.bias": torch.ones(4)}, "trunk_conv.bias is not in the network"),
    ):
        with pytest.raises(ValueError, match=why):
            store.load_public(file | change)
    with pytest.raises(ValueError, match=r"body.1.rdb2.conv3.weight is missing"):
        store.load_public({key: tensor for key, tensor in file.items() if key != second})


def test_bad_sizes_are_named() -> None:
    for sizes, why in (
        ({"scale": 3}, "scale is 3; it must be a power of two, at most 4 with 2 doublings"),
        ({"scale": 8}, "scale is 8; it must be a power of two, at most 4"),
        ({"doublings": -1}, "doublings is -1; it must be an integer, at least 0"),
        ({"growth": 0}, "growth is 0; it must be an integer, at least 1"),
        ({"generator": "unet"}, "generator is 'unet'; it must be one of rrdb, compact"),
        ({"generator": "compact", "convs": 0}, "convs is 0; it must be an integer, at least 1"),
        ({"width": "4"}, "width is '4'; it must be an integer"),
    ):
        with pytest.raises(ValueError, match=why):
            esrgan.build(**{"width": 4, **sizes})


# Terms


def test_the_terms_are_their_equations() -> None:
    torch.manual_seed(0)
    generator, judge = (network.double() for network in esrgan.build(width=2, blocks=1))
    low, high = images(3, 4, 4), images(3, 16, 16)
    for _ in range(20):  # the vectors of an untrained spectral norm are random
        judge(high)
    judge.eval()  # in training, each call of a spectral norm changes the next call's weights
    fake = esrgan.generate(generator, (low, high))
    on_real, on_fake = judge(high).sigmoid(), judge(fake).sigmoid()
    wanted = {"content": ((high + 1) / 2 - (fake + 1) / 2).abs().mean(), "gen": -on_fake.log().mean()}
    arguments = generator, judge, fake, (low, high)
    torch.testing.assert_close(esrgan.objective.generator_terms(*arguments), wanted)
    dis = {"dis": -on_real.log().mean() - (1 - on_fake).log().mean()}
    torch.testing.assert_close(esrgan.objective.discriminator_terms(*arguments), dis)
    assert [esrgan.objective.weight(term) for term in ("content", "perceptual", "gen")] == [1, 1, 0.1]
    pooled = esrgan.objective_with(lambda images: F.avg_pool2d(images, 4))
    wanted["perceptual"] = (F.avg_pool2d(high, 4) - F.avg_pool2d(fake, 4)).abs().mean()
    torch.testing.assert_close(pooled.generator_terms(*arguments), wanted)


def test_a_network_of_another_scale_than_the_data_has_targets_of_its_own_size() -> None:
    torch.manual_seed(0)
    generator, judge = (drawn(network) for network in esrgan.build(width=2, blocks=1, scale=2))
    low, high = images(3, 8, 8), torch.full((2, 3, 32, 32), 0.5, dtype=torch.float64)
    fake = esrgan.generate(generator, (low, high))
    content = esrgan.objective.generator_terms(generator, judge, fake, (low, high))["content"]
    torch.testing.assert_close(content, (fake - 0.5).abs().mean() / 2)
    view = esrgan.views(fake, (low, high))["output"]
    assert view.real is not None
    assert view.real.shape == view.fake.shape == (2, 3, 16, 16)


# From one file to pictures


@pytest.mark.parametrize("kind", ["oldest", "older, scale 2", "compact"])
def test_one_public_file_is_compressed_and_used(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("matplotlib", "torchmetrics"):
        pytest.importorskip(package)
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    scale = 2 if "2" in kind else 4
    if kind == "compact":
        state = esrgan.Compact(16, 1).state_dict()
    else:
        state = LAYOUTS[kind.split(",")[0]](esrgan.RRDBNet(16, 1, scale=scale).state_dict())
    file, source, small, made = (tmp_path / name for name in ("net.pth", "data", "small", "made"))
    torch.save({"params_ema": {key: tensor.half() for key, tensor in state.items()}}, file)
    for split in ("train", "test"):
        (source / split).mkdir(parents=True)
        for index in range(3):
            pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
            image.fromarray(pixels).save(source / split / f"{index}.png")
    (tmp_path / "odd").mkdir()
    image.fromarray(torch.randint(256, (9, 7, 3), dtype=torch.uint8).numpy()).save(tmp_path / "odd" / "0.png")

    common = ["--data", str(source), "--quiet"]
    command = ["compress", "--generator", str(file), "--data-free", "--size", "32", "--steps", "2", "--batch", "2"]
    assert main([*command, "--out", str(tmp_path / "synthetic")]) == 0
    assert "the input images are synthetic (dead-leaves)" in capsys.readouterr().err
    assert json.loads((tmp_path / "synthetic" / "config.json").read_text())["data"] == "dead-leaves"
    assert main([*command, *common, "--sparsity", "0.5", "--out", str(small)]) == 0
    network = json.loads((small / "config.json").read_text())["network"]
    assert (network["gan"], network["scale"], network["width"]) == ("esrgan", scale, 16)
    assert main(["generate", str(small), "--images", str(tmp_path / "odd"), "--quiet", "--out", str(made)]) == 0
    assert image.open(made / "0.png").size == (7 * scale, 9 * scale)
    assert main(["profile", str(small), "--batch", "1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(small), *common, "--features", "test_cli:features", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"]["psnr"] > 0
