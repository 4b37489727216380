"""The reference GANs: names and shapes of public checkpoints, loss terms against their equations, steps of training."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import masked
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sparsegan.compress import (
    BlankBatches,
    CompressionConfig,
    Compressor,
    GeneratedBatches,
    RunConfig,
    SelfSupervisedLoss,
)
from sparsegan.compress.step import CompressionTask
from sparsegan.gans import ImagePool, dcgan, pix2pix, srgan, stargan, store
from sparsegan.gans.objective import detached, images_in
from sparsegan.gans.parts import InstanceNorm2d
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning.allocation import Targets
from sparsegan.pruning.schedule import GradualPruning, OneShot
from sparsegan.pruning.surgery import sparsify
from sparsegan.state_dicts import read_state
from sparsegan.training.adversarial import AdversarialTask

Shapes = dict[str, tuple[int, ...]]

# Names and shapes of the state_dicts of public repositories, written from their code, not from this package's modules.


def weight(name: str, *shape: int, bias: bool = False, transposed: bool = False) -> Shapes:
    """The state_dict entries of a convolution whose weight has shape `shape`."""
    entries: Shapes = {f"{name}.weight": shape}
    return entries | ({f"{name}.bias": (shape[1 if transposed else 0],)} if bias else {})


def tracked(name: str, width: int, affine: bool = True) -> Shapes:
    """The state_dict entries of a norm, with its running statistics."""
    parts = (["weight", "bias"] if affine else []) + ["running_mean", "running_var"]
    return {f"{name}.{part}": (width,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def dcgan_shapes(nz: int, ngf: int, ndf: int, nc: int) -> tuple[Shapes, Shapes]:
    """The entries of pytorch/examples, dcgan/main.py."""
    g: Shapes = {}
    widths = [nz, 8 * ngf, 4 * ngf, 2 * ngf, ngf, nc]
    for i in range(5):
        g |= weight(f"main.{3 * i}", widths[i], widths[i + 1], 4, 4)
        g |= tracked(f"main.{3 * i + 1}", widths[i + 1]) if i < 4 else {}
    d: Shapes = {}
    widths = [nc, ndf, 2 * ndf, 4 * ndf, 8 * ndf, 1]
    for i, at in enumerate((0, 2, 5, 8, 11)):
        d |= weight(f"main.{at}", widths[i + 1], widths[i], 4, 4)
        d |= tracked(f"main.{at + 1}", widths[i + 1]) if 0 < i < 4 else {}
    return g, d


def resnet_shapes(i: int, o: int, ngf: int, blocks: int, norm: str, dropout: bool) -> Shapes:
    """The entries of pytorch-CycleGAN-and-pix2pix, ResnetGenerator."""
    batch = norm == "batch"

    def conv(at: str, norm_at: str, *shape: int, transposed: bool = False) -> Shapes:
        width = shape[1 if transposed else 0]
        return weight(at, *shape, bias=not batch, transposed=transposed) | (tracked(norm_at, width) if batch else {})

    g = conv("model.1", "model.2", ngf, i, 7, 7)
    g |= conv("model.4", "model.5", 2 * ngf, ngf, 3, 3) | conv("model.7", "model.8", 4 * ngf, 2 * ngf, 3, 3)
    for block in range(10, 10 + blocks):
        for at in (1, 6 if dropout else 5):
            name = f"model.{block}.conv_block."
            g |= conv(f"{name}{at}", f"{name}{at + 1}", 4 * ngf, 4 * ngf, 3, 3)
    for at, width in ((10 + blocks, 2 * ngf), (13 + blocks, ngf)):
        g |= conv(f"model.{at}", f"model.{at + 1}", 2 * width, width, 3, 3, transposed=True)
    return g | weight(f"model.{17 + blocks}", o, ngf, 7, 7, bias=True)


def unet_shapes(i: int, o: int, ngf: int, downs: int, norm: str) -> Shapes:
    """The entries of pytorch-CycleGAN-and-pix2pix, UnetGenerator."""
    batch = norm == "batch"
    widths = [ngf * min(2**level, 8) for level in range(downs)]
    g = weight("model.model.0", ngf, i, 4, 4, bias=not batch)
    g |= weight("model.model.3", 2 * ngf, o, 4, 4, bias=True, transposed=True)
    prefix = "model.model.1.model."
    for level in range(1, downs):
        inner, outer, innermost = widths[level], widths[level - 1], level == downs - 1
        g |= weight(f"{prefix}1", inner, outer, 4, 4, bias=not batch)
        up, up_norm = (3, 4) if innermost else (5, 6)
        rising = inner if innermost else 2 * inner
        g |= weight(f"{prefix}{up}", rising, outer, 4, 4, bias=not batch, transposed=True)
        if batch:
            g |= tracked(f"{prefix}{up_norm}", outer) | ({} if innermost else tracked(f"{prefix}2", inner))
        prefix += "3.model."
    return g


def patch_shapes(i: int, ndf: int, layers: int, norm: str) -> Shapes:
    """The entries of pytorch-CycleGAN-and-pix2pix, NLayerDiscriminator, or PixelDiscriminator if `layers` is 0."""
    if layers == 0:
        d = weight("net.0", ndf, i, 1, 1, bias=True) | weight("net.2", 2 * ndf, ndf, 1, 1, bias=norm == "instance")
        d |= tracked("net.3", 2 * ndf) if norm == "batch" else {}
        return d | weight("net.5", 1, 2 * ndf, 1, 1, bias=norm == "instance")
    d = weight("model.0", ndf, i, 4, 4, bias=True)
    width = ndf
    for n in range(1, layers + 1):
        before, width = width, ndf * min(2**n, 8)
        d |= weight(f"model.{3 * n - 1}", width, before, 4, 4, bias=norm == "instance")
        d |= tracked(f"model.{3 * n}", width) if norm == "batch" else {}
    return d | weight(f"model.{3 * layers + 2}", 1, width, 4, 4, bias=True)


def stargan_shapes(dim: int, c: int, g_repeat: int, d_dim: int, d_repeat: int, size: int) -> tuple[Shapes, Shapes]:
    """The entries of yunjey/stargan, model.py."""
    g: Shapes = {}
    for at, shape in ((0, (dim, 3 + c, 7, 7)), (3, (2 * dim, dim, 4, 4)), (6, (4 * dim, 2 * dim, 4, 4))):
        g |= weight(f"main.{at}", *shape) | tracked(f"main.{at + 1}", shape[0])
    for block in range(9, 9 + g_repeat):
        for at in (0, 3):
            g |= weight(f"main.{block}.main.{at}", 4 * dim, 4 * dim, 3, 3)
            g |= tracked(f"main.{block}.main.{at + 1}", 4 * dim)
    for at, width in ((9 + g_repeat, 2 * dim), (12 + g_repeat, dim)):
        g |= weight(f"main.{at}", 2 * width, width, 4, 4) | tracked(f"main.{at + 1}", width)
    g |= weight(f"main.{15 + g_repeat}", 3, dim, 7, 7)
    d = weight("main.0", d_dim, 3, 4, 4, bias=True)
    for n in range(1, d_repeat):
        d |= weight(f"main.{2 * n}", d_dim * 2**n, d_dim * 2 ** (n - 1), 4, 4, bias=True)
    last, kernel = d_dim * 2 ** (d_repeat - 1), size // 2**d_repeat
    return g, d | weight("conv1", 1, last, 3, 3) | weight("conv2", c, last, kernel, kernel)


def srgan_shapes(width: int, blocks: int, doublings: int, d_width: int) -> tuple[Shapes, Shapes]:
    """The entries of leftthomas/SRGAN, model.py."""
    g = weight("block1.0", width, 3, 9, 9, bias=True) | {"block1.1.weight": (1,)}
    for n in range(2, blocks + 2):
        g |= {f"block{n}.prelu.weight": (1,)}
        for at in (1, 2):
            g |= weight(f"block{n}.conv{at}", width, width, 3, 3, bias=True) | tracked(f"block{n}.bn{at}", width)
    g |= weight(f"block{blocks + 2}.0", width, width, 3, 3, bias=True) | tracked(f"block{blocks + 2}.1", width)
    last = f"block{blocks + 3}"
    for n in range(doublings):
        g |= weight(f"{last}.{n}.conv", 4 * width, width, 3, 3, bias=True) | {f"{last}.{n}.prelu.weight": (1,)}
    g |= weight(f"{last}.{doublings}", 3, width, 9, 9, bias=True)
    d = weight("net.0", d_width, 3, 3, 3, bias=True)
    widths = [d_width * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8)]
    for n in range(1, 8):
        d |= weight(f"net.{3 * n - 1}", widths[n], widths[n - 1], 3, 3, bias=True) | tracked(f"net.{3 * n}", widths[n])
    d |= weight("net.24", 16 * d_width, 8 * d_width, 1, 1, bias=True)
    return g, d | weight("net.26", 1, 16 * d_width, 1, 1, bias=True)


def state_of(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.rand(shape) if shape else torch.tensor(3) for name, shape in shapes.items()}


@st.composite
def public_files(draw: st.DrawFn) -> tuple[dict[str, Any], Shapes, Shapes]:
    """Draws a public network: the settings to recognise, and the entries of generator and discriminator."""
    name = draw(st.sampled_from(["dcgan", "unet", "resnet", "cyclegan", "stargan", "srgan"]))
    width, other = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    i, o = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    norm, dropout = draw(st.sampled_from(["batch", "instance"])), draw(st.booleans())
    blocks, layers = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    network: dict[str, Any] = {"width": width, "discriminator_width": other}
    if name == "dcgan":
        return {"gan": name, "nz": 7, "channels": i, **network}, *dcgan_shapes(7, width, other, i)
    if name == "stargan":
        # only the kernel of the class head depends on the image size
        network |= {"domains": o, "blocks": blocks, "image_size": 2**layers * i, "discriminator_layers": layers}
        return {"gan": name, "channels": 3, **network}, *stargan_shapes(width, o, blocks, other, layers, 2**layers * i)
    if name == "srgan":
        network |= {"blocks": blocks, "scale": 2**i}
        return {"gan": name, "channels": 3, **network}, *srgan_shapes(width, blocks, i, other)
    layers = draw(st.integers(0, 5))
    network |= {"in_channels": i, "out_channels": o, "norm": norm, "discriminator_layers": layers}
    if name == "unet":
        network |= {"gan": "pix2pix", "generator": "unet", "downs": 4 + blocks, "dropout": True}
        return network, unet_shapes(i, o, width, 4 + blocks, norm), patch_shapes(i + o, other, layers, norm)
    network |= {"generator": "resnet", "blocks": blocks, "dropout": dropout, "gan": "cyclegan"}
    a_to_b = resnet_shapes(i, o, width, blocks, norm, dropout)
    if name == "resnet":
        return network | {"one_way": True}, a_to_b, patch_shapes(o, other, layers, norm)
    b_to_a = resnet_shapes(o, i, width, blocks, norm, dropout)
    g = {f"a_to_b.{k}": v for k, v in a_to_b.items()} | {f"b_to_a.{k}": v for k, v in b_to_a.items()}
    sides = (("b", o), ("a", i))
    d = {f"{side}.{k}": v for side, c in sides for k, v in patch_shapes(c, other, layers, norm).items()}
    return network | {"one_way": False}, g, d


@settings(max_examples=30)
@given(public_files(), st.booleans())
def test_public_state_dicts_are_recognised_and_load_key_for_key(file: Any, parallel: bool) -> None:
    network, *shapes = file
    states = [state_of(one) for one in shapes]
    prefix = "module." if parallel else ""
    gan, has_discriminator = store.load_public(*({prefix + k: v for k, v in state.items()} for state in states))
    assert has_discriminator
    assert gan.config["network"] == network
    for built, state in zip((gan.generator, gan.discriminator), states, strict=True):
        own = built.state_dict()
        assert own.keys() == state.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


def test_a_pixel_discriminator_sees_single_pixels() -> None:
    judge = pix2pix.build(width=2, in_channels=1, out_channels=3, downs=5, discriminator_layers=0)[1].eval()
    one, other = torch.rand(1, 1, 4, 4), torch.rand(1, 3, 4, 4)
    score, flipped = judge(one, other), judge(one.flip(3), other.flip(3))
    assert score.shape == (1, 1, 4, 4)
    torch.testing.assert_close(flipped.flip(3), score)
    changed = other.index_fill(2, torch.tensor(2), 0.5)
    assert (judge(one, changed) != score).any(3).flatten().tolist() == [False, False, True, False]


def test_cyclegans_files_come_in_pairs_or_alone_and_a_resnet_may_be_pix2pixs() -> None:
    files = [state_of(resnet_shapes(3, 3, 2, 6, "instance", False)) for _ in range(2)]
    judges = [state_of(patch_shapes(3, 2, 3, "instance")) for _ in range(2)]
    gan, _ = store.load_public(files, judges)
    assert torch.equal(gan.generator.b_to_a.model[1].weight, files[1]["model.1.weight"])
    assert torch.equal(gan.discriminator.b.model[0].weight, judges[0]["model.0.weight"])  # netD_A sees netG_A's images
    alone, has_discriminator = store.load_public(files[0], discriminator_width=4)
    assert alone.config["network"]["one_way"]
    assert not has_discriminator
    assert alone.discriminator.model[0].weight.shape == (4, 3, 4, 4)
    paired, _ = store.load_public(files[0], gan="pix2pix")
    assert paired.config["network"] | {"gan": "pix2pix", "generator": "resnet", "blocks": 6} == paired.config["network"]
    batch = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    assert set(alone.objective.generator_terms(alone.generator, alone.discriminator, batch[0], batch)) == {"gen", "idt"}


def test_files_of_older_pytorch_versions_load() -> None:
    state = state_of(resnet_shapes(3, 3, 2, 6, "instance", False))
    state |= state_of(tracked("model.2", 2, affine=False))  # before torch 0.4 instance norms kept statistics
    with pytest.warns(UserWarning, match=r"instance norms that use none \(model.2.num_batches_tracked, .*3 left out"):
        gan, _ = store.load_public(state)
    assert gan.config["network"]["norm"] == "instance"
    g, d = (state_of(shapes) for shapes in stargan_shapes(2, 5, 2, 2, 3, 16))
    old = {name: tensor for name, tensor in g.items() if "num_batches" not in name}  # absent before torch 0.4.1
    assert store.load_public(old, d)[0].config["network"]["domains"] == 5


def test_mismatches_of_a_state_dict_are_named() -> None:
    state = state_of(resnet_shapes(3, 3, 2, 6, "instance", False))
    state["model.26.scale"] = torch.ones(1)
    state["model.4.bias"] = torch.ones(5)
    del state["model.10.conv_block.1.bias"]
    with pytest.raises(ValueError, match=r"nearest is cyclegan \(.*blocks 6") as caught:
        store.recognise(state)
    for part in (
        "model.26.scale is not in the network",
        "4.bias has shape [5] where the network has [4]",
        "1.bias is missing",
    ):
        assert part in str(caught.value)
    good = state_of(resnet_shapes(3, 3, 2, 6, "instance", False))
    with pytest.raises(ValueError, match=r"discriminator's state_dict does not fit; the nearest is cyclegan"):
        store.recognise(good, state_of(dcgan_shapes(8, 2, 2, 3)[1]))
    with pytest.raises(ValueError, match=r"gan is 'wgan'; it must be one of dcgan, pix2pix"):
        store.recognise(good, gan="wgan")


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_hostile_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.pth"
    good = state_of(dcgan_shapes(8, 2, 2, 3)[0])
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in good.items()}}, file)
    assert read_state(file).keys() == good.keys()
    judge = state_of(dcgan_shapes(8, 2, 2, 3)[1])
    torch.save({"netG": {"state_dict": good}, "netD": judge}, tmp_path / "both.pt")
    assert store.load_public(tmp_path / "both.pt", tmp_path / "both.pt")[1]
    save_file(good, tmp_path / "net.safetensors")
    assert read_state(tmp_path / "net.safetensors").keys() == good.keys()
    for content, why in (
        (Evil(), "cannot be read as a state_dict without running code"),
        ([1, 2], "holds a list; it must hold a state_dict"),
        ({"weight": "text"}, "has 'weight', a str"),
        ({}, "holds no tensors"),
        ({"w": torch.zeros(1).expand(10**6, 10**6)}, "more than the file holds"),
        ({"w": torch.eye(3).to_sparse()}, "it must be a plain tensor"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=why):
            read_state(file)
    for name, content, why in (
        ("net.pth", b"\x80\x02garbage", "cannot be read as a state_dict"),
        ("net.safetensors", b"\xff" * 64, "is no safetensors file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=why):
            read_state(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="is no file"):
        read_state(tmp_path / "none.pth")


# Tiny GANs of every kind

TINY: dict[str, dict[str, Any]] = {
    "dcgan": {"nz": 4, "width": 2, "channels": 1},
    "pix2pix": {"width": 2, "downs": 5, "discriminator_layers": 2},
    "cyclegan": {"width": 2, "blocks": 1, "discriminator_layers": 2},
    "cyclegan one way": {"width": 2, "blocks": 1, "discriminator_layers": 2, "one_way": True},
    "stargan": {"width": 2, "domains": 3, "blocks": 1, "image_size": 16, "discriminator_layers": 2},
    "srgan": {"width": 3, "blocks": 1, "scale": 4},
    "esrgan": {"width": 3, "blocks": 1, "scale": 4},
    "stylegan2": {"image_size": 16, "width": 2, "most": 4, "style_dim": 4, "mapping": 1},
}
every_gan = pytest.mark.parametrize("name", TINY)


def tiny(name: str, dtype: torch.dtype = torch.float32) -> store.Gan:
    torch.manual_seed(0)
    gan = store.build({"network": {"gan": name.split()[0], **TINY[name]}})
    gan.generator.to(dtype)
    gan.discriminator.to(dtype)
    return gan


def batches(name: str, count: int = 3, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
    torch.manual_seed(1)

    def images(size: int, channels: int = 3) -> Tensor:
        return torch.rand(4, channels, size, size, dtype=dtype) * 2 - 1

    for _ in range(count):
        if name == "dcgan":
            yield images(64, 1)
        elif name == "stargan":
            yield images(16), torch.tensor([0, 2, 1, 1])
        elif name == "stylegan2":
            yield images(16)
        elif name in ("srgan", "esrgan"):
            yield images(4), images(16)
        else:
            yield images(32), images(32)


@every_gan
def test_a_stored_gan_comes_back(name: str, tmp_path: Path) -> None:
    gan = tiny(name)
    (tmp_path / "config.json").write_text(json.dumps(gan.config))
    with pytest.raises(FileNotFoundError, match=r"generator.safetensors is missing"):
        store.load(tmp_path)
    for half, tolerance in ((False, 0.0), (True, 1e-3)):
        store.save(tmp_path, gan.generator, gan.discriminator, half)
        again = store.load(tmp_path)
        for one, other in ((gan.generator, again.generator), (gan.discriminator, again.discriminator)):
            for key, tensor in one.state_dict().items():
                torch.testing.assert_close(other.state_dict()[key], tensor, rtol=tolerance, atol=tolerance / 100)


def test_bad_sizes_are_named() -> None:
    for network, why in (
        ({"gan": "wgan"}, 'its "gan" must be one of dcgan, pix2pix, cyclegan, stargan, srgan'),
        ({"gan": "dcgan", "width": 2, "channels": 1}, "has no 'nz'; it needs nz, width, channels"),
        ({"gan": "srgan", "width": 2, "nz": 1}, "has 'nz'; srgan has width, blocks"),
        ({"gan": "dcgan", "nz": 4, "width": 0, "channels": 1}, "ngf is 0; it must be an integer, at least 1"),
        ({"gan": "cyclegan", "width": "2"}, "ngf is '2'; it must be an integer"),
        ({"gan": "pix2pix", "width": 2, "downs": 4}, "downs is 4; it must be at least 5"),
        ({"gan": "pix2pix", "width": 2, "norm": "group"}, "norm is 'group'; it must be one of batch, instance"),
        ({"gan": "stargan", "width": 2, "domains": 2, "image_size": 96}, "must be a multiple of 2"),
        ({"gan": "srgan", "width": 2, "scale": 3}, "scale is 3; it must be a power of two"),
    ):
        with pytest.raises(ValueError, match=why):
            store.build({"network": network})
    with pytest.raises(ValueError, match="images are 48x32; a U-Net that halves 5 times needs multiples of 32"):
        pix2pix.UnetGenerator(ngf=1, downs=5)(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ValueError, match="labels has domain 3; this generator knows domains 0 to 2"):
        stargan.as_rows(torch.tensor([0, 3]), 3)


# Terms against their equations, in float64


def terms(name: str) -> tuple[store.Gan, Any, Any, dict[str, Tensor], dict[str, Tensor]]:
    gan = tiny(name, torch.float64)
    (batch,) = batches(name, 1, torch.float64)
    fake = gan.objective.generate(gan.generator, batch)
    networks = gan.generator, gan.discriminator
    torch.manual_seed(2)
    made = gan.objective.generator_terms(*networks, fake, batch)
    return gan, batch, fake, made, gan.objective.discriminator_terms(*networks, fake, batch)


def test_dcgans_terms() -> None:
    gan, real, fake, made, judged = terms("dcgan")
    on_real, on_fake = gan.discriminator(real), gan.discriminator(fake)
    torch.testing.assert_close(made, {"gen": -on_fake.log().mean()})
    torch.testing.assert_close(judged, {"dis": -on_real.log().mean() - (1 - on_fake).log().mean()})


def test_pix2pixs_terms() -> None:
    gan, (source, target), fake, made, judged = terms("pix2pix")
    on_real, on_fake = (gan.discriminator.model(torch.cat([source, y], 1)).sigmoid() for y in (target, fake))
    torch.testing.assert_close(made, {"gen": -on_fake.log().mean(), "l1": (target - fake).abs().mean()})
    torch.testing.assert_close(judged, {"dis": 0.5 * (-on_real.log().mean() - (1 - on_fake).log().mean())})
    assert gan.objective.weight("l1") == 100


def test_cyclegans_terms() -> None:
    gan, (a, b), fake, made, judged = terms("cyclegan")
    g, f, judge_b, judge_a = gan.generator.a_to_b, gan.generator.b_to_a, gan.discriminator.b, gan.discriminator.a
    torch.testing.assert_close(fake, {"a_to_b": g(a), "b_to_a": f(b)})
    wanted = {
        "gen": (judge_b(g(a)) - 1).pow(2).mean() + (judge_a(f(b)) - 1).pow(2).mean(),
        "cycle": (f(g(a)) - a).abs().mean() + (g(f(b)) - b).abs().mean(),
        "idt": (g(b) - b).abs().mean() + (f(a) - a).abs().mean(),
    }
    torch.testing.assert_close(made, wanted)
    dis = 0.5 * ((judge_b(b) - 1).pow(2).mean() + judge_b(g(a)).pow(2).mean())
    dis += 0.5 * ((judge_a(a) - 1).pow(2).mean() + judge_a(f(b)).pow(2).mean())
    torch.testing.assert_close(judged, {"dis": dis})
    assert [gan.objective.weight(term) for term in wanted] == [1, 10, 5]
    _, (a, b), _, made, judged = terms("cyclegan one way")
    one = tiny("cyclegan one way", torch.float64)
    g, judge = one.generator, one.discriminator
    wanted = {"gen": (judge(g(a)) - 1).pow(2).mean(), "idt": (g(b) - b).abs().mean()}
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(judged, {"dis": 0.5 * ((judge(b) - 1).pow(2).mean() + judge(g(a)).pow(2).mean())})


def test_stargans_terms() -> None:
    gan, (x, labels), fake, made, judged = terms("stargan")
    assert sorted(fake["labels"].tolist()) == sorted(labels.tolist())
    rows = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(fake["images"], gan.generator(x, rows[fake["labels"]]))
    (real_score, real_logits), (score, logits) = gan.discriminator(x), gan.discriminator(fake["images"])

    def chosen(logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.softmax(1).log()[torch.arange(4), labels].mean()

    back = gan.generator(fake["images"], rows[labels])
    wanted = {"gen": -score.mean(), "cla": chosen(logits, fake["labels"]), "rec": (x - back).abs().mean()}
    torch.testing.assert_close(made, wanted)
    torch.manual_seed(2)
    share = torch.rand(4, 1, 1, 1, dtype=torch.float64)
    between = (share * x + (1 - share) * fake["images"]).detach()
    slopes = [
        torch.autograd.functional.jacobian(lambda one: gan.discriminator(one[None])[0].sum(), image)
        for image in between
    ]
    penalty = torch.stack([(slope.norm() - 1) ** 2 for slope in slopes]).mean()
    dis = score.mean() - real_score.mean()
    torch.testing.assert_close(judged, {"dis": dis, "gp": penalty, "cla_real": chosen(real_logits, labels)})
    assert [gan.objective.weight(term) for term in ("rec", "gp", "cla", "cla_real")] == [10, 10, 1, 1]

    # Attributes, of which several may be set, as in the other case of the public code.
    attributes = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    probability = real_logits.sigmoid()
    summed = -(attributes * probability.log() + (1 - attributes) * (1 - probability).log()).sum(1).mean()
    args = gan.generator, gan.discriminator, fake, (x, attributes)
    torch.testing.assert_close(gan.objective.discriminator_terms(*args)["cla_real"], summed)


def test_srgans_terms_and_a_users_feature_network() -> None:
    gan, (low, high), fake, made, judged = terms("srgan")
    on_real, on_fake = gan.discriminator(high), gan.discriminator(fake)
    torch.testing.assert_close(made, {"content": (high - fake).pow(2).mean(), "gen": -on_fake.log().mean()})
    torch.testing.assert_close(judged, {"dis": -on_real.log().mean() - (1 - on_fake).log().mean()})
    assert gan.objective.weight("gen") == 1e-3
    pooled = srgan.objective_with(lambda images: F.avg_pool2d(images, 2))
    content = pooled.generator_terms(gan.generator, gan.discriminator, fake, (low, high))["content"]
    gap = F.avg_pool2d(high - fake, 2)
    torch.testing.assert_close(content, gap.pow(2).mean())
    # The input and output of the public network are in [0, 1].
    first = gan.generator.block1(low / 2 + 0.5)
    public = (torch.tanh(gan.generator.block4(first + gan.generator.block3(gan.generator.block2(first)))) + 1) / 2
    torch.testing.assert_close(fake, public * 2 - 1)


@every_gan
def test_gradients_reach_the_generator_through_the_discriminators_terms(name: str) -> None:
    gan, _, _, _, judged = terms(name)
    total = gan.objective.total({k: v for k, v in judged.items() if k not in gan.objective.real_terms})
    first, *_ = gan.generator.parameters()
    assert torch.autograd.grad(total, first)[0].abs().max() > 0


@every_gan
def test_distances_are_the_generator_terms_that_no_discriminator_judges(name: str) -> None:
    gan, _, _, made, _ = terms(name)
    judge = list(gan.discriminator.parameters())
    found = {
        term: torch.autograd.grad(value, judge, retain_graph=True, allow_unused=True) for term, value in made.items()
    }
    assert [term for term, slopes in found.items() if not any(map(torch.is_tensor, slopes))] == list(
        gan.objective.distances
    )


def test_the_penalty_of_a_piecewise_linear_critic_has_no_gradient_in_the_generator() -> None:
    gan, _, _, _, judged = terms("stargan")
    first, *_ = gan.generator.parameters()
    (nothing,) = torch.autograd.grad(judged["gp"], first, retain_graph=True, allow_unused=True)
    assert nothing is None  # no zeros are computed
    weights = list(gan.discriminator.parameters())
    assert torch.autograd.grad(judged["gp"], weights[0])[0].abs().max() > 0


@pytest.mark.parametrize("trained", [True, False])
def test_stargans_discriminator_terms_have_the_gradients_of_their_equations(
    trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The discriminator of stargan saves work: one call for real and fake images, constant slopes, no second derivative
    of a critic that does not train, convolutions as matrix products. Terms and gradients stay the same."""
    assert stargan._few_pixels(torch.nn.Conv2d(64, 128, 4), torch.zeros(2, 64, 4, 4))
    assert not stargan._few_pixels(torch.nn.Conv2d(3, 64, 4), torch.zeros(2, 3, 64, 64))
    monkeypatch.setattr(stargan, "_few_pixels", lambda layer, x: isinstance(layer, torch.nn.Conv2d))
    gan, (real, labels), fake, _, _ = terms("stargan")
    judge = gan.discriminator.requires_grad_(trained)
    ours = fake["images"].detach().requires_grad_(True)
    torch.manual_seed(2)
    judged = gan.objective.discriminator_terms(gan.generator, judge, fake | {"images": ours}, (real, labels))

    plain = copy.deepcopy(judge)
    hidden = torch.nn.Sequential(
        *[torch.nn.LeakyReLU(0.01) if at % 2 else layer for at, layer in enumerate(plain.main)]
    )
    theirs = ours.detach().requires_grad_(True)
    torch.manual_seed(2)
    share = torch.rand(4, 1, 1, 1, dtype=torch.float64)
    between = share * real + (1 - share) * theirs
    (slope,) = torch.autograd.grad(plain.conv1(hidden(between)).sum(), between, create_graph=True)
    dis = plain.conv1(hidden(theirs)).mean() - plain.conv1(hidden(real)).mean()
    classified = F.cross_entropy(plain.conv2(hidden(real)).flatten(1), labels)
    wanted = dis + classified + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    results = []
    for total, inputs in (
        (gan.objective.total(judged), [ours, *judge.parameters()]),
        (wanted, [theirs, *plain.parameters()]),
    ):
        results.append((total, *torch.autograd.grad(total, inputs if trained else inputs[:1])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_torchs_in_either_layout(layout: torch.memory_format, affine: bool) -> None:
    ours = InstanceNorm2d(3, affine=affine).double()
    theirs = torch.nn.InstanceNorm2d(3, affine=affine).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).to(memory_format=layout)
    outputs = []
    for norm in (ours, theirs):
        given = x.clone().requires_grad_()
        y = norm(given)
        (slope,) = torch.autograd.grad((y**3).sum(), given, create_graph=True)
        outputs.append((y, slope, torch.autograd.grad((slope**2).sum(), given)[0]))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert outputs[0][0].is_contiguous(memory_format=layout)


def test_stargan_normalises_each_image_alone_in_both_modes() -> None:
    gan = tiny("stargan")
    ((images, labels),) = batches("stargan", 1)
    rows = stargan.as_rows(labels, 3)
    trained = gan.generator.train()(images, rows)
    torch.testing.assert_close(gan.generator.eval()(images, rows), trained)
    torch.testing.assert_close(gan.generator(images[:1], rows[:1]), trained[:1])
    assert torch.equal(gan.generator.main[1].running_mean, torch.zeros(2))


# Steps


@every_gan
def test_an_example_is_what_a_generator_takes(name: str) -> None:
    gan = tiny(name)
    examples = [store.example(gan, 2, size=32) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*examples, strict=True))
    made = images_in(gan.generator(*examples[0]))
    assert all(image.shape == (2, 1, 64, 64) if name == "dcgan" else (2, 3, 32, 32) for image in made.values())


