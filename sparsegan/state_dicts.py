"""Reads state_dicts as trainers write them: nested in other mappings, with prefixes of wrappers, with moving averages,
with computed weights.

Nothing in a file is executed: torch reads with ``weights_only=True``. In addition to torch's types, only types that
hold plain data are allowed.
"""

from __future__ import annotations

import argparse
import collections
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]

#: The names that trainers give to each network in the keys of a file.
SIDES = {
    "generator": {"generator", "netg", "net_g", "gen", "g", "g_ema", "generator_ema", "g_model", "student"},
    "discriminator": {"discriminator", "netd", "net_d", "dis", "disc", "d", "d_model", "critic"},
}
#: The parts of a key that mark a moving average of the weights.
_AVERAGES = ("ema", "average", "averaged", "avg", "swa", "shadow")
#: The prefixes that wrappers of modules put before names.
_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")
#: Harmless types that trainers save beside the weights.
_HARMLESS: list[Any] = [argparse.Namespace, collections.Counter, set, np.ndarray, np.dtype]
_ARRAYS: Any = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
_HARMLESS += [_ARRAYS.scalar, _ARRAYS._reconstruct]
_HARMLESS += [type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "uint8", "bool", "U1")]
_WAY_OUT = (
    "in the program that trained the model, run torch.save(model.state_dict(), FILE), and load the file that it writes"
)


class Found(NamedTuple):
    """A state_dict inside a file. ``path``: the keys that lead to the state_dict."""

    path: tuple[str, ...]
    state: State

    @property
    def name(self) -> str:
        return ".".join(self.path) or "the file itself"

    @property
    def words(self) -> set[str]:
        """The path's keys in lower case, and their parts between underscores."""
        lower = [part.lower() for part in self.path]
        return {*lower, *(word for part in lower for word in part.split("_"))}

    @property
    def average(self) -> bool:
        return bool(self.words & set(_AVERAGES))


def read_state(
    source: str | Path | Mapping[str, Any],
    side: str = "generator",
    key: str | None = None,
    misfits: Callable[[State], int] | None = None,
    wanted: Collection[str] = (),
    transposed: Collection[str] = (),
) -> State:
    """The state_dict of one network, from a file (.pth, .pt, .ckpt, .bin, .safetensors, an index of shards) or mapping.

    Args:
        source: the path of a file, or the content of a file as a mapping.
        side: ``"generator"`` or ``"discriminator"``: the network to read from a file that holds both.
        key: the keys that lead to the state_dict, joined by dots. The last keys are enough where they are unique.
        misfits: a function that returns how many names and shapes of a state_dict do not fit the network. It decides
            between several state_dicts.
        wanted: the names that the network has. A weight that the network itself computes stays as it is.
        transposed: the names of the network's transposed convolutions, whose spectral norm is along the other
            dimension.

    A moving average of the weights is taken, with a warning, where it has all the names that the weights have. Masks,
    weight norm and spectral norm become plain weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no state_dict in the source, or several may be meant.
    """
    name, content = "the state_dict", source
    if isinstance(source, str | Path):
        name, content = str(source), _content(Path(source))
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}; it must hold a state_dict, names and tensors")
    found = [Found(one.path, _checked(name, one.state)) for one in _search(content, ())]
    if not found:
        others = [f"{one!r}, a {type(entry).__name__}" for one, entry in content.items()]
        raise ValueError(
            f"{name} has {', '.join(others[:4]) or 'nothing'} and holds no tensors under names; it must hold a "
            "state_dict, in which every entry that is named like a parameter is a tensor"
        )

    def plain(state: State) -> State:
        return without_computed(state, wanted, transposed)

    found = [Found(one.path, plain(one.state)) for one in map(_without_count, found)]
    wholes = [Found(one.path, unwrapped(one.state, wanted)) for one in found]
    parts = [part for one in found for part in _parts(one, wanted)]
    return _chosen(name, wholes, parts, side, key, misfits)


