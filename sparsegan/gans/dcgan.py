"""DCGAN (Radford, Metz and Chintala, arXiv 1511.06434) as PyTorch's public example builds it, for 64x64 images.

Layer names and shapes are those of the example, so the example's checkpoints load key for key. D(x) is the
discriminator's probability that x is real, and z ~ N(0, 1):

    D minimises Dis = -mean log D(x) - mean log(1 - D(G(z)))
    G minimises Gen = -mean log D(G(z))                             (the non-saturating form)

Many public generators are the example's chain of transposed convolutions and batch norms at another size: with more or
fewer layers, other widths, a first layer that opens to 7x7, or biases. They load too, also where their layers have
other names (`renamed`). Shapes do not tell activations, strides and the epsilon of norms: these are taken to be the
example's, and `assumed` says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.kinds import IMAGES
from ..placement import device_of
from ..randomness import Draw, afresh
from .objective import Objective, Reduce, Terms, View, mean
from .parts import State, check, check_choice, count_up, cross_entropy, initialise, size_of
from .reference import Reference, Training

#: Which convolutions have a bias.
BIASES = ("none", "last", "all")
#: The widths of a default ladder stop growing at this multiple of the narrowest.
WIDEST = 16
#: Larger images than this are no DCGAN's.
LARGEST = 4096


def halvings(image_size: int) -> int:
    """Returns how often `image_size` is halved, as long as the half is even and at least 4: 64 -> 4, 28 -> 2.

    Raises ValueError for a size that cannot be halved, and for one above `LARGEST`.
    """
    check(image_size=image_size)
    count = 0
    while image_size % 2 ** (count + 1) == 0 and image_size >> (count + 1) >= 4:
        count += 1
    if count < 1 or image_size > LARGEST:
        raise ValueError(f"image_size is {image_size}; it must be even, at least 8 and at most {LARGEST}")
    return count


def default_ladder(image_size: int) -> list[int]:
    """Returns the widths after all layers but the last, as multiples of the narrowest: [8, 4, 2, 1] for 64x64."""
    return [min(2**index, WIDEST) for index in reversed(range(halvings(image_size)))]


class Generator(nn.Module):
    """Noise [N, nz, 1, 1] -> images [N, nc, S, S] in [-1, 1], S = image_size.

    `ngf`: channels before the last layer. `ladder`: the channels after each layer but the last, as multiples of `ngf`;
    by default they are halved from layer to layer. The first layer opens 1x1 to k x k, each later one doubles, and so
    k = S / 2 ** len(ladder). `bias`: which convolutions have one: "none", "last" or "all".
    Raises ValueError for values that do not go together.
    """

    def __init__(
        self,
        nz: int = 100,
        ngf: int = 64,
        nc: int = 3,
        image_size: int = 64,
        ladder: Sequence[int] | None = None,
        bias: str = "none",
    ) -> None:
        super().__init__()
        check(nz=nz, ngf=ngf, nc=nc)
        check_choice("bias", bias, BIASES)
        halvings(image_size)
        self.nz = nz
        steps = default_ladder(image_size) if ladder is None else list(ladder)
        first, rest = divmod(image_size, 2 ** len(steps))
        if rest or not first or not steps:
            raise ValueError(f"ladder is {steps}; image_size, {image_size}, must be a multiple of 2 ** {len(steps)}")
        layers: list[nn.Module] = []
        before, kernel, stride, padding = nz, first, 1, 0
        for step in steps:
            check(ladder=step)
            width = step * ngf
            layers.append(nn.ConvTranspose2d(before, width, kernel, stride, padding, bias=bias == "all"))
            layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
            before, kernel, stride, padding = width, 4, 2, 1
        last = nn.ConvTranspose2d(before, nc, 4, 2, 1, bias=bias != "none")
        self.main = nn.Sequential(*layers, last, nn.Tanh())
        self.apply(initialise)

    def forward(self, noise: Tensor) -> Tensor:  # [N, nz, 1, 1] -> [N, nc, S, S]
        return self.main(noise)


class Discriminator(nn.Module):
    """Images [N, nc, S, S], S = image_size -> probability of being real [N]. `ndf`: channels after the first layer."""

    def __init__(self, nc: int = 3, ndf: int = 64, image_size: int = 64) -> None:
        super().__init__()
        check(nc=nc, ndf=ndf)
        widths = [ndf * step for step in reversed(default_ladder(image_size))]
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for before, width in pairwise(widths):
            layers.append(nn.Conv2d(before, width, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2, inplace=True)]
        last = nn.Conv2d(widths[-1], 1, image_size >> len(widths), 1, 0, bias=False)
        self.main = nn.Sequential(*layers, last, nn.Sigmoid())
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:  # [N, nc, S, S] -> [N]
        return self.main(images).flatten()


def noise(generator: Generator, count: int, seed: int | None = None) -> Tensor:
    """Returns noise float32 [count, nz, 1, 1] on the generator's device.

    The noise is drawn on the CPU, so that a `seed` gives the same noise on every device. Without a `seed` it is drawn
    from torch's default generator.
    """
    source = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(count, generator.nz, 1, 1, generator=source).to(device_of(generator=generator))


def generate(generator: nn.Module, images: Tensor, draws: Draw = afresh) -> Tensor:
    """Returns one fake per real image: the generator's output for noise [N, nz, 1, 1]."""
    first, shape = next(generator.parameters()), (len(images), cast(Generator, generator).nz, 1, 1)
    return generator(draws("noise", lambda: torch.randn(shape, dtype=first.dtype, device=first.device)))