def test_old_names_still_work() -> None:
    gan = tiny("dcgan")
    with pytest.warns(DeprecationWarning, match=r"store.noise is dcgan.noise now; the old name goes in 0.2"):
        old = store.noise(gan.generator, 3, seed=5)
    assert torch.equal(old, dcgan.noise(gan.generator, 3, seed=5))
    assert torch.equal(old, *store.example(gan, 3, seed=5))
    with pytest.warns(DeprecationWarning, match="store.sizes_of is Reference.sizes now"):
        assert list(store.sizes_of("dcgan"))[:4] == ["nz", "width", "channels", "discriminator_width"]


@every_gan
def test_a_training_step_changes_both_networks(name: str) -> None:
    gan = tiny(name)
    before = [copy.deepcopy(net.state_dict()) for net in (gan.generator, gan.discriminator)]
    optimizers = [torch.optim.Adam(net.parameters(), 1e-3) for net in (gan.generator, gan.discriminator)]
    task = AdversarialTask(gan.generator, gan.discriminator, gan.objective, *optimizers, generator_every=2, decay=4)
    figures = [task.step(step, batch) for step, batch in enumerate(batches(name, 4))]
    assert "gen" in figures[0]
    assert "gen" not in figures[1]
    assert "dis" in figures[1]
    assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([5e-4] * 2)  # the rate of the last of 4 steps
    for net, old in zip((gan.generator, gan.discriminator), before, strict=True):
        assert all(not torch.equal(p, old[key]) for key, p in net.named_parameters() if "bias" not in key)

    # A step of the discriminator alone leaves the generator unchanged, with its statistics.
    kept = copy.deepcopy(gan.generator.state_dict())
    alone = AdversarialTask(gan.generator, gan.discriminator, gan.objective, None, optimizers[1])
    (batch,) = batches(name, 1)
    assert "gen" not in alone.step(0, batch)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in gan.generator.state_dict().items())


