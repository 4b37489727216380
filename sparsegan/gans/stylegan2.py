"""StyleGAN2 (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958).

A mapping network turns a latent z into a style w. A synthesis network starts from a learned constant of 4x4 pixels.
Its convolutions are modulated by styles (:mod:`sparsegan.nn.modulated`) and add noise. Each resolution also makes an
image, and the enlarged images are summed ("skip" generator, section 4.1). The discriminator is residual.
`style_networks.py` has the networks.

Files are those of the widely used PyTorch port, with the keys g_ema, g and d; `renamed` also has the names of BasicSR's
layout. Images are in about [-1, 1], D is a logit, and s the sigmoid:

    D minimises Dis + 5 R1,  Dis = -mean log s(D(x)) - mean log(1 - s(D(G(z)))),  R1 = mean |grad D(x)|^2
    G minimises Gen (+ 2 Path),  Gen = -mean log s(D(G(z)))        Path: see `path_length_penalty`

Each training step draws new noise for all layers. Without given noise, the generator takes the noise in its file, so
that it is a function of z; the engine and the commands use it in this way. Style mixing is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.kinds import IMAGES
from ..randomness import Draw, afresh
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, check, count_up, logit_cross_entropy, size_of
from .reference import Reference, Training
from .style_networks import Discriminator as Discriminator
from .style_networks import Generator as Generator
from .style_networks import fir

# Terms


def random_inputs(generator: nn.Module, count: int, draws: Draw = afresh) -> tuple[Tensor, list[Tensor]]:
    """Returns latents [count, style_dim] and the noise of each layer, all from N(0, 1), as `generator` takes them."""
    network, first = cast(Generator, generator), next(generator.parameters())

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=first.dtype, device=first.device)

    z = draws("latents", partial(normal, count, network.style_dim))
    shapes = network.noise_shapes(count)
    noise = [draws(f"noise {layer}", partial(normal, *shape)) for layer, shape in enumerate(shapes)]
    return z, noise


def generate(generator: nn.Module, images: Tensor, draws: Draw = afresh) -> Tensor:
    """Returns one fake per real image, from new latents and new noise."""
    return generator(*random_inputs(generator, len(images), draws))


def generator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, images: Tensor, reduce: Reduce = mean
) -> Terms:
    """Returns {"gen": -mean log s(D(fake))}."""
    return {"gen": logit_cross_entropy(discriminator(fake), 1.0, reduce)}


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, images: Tensor, reduce: Reduce = mean
) -> Terms:
    """Returns {"dis": -mean log s(D(images)) - mean log(1 - s(D(fake))), "r1": mean |grad D(images)|^2}."""
    real = images.detach().requires_grad_()
    with torch.enable_grad():
        on_real = discriminator(real)
    dis = logit_cross_entropy(on_real, 1.0, reduce) + logit_cross_entropy(discriminator(fake), 0.0, reduce)
    return {"dis": dis, "r1": reduce(slopes(discriminator, real, on_real))}


def slopes(discriminator: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """Returns the squared norm of the gradient of each image's logit in the image, [N].

    `logits`: the discriminator's output for `images`, which require a gradient. The result is differentiable in the
    discriminator's parameters where one of them is trained, and a constant elsewhere. Each gradient is that of the sum
    of all logits, because minibatch statistics join the images.
    """
    trained = torch.is_grad_enabled() and any(one.requires_grad for one in discriminator.parameters())
    with torch.enable_grad():
        total = logits.sum()
    (slope,) = torch.autograd.grad(total, images, create_graph=trained, retain_graph=True)
    return slope.square().flatten(1).sum(1)


def path_lengths(generator: nn.Module, w: Tensor, noise: Sequence[Tensor], direction: Tensor) -> Tensor:
    """Returns |J^T y| of each image, [N], for the Jacobian J of the synthesis at the styles `w` (section 3.2).

    `w`: [N, layers + 1, style_dim]. `direction`: y, of the shape of the images, from N(0, 1). The square is the mean
    over the layers, as in the public code. Differentiable in the generator's parameters and in `w`.
    """
    with torch.enable_grad():
        w = w if w.requires_grad else w.detach().requires_grad_()
        images = cast(Generator, generator).synthesis(w, noise)
        score = (images * direction).sum() / math.sqrt(images.shape[2] * images.shape[3])
        (slope,) = torch.autograd.grad(score, w, create_graph=True)
    return slope.square().sum(2).mean(1).sqrt()


def path_length_penalty(generator: nn.Module, count: int, draws: Draw = afresh) -> Tensor:
    """Returns (a - length)^2 of `count` random images, [count] (equation 4).

    a is the mean length of these images, where the paper has a moving average over steps.
    """
    network = cast(Generator, generator)
    z, noise = random_inputs(generator, count, lambda name, draw: draws(f"path {name}", draw))
    w = network.style(z)[:, None].expand(-1, network.layers + 1, -1)
    shape = (count, network.to_rgb1.bias.shape[1], network.size, network.size)
    direction = draws("path direction", lambda: torch.randn(shape, dtype=z.dtype, device=z.device))
    lengths = path_lengths(generator, w, noise, direction)
    return (lengths - lengths.mean().detach()).square()


def views(fake: Tensor, images: Tensor) -> dict[str, View]:
    """Returns one view: the samples and real images."""
    return {"samples": View(None, fake, images)}


def objective_with_path_length(part: float = 0.5) -> Objective:
    """Returns the objective with the term "path", computed on `part` of each batch, in (0, 1].

    Raises ValueError for another `part`.
    """
    if not 0 < part <= 1:
        raise ValueError(f"part is {part}; it must be above 0 and at most 1")

    def with_path(
        generator: nn.Module,
        discriminator: nn.Module,
        fake: Tensor,
        images: Tensor,
        draws: Draw = afresh,
        reduce: Reduce = mean,
    ) -> Terms:
        """Returns {"gen": -mean log s(D(fake)), "path": mean (a - length)^2}."""
        penalty = path_length_penalty(generator, math.ceil(part * len(images)), draws)
        return {**generator_terms(generator, discriminator, fake, images, reduce), "path": reduce(penalty)}

    return _objective(with_path)


def _objective(terms: Any) -> Objective:
    return Objective(
        terms,
        discriminator_terms,
        generate,
        weights={"r1": 5.0, "path": 2.0},
        real_terms=("r1",),
        views=views,
        own=lambda fake, batch: fake,
    )


objective = _objective(generator_terms)

# Sizes


def widths_of(image_size: int, width: int, most: int, widths: str, name: str = "widths") -> list[int]:
    """Returns the channels at 4, 8, ..., `image_size` pixels.

    They double from `width` at the full size down to 4 pixels, up to `most`. `widths`: channels by resolution, from 4
    pixels on, as "512,512,256", which replace this rule. Where the last of them is not `width`, all are scaled by
    width / last. Raises ValueError, with `name` for `widths`, for sizes that do not fit.
    """
    check(image_size=image_size, width=width, most=most)
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(f"image_size is {image_size}; it must be a power of two, at least 8")
    count = image_size.bit_length() - 2
    if not widths:
        return [min(width << (count - 1 - level), most) for level in range(count)]
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", widths, re.ASCII) or widths.count(",") != count - 1:
        raise ValueError(
            f"{name} is {widths!r}; it must be {count} numbers joined by commas, for 4 to {image_size} pixels"
        )
    own = [int(one) for one in widths.split(",")]
    return [max(one * width // own[-1], 1) for one in own]


def build(
    *,
    image_size: int,
    width: int,
    most: int = 512,
    widths: str = "",
    style_dim: int = 512,
    mapping: int = 8,
    channels: int = 3,
    discriminator_width: int | None = None,
    discriminator_widths: str = "",
) -> tuple[Generator, Discriminator]:
    """Returns untrained networks for images of `image_size` pixels.

    `width`, `most`, `widths`: channels by resolution, see `widths_of`. The published networks have most 512, and width
    128 for 256 pixels (channel multiplier 2; 64 for 1). `mapping`: layers of the mapping network.
    `discriminator_width`, `discriminator_widths`: of the discriminator, the same as the generator's by default.
    """
    check(style_dim=style_dim, mapping=mapping, channels=channels)
    made = widths_of(image_size, width, most, widths)
    judged = made
    if discriminator_width is not None or discriminator_widths:
        own = discriminator_widths or widths
        judged = widths_of(image_size, discriminator_width or width, most, own, "discriminator_widths")
    return Generator(made, style_dim, mapping, channels), Discriminator(judged, channels)


# Public files

#: Patterns of names in BasicSR's layout -> names of the port.
BASICSR = {
    r"style_mlp\.(\d+)\.(weight|bias)": r"style.\1.\2",
    r"constant_input\.weight": "input.input",
    r"style_conv(1|s\.\d+)\.modulated_conv\.(.+)": r"conv\1.conv.\2",
    r"style_conv(1|s\.\d+)\.weight": r"conv\1.noise.weight",
    r"style_conv(1|s\.\d+)\.activate\.bias": r"conv\1.activate.bias",
    r"to_rgb(1|s\.\d+)\.modulated_conv\.(.+)": r"to_rgb\1.conv.\2",
    r"noises\.noise(\d+)": r"noises.noise_\1",
}


def renamed(state: State) -> State:
    """Returns a generator's state_dict with the names here, from the port's layout or from BasicSR's.

    A weight [1, out, in, k, k] becomes that of a convolution, [out, in, k, k], or of a transposed one, [in, out, k, k].
    BasicSR's files do not hold the filters, which are then added. A name whose place is taken stays as it is.
    """
    port: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = next((m.expand(to) for one, to in BASICSR.items() if (m := re.fullmatch(one, key, re.ASCII))), key)
        port[key if name in port or (name != key and name in state) else name] = tensor
    if "style_conv1.modulated_conv.weight" in state:
        for key in list(port):
            if match := re.fullmatch(
                r"(convs\.\d*[02468]\.conv\.|to_rgbs\.\d+\.)(?:modulation|conv\.modulation)\.weight", key
            ):
                filtered = "blur" if match[1].startswith("convs") else "upsample"
                port.setdefault(f"{match[1]}{filtered}.kernel", fir(4.0))
    found: dict[str, Tensor] = {}
    for key, tensor in port.items():
        match = re.fullmatch(r"((?:conv1|to_rgb1|convs\.\d+|to_rgbs\.\d+)\.conv)\.weight", key, re.ASCII)
        name = f"{match[1]}.modulated.convolution.weight" if match else key
        if match is None or tensor.dim() != 5 or len(tensor) != 1 or name in port:
            found[key] = tensor
        else:
            up = re.fullmatch(r"convs\.\d*[02468]\.conv", match[1], re.ASCII)
            found[name] = tensor[0].transpose(0, 1) if up else tensor[0]
    return found


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns the arguments of `build` that fit a generator's state_dict."""
    levels = count_up(state, "to_rgbs.{}.bias")
    rgbs = ["to_rgb1", *(f"to_rgbs.{level}" for level in range(levels))]
    widths = [size_of(state, f"{rgb}.conv.modulation.weight", 0, 1) for rgb in rgbs]
    style_dim = size_of(state, "to_rgb1.conv.modulation.weight", 1, 512)
    return [
        {
            **_ruled(widths, ""),
            "image_size": 2 ** (min(max(levels, 1), 20) + 2),
            "style_dim": max(style_dim, 1),
            "mapping": max(count_up(state, "style.{}.weight", start=1), 1),
            "channels": max(size_of(state, "to_rgb1.bias", 1, 3), 1),
        }
    ]


