"""The objective of a GAN: how its generator is called, and its losses as named terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..randomness import Draw, afresh

Terms = dict[str, Tensor]
#: How values of one row per sample become a term: see `REDUCTIONS`.
Reduce = Callable[[Tensor], Tensor]
#: The arguments are generator, discriminator, fake and batch, and draws and reduce if the function has arguments of
#: these names.
TermsFunction = Callable[..., Terms]


def mean(values: Tensor) -> Tensor:
    """The mean over samples and places, a scalar: the reduction of every GAN's ordinary loss."""
    return values.mean()


def _per_sample(values: Tensor) -> Tensor:
    return _per_place(values).flatten(1).mean(1) if values.dim() > 1 else _per_place(values)


def _per_place(values: Tensor) -> Tensor:
    if not values.dim():
        raise ValueError("reduce got a scalar; it must get the values of a term, with one row per sample")
    return values


#: The reductions of a term by name. The values have shape [N, ...] for N samples. "batch": their mean, a scalar.
#: "sample": the mean of each sample, [N]. "patch": the values themselves, one per patch that the discriminator judges
#: or per pixel that is compared.
REDUCTIONS: dict[str, Reduce] = {"batch": mean, "sample": _per_sample, "patch": _per_place}


class View(NamedTuple):
    """Images to look at and to measure, float [N, C, H, W] in [-1, 1].

    `source`: the images that `fake` was made from, if there are any. `real`: real images of the kind that `fake`
    imitates, not always as many. `paired`: `real` holds the target of each fake, in the same order. `asked`: the domain
    int64 [N] that each image was translated to, -1 where the input was in that domain already.
    """

    source: Tensor | None
    fake: Tensor
    real: Tensor | None = None
    paired: bool = False
    asked: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A GAN's losses, as two functions that return named terms, which are scalars.

    `generator_terms(generator, discriminator, fake, batch) -> {"gen": t, ...}`: the terms that the generator minimises.
    `discriminator_terms(generator, discriminator, fake, batch) -> {"dis": t, ...}`: the terms that the discriminator
        minimises. The function must not detach `fake`: code that trains the discriminator passes a detached `fake`.
    `generate(generator, batch) -> fake`: one image per sample of the batch, as a tensor, or as a dict or tuple that
        holds tensors.
    `weights`: the weights of terms; a term without an entry has the weight 1.
    `distances`: the generator terms that compare images without a discriminator.
    `real_terms`: the discriminator terms that use real images only. Equation 8 leaves them out.
    `pool`: the discriminator trains on fakes drawn from the last `pool` fakes (`ImagePool`); 0 for the newest only.
    `own(fake, batch)`: the batch with generated images in place of real ones, for compression without real data; None
        for a GAN that cannot be compressed in this way.
    `views(fake, batch) -> {"name": View, ...}`: the images that a distance is measured on.
    `gallery(generator, batch) -> {"name": View, ...}`: the images for a person to look at; by default the views.
    `compared(fake) -> {"name": images [N, C, H, W], ...}`: the images of two generators that a distillation compares;
        by default those in `fake`. A GAN of sounds gives spectrograms.
    `measures(fake, batch) -> {"name": values [N], ...}`: figures of the GAN's own per sample, lower is better. The
        first is the one to judge by. None where distances of images score the GAN.

    `batch` is a batch of the loader. Two generators that are compared get the same random numbers (noise, a gradient
    penalty's interpolation) on every device. For this, `generate` and the two terms functions may have one more
    argument, `draws`: `draws("noise", lambda: torch.randn(...))` gives both generators the same tensor; see
    `sparsegan.randomness.Draws`. A function without `draws` may draw in any way: its second call starts from the state
    that torch's generators had at its first call.

    The two terms functions may have an argument `reduce`. They then compute the values of each term with one row per
    sample, [N, ...], and return `reduce(values)`, which is the mean unless a loss compares the terms sample by sample
    (`SelfSupervisedLoss(match=...)`): {"gen": reduce(-torch.log(discriminator(fake)))}.
    """

    generator_terms: TermsFunction
    discriminator_terms: TermsFunction
    generate: Callable[..., Any]
    weights: Mapping[str, float] = field(default_factory=dict)
    distances: tuple[str, ...] = ()
    real_terms: tuple[str, ...] = ()
    pool: int = 0
    own: Callable[[Any, Any], Any] | None = None
    views: Callable[[Any, Any], dict[str, View]] = field(
        default=lambda fake, batch: {name: View(None, images) for name, images in images_in(fake).items()}
    )
    gallery: Callable[[nn.Module, Any], dict[str, View]] | None = None
    compared: Callable[[Any], dict[str, Tensor]] = field(default=lambda fake: images_in(fake))
    measures: Callable[[Any, Any], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        # A call without `draws` takes new random numbers, and a call without `reduce` takes means.
        for argument, default in (("draws", afresh), ("reduce", mean)):
            for name in _taking(self, argument):
                function = getattr(self, name)
                if inspect.signature(function).parameters[argument].default is inspect.Parameter.empty:
                    object.__setattr__(self, name, partial(function, **{argument: default}))

    def look(self, generator: nn.Module, batch: Any) -> dict[str, View]:
        """Returns the gallery, or the views where there is none, computed without autograd."""
        with torch.no_grad():
            if self.gallery is not None:
                return self.gallery(generator, batch)
            return self.views(self.generate(generator, batch), batch)

    def weight(self, term: str) -> float:
        """Returns the weight of a term: 1 where `weights` has none."""
        return self.weights.get(term, 1.0)

    def total(self, terms: Terms) -> Tensor:
        """Returns the weighted sum of `terms`, which is the GAN's ordinary loss. Raises ValueError without terms."""
        if not terms:
            raise ValueError("there are no terms; a terms function must return at least one named scalar")
        return sum((self.weight(name) * term for name, term in terms.items()), start=next(iter(terms.values())) * 0)


def named_views(views: Mapping[str, View], domains: Sequence[str]) -> dict[str, View]:
    """Returns `views` with "to NAME" in place of "to 0" and so on. `domains`: the names in the order of the numbers."""
    names = {f"to {index}": f"to {domain}" for index, domain in enumerate(domains)}
    return {names.get(name, name): view for name, view in views.items()}


def drawing(objective: Any, draws: Draw) -> Any:
    """Returns a copy of `objective` in which each function with an argument `draws` gets the given `draws`."""
    bound = copy(objective)
    for name in _taking(objective, "draws"):
        object.__setattr__(bound, name, partial(getattr(objective, name), draws=_named(name, draws)))
    return bound


def reducing(objective: Any, match: str, names: Iterable[str]) -> Any:
    """Returns a copy of `objective` in which the terms functions of these names get the reduction `match`.

    Raises ValueError where one of them has no argument `reduce` and `match` is not "batch".
    """
    if match == "batch":
        return objective
    bound, takes = copy(objective), _taking(objective, "reduce")
    for name in names:
        if name not in takes:
            raise ValueError(
                f"match is {match!r} and the objective's {name} has no argument reduce; it must have one and return "
                "reduce(values) for the values [N, ...] of each term, or match must be 'batch'"
            )
        object.__setattr__(bound, name, partial(getattr(objective, name), reduce=REDUCTIONS[match]))
    return bound


def _named(function: str, draws: Draw) -> Draw:
    """Returns `draws` with the function's name before each name, so that two functions may use the same name."""
    return lambda name, draw: draws(f"{function}: {name}", draw)


def _taking(objective: Any, argument: str) -> list[str]:
    """Returns the names of the functions that accept a callable as their argument `argument`."""
    names = ("generate", "generator_terms", "discriminator_terms")
    return [name for name in names if _takes(getattr(objective, name), argument)]


def _takes(function: Callable[..., Any], argument: str) -> bool:
    try:
        found = inspect.signature(function).parameters.get(argument)
    except (TypeError, ValueError):  # a callable without a readable signature
        return False
    if found is None or found.kind not in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY):
        return False
    return found.default is found.empty or found.default is None or callable(found.default)