def test_the_pool_gives_past_images_and_is_part_of_the_state() -> None:
    pool = ImagePool(3)
    seen = []
    for step in range(40):
        new = torch.full((2, 1, 1, 1), float(step))
        given = pool({"images": new, "labels": torch.tensor([step, step])})
        assert given["labels"].tolist() == [step, step]
        seen += [(step, age) for age in (step - given["images"]).flatten().tolist()]
    assert all(age == 0 for step, age in seen if step < 1)
    past = sum(age > 0 for _, age in seen)
    assert 0.25 * len(seen) < past < 0.75 * len(seen)
    assert max(age for _, age in seen) >= 3

    gan = tiny("cyclegan one way")
    optimizers = [torch.optim.Adam(net.parameters(), 1e-3) for net in (gan.generator, gan.discriminator)]
    task = AdversarialTask(gan.generator, gan.discriminator, gan.objective, *optimizers)
    for step, batch in enumerate(batches("cyclegan", 2)):
        task.step(step, batch)
    state = copy.deepcopy(task.state_dict())
    assert state["pool"]["images"].shape == (8, 3, 32, 32)
    (batch,) = batches("cyclegan", 1)
    expected = task.step(2, batch)
    task.load_state_dict(state)
    (batch,) = batches("cyclegan", 1)
    assert task.step(2, batch) == expected
    with pytest.raises(ValueError, match="size is -1"):
        ImagePool(-1)