def modules_in(source: str | Path | Mapping[str, Any], names: Collection[str]) -> list[Mapping[str, Any]]:
    """The state_dicts that a file, or the content of one, holds under `names`, one for each module of a network.

    [] where a name is missing. Raises what :func:`read_state` raises for a file that cannot be read.
    """
    content = _content(Path(source)) if isinstance(source, str | Path) else source
    if not isinstance(content, Mapping) or not all(isinstance(content.get(name), Mapping) for name in names):
        return []
    return [content[name] for name in names]


def _content(file: Path) -> Any:
    """The content of a file, read without running code from the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is {'a folder' if file.is_dir() else 'no file'}")
    size = file.stat().st_size
    if not size:
        raise ValueError(f"{file} is empty")
    with open(file, "rb") as stream:
        head = stream.read(9)
    if file.name.endswith(".index.json"):
        return _shards(file)
    header = int.from_bytes(head[:8], "little")
    if file.suffix == ".safetensors" or (head[8:] == b"{" and header < size):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from None
    _check_archive(file, size)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the parsers raise many types on foreign bytes
        # Only the reason is kept: torch's text also recommends weights_only=False, which runs code from the file.
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            kind = str(error).split("GLOBAL ", 1)[1].split(" ", 1)[0]
            reason = f"it holds a pickled {kind}, and reading that would run code from the file; {_WAY_OUT}"
        raise ValueError(f"{file} cannot be read as a state_dict without running code from it: {reason}") from None


def _check_archive(file: Path, size: int) -> None:
    """Raises ``ValueError`` for an archive that torch.save does not write. A file that is not an archive passes."""
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise ValueError(f"{file} is a program of torch.jit.save, not a state_dict; {_WAY_OUT}")
    if (unpacked := sum(part.file_size for part in parts)) > size:
        raise ValueError(
            f"{file} has {size} bytes and unpacks to {unpacked}; torch.save does not compress, and a file that takes "
            "more memory than its size is refused"
        )


def _shards(file: Path) -> Any:
    """The content of all shards that an index names."""
    try:
        names = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is no index of shards: {error}") from None
    whole: dict[str, Any] = {}
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{file} names {name!r}; its shards must lie beside it")
        whole.update(_content(file.parent / name))
    return whole


def _search(content: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[Found]:
    """Every state_dict in nested mappings: each mapping that holds tensors under names, except optimizers' states."""
    if len(path) > 6 or "param_groups" in content:
        return
    state = {name: one for name, one in content.items() if isinstance(one, Tensor) and isinstance(name, str)}
    if state and len(state) == sum(isinstance(one, Tensor) for one in content.values()):
        others = [name for name, one in content.items() if not isinstance(one, Tensor)]
        if all(isinstance(content[name], Mapping) or not _may_be_lost(name) for name in others):
            yield Found(path, state)
    for name, one in content.items():
        if isinstance(one, Mapping) and isinstance(name, str) and name != "_metadata":
            yield from _search(one, (*path, name))


def _may_be_lost(name: Any) -> bool:
    """Whether an entry that is not a tensor is named like a parameter, so that it must not be left out silently."""
    return "." in str(name)


def _checked(name: str, state: State) -> State:
    """The tensors, detached. Raises ``ValueError`` for a tensor that is not plain or exceeds its storage."""
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{name} has {key!r}, a {tensor.layout} tensor; it must be a plain tensor with values")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} has {key!r} of shape {list(tensor.shape)}, more than the file holds")
    return {key: tensor.detach() for key, tensor in state.items()}


def _without_count(found: Found) -> Found:
    """The state_dict without ``n_averaged``, the count that torch.optim.swa_utils.AveragedModel keeps.

    The path of an AveragedModel's state_dict gets "averaged", which marks a moving average.
    """
    state = {key: one for key, one in found.state.items() if key != "n_averaged"}
    averaged = len(state) < len(found.state) and all(key.startswith("module.") for key in state)
    return Found((*found.path, "averaged"), state) if averaged else found