def detached(fake: Any) -> Any:
    """Returns `fake` with every tensor detached, those inside tuples, lists and dicts too."""
    return _mapped(fake, lambda name, tensor: tensor.detach())


def images_in(fake: Any) -> dict[str, Tensor]:
    """Returns the images [N, C, H, W] in `fake` by name: a key of a dict, a position in a tuple, or else "images"."""
    found: dict[str, Tensor] = {}

    def note(name: str, tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            found[name] = tensor
        return tensor

    _mapped(fake, note)
    return found


def _mapped(fake: Any, function: Callable[[str, Tensor], Tensor], name: str = "images") -> Any:
    if isinstance(fake, Tensor):
        return function(name, fake)
    if isinstance(fake, dict):
        return {key: _mapped(value, function, str(key)) for key, value in fake.items()}
    if isinstance(fake, list | tuple):
        make = getattr(type(fake), "_make", type(fake))  # a named tuple takes its fields one by one
        return make(_mapped(value, function, str(index)) for index, value in enumerate(fake))
    return fake


class ImagePool:
    """A pool of past fakes for the discriminator's training (Shrivastava et al., arXiv 1612.07828, section 2.3).

    The pool holds up to `size` images per name (`images_in`). While there is room, a new image is kept and returned.
    After that, a new image is returned with a probability of 1/2; otherwise the new image replaces a random kept image,
    and that kept image is returned. Random numbers come from torch's generator. With a `size` of 0 nothing is kept.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"size is {size}; it must be at least 0")
        self.size = size
        self._kept: dict[str, Tensor] = {}

    def __call__(self, fake: Any) -> Any:
        """Returns `fake`, which must be detached, with its images [N, C, H, W] exchanged for draws from the pool."""
        return _mapped(fake, self._draw) if self.size else fake

    def _draw(self, name: str, images: Tensor) -> Tensor:
        if images.dim() != 4:
            return images
        kept = self._kept.get(name, images[:0]).to(images.device)  # after a resume they come from a file
        room = self.size - len(kept)
        kept = torch.cat([kept, images[:room]]) if room > 0 else kept
        given = images.clone()
        for index in range(max(room, 0), len(images)):
            if torch.rand(()).item() < 0.5:
                old = int(torch.randint(self.size, ()))
                given[index] = kept[old]
                kept[old] = images[index]
        self._kept[name] = kept
        return given

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the kept images [K, C, H, W] by name."""
        return dict(self._kept)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the kept images from a result of `state_dict`."""
        self._kept = dict(state)
