"""Finds the reference GAN and the sizes that fit a configuration or a state_dict, and loads state_dicts that fit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import GANS, Reference
from .parts import State

Found = TypeVar("Found")


def reference_of(config: Mapping[str, Any]) -> Reference:
    """Returns the reference GAN that `config["network"]` names.

    Raises ValueError where no GAN is named, and for sizes that are missing or that this GAN does not have.
    """
    network = config.get("network")
    names = ", ".join(GANS)
    if not isinstance(network, dict) or network.get("gan") not in GANS:
        raise ValueError(
            f'the configuration\'s "network" is {network!r}; its "gan" must be one of {names}, or of a package that '
            "declares this GAN and is not installed here"
        )
    reference = GANS[network["gan"]]
    known = reference.sizes
    needed = [name for name in known if name in _needed(reference)]
    for name in network:
        if name != "gan" and name not in known:
            raise ValueError(f'the configuration\'s "network" has {name!r}; {reference.name} has {", ".join(known)}')
    for name in needed:
        if name not in network:
            raise ValueError(f'the configuration\'s "network" has no {name!r}; it needs {", ".join(needed)}')
    return reference


def recognise(
    generator: State, discriminator: State | None = None, gan: str | None = None, **sizes: Any
) -> dict[str, Any]:
    """Returns the "network" that a bare state_dict fits: {"gan": name, ...}, as `store.build` takes it.

    `gan`: the only GAN to try; None tries all in the order of `GANS`, and the first that fits is taken. `sizes`: known
    sizes, which go before those read from the state_dict.
    Raises ValueError for an unknown `gan`, and where nothing fits. That error names the nearest architecture and the
    keys that did not fit.
    """
    nearest: tuple[list[str], dict[str, Any]] | None = None
    for network in _candidates(generator, gan, sizes):
        misfits = _misfits(network, 0, generator)
        if not misfits:
            return network if discriminator is None else _with_discriminator(network, discriminator, sizes)
        if nearest is None or len(misfits) < len(nearest[0]):
            nearest = misfits, network
    if nearest is None:
        raise ValueError(f"no GAN of {', '.join(GANS)} has all of {', '.join(sizes)}")
    raise ValueError(
        f"the generator's state_dict fits no known architecture; {_nearest(*nearest)}. A Python function can build "
        "another one: --generator package.module:build"
    )


def _candidates(state: State, gan: str | None, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the networks that a generator's state_dict may belong to: the usual generator of each GAN first.

    Raises ValueError for an unknown `gan`.
    """
    if gan is not None and gan not in GANS:
        raise ValueError(f"gan is {gan!r}; it must be one of {', '.join(GANS)}")
    if gan is not None:
        references = [GANS[gan]]
    else:
        references = [reference for reference in GANS.working().values() if set(sizes) <= set(reference.sizes)]
    ranked = [
        (rank, {"gan": reference.name, **network, **sizes})
        for reference in references
        for rank, network in enumerate(_sizes(reference, state, sizes))
    ]
    return [network for _, network in sorted(ranked, key=lambda one: one[0])]