@pytest.mark.filterwarnings("ignore:no scale of the last layer")  # the generator is hardly trained
@every_gan
def test_every_gan_is_compressed(name: str) -> None:
    gan = tiny(name)
    schedule = GradualPruning(2, 0.6, every=1)
    config, run = CompressionConfig(contrast=True), RunConfig(quiet=True)
    compressor = Compressor(gan.generator, gan.discriminator, gan.objective, schedule, config, run=run)
    result = compressor.fit(list(batches(name, 2)))
    layers = list(sparse_layers(result.generator))
    assert layers
    assert all(abs(layer.sparsity - 0.6) <= 1 / layer.mask().numel() for _, layer in layers)
    assert {"gen", "gen_original", "dis_compressed", "loss"} <= result.history[-1].keys()
    assert "cla_real_compressed" not in result.history[-1]
    (batch,) = batches(name, 1)
    with torch.no_grad():
        made = images_in(gan.objective.generate(result.generator, batch))
    views = gan.objective.views(gan.objective.generate(gan.generator, batch), batch)
    assert all(torch.isfinite(image).all() for image in made.values())
    assert all(view.fake.shape[1:] == view.real.shape[1:] for view in views.values())


def test_stargan_compressed_is_stargan_masked() -> None:
    """Steps on compressed weights give the figures of steps on dense weights times a mask, also with the penalty."""
    gan = tiny("stargan", torch.float64)
    found = []
    for make in (sparsify, masked.sparsify):
        student = make(copy.deepcopy(gan.generator), 0.5).train()
        judge = copy.deepcopy(gan.discriminator)
        optimizers = [torch.optim.Adam(net.parameters(), 1e-3) for net in (student, judge)]
        settings = OneShot(3, 0.5), CompressionConfig(SelfSupervisedLoss(lam=0.5)), Targets.of(gan.generator, 0.5)
        task = CompressionTask(gan.generator.eval(), student, judge, gan.objective, *settings, *optimizers)
        found.append([task.step(step, batch) for step, batch in enumerate(batches("stargan", 3, torch.float64))])
    assert {"gp", "gp_compressed", "gp_original"} <= found[0][0].keys()
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_images_are_found_and_detached_in_any_fake() -> None:
    image = torch.rand(1, 1, 2, 2, requires_grad=True)
    fake = {"x": (image, [image * 2]), "labels": torch.tensor([1]), "text": "t"}
    assert list(images_in(fake)) == ["0"]
    assert images_in(image).keys() == {"images"}
    assert not detached(fake)["x"][1][0].requires_grad
    assert isinstance(detached(fake)["x"], tuple)


