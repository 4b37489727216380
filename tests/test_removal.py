"""Physical removal: a smaller dense model with the same outputs, for every kind of connection between layers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_exact
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.gans import GANS, dcgan
from sparsegan.pruning.removal import remove_filters


def ready(net: nn.Module) -> nn.Module:
    """The model in float64 and evaluation mode, with random biases, norms and statistics."""
    for name, tensor in net.named_parameters():
        if tensor.dim() == 1:
            tensor.data.uniform_(0.1, 1) if name.endswith("weight") else tensor.data.normal_()
    for name, tensor in net.named_buffers():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 2) if name.endswith("var") else tensor.normal_()
    return net.double().eval()


def convolutions(net: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (module.in_channels, module.out_channels)
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }


def removed(net: nn.Module, x: Any) -> nn.Module:
    """The smaller model, after checks of its outputs and of the unchanged original."""
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        small = remove_filters(net, x)
        ours, theirs = (one(*x) if isinstance(x, tuple) else one(x) for one in (small, net))
        ours, theirs = ([*one.values()] if isinstance(one, dict) else [one] for one in (ours, theirs))
        for mine, other in zip(ours, theirs, strict=True):
            assert_exact(mine, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert type(small) is type(net)
    assert small.training == net.training
    return small


def drop(layer: nn.Module, *filters: int) -> None:
    (layer.weight.data.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight.data)[
        list(filters)
    ] = 0


def test_dcgan() -> None:
    net = ready(dcgan.Generator(5, 2, 3))
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    sg.sparsify(net, 0.5, "filter", exclude=["main.12"])
    small = removed(net, x)
    # Constant channels before a transposed convolution are merged into one, which stays.
    widths = {"main.0": 16, "main.3": 8, "main.6": 4, "main.9": 2}
    found = convolutions(small)
    for name, width in widths.items():
        assert width // 2 <= found[name][1] <= width // 2 + 1
    assert [found[f"main.{i}"][0] for i in (3, 6, 9, 12)] == [found[f"main.{i}"][1] for i in (0, 3, 6, 9)]
    assert sg.count_macs(small, x).dense < 0.5 * sg.count_macs(net, x).dense
    small.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


class ResnetBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(True)]
        self.conv_block = nn.Sequential(*layers[:4], nn.Dropout(0.5), *layers[4:7])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def test_resnet_style() -> None:
    net = ready(
        nn.Sequential(
            *(nn.ReflectionPad2d(3), nn.Conv2d(3, 8, 7), nn.InstanceNorm2d(8), nn.ReLU(True)),
            *(ResnetBlock(8), ResnetBlock(8)),
            *(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.InstanceNorm2d(6), nn.ReLU(True)),
            *(nn.ReflectionPad2d(3), nn.Conv2d(6, 3, 7), nn.Tanh()),
        )
    )
    inner = [net[i].conv_block[1] for i in (4, 5)]
    summed = [net[1], *(net[i].conv_block[6] for i in (4, 5))]
    for layer in inner:
        drop(layer, 0, 3, 5)
    for layer, filters in zip(summed, ([1, 2, 4], [1, 2, 5], [1, 2, 7]), strict=True):
        drop(layer, *filters)
    drop(net[6], 0, 4)
    x = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    with pytest.warns(UserWarning, match="stay where they are: 1 of 1, because they are added to channels that"):
        small = removed(net, x)
    # Removed: all 3 filters of each inner layer, the channels that all summed layers drop, 2 before the last layer.
    assert convolutions(small) == {
        "1": (3, 6), "4.conv_block.1": (6, 5), "4.conv_block.6": (5, 6),
        "5.conv_block.1": (6, 5), "5.conv_block.6": (5, 6), "6": (6, 4), "10": (4, 3),
    }  # fmt: skip


class UnetLevel(nn.Module):
    """As in public U-Nets, the skip carries the output of the in-place activation before the down convolution."""

    def __init__(self, outer: int, inner: int, between: nn.Module | None, outermost: bool = False) -> None:
        super().__init__()
        down = nn.Conv2d(outer, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(inner if between is None else 2 * inner, outer, 4, 2, 1, bias=outermost)
        middle = [] if between is None else [between]
        if outermost:
            layers = [down, *middle, nn.ReLU(True), up, nn.Tanh()]
        else:
            norm = [] if between is None else [nn.BatchNorm2d(inner)]
            layers = [nn.LeakyReLU(0.2, True), down, *norm, *middle, nn.ReLU(True), up, nn.BatchNorm2d(outer)]
        self.outermost = outermost
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def test_unet_style() -> None:
    net = ready(UnetLevel(3, 6, UnetLevel(6, 8, UnetLevel(8, 8, None)), outermost=True))
    dropped = 0
    for _name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.out_channels > 3:
            drop(layer, 0, 2, 3)
            dropped += 3
    assert dropped == 15
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    small = removed(net, x)
    found = convolutions(small)
    gone = sum(out for _, out in convolutions(net).values()) - sum(out for _, out in found.values())
    assert dropped - 6 <= gone <= dropped  # each next layer may keep one constant channel
    for down, up in (("model.0", "model.3"),):
        assert found[up][0] == found[down][1] + found["model.1.model.5"][1]


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 6, 9, padding=4), nn.PReLU())
        self.block2 = nn.Sequential(
            *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6)),
            *(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)),
        )
        self.block3 = nn.Sequential(nn.Conv2d(6, 24, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.block4 = nn.Conv2d(6, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.block1(x)
        return (torch.tanh(self.block4(self.block3(first + 0.5 * self.block2(first)))) + 1) / 2


def test_super_resolution_style() -> None:
    net = ready(SuperResolution())
    drop(net.block1[0], 0, 1, 5)
    drop(net.block2[0], 2, 3, 4)
    drop(net.block2[3], 0, 1, 4)
    drop(net.block3[0], *range(4, 16), 20)  # three whole channels after the shuffle, and a part of another
    net.block3[0].bias.data[4:12] = 0.25  # two are constant; one repeats four constants
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match="5 of block3.0, because PixelShuffle makes one channel of 4, which are not"):
        small = removed(net, x)
    assert convolutions(small) == {
        "block1.0": (3, 5), "block2.0": (5, 4), "block2.3": (4, 5), "block3.0": (5, 20), "block4": (5, 3)
    }  # fmt: skip
    assert small.block2[2].num_parameters == 4


@pytest.mark.parametrize(
    ("name", "network", "size"),
    [
        ("pix2pix", {"width": 4, "downs": 5}, 32),
        ("cyclegan", {"width": 4, "blocks": 2, "norm": "instance"}, 16),
        ("cyclegan", {"width": 4, "blocks": 2, "norm": "batch"}, 16),
        ("stargan", {"width": 4, "blocks": 2}, 16),
        ("srgan", {"width": 8, "blocks": 2}, 16),
    ],
)
def test_reference_generators(name: str, network: dict, size: int) -> None:
    """Half of each layer's filters are zero. Layers whose outputs are added drop different filters."""
    reference = GANS[name]
    sizes = {**reference.network, **network}
    net = ready(reference.build(**sizes)[0])
    *_, (last, _) = [*convolutions(net).items()]
    x = tuple(one.double() for one in reference.example(sizes, 2, size))
    sg.sparsify(net, 0.5, "filter", exclude=[last])
    weights = sum(parameter.numel() for parameter in sg.densify(copy.deepcopy(net)).parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = removed(net, x)
    assert sum(parameter.numel() for parameter in small.parameters()) < 0.95 * weights


class Drawn(nn.Module):
    """A chain of randomly drawn steps."""

    def __init__(self, kinds: list[str], width: int) -> None:
        super().__init__()
        self.kinds = kinds
        make = {
            "conv": lambda: nn.Conv2d(width, width, 3, padding=1),
            "valid": lambda: nn.Conv2d(width, width, 1, bias=False),
            "circular": lambda: nn.Conv2d(width, width, 3, padding=1, padding_mode="circular"),
            "up": lambda: nn.ConvTranspose2d(width, width, 2, 2),
            "batch": lambda: nn.BatchNorm2d(width),
            "instance": lambda: nn.InstanceNorm2d(width, affine=True),
            "tracked": lambda: nn.InstanceNorm2d(width, track_running_stats=True),
            "prelu": lambda: nn.PReLU(width),
            "pad": lambda: nn.ReplicationPad2d(1),
            "zeros": lambda: nn.ZeroPad2d(1),
            "relu": lambda: nn.ReLU(True),
            "pool": lambda: nn.AvgPool2d(2, 1, 1),  # pads with zeros; not supported
            "groups": lambda: nn.Conv2d(width, width, 1, groups=2),
            "shuffle": lambda: nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2)),
            "cat": lambda: nn.Conv2d(2 * width, width, 1),
        }
        self.steps = nn.ModuleList(make.get(kind, nn.Identity)() for kind in kinds)

    def forward(self, x: Tensor) -> Tensor:
        past = x
        for kind, step in zip(self.kinds, self.steps, strict=True):
            if kind == "cat":
                x = step(torch.cat((past, x), 1)) if past.shape[2:] == x.shape[2:] else x
            elif kind == "sum":
                x = x + past if past.shape == x.shape else x + 1.5
            elif kind == "in place":
                x = x.clone() if x is past else x
                x += 0.25
            elif kind == "save":
                past = x
            elif kind == "function":
                x = F.leaky_relu(x, 0.1) * 2
            elif kind == "view":
                x = x.view(x.shape)
            else:
                x = step(x)
        return x