def generator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, images: Tensor, reduce: Reduce = mean
) -> Terms:
    """Returns {"gen": -mean log D(fake)}."""
    return {"gen": cross_entropy(discriminator(fake), 1.0, reduce)}


def discriminator_terms(
    generator: nn.Module, discriminator: nn.Module, fake: Tensor, images: Tensor, reduce: Reduce = mean
) -> Terms:
    """Returns {"dis": -mean log D(images) - mean log(1 - D(fake))}."""
    on_real = cross_entropy(discriminator(images), 1.0, reduce)
    return {"dis": on_real + cross_entropy(discriminator(fake), 0.0, reduce)}


def views(fake: Tensor, images: Tensor) -> dict[str, View]:
    """Returns one view: the samples and real images."""
    return {"samples": View(None, fake, images)}


objective = Objective(generator_terms, discriminator_terms, generate, views=views, own=lambda fake, batch: fake)


def build(
    *,
    nz: int,
    width: int,
    channels: int,
    discriminator_width: int | None = None,
    image_size: int = 64,
    ladder: Sequence[int] | None = None,
    bias: str = "none",
) -> tuple[Generator, Discriminator]:
    """Returns untrained networks. `width`: ngf. `discriminator_width`: ndf, the same as `width` by default.

    `ladder`, `bias`: those of the generator.
    """
    ndf = width if discriminator_width is None else discriminator_width
    generator = Generator(nz, width, channels, image_size, ladder, bias)
    return generator, Discriminator(channels, ndf, image_size)