def _parts(found: Found, wanted: Collection[str], depth: int = 2) -> Iterator[Found]:
    """The parts of a state_dict: the entries under each first name (``netG.``, ``model.generator.``), without it."""
    state = unwrapped(found.state, wanted)
    for head in sorted({key.partition(".")[0] for key in state if "." in key}):
        part = {key.removeprefix(f"{head}."): one for key, one in state.items() if key.startswith(f"{head}.")}
        one = Found((*found.path, head), unwrapped(part, wanted))
        yield one
        if depth > 1:
            yield from _parts(one, wanted, depth - 1)


def unwrapped(state: State, wanted: Collection[str] = ()) -> State:
    """The state_dict without the prefixes of wrappers. ``torch.compile``'s prefix is removed inside names too."""
    while state and not any(key in wanted for key in state):
        prefix = next((one for one in _WRAPPERS if all(key.startswith(one) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}


def _chosen(
    name: str,
    wholes: list[Found],
    parts: list[Found],
    side: str,
    key: str | None,
    misfits: Callable[[State], int] | None,
) -> State:
    """The state_dict to load, of whole ones and parts of them. Raises ``ValueError`` where several may be meant."""
    if key is not None:
        found = [*wholes, *parts]
        ranked = [one for one in found if one.name == key] or [one for one in found if one.name.endswith(f".{key}")]
        if not ranked:
            raise ValueError(f"key is {key!r}; {name} has no state_dict there")
    else:
        ranked = _meant(wholes, parts, side, misfits)
    averages = [one for one in ranked if one.average]
    if misfits is not None:
        scores = [misfits(one.state) for one in ranked]
        if min(scores):  # none fits: the caller reports what is wrong with the nearest one
            # The smallest part of a file would have the fewest misfits, so they are counted per tensor.
            shares = [score / max(1, len(one.state)) for one, score in zip(ranked, scores, strict=True)]
            return ranked[shares.index(min(shares))].state
        ranked = [one for one, score in zip(ranked, scores, strict=True) if not score]
    raw = [one for one in ranked if not one.average]
    whole = [one for one in averages if one in ranked and (not raw or one.state.keys() >= raw[0].state.keys())]
    ranked = whole or raw
    first = ranked[0]
    for one in ranked[1:]:
        within = one.path[: len(first.path)] == first.path  # `one` is a part of `first`, and the whole comes first
        same = within and (misfits is None or len(one.state) == len(first.state))  # all of it, without a prefix
        if not same and not _alike(one.state, first.state):
            names = ", ".join(sorted({each.name for each in ranked}))
            raise ValueError(f"{name} has several state_dicts that may be meant: {names}; choose one with key=")
    if key is None and whole and raw:
        text = f"{name} has the weights {raw[0].name} and their moving average {first.name}; the average is taken"
        warnings.warn(f"{text}. key={raw[0].name!r} takes the weights instead", stacklevel=5)
    elif key is None and averages and not whole:
        text = f"{name} has a moving average, {averages[0].name}, which does not hold all tensors of {first.name}"
        warnings.warn(f"{text}; {first.name} is taken", stacklevel=5)
    return first.state


def _meant(wholes: list[Found], parts: list[Found], side: str, misfits: Callable[[State], int] | None) -> list[Found]:
    """The state_dicts that may be meant, by the names in the file.

    These are the state_dicts that are named after the network ``side`` or, if there are none, those that are not named
    after the other network.
    """
    (other,) = set(SIDES) - {side}
    neutral = [one for one in wholes if not one.words & SIDES[other]]
    own = [one for one in neutral if one.words & SIDES[side]]
    exact = [one for one in own if any(part.lower() in SIDES[side] for part in one.path)]
    ranked = exact or own or neutral or wholes
    ranked += [one for one in neutral if one.average and one not in ranked]
    if misfits is None:
        sides = [one for one in parts if one.path[-1].lower() in SIDES[side]]
        return ranked if own or not sides else sides
    if any(not misfits(one.state) for one in ranked):
        return ranked
    # A file may have both networks in one state_dict, or further names before those of the network.
    within = [one for one in parts if any(one.path[: len(whole.path)] == whole.path for whole in ranked)]
    return ranked + [one for one in within if not one.words & SIDES[other]]


def _alike(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[key].shape == other[key].shape and torch.equal(one[key], other[key]) for key in other
    )


# ---------------------------------------------------------------------- computed weights


def without_computed(state: State, wanted: Collection[str] = (), transposed: Collection[str] = ()) -> State:
    """The state_dict with plain weights in place of masks, weight norms and spectral norms that the network lacks.

    Reads both forms of ``torch.nn.utils``: the older functions and the parametrizations. The arguments are those of
    :func:`read_state`.
    """
    state = dict(state)

    def its_own(plain: str, name: str) -> bool:
        """Whether the network has this name. A prefix that is not removed yet may stand before it."""
        return name in wanted or (plain not in wanted and any(name.endswith(f".{one}") for one in wanted))

    def take(plain: str, *names: str) -> list[Tensor] | None:
        """Removes and returns the entries that make the weight `plain`, if all are there and the network has none."""
        if not all(one in state for one in names) or any(its_own(plain, one) for one in names):
            return None
        return [state.pop(one) for one in names]

    for name in list(state):
        if name.endswith("_orig"):
            plain = name.removesuffix("_orig")
            module, _, tensor = plain.rpartition(".")
            base = f"{module}." if module else ""
            if found := take(plain, name, f"{plain}_mask"):
                state[plain] = torch.where(found[1] != 0, found[0], torch.zeros_like(found[0]))
            elif found := take(plain, name, f"{base}{tensor}_u", f"{base}{tensor}_v"):
                state[plain] = _spectral(plain, found, module in transposed)
            elif found := take(plain, name, f"{base}{tensor}_u"):
                raise ValueError(f"{name} has a spectral norm of a form that has no {tensor}_v; {_WAY_OUT}")
        elif name.endswith("_g"):
            plain = name.removesuffix("_g")
            if found := take(plain, name, f"{plain}_v"):
                state[plain] = _weight_norm(*found)
        elif ".parametrizations." in f".{name}" and name.endswith(".original0"):
            if found := take(_parametrized(name), name, f"{name.removesuffix('0')}1"):
                state[_parametrized(name)] = _weight_norm(*found)
        elif ".parametrizations." in f".{name}" and name.endswith(".original"):
            base, plain = name.removesuffix("original"), _parametrized(name)
            if found := take(plain, name, f"{base}0._u", f"{base}0._v"):
                state[plain] = _spectral(plain, found, plain.rpartition(".")[0] in transposed)
            elif found := take(plain, name, f"{base}0.mask"):
                state[plain] = found[0] * found[1]
    return state


def _parametrized(name: str) -> str:
    """The name of the plain weight: ``conv.weight`` for ``conv.parametrizations.weight.original0``."""
    return name.replace("parametrizations.", "", 1).rpartition(".")[0]


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    along = [axis for axis in range(v.dim()) if g.dim() != v.dim() or g.shape[axis] == 1]
    return v * (g / v.norm(2, along, keepdim=True))


def _spectral(name: str, parts: list[Tensor], transposed: bool) -> Tensor:
    weight, u, v = parts
    dim = int(transposed) if weight.dim() > 1 else 0
    matrix = weight.transpose(0, dim).flatten(1)
    if (len(u), len(v)) != tuple(matrix.shape):  # the lengths of u and v decide, not `transposed`
        matrix = weight.transpose(0, 1 - dim).flatten(1)
    if (len(u), len(v)) != tuple(matrix.shape):
        raise ValueError(f"{name} has a spectral norm with vectors of {len(u)} and {len(v)} numbers, which do not fit")
    return weight / torch.dot(u, matrix @ v)


def names_of(model: nn.Module) -> tuple[set[str], set[str]]:
    """The arguments ``wanted`` and ``transposed`` of :func:`read_state` for a model."""
    transposed = {name for name, module in model.named_modules() if getattr(module, "transposed", False)}
    return set(model.state_dict()), transposed
