"""The settings of a compression run: those that decide its result, and those of its folder and progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from ..nn.granularity import check_granularity
from ..pruning.allocation import check_allocation
from ..pruning.saliency import check_saliency
from ..renamed import warn_at_caller, warn_of_old_attribute, warn_of_old_name
from .losses import LOSSES, GeneratorLoss, SelfSupervisedLoss

#: The allocation that each pruning chooses anew.
BY_SALIENCY = "saliency"

DiscriminatorMode = Literal["updated", "frozen", "none"]
DiscriminatorFrom = Literal["start", "target"]
OriginalMode = Literal["same", "evaluation"]
OriginalImages = Literal["unused", "real", "fake"]

_Settings = TypeVar("_Settings")


def present_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under their present names. The former name `original_as_real` warns, and goes in 0.2.

    Raises ValueError for a value of `original_as_real` that is no bool, and for both names together.
    """
    settings = dict(settings)
    if "original_as_real" in settings:
        as_real = settings.pop("original_as_real")
        if not isinstance(as_real, bool):
            raise ValueError(f"original_as_real is {as_real!r}; it must be true or false")
        if "original_images" in settings:
            raise ValueError("original_as_real is given beside original_images; give original_images alone")
        settings["original_images"] = "real" if as_real else "unused"
        warn_of_old_name(f"original_as_real={as_real}", f"original_images={settings['original_images']!r}")
    return settings


def with_original_as_real(kind: type[_Settings]) -> type[_Settings]:
    """A decorator for a dataclass with the field `original_images`: its former name works too, with a warning."""
    init = kind.__init__

    @wraps(init)
    def renamed(self: Any, *args: Any, **settings: Any) -> None:
        init(self, *args, **present_settings(settings))

    def original_as_real(self: Any) -> bool:
        warn_of_old_attribute(self, "original_as_real", "original_images")
        return self.original_images == "real"

    for name, value in (("__init__", renamed), ("original_as_real", property(original_as_real))):
        setattr(kind, name, value)
    return kind


