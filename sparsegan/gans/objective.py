"""What a GAN is to this package: how it makes an image, and its named loss terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..randomness import Draw, afresh

Terms = dict[str, Tensor]
#: Of generator, discriminator, fake and batch, and of draws where it has an argument of that name.
TermsFunction = Callable[..., Terms]


class View(NamedTuple):
    """Images to look at and to measure, float [N, C, H, W] in [-1, 1].

    `source`: what `fake` was made from, if it is an image. `real`: images of the kind that `fake` should be; `paired`
    when image by image. `asked`: the domain int64 [N] that each image was to come to, -1 where it was there already.
    """

    source: Tensor | None
    fake: Tensor
    real: Tensor | None = None
    paired: bool = False
    asked: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A GAN's losses as two functions, each returning named scalar terms.

    `generator_terms(generator, discriminator, fake, batch) -> {"gen": t, ...}`: what the generator minimises.
    `discriminator_terms(generator, discriminator, fake, batch) -> {"dis": t, ...}`: what the discriminator minimises.
        It must not detach `fake`: whoever trains the discriminator hands in a detached one.
    `generate(generator, batch) -> fake`: one image a sample of the batch. A tensor, or a dict or tuple that holds
        tensors.
    `weights`: a term's weight; 1 where a term is not named.
    `distances`: generator terms that compare images, and which no discriminator judges.
    `real_terms`: discriminator terms that look at real images only; equation 8 leaves them out.
    `pool`: the discriminator trains on fakes drawn from the last so many (`ImagePool`); 0 for the newest only.
    `own(fake, batch)`: the batch with what the generator made in the place of what is real, for compression without
        real data; None where there is no such thing.
    `views(fake, batch) -> {"name": View, ...}`: what a distance is measured on.
    `gallery(generator, batch) -> {"name": View, ...}`: what a person looks at; by default the views of `generate`.

    `batch` is whatever the loader gives. Two generators under comparison see the same random numbers (noise, a gradient
    penalty's interpolation), on every device. These three functions may have one more argument, named `draws`:
    `draws("noise", lambda: torch.randn(...))` gives both generators the very same tensor; see
    `sparsegan.randomness.Draws`. A function without it draws as it likes: the second time it runs from the state in
    which torch's generators were the first time.
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

    def __post_init__(self) -> None:
        for name in _drawing(self):  # called without draws, by whoever compares nothing, each draws afresh
            function = getattr(self, name)
            if inspect.signature(function).parameters["draws"].default is inspect.Parameter.empty:
                object.__setattr__(self, name, partial(function, draws=afresh))

    def look(self, generator: nn.Module, batch: Any) -> dict[str, View]:
        """The gallery, without a graph."""
        with torch.no_grad():
            if self.gallery is not None:
                return self.gallery(generator, batch)
            return self.views(self.generate(generator, batch), batch)

    def weight(self, term: str) -> float:
        """The weight of a term, 1 where none was given."""
        return self.weights.get(term, 1.0)

    def total(self, terms: Terms) -> Tensor:
        """The weighted sum of `terms`: the GAN's ordinary loss."""
        if not terms:
            raise ValueError("there are no terms; a terms function must return at least one named scalar")
        return sum((self.weight(name) * term for name, term in terms.items()), start=next(iter(terms.values())) * 0)


def drawing(objective: Any, draws: Draw) -> Any:
    """An objective like this one, whose functions take their random numbers from `draws` where they know of it."""
    bound = copy(objective)
    for name in _drawing(objective):
        object.__setattr__(bound, name, partial(getattr(objective, name), draws=_named(name, draws)))
    return bound


def _named(function: str, draws: Draw) -> Draw:
    """Each function has names of its own."""
    return lambda name, draw: draws(f"{function}: {name}", draw)


def _drawing(objective: Any) -> list[str]:
    """Names of the functions that have an argument named draws, which they call."""
    names = ("generate", "generator_terms", "discriminator_terms")
    return [name for name in names if _has_draws(getattr(objective, name))]


def _has_draws(function: Callable[..., Any]) -> bool:
    try:
        found = inspect.signature(function).parameters.get("draws")
    except (TypeError, ValueError):  # a callable that says nothing of its arguments
        return False
    if found is None or found.kind not in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY):
        return False
    return found.default is found.empty or found.default is None or callable(found.default)


def detached(fake: Any) -> Any:
    """`fake` without its graph, inside tuples, lists and dicts too."""
    return _mapped(fake, lambda name, tensor: tensor.detach())


def images_in(fake: Any) -> dict[str, Tensor]:
    """The images [N, C, H, W] of a `fake` by name: a dict's keys, a tuple's positions, "images" for a bare tensor."""
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
    """Past fakes for the discriminator (Shrivastava et al., arXiv 1612.07828, section 2.3): it forgets more slowly.

    Until `size` images of a kind are kept, a new one is kept and given back. After that, with even chances, it is
    given back, or takes the place of a random kept one that is given back instead. Draws from torch's generator.
    `size` 0 keeps nothing.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"size is {size}; it must be at least 0")
        self.size = size
        self._kept: dict[str, Tensor] = {}

    def __call__(self, fake: Any) -> Any:
        """`fake` (detached) with its images [N, C, H, W] drawn from the pool."""
        return _mapped(fake, self._draw) if self.size else fake

    def _draw(self, name: str, images: Tensor) -> Tensor:
        if images.dim() != 4:
            return images
        kept = self._kept.get(name, images[:0]).to(images.device)  # a resumed run's come from a file
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
        """The kept images [K, C, H, W] by name."""
        return dict(self._kept)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self._kept = dict(state)