def _sizes(reference: Reference, state: State, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the sizes that may fit a generator's state_dict. `given`: the sizes that need not be found."""

    def ask() -> list[dict[str, Any]]:
        found = [dict(one) for one in reference.generator_sizes(reference.renamed(state))]
        for one in found:
            unknown, missing = one.keys() - reference.sizes.keys(), _needed(reference) - one.keys() - given.keys()
            if wrong := sorted(unknown | missing):
                raise ValueError(f"it gave {one} and build has {', '.join(reference.sizes)}, so {wrong} do not fit")
        return found

    return _asked(reference, "generator_sizes", ask, [])


def _needed(reference: Reference) -> set[str]:
    """Returns the names of the sizes without a default."""
    return {name for name, parameter in reference.sizes.items() if parameter.default is parameter.empty}


def _asked(reference: Reference, name: str, ask: Callable[[], Found], unknown: Found) -> Found:
    """Returns `ask()`, which reads a state_dict by the function `name` of a GAN; `unknown` with a warning if it raises.

    The code of another package may raise anything for a file that it does not expect.
    """
    try:
        return ask()
    except Exception as error:
        warnings.warn(
            f"the GAN {reference.name} of {GANS.distribution(reference.name)} cannot say whether the file is its own: "
            f"its {name} raised {error!r}",
            stacklevel=2,
        )
        return unknown


def fewest_misfits(state: State, gan: str | None, sizes: Mapping[str, Any]) -> int:
    """Returns the number of misfits of a generator's state_dict in the architecture that fits best."""
    return min((len(_misfits(network, 0, state)) for network in _candidates(state, gan, sizes)), default=0)


def judge_misfits(network: dict[str, Any], state: State, sizes: Mapping[str, Any]) -> int:
    """Returns the number of misfits of a discriminator's state_dict in the GAN of `network`."""
    return len(_misfits(_with_sizes_of_judge(network, state, sizes), 1, state))


def _with_discriminator(network: dict[str, Any], state: State, sizes: Mapping[str, Any]) -> dict[str, Any]:
    network = _with_sizes_of_judge(network, state, sizes)
    if misfits := _misfits(network, 1, state):
        raise ValueError(f"the discriminator's state_dict does not fit; {_nearest(misfits, network)}")
    return network


def _with_sizes_of_judge(network: dict[str, Any], state: State, sizes: Mapping[str, Any]) -> dict[str, Any]:
    reference, nothing = GANS[network["gan"]], dict[str, Any]()
    read = _asked(reference, "discriminator_sizes", lambda: reference.discriminator_sizes(state), nothing)
    return {**network, **read, **sizes}


def _nearest(misfits: list[str], network: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in network.items() if name != "gan")
    more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
    return f"the nearest is {network['gan']} ({sizes}), but {'; '.join(misfits[:4])}{more}"


def _misfits(network: dict[str, Any], side: int, state: State) -> list[str]:
    """Returns the reasons why `state` does not load into the generator (side 0) or discriminator (1) of `network`."""
    reference = reference_of({"network": network})
    try:
        module = shapes_of(network)[side]
    except Exception as error:  # sizes that were read from a foreign file may be any numbers
        return [str(error) if isinstance(error, ValueError) else repr(error)] * (len(state) + 1)
    return _compared(module, state if side else reference.renamed(state))[1]


def shapes_of(network: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Returns both networks on the meta device, where parameters have shapes and no values."""
    sizes = {name: value for name, value in network.items() if name != "gan"}
    return _shapes(GANS[network["gan"]].build, json.dumps(sizes))  # as config.json will hold them; lists have no hash


@lru_cache(maxsize=32)  # the parts of a file that are no network are all compared with the same few sizes
def _shapes(build: Callable[..., tuple[nn.Module, nn.Module]], sizes: str) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        return build(**json.loads(sizes))


def _compared(module: nn.Module, state: State) -> tuple[dict[str, Tensor], list[str]]:
    """Returns `state` adapted to `module`, and a list that says what does not fit.

    Statistics of instance norms that keep none are left out: files from before PyTorch 0.4 have them. Two kinds of
    missing tensors are filled in: batch counts, which files from before 0.4.1 lack, and unused statistics.
    """
    wanted = module.state_dict()
    norms = {name: m for name, m in module.named_modules() if isinstance(m, nn.InstanceNorm2d)}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    adapted, misfits = {}, []
    for key, tensor in state.items():
        owner, _, part = key.rpartition(".")
        if key not in wanted:
            if owner not in norms or part not in statistics:
                misfits.append(f"{key} is not in the network")
        elif tensor.shape != wanted[key].shape:
            misfits.append(f"{key} has shape {list(tensor.shape)} where the network has {list(wanted[key].shape)}")
        elif wanted[key].is_floating_point() and not tensor.is_floating_point():
            misfits.append(f"{key} has dtype {tensor.dtype} where the network has {wanted[key].dtype}")
        else:
            adapted[key] = tensor
    for key, tensor in wanted.items():
        owner, _, part = key.rpartition(".")
        if key not in state:
            if part == "num_batches_tracked" or (owner in norms and part in statistics):
                adapted[key] = tensor
            else:
                misfits.append(f"{key} is missing")
    return adapted, misfits


def fit(module: nn.Module, state: State, name: str) -> None:
    """Loads `state` into `module` and converts the values to the dtype of `module`.

    Raises ValueError with the keys that do not fit. Warns when statistics of instance norms that use none are left out.
    """
    adapted, misfits = _compared(module, state)
    if misfits:
        more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
        raise ValueError(f"{name} does not fit the {type(module).__name__}: {'; '.join(misfits[:4])}{more}")
    if dropped := sorted(state.keys() - adapted.keys()):
        text = f"{name} has statistics of instance norms that use none ({dropped[0]}, ...): {len(dropped)} left out"
        warnings.warn(text, stacklevel=2)
    module.load_state_dict(adapted)