@with_original_as_real
@dataclass(frozen=True)
class CompressionConfig:
    """All settings that decide the compressed generator, beside the networks, the objective and the schedule.

    `loss`: the loss of the generator: `SelfSupervisedLoss()` (the method, with its options), `DistillationLoss()` or
    `PlainLoss()`. A loss with running averages holds them itself, so each run needs a separate loss.

    `granularity`, `exclude`: as in `sparsegan.sparsify`. Layers of granularity "2:4" are pruned at the start, other
    layers along the schedule. A "2:4" layer needs sparsity 0.5, so the schedule must end there if the allocation gives
    each layer the schedule's sparsity.
    `allocation`: how the schedule's last sparsity is allocated to the layers: "uniform", "global",
    "global-normalized", "saliency", or a dict of sparsities by layer, as from
    `sparsegan.pruning.allocation.sensitivity`. At each step all layers have reached the same fraction of their last
    sparsity, which is the schedule's fraction. "saliency" chooses anew at each pruning: the least salient units of all
    layers are dropped, so that the generator has as many weights as with "uniform" and no more multiply-accumulates.
    It needs saliency "fisher".
    `saliency`: which weights of a layer are dropped first: "magnitude", the smallest, or "fisher", those with the
    smallest product of weight and root mean square gradient; see `sparsegan.pruning.shrink`.
    `reconstruct`: the most batches for a reconstruction at the start, 0 for none. The schedule's first sparsity is then
    reached by least squares on the original generator's activations, layer by layer, and not by magnitude: see
    `sparsegan.pruning.reconstruct`. It needs no data beyond the generator's inputs.
    `regrow`: the initial fraction of a layer's kept weights that are exchanged for absent weights; 0 for never. From
    the first pruning on, every `REGROW_EVERY` steps (or at the generator's next step) the weights of smallest magnitude
    are dropped, and the absent weights of largest gradient are added with value 0. This is RigL (Evci et al.,
    arXiv 1911.11134; see `sparsegan.pruning.regrow`). The fraction is `regrow / 2 * (1 + cos(pi * step / end))`, which
    reaches 0 at `end`, three quarters of the run. Granularity "element" only. A pruned discriminator does not regrow.

    `discriminator_mode`: "updated" (trained by its own loss on the compressed generator's fakes), "frozen" (not trained
    and in evaluation mode, a fixed function of an image) or "none" (not used; the loss must not need a discriminator).
    `prune_discriminator`: prune the discriminator too, along the same schedule, by single weights, uniformly.
    `discriminator_from`: the step from which an updated discriminator is updated. "start": the first step. "target":
    the first step at the schedule's last sparsity. Until then the discriminator is as if frozen, and the generator is
    updated at every step.
    `original_images`: how an updated discriminator is trained on the original's fakes. "unused": not at all. "real": it
    also minimises the generator terms of these fakes. It thereby learns to take them for real, and to tell the two
    generators apart. "fake": its loss is the mean of its own loss on the compressed generator's fakes and of that on
    the original's fakes. It thereby learns to take both for fakes.
    `feature_layers`: names of the discriminator's modules whose outputs are its features; by default, its activations.

    `original_mode`: the mode in which the original generator runs beside the compressed generator. "same": each of its
    modules has the mode of the compressed generator's module of that name. Batch norms then use the statistics of the
    same kind, and dropouts drop the same elements in both generators. The distance of the dense weights to themselves
    is therefore 0. The original's buffers (running statistics, vectors of spectral norms) keep their values.
    "evaluation", an ablation: the original is in evaluation mode.
    `stored_statistics`: batch norms use their stored statistics and do not update them. The other images of a batch
    then add no noise to the comparison of two images.
    `contrast`: at the end, scale the last layer so that images have the original's contrast; see `match_contrast`.

    `generator_lr`, `discriminator_lr`, `betas`: the learning rates and betas of Adam.
    `generator_every`: discriminator steps per generator step (n_critic). It must be 1 where no discriminator is
    updated, because a step in which nothing is updated is a waste.
    `lr_warm_up`: the fraction of the run over which both learning rates rise linearly to their full values.
    `decay`: both learning rates fall linearly to 0 over the second half of the run.
    `cosine`: both learning rates fall to 0 along half a cosine over the whole run; not together with `decay`.
    `rewind`: needs `decay`. Both learning rates are reset at every pruning and fall over the second half of the stretch
    up to the next pruning (Renda et al., arXiv 2003.02389).
    `ema`: the decay of a moving average of the compressed generator's weights. The average is then the result. 0 for
    none. See `sparsegan.Average`.
    `accumulate`: the number of parts of a batch. They are processed one after the other and their gradients are added,
    which saves memory. Norms and the ratios of the loss see each part as a batch, so the result differs a little.
    `autocast`: the dtype in which the networks compute, torch.bfloat16 or torch.float16. Losses and parameters keep
    their dtype. With torch.float16, losses are scaled for the backward pass; see `training.scaling`.
    `seed`: `fit` seeds the random generators of torch and Python with it, and does not restore them afterwards. Both
    GAN generators see the same numbers from `draws` and from torch. Numbers from NumPy or Python's `random` may differ.

    `dataclasses.replace` gives a configuration with some fields changed. Raises ValueError for a value of another type
    or out of range, and for fields that contradict each other.
    """

    loss: GeneratorLoss = field(default_factory=SelfSupervisedLoss)

    # pruning
    granularity: str | Mapping[str, str] = "element"
    exclude: tuple[str, ...] = ()
    allocation: str | Mapping[str, float] = "uniform"
    saliency: str = "magnitude"
    reconstruct: int = 0
    regrow: float = 0.0

    # the discriminator
    discriminator_mode: DiscriminatorMode = "updated"
    prune_discriminator: bool = False
    discriminator_from: DiscriminatorFrom = "start"
    original_images: OriginalImages = "unused"
    feature_layers: tuple[str, ...] = ()

    # modes and statistics of the generators
    original_mode: OriginalMode = "same"
    stored_statistics: bool = False
    contrast: bool = False

    # optimisation
    generator_lr: float = 2e-4
    discriminator_lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    generator_every: int = 1
    lr_warm_up: float = 0.0
    decay: bool = False
    cosine: bool = False
    rewind: bool = False
    ema: float = 0.0
    accumulate: int = 1
    autocast: torch.dtype | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_types(type(self), vars(self))
        for name in ("regrow", "ema", "lr_warm_up"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        for name in ("generator_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.reconstruct < 0:
            raise ValueError(f"reconstruct is {self.reconstruct}; it must be at least 0")
        if self.decay and self.cosine:
            raise ValueError("decay and cosine are both set; the learning rates can fall in one way only")
        if self.rewind and not self.decay:
            raise ValueError("rewind is set and decay is not; rewind needs decay=True")
        for granularity in [self.granularity] if isinstance(self.granularity, str) else self.granularity.values():
            check_granularity(granularity)
        if self.allocation == BY_SALIENCY:
            if self.saliency != "fisher":
                raise ValueError(
                    f'allocation is {BY_SALIENCY!r} and saliency is {self.saliency!r}; it must be "fisher", because '
                    "magnitudes of different layers do not compare"
                )
        elif isinstance(self.allocation, str):
            check_allocation(self.allocation, (BY_SALIENCY,))
        check_saliency(self.saliency)
        mode = self.discriminator_mode
        if mode == "none" and self.loss.uses_terms:
            kind = type(self.loss).__name__
            raise ValueError(
                f'discriminator_mode is "none", and {kind} needs a discriminator\'s terms; it must be '
                '"updated" or "frozen"'
            )
        if mode != "updated":
            for name in ("prune_discriminator", "discriminator_from", "original_images"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    value = getattr(self, name)
                    raise ValueError(f'{name} is {value!r} and discriminator_mode is {mode!r}; it must be "updated"')
            if self.generator_every > 1:
                raise ValueError(
                    f"generator_every is {self.generator_every} and discriminator_mode is {mode!r}; it must be 1, "
                    "because no discriminator is updated between two updates of the generator"
                )

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold, except that tuples stay tuples. `from_dict` takes this dict.

        The loss becomes a dict of its fields and its "kind", the name of its class. Fields whose names begin with an
        underscore are left out. Raises ValueError for a loss that is not a dataclass or has a field that JSON cannot
        hold.
        """
        values = dict(vars(self), loss=dict_of("loss", self.loss))
        values["autocast"] = None if self.autocast is None else str(self.autocast)
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompressionConfig:
        """A configuration from a dict of fields, as from `to_dict` or a JSON file. Missing fields have their defaults.

        Raises ValueError for an unknown field, for a value of another type, for a loss that is not in this package, and
        where the class does.
        """
        return cls(**settings_from(values))


@dataclass(frozen=True)
class RunConfig:
    """The folder, checkpoints, progress and limit of a run. No weight of a result depends on these settings.

    `run_dir`, `resume`, `keep`: the run folder and its checkpoints, as in `training.Run`. Nothing is written where
    `run_dir` is None.
    `checkpoint_every`: steps between two checkpoints.
    `settings`: more settings that a resumed run must repeat (the data set, for example), as values that JSON can hold.
    `limit`: a term of larger magnitude stops the run as diverged.
    `title`: the title of the progress bar; "" stands for the recipe's name, or for "compressing".
    `quiet`: show no progress.

    Raises ValueError for a value of another type or out of range.
    """

    run_dir: str | Path | None = None
    resume: bool = False
    checkpoint_every: int = 100
    keep: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 1e4
    title: str = ""
    quiet: bool = False

    def __post_init__(self) -> None:
        _check_types(type(self), vars(self))
        for name in ("checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def settings_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `CompressionConfig` from values of a JSON file.

    Raises ValueError for an unknown name and for a value of another type.
    """
    settings = present_settings(values)
    if "loss" in settings:
        settings["loss"] = _loss_from(settings["loss"])
    if isinstance(settings.get("autocast"), str):
        settings["autocast"] = _DTYPES.get(settings["autocast"].removeprefix("torch."), settings["autocast"])
    for name in ("exclude", "feature_layers", "betas"):
        if isinstance(settings.get(name), list):
            settings[name] = tuple(settings[name])
    _check_types(CompressionConfig, settings)
    return settings


def dict_of(name: str, value: Any) -> dict[str, Any]:
    """A loss or a schedule as a dict for JSON: its fields, and the name of its class as "kind".

    `name`: the name of the argument, for errors. Raises ValueError where `value` is not a dataclass, and for a field
    that JSON cannot hold.
    """
    kind = type(value).__name__
    if not is_dataclass(value):
        raise ValueError(f"{name} is a {kind}, whose settings cannot be written; it must be a dataclass")
    found = {one.name: getattr(value, one.name) for one in fields(value) if not one.name.startswith("_")}
    for key, setting in found.items():
        found[key] = asdict(setting) if is_dataclass(setting) and not isinstance(setting, type) else setting
        try:
            json.dumps(found[key])
        except TypeError:
            raise ValueError(
                f"{name} has {key}={setting!r:.80}, which cannot be written as JSON; it must be a value that JSON can "
                "hold, or its name must begin with an underscore, which leaves it out"
            ) from None
    return {"kind": kind, **found}


def _loss_from(value: Any) -> GeneratorLoss:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in LOSSES:
        raise ValueError(f'loss is {value!r}; it must have a "kind", one of {", ".join(LOSSES)}, and its settings')
    settings = {name: setting for name, setting in value.items() if name != "kind"}
    _check_types(LOSSES[kind], settings)
    return LOSSES[kind](**settings)


_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(one, kind) for one in values)


def _by_layer(kind: type, value: Any) -> bool:
    if isinstance(value, Mapping):
        return _are(str, [*value]) and _are(kind, [*value.values()])
    return isinstance(value, str)


def _one_of(names: Any) -> tuple[Callable[[Any], bool], str]:
    """An entry of `_TYPES` for a `Literal`."""
    accepted = get_args(names)
    return lambda value: value in accepted, f"one of {', '.join(map(repr, accepted))}"


#: From the annotation of a field to a check of its value, and the words of the error for what is accepted.
_TYPES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (lambda value: isinstance(value, Integral) and not isinstance(value, bool), "an integer"),
    "float": (lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "str | Path | None": (lambda value: value is None or isinstance(value, str | Path), "a path or None"),
    "Mapping[str, Any]": (lambda value: isinstance(value, Mapping), "a dict"),
    "tuple[str, ...]": (lambda value: isinstance(value, str) or _are(str, value), "a list of names"),
    "tuple[float, float]": (lambda value: _are(Real, value) and len(value) == 2, "two numbers"),
    "str | Mapping[str, str]": (lambda value: _by_layer(str, value), "a name, or names by layer"),
    "str | Mapping[str, float]": (lambda value: _by_layer(Real, value), "a name, or numbers by layer"),
    "torch.dtype | None": (
        lambda value: value is None or value in _DTYPES.values(),
        "torch.bfloat16, torch.float16 or None",
    ),
    "DiscriminatorMode": _one_of(DiscriminatorMode),
    "DiscriminatorFrom": _one_of(DiscriminatorFrom),
    "OriginalImages": _one_of(OriginalImages),
    "OriginalMode": _one_of(OriginalMode),
    "GeneratorLoss": (
        lambda value: callable(value) and hasattr(value, "uses_terms"),
        f"one of {', '.join(LOSSES)}, or an object with their methods",
    ),
}


def _check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Raises ValueError for a name that is not a field of the dataclass, and for a value of another type."""
    annotations = {one.name: one.type for one in fields(kind) if one.init}
    for name, value in values.items():
        if name not in annotations:
            known = ", ".join(annotations) or "none"
            raise ValueError(f"{name!r} is no setting of {kind.__name__}; its settings: {known}")
        fits, words = _TYPES[annotations[name]]
        if not fits(value):
            raise ValueError(f"{name} is {value!r}; it must be {words}")


_Config = TypeVar("_Config", CompressionConfig, RunConfig)


def from_old_keywords(
    who: str, old: dict[str, Any], config: Any, run: RunConfig | None
) -> tuple[CompressionConfig, RunConfig]:
    """Both configurations of a call of `who`, whose keywords `old` may hold their fields, as before 0.1.

    These old keywords will be removed in 0.2. A DeprecationWarning names them. Raises ValueError for an old keyword
    beside the configuration that now holds it, and TypeError for an unknown keyword.
    """
    if isinstance(config, Mapping):  # `config` was the name of RunConfig's settings
        old, config = {**old, "config": config}, None
    old = {"settings" if name == "config" else name: value for name, value in old.items()}
    old = present_settings(old)
    if old.get("loss", "given") is None:  # the default before 0.1
        del old["loss"]
    if isinstance(old.get("exclude"), Iterable) and not isinstance(old["exclude"], str):
        old["exclude"] = tuple(old["exclude"])
    names = {kind: {one.name for one in fields(kind)} for kind in (CompressionConfig, RunConfig)}
    if unknown := old.keys() - names[CompressionConfig] - names[RunConfig]:
        raise TypeError(f"{who} got an unexpected keyword argument {min(unknown)!r}")
    spelled: list[str] = []

    def merged(parameter: str, kind: type[_Config], given: _Config | None) -> _Config:
        settings = {name: value for name, value in old.items() if name in names[kind]}
        if settings and given is not None:
            raise ValueError(f"{', '.join(settings)} given beside {parameter}; set it in {kind.__name__}")
        if settings:
            spelled.append(f"{parameter}={kind.__name__}({', '.join(f'{name}=...' for name in settings)})")
        return kind(**settings) if given is None else given

    both = merged("config", CompressionConfig, config), merged("run", RunConfig, run)
    if spelled:
        warn_at_caller(f"{who} takes {', '.join(spelled)} now; the separate keywords go in 0.2")
    return both
