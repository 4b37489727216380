"""Finds the reference GAN and the sizes that fit a configuration or a state_dict, and loads state_dicts that fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from . import GANS, Reference
from .parts import State


def reference_of(config: Mapping[str, Any]) -> Reference:
    """Returns the reference GAN that `config["network"]` names.

    Raises ValueError where no GAN is named, and for sizes that are missing or that this GAN does not have.
    """
    network = config.get("network")
    names = ", ".join(GANS)
    if not isinstance(network, dict) or network.get("gan") not in GANS:
        raise ValueError(f'the configuration\'s "network" is {network!r}; its "gan" must be one of {names}')
    reference = GANS[network["gan"]]
    known = reference.sizes
    needed = [name for name, parameter in known.items() if parameter.default is parameter.empty]
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

    `gan`: the only GAN to try; None tries all. `sizes`: known sizes, which go before those read from the state_dict.
    Raises ValueError for an unknown `gan`, and where nothing fits. That error names the nearest architecture and the
    keys that did not fit.
    """
    if gan is not None and gan not in GANS:
        raise ValueError(f"gan is {gan!r}; it must be one of {', '.join(GANS)}")
    nearest: tuple[list[str], dict[str, Any]] | None = None
    for network in _candidates(generator, gan, sizes):
        misfits = _misfits(network, 0, generator)
        if not misfits:
            return network if discriminator is None else _with_discriminator(network, discriminator, sizes)
        if nearest is None or len(misfits) < len(nearest[0]):
            nearest = misfits, network
    if nearest is None:
        raise ValueError(f"no GAN of {', '.join(GANS)} has all of {', '.join(sizes)}")
    raise ValueError(f"the generator's state_dict fits no known architecture; {_nearest(*nearest)}")


def _candidates(state: State, gan: str | None, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the networks that a generator's state_dict may belong to: the usual generator of each GAN first."""
    ranked = [
        (rank, {"gan": name, **network, **sizes})
        for name, reference in GANS.items()
        if gan == name or (gan is None and set(sizes) <= set(reference.sizes))
        for rank, network in enumerate(reference.generator_sizes(reference.renamed(state)))
    ]
    return [network for _, network in sorted(ranked, key=lambda one: one[0])]


def fewest_misfits(state: State, gan: str | None, sizes: Mapping[str, Any]) -> int:
    """Returns the number of misfits of a generator's state_dict in the architecture that fits best."""
    return min((len(_misfits(network, 0, state)) for network in _candidates(state, gan, sizes)), default=0)


def judge_misfits(network: dict[str, Any], state: State, sizes: Mapping[str, Any]) -> int:
    """Returns the number of misfits of a discriminator's state_dict in the GAN of `network`."""
    return len(_misfits(network | GANS[network["gan"]].discriminator_sizes(state) | sizes, 1, state))


def _with_discriminator(network: dict[str, Any], state: State, sizes: Mapping[str, Any]) -> dict[str, Any]:
    network = network | GANS[network["gan"]].discriminator_sizes(state) | sizes
    if misfits := _misfits(network, 1, state):
        raise ValueError(f"the discriminator's state_dict does not fit; {_nearest(misfits, network)}")
    return network


def _nearest(misfits: list[str], network: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in network.items() if name != "gan")
    more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
    return f"the nearest is {network['gan']} ({sizes}), but {'; '.join(misfits[:4])}{more}"


def _misfits(network: dict[str, Any], side: int, state: State) -> list[str]:
    """Returns the reasons why `state` does not load into the generator (side 0) or discriminator (1) of `network`."""
    reference = reference_of({"network": network})
    try:
        module = shapes_of(network)[side]
    except ValueError as error:
        return [str(error)] * (len(state) + 1)
    return _compared(module, state if side else reference.renamed(state))[1]


def shapes_of(network: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Returns both networks on the meta device, where parameters have shapes and no values."""
    sizes = {name: value for name, value in network.items() if name != "gan"}
    return _shapes(GANS[network["gan"]].build, **sizes)


@lru_cache(maxsize=32, typed=True)  # the parts of a file that are no network are all compared with the same few sizes
def _shapes(build: Callable[..., tuple[nn.Module, nn.Module]], /, **sizes: Any) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        return build(**sizes)


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