STEPS = (
    "conv,valid,circular,up,batch,instance,tracked,prelu,pad,zeros,relu,pool,groups,shuffle,cat,sum,in place,save,"
    "function,view"
).split(",")


@given(st.lists(st.sampled_from(STEPS), min_size=3, max_size=9), st.integers(0, 2**16))
@settings(max_examples=80)
def test_drawn_networks(kinds: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    net = ready(Drawn(["valid", *kinds, "conv"], 4))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.groups == 1:
            drop(layer, *(torch.rand(layer.out_channels) < 0.6).nonzero().flatten().tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        removed(net, torch.randn(2, 4, 3, 4, dtype=torch.float64))


def test_filters_that_cannot_be_removed_stay_and_are_named() -> None:
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1))
    shared = nn.Conv2d(4, 4, 1)
    for net, which, words in (
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()), 0, "2 of 0, because they reach the model's output"),
        (grouped, 0, "2 of 0, because 1 has groups=2"),
        (copy.deepcopy(grouped), 1, "2 of 1, because 1 has groups=2"),
        (nn.Sequential(shared, nn.ReLU(), shared, nn.Conv2d(4, 4, 1)), 0, "2 of 0, because 0 is called 2 times"),
        (
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)),
            0,
            "because this analysis does not know 1, a GroupNorm",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 2)),
            0,
            "because this analysis does not know 1, a Flatten",
        ),
    ):
        ready(net)
        drop(net[which], 1, 2)
        with pytest.warns(UserWarning, match=words):
            small = removed(net, x)
        assert convolutions(small) == convolutions(net)

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branches cannot be traced by torch\.fx"):
        remove_filters(Branches(), x)


