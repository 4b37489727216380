"""DCGANs of other people: other sizes, widths, biases and names; what cannot be read is refused with a way out."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsegan.cli import main
from sparsegan.gans import dcgan, store

#: How strangers name the convolution and the norm of layer `index`.
NAMES = {
    "the example's": lambda index: (f"main.{3 * index}", f"main.{3 * index + 1}"),
    "a bare sequence": lambda index: (f"{3 * index}", f"{3 * index + 1}"),
    "a module per layer": lambda index: (f"layer{index + 1}.0", f"layer{index + 1}.1"),
    "by kind": lambda index: (f"deconv{index + 1}", f"bn{index + 1}"),
    "nested": lambda index: (f"net.up{9 + index}.conv", f"net.up{9 + index}.norm"),
}


def chain(
    names: str, nz: int, widths: list[int], channels: int, first: int, bias: str
) -> tuple[nn.Sequential, OrderedDict[str, Tensor]]:
    """A trained-looking generator, written without this package, and its state_dict under a stranger's names."""
    layers, before = list[nn.Module](), nz
    renamed: OrderedDict[str, Tensor] = OrderedDict()
    for index, width in enumerate([*widths, channels]):
        last = index == len(widths)
        kernel = (first, 1, 0) if index == 0 else (4, 2, 1)
        own = [nn.ConvTranspose2d(before, width, *kernel, bias=bias == "all" or (last and bias == "last"))]
        own += [nn.Tanh()] if last else [nn.BatchNorm2d(width), nn.ReLU()]
        for module, name in zip(own[:2], NAMES[names](index), strict=True):
            for key, tensor in module.state_dict().items():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape) * 0.5 + (0.2 if "running" in key else -0.25))
                renamed[f"{name}.{key}"] = tensor
        layers += own
        before = width
    return nn.Sequential(*layers).eval(), renamed


@settings(max_examples=25)
@given(
    names=st.sampled_from(list(NAMES)),
    nz=st.integers(1, 7),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    channels=st.integers(1, 5),
    first=st.integers(2, 7),
    bias=st.sampled_from(dcgan.BIASES),
    by_name=st.booleans(),
)
def test_a_chain_of_another_size_and_with_other_names_loads(
    names: str, nz: int, widths: list[int], channels: int, first: int, bias: str, by_name: bool
) -> None:
    first = max(first, 4) if len(widths) == 1 else first  # no images below 8x8
    theirs, state = chain(names, nz, widths, channels, first, bias)
    if by_name:  # the order of a safetensors file
        state = OrderedDict(sorted(state.items()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gan, judged = store.load_public(state)
    assert not judged
    told = [str(one.message) for one in said]
    own = names not in ("the example's", "a bare sequence")
    assert ["names of their own" in one for one in told] == [True] * own
    (noise,) = store.example(gan, 3)
    assert noise.shape == (3, nz, 1, 1)
    images = gan.generator(noise)
    torch.testing.assert_close(images, theirs(noise))
    assert gan.size == images.shape[-1] == first * 2 ** len(widths)
    assert gan.discriminator(images).shape == (3,)


@pytest.mark.parametrize("size", [8, 20, 28, 48, 64, 128])
def test_networks_of_a_size_agree(size: int) -> None:
    generator, discriminator = dcgan.build(nz=3, width=1, channels=2, image_size=size)
    images = generator(torch.randn(2, 3, 1, 1))
    assert images.shape == (2, 2, size, size)
    assert discriminator(images).shape == (2,)


def test_other_networks_are_refused_with_a_way_out() -> None:
    _, good = chain("by kind", 4, [4, 2], 3, 4, "none")
    upsampled = {key: one[..., :3, :3] if one.dim() == 4 else one for key, one in good.items()}
    no_norm = {key: one for key, one in good.items() if not key.startswith("bn1")}
    more = {**good, "attention.gamma": torch.ones(1)}
    order = {**good, "deconv2.weight": good["deconv2.weight"].transpose(0, 1).contiguous()}
    for state in (upsampled, no_norm, more, order):
        with pytest.raises(ValueError, match=r"fits no known architecture.*--generator package\.module:build"):
            store.load_public(state)
    for sizes, words in (
        ({"image_size": 9}, "image_size is 9; it must be even"),
        ({"image_size": 8192}, "at most 4096"),
        ({"ladder": [1] * 7}, r"image_size, 64, must be a multiple of 2 \*\* 7"),
        ({"ladder": []}, r"ladder is \[\]"),
        ({"ladder": [0]}, "ladder is 0"),
        ({"bias": "some"}, "bias is 'some'; it must be one of none, last, all"),
    ):
        with pytest.raises(ValueError, match=words):
            dcgan.build(nz=2, width=1, channels=1, **sizes)


def test_a_strangers_file_is_compressed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four channels, 28x28, other names: no data, no discriminator."""
    for package in ("matplotlib", "PIL"):
        pytest.importorskip(package)
    _, state = chain("a module per layer", 5, [6, 3], 4, 7, "last")
    file, small = tmp_path / "netG.pth", tmp_path / "small"
    torch.save({"epoch": 3, "generator": state}, file)
    command = ["compress", "--generator", str(file), "--data-free", "--steps", "2", "--batch", "4", "--quiet", "--out"]
    with pytest.warns(UserWarning, match=r"names of their own \(layer1\.0\.weight, \.\.\.\)"):
        assert main([*command, str(small)]) == 0
    assert store.read_config(small)["network"]["image_size"] == 28
    assert main(["generate", str(small), "--count", "3", "--out", str(tmp_path / "grid.png")]) == 0
    with pytest.warns(UserWarning, match="names of their own"):
        assert main([*command, str(tmp_path / "other"), "--size", "32"]) == 1
    assert "--size is 32; it must be 28, the size of the generator's images" in capsys.readouterr().err