@every_gan
def test_the_dense_generators_images_stand_in_for_real_ones(name: str) -> None:
    """Without data, generated images replace the real ones. The batches have the same structure and shapes."""
    gan = tiny(name)
    gan.generator.eval()
    (batch,) = batches(name, 1)
    torch.manual_seed(3)
    (own,) = GeneratedBatches(gan.generator, gan.objective, [batch])
    torch.manual_seed(3)
    torch.manual_seed(int(torch.randint(2**62, ())))  # the first draw of an epoch seeds all its noise
    with torch.no_grad():
        made = images_in(gan.objective.generate(gan.generator, batch))
    real = own if isinstance(own, Tensor) else own[0 if name in ("stargan", "cyclegan") else 1]
    assert torch.equal(real, made["b_to_a" if name == "cyclegan" else "images"])
    shapes = [[t.shape for t in (one if isinstance(one, tuple) else (one,))] for one in (own, batch)]
    assert shapes[0] == shapes[1]
    schedule = GradualPruning(2, 0.6, every=1)
    compressor = Compressor(gan.generator, gan.discriminator, gan.objective, schedule, run=RunConfig(quiet=True))
    result = compressor.fit(GeneratedBatches(gan.generator, gan.objective, [batch]))
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in result.history)


def test_generated_batches_need_objective_own() -> None:
    gan = tiny("dcgan")
    with pytest.raises(ValueError, match=r"objective\.own is None"):
        GeneratedBatches(gan.generator, replace(gan.objective, own=None), [])
    assert [tuple(batch.shape) for batch in BlankBatches(2, 1, 8, count=2)] == [(2, 1, 8, 8)] * 2