class Functions(nn.Module):
    """A forward with functions that have equivalent modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh_(F.dropout(F.pad(self.first(x), (1, 2, 0, 1), mode="reflect"), 0.5, self.training))
        y = F.dropout2d(F.pixel_shuffle(y, 2).detach(), 0.5, False)
        return self.third(F.pad(torch.sigmoid_(self.second(y)), (1, 1, 1, 1), value=0.5))


def test_functions_are_followed_like_modules() -> None:
    net = ready(Functions())
    net.first.bias.data[8:] = 3.0  # two whole channels after the shuffle
    net.second.bias.data[0] = 0.0  # 0.5 after the sigmoid, like the border of the padding
    drop(net.first, *range(8, 16))
    drop(net.second, 0, 2)
    with pytest.warns(UserWarning, match=r"1 of second, because pad_1 pads them with another number$"):
        small = removed(net, torch.randn(2, 3, 6, 5, dtype=torch.float64))
    assert convolutions(small) == {"first": (3, 8), "second": (2, 3), "third": (3, 2)}


def test_a_layer_keeps_one_filter() -> None:
    net = ready(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1)))
    drop(net[0], 0, 1, 2, 3)
    with pytest.warns(UserWarning, match="1 of 0, because a layer must keep at least one filter"):
        small = removed(net, torch.randn(1, 3, 4, 4, dtype=torch.float64))
    assert convolutions(small) == {"0": (3, 1), "2": (1, 2)}
