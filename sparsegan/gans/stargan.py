"""StarGAN (Choi et al., arXiv 1711.09020): one generator for all domains, a critic with a class head.

Layer names and shapes are those of the public yunjey/stargan, so its checkpoints load key for key. x is a real image
of domain c, c' the target domain, G(x, c') the translation, D gives the critic's scores per patch and P its class
probabilities, and x^ = e x + (1 - e) G(x, c') with one e ~ U[0, 1] per image:

    Dis      = mean D(G(x, c')) - mean D(x)
    GP       = mean (|grad D(x^)|_2 - 1)^2                       (Gulrajani et al., arXiv 1704.00028)
    Cla_real = -mean log P(c | x)
    D minimises Dis + 10 GP + Cla_real
    Gen = -mean D(G(x, c'))
    Cla = -mean log P(c' | G(x, c'))
    Rec = mean |x - G(G(x, c'), c)|
    G minimises Gen + Cla + 10 Rec

Labels are one of two kinds, as in the public code: domains, int64 [N], with cross-entropy; or attributes 0 or 1, float
[N, domains], with binary cross-entropy summed over attributes. The targets are the batch's labels in random order.

D is piecewise linear in x (convolutions and leaky ReLUs), so GP is piecewise constant in x^, and GP gives G no gradient
almost everywhere. In equation 8, GP therefore adds to the value of the loss only and needs no second derivative.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.kinds import DOMAINS
from ..randomness import Draw, afresh
from .objective import Objective, Reduce, Terms, View, mean
from .parts import InstanceNorm2d, State, check, count_up, size_of
from .reference import Network, Reference, Training, Way

Batch = tuple[Tensor, Tensor]


def norm_layer(width: int) -> nn.Module:
    """Returns an affine instance norm with the running statistics that the public checkpoints hold."""
    return InstanceNorm2d(width, affine=True, track_running_stats=True)


class ResidualBlock(nn.Module):
    """x -> x + two 3x3 convolutions of x; [N, width, S, S] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm_layer(width),
            nn.ReLU(True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm_layer(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class Generator(nn.Module):
    """Images [N, channels, S, S] and domains [N, domains] -> images [N, channels, S, S] in [-1, 1], S a multiple of 4.

    `conv_dim`: channels at full size. `repeat_num`: residual blocks. A domain is a row of 0 and 1.
    """

    def __init__(self, conv_dim: int = 64, domains: int = 5, repeat_num: int = 6, channels: int = 3) -> None:
        super().__init__()
        check(conv_dim=conv_dim, domains=domains, repeat_num=repeat_num, channels=channels)
        self.domains = domains

        def normed(convolution: nn.Module, width: int) -> list[nn.Module]:
            return [convolution, norm_layer(width), nn.ReLU(True)]

        layers = normed(nn.Conv2d(channels + domains, conv_dim, 7, 1, 3, bias=False), conv_dim)
        for width in (2 * conv_dim, 4 * conv_dim):
            layers += normed(nn.Conv2d(width // 2, width, 4, 2, 1, bias=False), width)
        layers += [ResidualBlock(4 * conv_dim) for _ in range(repeat_num)]
        for width in (2 * conv_dim, conv_dim):
            layers += normed(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), width)
        layers += [nn.Conv2d(conv_dim, channels, 7, 1, 3, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        if isinstance(labels, Tensor) and labels.shape[1:] != (self.domains,):  # no tensor while torch.fx traces
            raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be [N, {self.domains}]")
        planes = labels.to(images.dtype)[:, :, None, None].expand(-1, -1, images.shape[2], images.shape[3])
        return self.main(torch.cat([images, planes], 1))


class LeakyReLU(nn.LeakyReLU):
    """torch's LeakyReLU with its slopes as constants.

    In the second derivative, which the gradient penalty needs, torch's LeakyReLU passes zeros back through all layers
    before it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.full_like(x, self.negative_slope).masked_fill_(x > 0, 1.0)


class Discriminator(nn.Module):
    """Images [N, channels, S, S], S = image_size -> scores [N, 1, S', S'] and class logits [N, domains].

    S' = S / 2**repeat_num. `conv_dim`: channels after the first layer. `repeat_num`: halvings.
    """

    def __init__(
        self, image_size: int = 128, conv_dim: int = 64, domains: int = 5, repeat_num: int = 6, channels: int = 3
    ) -> None:
        super().__init__()
        check(image_size=image_size, conv_dim=conv_dim, domains=domains, repeat_num=repeat_num, channels=channels)
        if image_size % 2**repeat_num:
            raise ValueError(f"image_size is {image_size}; it must be a multiple of 2**repeat_num, {2**repeat_num}")
        layers: list[nn.Module] = []
        before, width = channels, conv_dim
        for _ in range(repeat_num):
            layers += [nn.Conv2d(before, width, 4, 2, 1), LeakyReLU(0.01)]
            before, width = width, 2 * width
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(before, 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(before, domains, image_size // 2**repeat_num, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = images
        for layer in self.main:
            hidden = _product(layer, hidden) if _few_pixels(layer, hidden) else layer(hidden)
        return self.conv1(hidden), self.conv2(hidden).flatten(1)


def _few_pixels(layer: nn.Module, x: Tensor) -> bool:
    """Returns whether `layer` is a dense convolution on a CPU with far more weights than inputs.

    torch's convolution rearranges the weights at every call. For such a layer this is most of its time.
    """
    return type(layer) is nn.Conv2d and x.device.type == "cpu" and layer.weight.numel() >= 16 * x.numel()


def _product(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns the output of the convolution `layer`, computed as one matrix product.

    The layer has one stride and one padding for both axes, no groups and no dilation.
    """
    convolution = cast(nn.Conv2d, layer)
    (height, width), stride, pad = convolution.kernel_size, convolution.stride[0], cast(int, convolution.padding[0])
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    patches = padded.unfold(1, height, stride).unfold(2, width, stride).permute(0, 1, 2, 4, 5, 3)
    rows, columns = patches.flatten(3), convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(rows, columns, convolution.bias).permute(0, 3, 1, 2)


def as_rows(labels: Tensor, domains: int) -> Tensor:
    """Returns labels int64 [N] or float [N, domains] as float rows [N, domains]. Raises ValueError for a label out of
    range."""
    if labels.dim() == 1:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < domains:
            bad = int(labels.min() if labels.min() < 0 else labels.max())
            raise ValueError(f"labels has domain {bad}; this generator knows domains 0 to {domains - 1}")
        return F.one_hot(labels, domains).float()
    return labels.float()


def generate(generator: nn.Module, batch: Batch, draws: Draw = afresh) -> dict[str, Tensor]:
    """Returns {"images": G(x, c'), "labels": c'} for `batch` = (x, c), with c' the labels c in a random order."""
    images, labels = batch
    target = labels[draws("targets", lambda: torch.randperm(len(labels), device=labels.device))]
    return {"images": _translate(generator, images, target), "labels": target}


def _translate(generator: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return generator(images, as_rows(labels, cast(Generator, generator).domains).to(images))


def generator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: dict[str, Tensor], batch: Batch, reduce: Reduce = mean
) -> Terms:
    """Returns the terms "gen", "cla" and "rec"."""
    images, labels = batch
    score, logits = discriminator(fake["images"])
    back = _translate(generator, fake["images"], labels)
    return {
        "gen": -reduce(score),
        "cla": reduce(_classified(logits, fake["labels"])),
        "rec": reduce((images - back).abs()),
    }


def discriminator_terms(
    generator: nn.Module,
    discriminator: nn.Module,
    fake: dict[str, Tensor],
    batch: Batch,
    draws: Draw = afresh,
    reduce: Reduce = mean,
) -> Terms:
    """Returns the terms "dis", "gp" and "cla_real"."""
    images, labels = batch
    if _trained(discriminator):  # one call: the deep layers' weight gradients are larger than their inputs
        score, logits = discriminator(torch.cat([images, fake["images"]]))
        (on_real, on_fake), logits = score.chunk(2), logits[: len(images)]
    else:  # two calls: a compression step computes each input once and reuses the output
        (on_real, logits), (on_fake, _) = discriminator(images), discriminator(fake["images"])
    return {
        "dis": reduce(on_fake) - reduce(on_real),
        "gp": gradient_penalty(discriminator, images, fake["images"], draws, reduce),
        "cla_real": reduce(_classified(logits, labels)),
    }


def gradient_penalty(
    discriminator: nn.Module, real: Tensor, fake: Tensor, draws: Draw = afresh, reduce: Reduce = mean
) -> Tensor:
    """Returns mean (|grad D(x^)|_2 - 1)^2 at random x^ between real and fake images, one x^ per image.

    The result is differentiable in D and in `fake`. If D is this module's Discriminator and is not trained, the result
    is a constant, because its gradient in `fake` is 0.
    """
    share = draws("share", lambda: torch.rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device))
    between = share * real + (1 - share) * fake
    constant = isinstance(discriminator, Discriminator) and not _trained(discriminator)
    if constant or not between.requires_grad:
        between = between.detach().requires_grad_(True)
    score, _ = discriminator(between)
    (slope,) = torch.autograd.grad(score.sum(), between, create_graph=not constant)
    return reduce((slope.flatten(1).norm(dim=1) - 1).square())


def _trained(network: nn.Module) -> bool:
    """Returns whether any parameter of the network gets a gradient."""
    return any(parameter.requires_grad for parameter in network.parameters())


def _classified(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the loss [N] of each image."""
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").sum(1)


def views(fake: dict[str, Tensor], batch: Batch) -> dict[str, View]:
    """Returns a view "to D" per domain D of the batch: the images that came to D from another domain, beside real
    images of D.

    An input in the place of its translation is thereby far from the real images. For attributes there is one view,
    "translation", with all images of the batch as the real ones: the targets are as frequent as the labels.
    """
    images, labels = batch
    target = fake["labels"]
    if labels.dim() > 1:
        return {"translation": View(images, fake["images"], images)}
    made = {}
    for domain in labels.unique().cpu().tolist():
        moved = (target == domain) & (labels != domain)
        made[f"to {domain}"] = View(images[moved], fake["images"][moved], images[labels == domain], asked=target[moved])
    return made


def gallery(generator: nn.Module, batch: Batch) -> dict[str, View]:
    """Returns a view per domain: the images translated to it. For attributes, each view inverts one attribute."""
    images, labels = batch
    made = {}
    for domain in range(cast(Generator, generator).domains):
        if labels.dim() == 1:
            target = torch.full_like(labels, domain)
        else:
            target = labels.clone()
            target[:, domain] = 1 - target[:, domain]
        made[f"to {domain}"] = View(images, _translate(generator, images, target))
    return made


objective = Objective(
    generator_terms,
    discriminator_terms,
    generate,
    weights={"rec": 10.0, "gp": 10.0},
    distances=("rec",),
    real_terms=("cla_real",),
    views=views,
    gallery=gallery,
    own=lambda fake, batch: (fake["images"], fake["labels"]),
)


def build(
    *,
    width: int,
    domains: int,
    blocks: int = 6,
    image_size: int = 128,
    channels: int = 3,
    discriminator_width: int | None = None,
    discriminator_layers: int = 6,
) -> tuple[Generator, Discriminator]:
    """Returns untrained networks. `width` and `discriminator_width`: the conv_dim of each network. `blocks` and
    `discriminator_layers`: the repeat_num of each network. `domains`: c_dim.
    """
    conv_dim = width if discriminator_width is None else discriminator_width
    return (
        Generator(width, domains, blocks, channels),
        Discriminator(image_size, conv_dim, domains, discriminator_layers, channels),
    )


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns the arguments of `build` that fit a generator's state_dict.

    The state_dict does not tell the size of the images. `build` takes 128 by default, as published.
    """
    blocks = max(count_up(state, "main.{}.main.0.weight", start=9), 1)
    channels = size_of(state, f"main.{9 + blocks + 6}.weight", 0, 3)
    return [
        {
            "width": size_of(state, "main.0.weight", 0, 64),
            "domains": size_of(state, "main.0.weight", 1, channels + 5) - channels,
            "blocks": blocks,
            "channels": channels,
        }
    ]


def discriminator_sizes(state: State) -> dict[str, Any]:
    """Returns the arguments of `build` that a discriminator's state_dict decides."""
    layers = max(count_up(state, "main.{}.weight", step=2), 1)
    return {
        "discriminator_width": size_of(state, "main.0.weight", 0, 64),
        "discriminator_layers": layers,
        "image_size": size_of(state, "conv2.weight", 2, 2) * 2**layers,
    }


def example(network: Mapping[str, Any], count: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns random images and domains."""
    images = torch.rand(count, network.get("channels", 3), size, size) * 2 - 1
    return images, as_rows(torch.randint(network["domains"], (count,)), network["domains"])


def ways(generator: Any, config: Mapping[str, Any]) -> dict[str, Way]:
    """Returns a way per domain, by the domain's name, or by its number where `config` holds no names."""
    names = config.get("domain_names") or [str(index) for index in range(generator.domains)]
    return {name: Way(generator, partial(_to, index, generator.domains)) for index, name in enumerate(names)}


def _to(domain: int, domains: int, images: Tensor) -> Batch:
    """Returns the generator's arguments that translate `images` to the domain number `domain` of `domains`."""
    return images, as_rows(torch.full((len(images),), domain, device=images.device), domains)


def for_size(network: Network, size: int) -> Network:
    """Returns `network` with a critic for images of `size`.

    The critic halves the images as often as `size` allows, at most 6 times as in the public network, unless `network`
    says how often.
    """
    halvings = (size & -size).bit_length() - 1
    return {"discriminator_layers": min(6, halvings), **network, "image_size": size}


reference = Reference(
    name="stargan",
    text="one generator between several domains",
    build=build,
    objective=lambda network: objective,
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    example=example,
    ways=ways,
    choice="domains",
    samples=DOMAINS,
    for_size=for_size,
    network={"width": 32, "domains": 4, "blocks": 4, "image_size": 64, "discriminator_layers": 5},
    training=Training(
        data="emoji-styles",
        size=64,
        batch=8,
        steps=8000,
        lr=1e-4,
        discriminator_lr=1e-4,
        generator_every=5,
        decay=True,
    ),
)
