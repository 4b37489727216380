"""ESRGAN and Real-ESRGAN (Wang et al., arXiv 1809.00219 and 2107.10833): generators that enlarge images.

There are two generators: residual-in-residual dense blocks (RRDBNet), and Real-ESRGAN's compact network for video
(SRVGGNetCompact). The discriminator is Real-ESRGAN's U-Net with spectral norm. Layer names and shapes are those of the
public BasicSR. `renamed` has the names of two older public layouts, so files of all three layouts load. Images are in
[-1, 1] here and in [0, 1] there; the generators below convert them, and like the public ones they do not clamp.

x are images of low resolution, y the same images in full resolution, D a logit per pixel, and s the sigmoid. The terms
and weights are those of Real-ESRGAN. Content compares pixels in [0, 1]:

    D minimises Dis = -mean log s(D(y)) - mean log(1 - s(D(G(x))))
    Content    = mean |y - G(x)|
    Perceptual = mean |phi(y) - phi(G(x))|        only where a feature network phi is given
    Gen        = -mean log s(D(G(x)))
    G minimises Content + Perceptual + 0.1 Gen
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from ..data.kinds import CROPS
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, check, check_choice, count_up, logit_cross_entropy, size_of
from .pix2pix import Pair
from .reference import Reference, Training

Features = Callable[[Tensor], Tensor]


class DenseBlock(nn.Module):
    """x -> x + 0.2 times five 3x3 convolutions of x; [N, width, S, S] -> the same.

    Each convolution reads x and the outputs of all convolutions before it. `growth`: channels of the first four.
    """

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = (
            nn.Conv2d(width + index * growth, growth if index < 4 else width, 3, padding=1) for index in range(5)
        )
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            nn.init.kaiming_normal_(conv.weight)
            with torch.no_grad():
                conv.weight *= 0.1  # as in the public code: a block begins near the identity
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.lrelu = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x, self.lrelu(self.conv1(x))]
        for conv in (self.conv2, self.conv3, self.conv4):
            parts.append(self.lrelu(conv(torch.cat(parts, 1))))
        return x + 0.2 * self.conv5(torch.cat(parts, 1))


class ResidualBlock(nn.Module):
    """x -> x + 0.2 times three dense blocks of x; [N, width, S, S] -> the same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Images [N, channels, H, W] in [-1, 1] -> images [N, channels, scale * H, scale * W], about in [-1, 1].

    `blocks`: residual blocks of three dense blocks. `growth`: half of `width` by default, as in the public network.
    `doublings`: how often the network doubles its images. `scale`: a power of two, at most 2**doublings. For a smaller
    scale, each square of `unshuffle` * `unshuffle` pixels of the input first becomes one pixel with more channels. The
    images then may have any size: they are padded to whole squares by reflection, and the result is cut.

    Raises ValueError for other sizes.
    """

    def __init__(
        self,
        width: int = 64,
        blocks: int = 23,
        growth: int | None = None,
        scale: int = 4,
        channels: int = 3,
        doublings: int = 2,
    ) -> None:
        super().__init__()
        growth = max(width // 2, 1) if growth is None and isinstance(width, int) else growth
        check(width=width, blocks=blocks, growth=growth, scale=scale, channels=channels)
        if not isinstance(doublings, int) or doublings < 0:
            raise ValueError(f"doublings is {doublings!r}; it must be an integer, at least 0")
        if scale & (scale - 1) or scale > 2**doublings:
            raise ValueError(
                f"scale is {scale}; it must be a power of two, at most {2**doublings} with {doublings} doublings"
            )
        assert growth is not None
        self.scale, self.unshuffle = scale, 2**doublings // scale
        self.conv_first = nn.Conv2d(channels * self.unshuffle**2, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        self.ups = [f"conv_up{index + 1}" for index in range(doublings)]
        for name in self.ups:
            self.add_module(name, nn.Conv2d(width, width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, channels, 3, padding=1)
        self.lrelu = nn.LeakyReLU(0.2)

    def forward(self, images: Tensor) -> Tensor:
        x = (images + 1) / 2  # the public network's images are in [0, 1]
        height, width, unit = images.shape[2], images.shape[3], self.unshuffle
        if unit > 1:
            x = F.pixel_unshuffle(F.pad(x, (0, -width % unit, 0, -height % unit), mode="reflect"), unit)
        first = self.conv_first(x)
        x = first + self.conv_body(self.body(first))
        for name in self.ups:
            x = self.lrelu(self.get_submodule(name)(F.interpolate(x, scale_factor=2, mode="nearest")))
        made = 2 * self.conv_last(self.lrelu(self.conv_hr(x))) - 1
        return made if unit == 1 else made[:, :, : self.scale * height, : self.scale * width]


class Compact(nn.Module):
    """Images [N, channels, H, W] in [-1, 1] -> images [N, channels, scale * H, scale * W], about in [-1, 1].

    The network adds details to the enlarged input. `convs`: the 3x3 convolutions between the first and the last one.
    """

    def __init__(self, width: int = 64, convs: int = 16, scale: int = 4, channels: int = 3) -> None:
        super().__init__()
        check(width=width, convs=convs, scale=scale, channels=channels)
        self.scale = scale
        layers: list[nn.Module] = []
        for before in (channels, *[width] * convs):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, channels * scale**2, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        x = (images + 1) / 2  # the public network's images are in [0, 1]
        enlarged = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return 2 * (F.pixel_shuffle(self.body(x), self.scale) + enlarged) - 1


class Discriminator(nn.Module):
    """Images [N, channels, H, W], H and W at least 8 -> logit per pixel of being real [N, 1, H, W].

    A U-Net that halves and doubles three times. `width`: channels at full size. All layers but the first and the last
    have a spectral norm.
    """

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        check(width=width, channels=channels)
        self.conv0 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv1, self.conv2, self.conv3 = (
            spectral_norm(nn.Conv2d(factor * width, 2 * factor * width, 4, 2, 1, bias=False)) for factor in (1, 2, 4)
        )
        self.conv4, self.conv5, self.conv6 = (
            spectral_norm(nn.Conv2d(2 * factor * width, factor * width, 3, padding=1, bias=False))
            for factor in (4, 2, 1)
        )
        self.conv7, self.conv8 = (spectral_norm(nn.Conv2d(width, width, 3, padding=1, bias=False)) for _ in range(2))
        self.conv9 = nn.Conv2d(width, 1, 3, padding=1)
        self.lrelu = nn.LeakyReLU(0.2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.lrelu(self.conv0((images + 1) / 2))
        skipped = []
        for conv in (self.conv1, self.conv2, self.conv3):
            skipped.append(x)
            x = self.lrelu(conv(x))
        for conv in (self.conv4, self.conv5, self.conv6):
            finer = skipped.pop()
            x = F.interpolate(x, size=finer.shape[2:], mode="bilinear", align_corners=False)
            x = self.lrelu(conv(x)) + finer
        return self.conv9(self.lrelu(self.conv8(self.lrelu(self.conv7(x)))))


def generate(generator: nn.Module, batch: Pair) -> Tensor:
    """Returns G(x) for `batch` = (x, y)."""
    return generator(batch[0])


def target(fake: Tensor, batch: Pair) -> Tensor:
    """Returns y in the size of `fake`: itself, or resized where the data enlarge by another factor than the network."""
    full = batch[1]
    if full.shape == fake.shape:
        return full
    return F.interpolate(full, fake.shape[2:], mode="bicubic", antialias=True).clamp(-1, 1)


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
) -> Terms:
    """Returns {"dis": -mean log s(D(y)) - mean log(1 - s(D(fake)))}."""
    on_real = logit_cross_entropy(discriminator(target(fake, batch)), 1.0, reduce)
    return {"dis": on_real + logit_cross_entropy(discriminator(fake), 0.0, reduce)}


def views(fake: Tensor, batch: Pair) -> dict[str, View]:
    """Returns one view: the small image, the enlarged image and the true image."""
    return {"output": View(batch[0], fake, target(fake, batch), paired=True)}


def objective_with(features: Features | None) -> Objective:
    """Returns the objective with the perceptual term measured in `features(images)`; without the term for None."""

    def generator_terms(
        generator: nn.Module, discriminator: nn.Module, fake: Tensor, batch: Pair, reduce: Reduce = mean
    ) -> Terms:
        """Returns {"content": mean |y - fake| / 2, "gen": -mean log s(D(fake))}, and "perceptual" with features.

        Half of a difference in [-1, 1] is the difference in [0, 1], for which the public weights are.
        """
        real = target(fake, batch)
        terms = {
            "content": reduce((real - fake).abs() / 2),
            "gen": logit_cross_entropy(discriminator(fake), 1.0, reduce),
        }
        if features is not None:
            with torch.no_grad():
                wanted = features(real)
            terms["perceptual"] = reduce((wanted - features(fake)).abs())
        return terms

    distances = ("content",) if features is None else ("content", "perceptual")
    return Objective(
        generator_terms,
        discriminator_terms,
        generate,
        {"gen": 0.1},
        distances=distances,
        views=views,
        own=lambda fake, batch: (batch[0], fake),
    )


objective = objective_with(None)


def build(
    *,
    width: int,
    generator: str = "rrdb",
    blocks: int = 23,
    growth: int | None = None,
    doublings: int = 2,
    convs: int = 16,
    scale: int = 4,
    channels: int = 3,
    discriminator_width: int | None = None,
) -> tuple[nn.Module, Discriminator]:
    """Returns untrained networks.

    `generator`: "rrdb" has the sizes `blocks`, `growth` and `doublings`, and "compact" has `convs`. `width`: the public
    num_feat. `discriminator_width`: the same as `width` by default.
    """
    check_choice("generator", generator, ("rrdb", "compact"))
    judge = Discriminator(width if discriminator_width is None else discriminator_width, channels)
    if generator == "compact":
        return Compact(width, convs, scale, channels), judge
    return RRDBNet(width, blocks, growth, scale, channels, doublings), judge


# Public files

#: Patterns of names in the older layouts -> names here. The first layout is that of ESRGAN's first release, whose outer
#: layers have numbers (`_numbered`), and the second that of its later releases.
RENAMED = {
    r"(?:model\.1\.sub|RRDB_trunk)\.(\d+)\.RDB([123])\.conv([1-5])(?:\.0)?": r"body.\1.rdb\2.conv\3",
    r"model\.1\.sub\.\d+|trunk_conv": "conv_body",
    r"upconv(\d+)": r"conv_up\1",
    r"HRconv": "conv_hr",
}


def renamed(state: State) -> State:
    """Returns a state_dict of an older layout with the names here. A name whose place is taken stays as it is."""
    numbered = _numbered(state)
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, dot, part = key.rpartition(".")
        name = numbered.get(layer, layer)
        for pattern, replacement in RENAMED.items():
            if match := re.fullmatch(pattern, layer, re.ASCII):
                name = match.expand(replacement)
        name += dot + part
        found[key if name in found or (name != key and name in state) else name] = tensor
    return found


def _numbered(state: State) -> dict[str, str]:
    """Returns the names of the layers outside the blocks that the oldest layout numbers, with 0 to many doublings."""
    numbers = sorted(int(key[6:-7]) for key in state if re.fullmatch(r"model\.\d{1,4}\.weight", key, re.ASCII))
    ups = len(numbers) - 3
    if ups < 0 or numbers != [0, *range(3, 3 * ups + 1, 3), 3 * ups + 2, 3 * ups + 4]:
        return {}  # between these numbers lie the blocks (1), the resizing and the activations, which have no weights
    names = ["conv_first", *(f"conv_up{index + 1}" for index in range(ups)), "conv_hr", "conv_last"]
    return {f"model.{number}": name for number, name in zip(numbers, names, strict=True)}


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns arguments of `build` that may fit a generator's state_dict: an RRDBNet's, then a compact network's."""
    channels = size_of(state, "conv_last.weight", 0, 3)
    doublings = count_up(state, "conv_up{}.weight", start=1)
    unshuffle = math.isqrt(size_of(state, "conv_first.weight", 1, channels) // max(channels, 1))
    rrdb = {
        "generator": "rrdb",
        "width": size_of(state, "conv_first.weight", 0, 64),
        "blocks": max(count_up(state, "body.{}.rdb1.conv1.weight"), 1),
        "growth": size_of(state, "body.0.rdb1.conv1.weight", 0, 32),
        "doublings": doublings,
        "scale": max(2**doublings // max(unshuffle, 1), 1),
        "channels": channels,
    }
    channels = size_of(state, "body.0.weight", 1, 3)
    convs = max(count_up(state, "body.{}.weight", step=2) - 2, 1)
    compact = {
        "generator": "compact",
        "width": size_of(state, "body.0.weight", 0, 64),
        "convs": convs,
        "scale": max(math.isqrt(size_of(state, f"body.{2 * convs + 2}.weight", 0, 0) // max(channels, 1)), 1),
        "channels": channels,
    }
    return [rrdb, compact]


def discriminator_sizes(state: State) -> dict[str, Any]:
    """Returns the arguments of `build` that a discriminator's state_dict decides."""
    return {"discriminator_width": size_of(state, "conv0.weight", 0, 64)}


def example(network: Mapping[str, Any], count: int, size: int) -> tuple[Tensor, ...]:
    """Returns random images of low resolution; the generator enlarges them to `size`."""
    low = max(size // network.get("scale", 4), 1)
    return (torch.rand(count, network.get("channels", 3), low, low) * 2 - 1,)


reference = Reference(
    name="esrgan",
    text="larger images, by residual dense blocks or a compact network",
    build=build,
    objective=lambda network: objective,
    objective_with=objective_with,
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    renamed=renamed,
    example=example,
    samples=CROPS,
    network={"width": 32, "blocks": 2, "scale": 4},
    training=Training(
        data="photos", size=64, batch=8, steps=6000, lr=2e-4, discriminator_lr=1e-4, betas=(0.9, 0.99), decay=True
    ),
)