def generator_sizes(state: State) -> list[dict[str, Any]]:
    """Returns the arguments of `build` that fit a generator's state_dict; those that are the example's are left out."""
    convolutions = count_up(state, "main.{}.weight", step=3)
    weights = [state[f"main.{3 * index}.weight"] for index in range(convolutions)]
    if convolutions < 2 or any(weight.dim() != 4 for weight in weights):
        weights = []
    last = 3 * (convolutions - 1) if weights else 12
    sizes: dict[str, Any] = {
        "nz": size_of(state, "main.0.weight", 0, 100),
        "width": size_of(state, f"main.{last}.weight", 0, 64),
        "channels": size_of(state, f"main.{last}.weight", 1, 3),
    }
    if weights:
        image_size = weights[0].shape[2] * 2 ** (len(weights) - 1)
        widths, width = [weight.shape[1] for weight in weights[:-1]], max(1, sizes["width"])
        if not widths[-1] or any(one % width for one in widths):
            sizes["width"] = width = 1
        ladder = [one // width for one in widths]
        sizes |= {"image_size": image_size} if image_size != 64 else {}
        usual = image_size % 2 == 0 and 8 <= image_size <= LARGEST and ladder == default_ladder(image_size)
        sizes |= {} if usual else {"ladder": ladder}
        if f"main.{last}.bias" in state:
            sizes["bias"] = "all" if "main.0.bias" in state else "last"
    return [sizes]


def renamed(state: State) -> State:
    """Returns a generator's state_dict with the names of `Generator`, where it is such a chain under other names.

    A chain has one transposed convolution more than batch norms, in the order of their channels, kernels of 4x4 behind
    the first one, and nothing else. Any other state_dict is returned as it is.
    """
    owners: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        owner, _, part = key.rpartition(".")
        owners.setdefault(owner, {})[part] = tensor
    orders = [list(owners), sorted(owners, key=_natural)]
    if list(state) == sorted(state):  # safetensors files are sorted by name, and "layer10" comes before "layer2"
        orders = orders[1:]
    for order in orders:
        convolutions = [name for name in order if "running_mean" not in owners[name]]
        norms = [name for name in order if "running_mean" in owners[name]]
        if _is_chain([owners[name] for name in convolutions], [owners[name] for name in norms]):
            places = {name: 3 * index for index, name in enumerate(convolutions)}
            places |= {name: 3 * index + 1 for index, name in enumerate(norms)}
            return {f"main.{places[name]}.{part}": one for name in owners for part, one in owners[name].items()}
    return state


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts the numbers in names by their values."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _is_chain(convolutions: list[dict[str, Tensor]], norms: list[dict[str, Tensor]]) -> bool:
    if len(convolutions) < 2 or len(norms) != len(convolutions) - 1:
        return False
    if any(not {"weight"} <= one.keys() <= {"weight", "bias"} or one["weight"].dim() != 4 for one in convolutions):
        return False
    weights = [one["weight"] for one in convolutions]
    statistics = {"weight", "bias", "running_mean", "running_var"}
    return (
        all(before.shape[1] == weight.shape[0] for before, weight in pairwise(weights))
        and all(tuple(weight.shape[2:]) == (4, 4) for weight in weights[1:])
        and all(one.keys() - {"num_batches_tracked"} == statistics for one in norms)
        and all(one["weight"].shape == weight.shape[1:2] for one, weight in zip(norms, weights, strict=False))
    )


def assumed(state: State) -> str:
    """Returns a sentence on what the names of a state_dict do not tell; "" for the example's names."""
    names = renamed(state).keys()
    if names in (state.keys(), {f"main.{key}" for key in state}):
        return ""
    first = next(iter(state))
    return (
        f"the layers of the generator's file have names of their own ({first}, ...), and their shapes are those of a "
        "DCGAN; as in PyTorch's example, ReLUs between the layers, a tanh at the end, strides of 2 and noise from "
        "N(0, 1) are assumed. Where samples.png shows no good images of the dense generator, give a Python function "
        "that builds it: --generator package.module:build"
    )


def discriminator_sizes(state: State) -> dict[str, Any]:
    """Returns the arguments of `build` that a discriminator's state_dict decides."""
    return {"discriminator_width": size_of(state, "main.0.weight", 0, 64)}


reference = Reference(
    name="dcgan",
    text="images from noise, usually 64x64",
    build=build,
    objective=lambda network: objective,
    generator_sizes=generator_sizes,
    discriminator_sizes=discriminator_sizes,
    example=lambda network, count, size: (torch.randn(count, network["nz"], 1, 1),),
    renamed=renamed,
    assumed=assumed,
    from_noise=True,
    samples=IMAGES,
    network={"nz": 100, "width": 32, "channels": 1},
    training=Training(data="mnist", size=64, batch=32, steps=2496, lr=1e-3, discriminator_lr=2e-4),
)