def _ruled(widths: list[int], prefix: str) -> dict[str, Any]:
    """Returns the arguments of `build` for these channels by resolution: without `widths` where the rule gives them."""
    widths = [max(one, 1) for one in widths]
    size, width = 2 ** (len(widths) + 1), widths[-1]
    most = max(widths)
    for limit in (512, most):
        if len(widths) > 1 and widths_of(size, width, limit, "") == widths:
            return {f"{prefix}width": width, "most": limit}
    return {f"{prefix}width": width, f"{prefix}widths": ",".join(map(str, widths))}


def discriminator_sizes(state: State) -> dict[str, Any]:
    """Returns the arguments of `build` that a discriminator's state_dict decides."""
    blocks = count_up(state, "convs.{}.conv1.0.weight", start=1)
    keys = [f"convs.{block}.conv1.0.weight" for block in range(1, blocks + 1)]
    widths = [max(size_of(state, key, 1, 1), 1) for key in keys]  # at the full size, at half of it, ...
    widths.append(max(size_of(state, "final_linear.0.weight", 0, 1), 1))
    return {"discriminator_width": widths[0], "discriminator_widths": ",".join(map(str, widths[::-1]))}


reference = Reference(
    name="stylegan2",
    text="images from noise, by styles",
    build=build,
    objective=lambda network: objective,
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    renamed=renamed,
    example=lambda network, count, size: (torch.randn(count, network.get("style_dim", 512)),),
    from_noise=True,
    samples=IMAGES,
    network={"image_size": 64, "width": 16, "most": 64, "style_dim": 64, "mapping": 4, "channels": 3},
    training=Training(
        data="runs/data/emoji-64/trainA",
        size=64,
        batch=16,
        steps=6000,
        lr=2e-3,
        discriminator_lr=2e-3,
        betas=(0.0, 0.99),
        decay=True,
    ),
)
