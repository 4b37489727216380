"""The networks that pix2pix and CycleGAN share: U-Net and ResNet generators, PatchGAN discriminators.

Layer names and shapes are those of the public pytorch-CycleGAN-and-pix2pix, so its checkpoints load key for key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .parts import (
    NORMS,
    State,
    check,
    check_choice,
    count_up,
    initialise,
    norm_layer,
    size_of,
)


class UnetLevel(nn.Module):
    """A level of a U-Net: it halves the image, runs the level below, and doubles the image again.

    Every level but the outermost concatenates its input x to this result. `inner`: channels after halving. `below`:
    None for the innermost level.
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        below: UnetLevel | None,
        norm: str,
        dropout: bool = False,
        outermost: bool = False,
    ) -> None:
        super().__init__()
        self.outermost = outermost
        bias = norm == "instance"
        layers: list[nn.Module] = [] if outermost else [nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(in_channels, inner, 4, 2, 1, bias=bias))
        if below is not None:
            layers += [below] if outermost else [norm_layer(norm, inner), below]
        rising = inner if below is None else 2 * inner
        layers += [nn.ReLU(True), nn.ConvTranspose2d(rising, out_channels, 4, 2, 1, bias=bias or outermost)]
        layers.append(nn.Tanh() if outermost else norm_layer(norm, out_channels))
        if dropout:
            layers.append(nn.Dropout(0.5))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # [N, in, S, S] -> [N, out, S, S], or [N, in + out, S, S]
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class UnetGenerator(nn.Module):
    """Images [N, in_channels, S, S] -> images [N, out_channels, S, S] in [-1, 1], S a multiple of 2**downs.

    `ngf`: channels of the outermost level. `downs`: levels, at least 5; 7 and 8 are the public unet_128 and unet_256.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ngf: int = 64,
        downs: int = 8,
        norm: str = "batch",
        dropout: bool = True,
    ) -> None:
        super().__init__()
        check(in_channels=in_channels, out_channels=out_channels, ngf=ngf, downs=downs)
        check_choice("norm", norm, NORMS)
        if downs < 5:
            raise ValueError(f"downs is {downs}; it must be at least 5")
        self.downs = downs
        wide = 8 * ngf
        level = UnetLevel(wide, wide, wide, None, norm)
        for _ in range(downs - 5):
            level = UnetLevel(wide, wide, wide, level, norm, dropout)
        for width in (4 * ngf, 2 * ngf, ngf):
            level = UnetLevel(width, 2 * width, width, level, norm)
        self.model = UnetLevel(in_channels, ngf, out_channels, level, norm, outermost=True)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        unit = 2**self.downs
        if isinstance(images, Tensor) and any(size % unit for size in images.shape[2:]):  # torch.fx passes no tensor
            size = "x".join(map(str, images.shape[2:]))
            raise ValueError(f"images are {size}; a U-Net that halves {self.downs} times needs multiples of {unit}")
        return self.model(images)


class ResnetBlock(nn.Module):
    """x -> x + two 3x3 convolutions of x, with reflected borders; [N, width, S, S] -> the same."""

    def __init__(self, width: int, norm: str, dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"
        layers: list[nn.Module] = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias)]
        layers += [norm_layer(norm, width), nn.ReLU(True)]
        if dropout:
            layers.append(nn.Dropout(0.5))
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm_layer(norm, width)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """Images [N, in_channels, S, S] -> images [N, out_channels, S, S] in [-1, 1], S a multiple of 4.

    It halves the images twice, runs `blocks` residual blocks (6 and 9 in the public resnet_6blocks and
    resnet_9blocks), and doubles twice. `ngf`: channels at full size.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ngf: int = 64,
        blocks: int = 9,
        norm: str = "instance",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        check(in_channels=in_channels, out_channels=out_channels, ngf=ngf, blocks=blocks)
        bias = norm == "instance"

        def normed(convolution: nn.Module, width: int) -> list[nn.Module]:
            return [convolution, norm_layer(norm, width), nn.ReLU(True)]

        layers = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(in_channels, ngf, 7, bias=bias), ngf)]
        for width in (2 * ngf, 4 * ngf):
            layers += normed(nn.Conv2d(width // 2, width, 3, 2, 1, bias=bias), width)
        layers += [ResnetBlock(4 * ngf, norm, dropout) for _ in range(blocks)]
        for width in (2 * ngf, ngf):
            layers += normed(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1, bias=bias), width)
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, out_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def translator(
    generator: str, in_channels: int, out_channels: int, width: int, downs: int, blocks: int, norm: str, dropout: bool
) -> nn.Module:
    """Returns an image-to-image generator: "unet" (of `downs` levels) or "resnet" (of `blocks` residual blocks)."""
    check_choice("generator", generator, ("unet", "resnet"))
    if generator == "unet":
        return UnetGenerator(in_channels, out_channels, width, downs, norm, dropout)
    return ResnetGenerator(in_channels, out_channels, width, blocks, norm, dropout)


class NLayerDiscriminator(nn.Module):
    """PatchGAN: images [N, in_channels, S, S] -> one score per patch [N, 1, S', S'], S' about S / 2**layers.

    Several arguments, such as a condition and its output, are concatenated along the channels. `ndf`: channels after
    the first layer. `layers`: 3 for the public 70x70 PatchGAN.
    """

    def __init__(self, in_channels: int = 3, ndf: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        check(in_channels=in_channels, ndf=ndf, layers=layers)
        modules: list[nn.Module] = [nn.Conv2d(in_channels, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        before = ndf
        for index in range(1, layers + 1):
            width, stride = ndf * min(2**index, 8), 2 if index < layers else 1
            modules.append(nn.Conv2d(before, width, 4, stride, 1, bias=norm == "instance"))
            modules += [norm_layer(norm, width), nn.LeakyReLU(0.2, True)]
            before = width
        self.model = nn.Sequential(*modules, nn.Conv2d(before, 1, 4, 1, 1))
        self.apply(initialise)

    def forward(self, *images: Tensor) -> Tensor:
        return self.model(torch.cat(images, 1))


class PixelDiscriminator(nn.Module):
    """The 1x1 PatchGAN: images [N, in_channels, S, S] -> one score per pixel [N, 1, S, S].

    Several arguments are concatenated along the channels. `ndf`: channels after the first layer.
    """

    def __init__(self, in_channels: int = 3, ndf: int = 64, norm: str = "batch") -> None:
        super().__init__()
        check(in_channels=in_channels, ndf=ndf)
        bias = norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, ndf, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
            norm_layer(norm, 2 * ndf),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * ndf, 1, 1, bias=bias),
        )
        self.apply(initialise)

    def forward(self, *images: Tensor) -> Tensor:
        return self.net(torch.cat(images, 1))


def patch_gan(in_channels: int, ndf: int, layers: int, norm: str) -> nn.Module:
    """Returns a PatchGAN with `layers` layers, or the 1x1 PatchGAN for 0 layers."""
    if layers == 0:
        return PixelDiscriminator(in_channels, ndf, norm)
    return NLayerDiscriminator(in_channels, ndf, layers, norm)


def unet_sizes(state: State) -> dict[str, Any]:
    """Returns the sizes of a U-Net with this state_dict.

    Dropout leaves no trace in a state_dict. It is taken to be True, which is pix2pix's default.
    """
    level = "model.model.1.model.{}.weight"
    downs = 1
    while level.format(1) in state:
        level = level.replace("{}", "3.model.{}")
        downs += 1
    return {
        "generator": "unet",
        "width": size_of(state, "model.model.0.weight", 0, 64),
        "in_channels": size_of(state, "model.model.0.weight", 1, 3),
        "out_channels": size_of(state, "model.model.3.weight", 1, 3),
        "downs": max(downs, 5),
        "norm": "instance" if "model.model.0.bias" in state else "batch",
        "dropout": True,
    }


def resnet_sizes(state: State) -> dict[str, Any]:
    """Returns the sizes of a ResNet with this state_dict."""
    plain, dropped = (count_up(state, f"model.{{}}.conv_block.{at}.weight", start=10) for at in (5, 6))
    blocks = max(plain, dropped, 1)
    return {
        "generator": "resnet",
        "width": size_of(state, "model.1.weight", 0, 64),
        "in_channels": size_of(state, "model.1.weight", 1, 3),
        "out_channels": size_of(state, f"model.{10 + blocks + 7}.weight", 0, 3),
        "blocks": blocks,
        "norm": "instance" if "model.1.bias" in state else "batch",
        "dropout": dropped > plain,  # a dropout layer moves the second convolution from 5 to 6
    }


def discriminator_sizes(state: State, prefix: str = "") -> dict[str, Any]:
    """Returns the arguments of `build` that a PatchGAN's state_dict decides. `prefix`: stands before each name."""
    if f"{prefix}net.0.weight" in state:
        return {"discriminator_width": size_of(state, f"{prefix}net.0.weight", 0, 64), "discriminator_layers": 0}
    layers = count_up(state, prefix + "model.{}.weight", start=2, step=3) - 1
    return {
        "discriminator_width": size_of(state, f"{prefix}model.0.weight", 0, 64),
        "discriminator_layers": max(layers, 1),
    }
