"""Compressed files: ``save`` and ``load`` for models with sparse layers.

A compressed file is a safetensors file. It has two or three tensors for each sparse layer ``name``:

========================  ===============================  ==========================================================
tensor                    dtype and shape                  content
========================  ===============================  ==========================================================
``name.values``           float16/32/64, bfloat16,         kept weights in support order
                          int16, int8 [nnz]
``name.scales``           float32 [output channels]        only beside int16 and int8: a weight is its integer times the
                                                           scale of its output channel
``name.support``          uint8 [bytes]                    gaps between kept positions, counted in units of the
                                                           layer's granularity (in weights for ``"2:4"``), coded as
                                                           Golomb-Rice codes (``csrc/core/support.h``)
========================  ===============================  ==========================================================

Every other entry of the model's ``state_dict`` is stored as it is; tied tensors are stored once. The only metadata
entry, ``sparsegan``, is canonical JSON. It has the format version, the geometry and granularity of each sparse layer,
the names that are tied, and a SHA-256 of all this and of each tensor's name, dtype, shape and bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, overload

import safetensors.torch
import torch
from torch import nn

from .atomic_files import write_whole
from .copying import Model, computed, copy_model, plain_weight
from .engine import Engine, GpuEngine
from .nn import SparseConv, SparseConv1d, SparseConv2d, SparseConvTranspose1d, SparseConvTranspose2d
from .nn.granularity import (
    check_shape,
    positions_of,
    support_of_units,
    unit_size,
    units_of,
    units_of_support,
)
from .nn.kept_weights import SETTINGS, DenseConv
from .nn.layer import DENSE_CLASSES, SPARSE_CLASSES, dense_class_of
from .nn.replace import move_hooks, replaced
from .ops import native
from .short_values import SHORT, channels_of, shorten, widen
from .state_dicts import names_of, read_state

__all__ = ["CheckpointError", "file_report", "load", "save"]

FORMAT = "sparsegan"
VERSION = 1

_VALUE_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    **SHORT,
}


class CheckpointError(ValueError):
    """Raised for a file that is damaged, hostile or made for another model. The text names the file and the fault."""


def save(model: nn.Module | Engine | GpuEngine, path: str | os.PathLike[str], values: str = "float32") -> None:
    """Writes ``model`` to ``path`` as a compressed safetensors file. The file is written completely or not at all.

    For an engine, its model is written. All parameters and persistent buffers but the sparse layers' values keep their
    dtype. Equal models give equal bytes. ``values`` names the dtype of the sparse layers' values in the file:

    - ``"float32"``: no loss for float32, float16 and bfloat16 models
    - ``"float16"``, ``"bfloat16"``: rounded
    - ``"int16"``, ``"int8"``: rounded to multiples of one scale per output channel, which makes the channel's largest
      value the largest integer; a loaded model has float values again
    - ``"float64"``

    Raises:
        ValueError: the dtype name is unknown, float64 values would be rounded to float32, the dtype cannot hold a
            value (integers hold no infinity and no NaN), or an entry of the model's state is not a tensor.
        OSError: the file cannot be written.
    """
    if values not in _VALUE_DTYPES:
        raise ValueError(f"values is {values!r}; it must be one of {', '.join(map(repr, _VALUE_DTYPES))}")
    model = model.model if isinstance(model, Engine | GpuEngine) else model
    state = _State(model, lambda module: isinstance(module, SparseConv))
    tensors = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()})
    layers = {}
    for name, layer in state.layers.items():
        assert isinstance(layer, SparseConv)
        kept = layer.values.detach().cpu()
        if values in SHORT:
            channels = channels_of(layer.positions().cpu(), layer.weight_shape, layer.transposed, layer.groups)
            try:
                kept, scales = shorten(kept, channels, layer.out_channels, SHORT[values])
            except ValueError as error:
                raise ValueError(f"layer {_shown(name)} has {error}, which {values} cannot hold") from error
            tensors[_join(name, "scales")] = scales
        else:
            kept = _rounded(name, kept, values)
        description = {
            **_geometry(layer),
            "granularity": layer.granularity,
            "nnz": kept.numel(),
            "dtype": values,
        }
        split = _split(description)
        units = units_of_support(layer.support.detach().cpu().contiguous(), *split)
        code = native.encode_support(units.numpy(), math.prod(layer.weight_shape) // unit_size(*split))
        tensors[_join(name, "values")] = kept.clone() if kept.untyped_storage().nbytes() > kept.nbytes else kept
        tensors[_join(name, "support")] = torch.tensor(bytearray(code), dtype=torch.uint8)
        layers[name] = description
    meta: dict[str, Any] = {"format": FORMAT, "version": VERSION, "layers": layers, "ties": state.ties}
    meta["sha256"] = _digest(meta, tensors)
    data = safetensors.torch.save(tensors, {FORMAT: _canonical(meta)})

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_whole(Path(path), write)


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replaces each tensor that shares memory with another, or is part of a larger buffer, by a copy."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() > tensor.nbytes:
            tensors[name] = tensor = tensor.clone()
            storage = tensor.untyped_storage()
        seen.add(storage.data_ptr())
    return tensors


@overload
def load(
    model: nn.Conv1d,
    path: str | os.PathLike[str],
    key: str | None = None,
    device: torch.device | str | None = None,
) -> nn.Conv1d | SparseConv1d: ...
@overload
def load(
    model: nn.Conv2d,
    path: str | os.PathLike[str],
    key: str | None = None,
    device: torch.device | str | None = None,
) -> nn.Conv2d | SparseConv2d: ...
@overload
def load(
    model: nn.ConvTranspose1d,
    path: str | os.PathLike[str],
    key: str | None = None,
    device: torch.device | str | None = None,
) -> nn.ConvTranspose1d | SparseConvTranspose1d: ...
@overload
def load(
    model: nn.ConvTranspose2d,
    path: str | os.PathLike[str],
    key: str | None = None,
    device: torch.device | str | None = None,
) -> nn.ConvTranspose2d | SparseConvTranspose2d: ...
@overload
def load(
    model: Model,
    path: str | os.PathLike[str],
    key: str | None = None,
    device: torch.device | str | None = None,
) -> Model: ...
def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    key: str | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Reads a file that ``save`` wrote, or a trainer's state_dict, into ``model`` and returns the model.

    Names and shapes in the file must be those of the model. Where the file has a sparse layer, the model may have a
    ``torch.nn`` layer, which is replaced in place, or a sparse layer, which keeps its ``values`` Parameter. A replaced
    layer takes the computation of its weight (spectral or weight normalisation, a mask) with it. A file of a vocoder
    whose weight normalisation ``sparsify`` has folded therefore loads into a new vocoder that still has it.
    (A model that is itself one ``torch.nn`` convolution cannot be replaced in place: use the returned model.)
    Floating-point tensors take the dtype that they have in the model. Devices, ``requires_grad`` and the training flag
    do not change.

    Trainers' files (.pth, .pt, .ckpt, .bin, .safetensors) are read by :func:`sparsegan.state_dicts.read_state`. ``key``
    is passed on: it names the place of the state_dict among nested mappings. Where a dense weight is loaded into a
    sparse layer, the support is chosen as in ``load_state_dict``.

    A model on the meta device is loaded onto ``device``, the CPU by default. ``device`` is only for such models.

    The whole file is checked before the model changes: after a ``CheckpointError`` the model is unchanged.

    Raises:
        CheckpointError: the file is damaged, hostile or does not fit, or a model on the meta device has a buffer that
            no file holds.
        ValueError: ``device`` or ``key`` is given where it has no meaning.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return _load_into_meta(model, path, key, torch.device("cpu" if device is None else device))
    if device is not None:
        raise ValueError(
            f"device is {device}; it is for models on the meta device, and this model stays where it is: give no device"
        )
    if not _is_ours(path):
        return _load_state_dict(model, path, key)
    if key is not None:
        raise ValueError(f"key is {key!r}; {path} is a file of sparsegan.save, which holds one model: give no key")
    file = _File(path)
    state = _match(model, file)
    copies = [_copy(file, name, tensor) for name, tensor in state.tensors.items()]
    refills: list[tuple[SparseConv, torch.Tensor, torch.Tensor]] = []
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in state.layers.items():
        support, kept = file.sparse(name)
        if isinstance(layer, SparseConv):
            refills.append((layer, support.to(layer.values.device), kept.to(layer.values)))
        else:
            assert isinstance(layer, DENSE_CLASSES)
            replacements[layer] = _sparse_twin(file, name, layer, support, kept)

    # Everything is checked. From here on nothing may fail, so that the model never stays half loaded.
    with torch.no_grad():
        for target, source in copies:
            target.copy_(source)
    for sparse, support, kept in refills:
        sparse.set_support(support, kept)
    return replaced(model, replacements)


def _copy(file: _File, name: str, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(target, source) for a copy into the model. For an expanded tensor, both have only the elements in memory."""
    source = file.tensors[name].to(target)
    for axis, (size, step) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if size > 1 and step == 0:
            first = source.narrow(axis, 0, 1)
            if not bool((source == first).all()):
                file.fail(f"has different values along dimension {axis} of {name}, where the model repeats one value")
            target, source = target.detach().narrow(axis, 0, 1), first
    if torch._debug_has_internal_overlap(target) == 1:
        file.fail(f"has {name}, whose elements share memory in the model; give the model a contiguous tensor there")
    return target, source


def _is_ours(path: Path) -> bool:
    """Whether to read a file as one that ``save`` wrote. So is a file of an unknown kind, which is then refused."""
    if not path.is_file() or path.name.endswith(".index.json"):
        return not path.is_file()
    with open(path, "rb") as stream:
        head = stream.read(9)
    if head[8:] == b"{":
        try:
            with safetensors.safe_open(path, "pt") as content:
                return FORMAT in (content.metadata() or {})
        except Exception:  # the parser raises many types on foreign bytes
            return True
    # torch.save writes a zip archive (in old versions a pickle). Only trainers' files have the suffixes listed here.
    return not head.startswith((b"PK", b"\x80")) and path.suffix not in (".pth", ".pt", ".ckpt", ".bin", ".tar")


def _load_state_dict(model: nn.Module, path: Path, key: str | None) -> nn.Module:
    """Loads a trainer's state_dict: first into a copy of the model, because loading may fail halfway."""
    wanted, transposed = names_of(model)

    def misfits(state: Mapping[str, torch.Tensor]) -> int:
        return len(_unlike(model, state))

    try:
        state = read_state(path, key=key, misfits=misfits, wanted=wanted, transposed=transposed)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    unlike = _unlike(model, state)
    if unlike:
        more = f" and {len(unlike) - 4} more" if len(unlike) > 4 else ""
        raise CheckpointError(f"{path} does not fit the {type(model).__name__}: {'; '.join(unlike[:4])}{more}")
    try:
        copy_model(model).load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit the {type(model).__name__}: {error}") from error
    model.load_state_dict(state)
    return model


def _unlike(model: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """The reasons, by names and shapes, why a model cannot load a state_dict. The list is empty where it can.

    A sparse layer also takes a dense weight. ``num_batches_tracked`` may be missing, as it is in old files.
    """
    own = model.state_dict()
    dense: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseConv):
            dense[_join(name, "weight")] = module.weight_shape
    found = []
    for name, tensor in state.items():
        shape = dense.get(name)
        module, _, part = name.rpartition(".")
        of_sparse = _join(module, "weight") in dense
        if shape is None and name in own and not (of_sparse and part in ("values", "support")):
            shape = tuple(own[name].shape)
        if shape is None and of_sparse and part in ("values", "support", "weight_orig", "weight_mask"):
            continue  # the layer checks these
        if shape is None and part in ("values", "support") and _join(module, "weight") in own:
            found.append(f"{name} is of a sparse layer and {module} is dense, so sparsify the model first")
        elif shape is None:
            found.append(f"{name} is not in the model")
        elif name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            found.append(f"{name} has dtype {tensor.dtype} where the model has {own[name].dtype}")
        elif tuple(tensor.shape) != shape:
            found.append(f"{name} has shape {list(tensor.shape)} where the model has {list(shape)}")
    for name in own:
        module, _, part = name.rpartition(".")
        from_dense = part in ("values", "support") and any(
            _join(module, one) in state for one in ("weight", "weight_orig")
        )
        if name not in state and part != "num_batches_tracked" and not from_dense:
            found.append(f"{name} is missing")
    return found


def _load_into_meta(model: nn.Module, path: Path, key: str | None, device: torch.device) -> nn.Module:
    """Loads a file into a copy of the model with memory on ``device``. The model then takes the copy's content."""
    kept = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if buffer.is_meta and name not in kept:
            raise CheckpointError(
                f"{name} is a buffer on the meta device that is in no file (persistent=False); make the model on a "
                "device that holds numbers"
            )
    loaded = load(copy_model(model).to_empty(device=device), path, key)
    others = dict(loaded.named_modules(remove_duplicate=False))
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(others[name]) is not type(module):
            replacements[module] = others[name]
        else:
            own = {field: value for field, value in vars(others[name]).items() if field != "_modules"}
            module.__dict__.update(own)
    return replaced(model, replacements)


def file_report(path: str | os.PathLike[str]) -> dict[str, float]:
    """The sizes of a file that ``save`` wrote: ``bytes``, ``dense_bytes`` and ``ratio``.

    ``bytes`` is the size on disk. ``dense_bytes`` is the size of a safetensors file of the same model with dense
    float32 convolution weights. ``ratio`` is ``dense_bytes / bytes``. Raises as ``load`` does.
    """
    file = _File(Path(path))
    coded = {_join(name, part) for name in file.layers for part in file.parts(name)}
    dense = {
        name: (entry["dtype"], entry["shape"], file.tensors[name].nbytes)
        for name, entry in file.header.items()
        if name not in coded
    }
    for name, layer in file.layers.items():
        dense[_join(name, "weight")] = ("F32", layer["weight_shape"], 4 * math.prod(layer["weight_shape"]))
    dense_bytes = _safetensors_bytes(dense)
    return {"bytes": file.nbytes, "dense_bytes": dense_bytes, "ratio": dense_bytes / file.nbytes}


class _State:
    """The parts of a model's ``state_dict``. Each object is there once, under its first name.

    ``layers``: name -> module, for the modules that ``is_layer`` selects. ``tensors``: name -> tensor of the model, for
    all other entries. ``ties``: further name of an object -> its first name.
    """

    def __init__(self, model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.ties: dict[str, str] = {}
        first: dict[int, str] = {}
        coded: set[str] = set()
        for name, module in model.named_modules(remove_duplicate=False):
            if not is_layer(module):
                continue
            coded |= {_join(name, part) for part in ("values", "support", "weight")}
            if "weight" in computed(module):  # the sources of the weight go with it
                own = (part for part in module.state_dict() if part.startswith(("weight_", "parametrizations.weight.")))
                coded |= {_join(name, part) for part in own}
            if first.setdefault(id(module), name) == name:
                self.layers[name] = module
            else:
                self.ties[name] = first[id(module)]
        state = model.state_dict(keep_vars=True)
        for name, tensor in state.items():
            if name in coded:
                continue
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(
                    f"{name} in the model's state_dict is a {type(tensor).__name__}; only tensors can be saved"
                )
            if first.setdefault(id(tensor), name) == name:
                self.tensors[name] = tensor
            else:
                self.ties[name] = first[id(tensor)]


class _File:
    """The content of a file. The constructor makes all checks that need no model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            self.fail("is not a regular file")
        data = path.read_bytes()
        self.nbytes = len(data)
        try:
            self.tensors = safetensors.torch.load(data)  # checks the header, offsets and sizes
            self.header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        except Exception as error:  # the parsers raise many types on foreign bytes
            raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
        self.meta = self._metadata(self.header.pop("__metadata__", {}))
        self.layers: dict[str, dict[str, Any]] = self.meta["layers"]
        self.ties: dict[str, str] = self.meta["ties"]
        for name, layer in self.layers.items():
            self._check_layer(name, layer)

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path} {what}")

    def parts(self, name: str) -> tuple[str, ...]:
        """The tensors of layer ``name``."""
        return ("values", "support", "scales") if self.layers[name]["dtype"] in SHORT else ("values", "support")

    def sparse(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The support (int32 [units], sorted, unique, in range) and the values ([nnz]) of layer ``name``."""
        layer = self.layers[name]
        split, count = _split(layer), math.prod(layer["weight_shape"])
        size = unit_size(*split)
        code = self.tensors[_join(name, "support")].numpy().tobytes()
        try:
            units = native.decode_support(code, count // size, layer["nnz"] // size)
            support = support_of_units(torch.from_numpy(units), *split)
        except ValueError as error:
            raise CheckpointError(f"{self.path} has a bad support for layer {_shown(name)}: {error}") from error
        values = self.tensors[_join(name, "values")]
        if layer["dtype"] in SHORT:
            shape, granularity, transposed, groups = split
            channels = channels_of(positions_of(support, shape, granularity, transposed), shape, transposed, groups)
            values = widen(values, self.tensors[_join(name, "scales")], channels)
        return support, values

    def _metadata(self, entries: dict[str, str]) -> dict[str, Any]:
        if set(entries) != {FORMAT}:
            self.fail(f"is a safetensors file that sparsegan.save did not write: its only metadata must be {FORMAT!r}")
        text = entries[FORMAT]
        try:
            meta = json.loads(text)
            canonical = _canonical(meta) == text
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path} has unreadable sparsegan metadata: {error}") from error
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            self.fail("has sparsegan metadata of an unknown form")
        if meta.get("version") != VERSION:
            self.fail(f"has format version {meta.get('version')!r}; this sparsegan reads version {VERSION}")
        if set(meta) != {"format", "version", "layers", "ties", "sha256"} or not canonical:
            self.fail("has sparsegan metadata of an unknown form")
        if _digest(meta, self.tensors) != meta["sha256"]:
            self.fail("is damaged: its SHA-256 does not match its content")
        layers, ties = meta["layers"], meta["ties"]
        if not isinstance(layers, dict) or not isinstance(ties, dict):
            self.fail("has sparsegan metadata of an unknown form")
        return meta

    def _check_layer(self, name: str, layer: Any) -> None:
        def fail(what: str) -> NoReturn:
            self.fail(f"has a bad layer {_shown(name)}: {what}")

        if not isinstance(layer, dict) or set(layer) != _LAYER_KEYS:
            fail(f"its description must have exactly the entries {', '.join(sorted(_LAYER_KEYS))}")
        shape, nnz, dtype = layer["weight_shape"], layer["nnz"], layer["dtype"]
        if not isinstance(shape, list) or len(shape) not in (3, 4) or not all(type(n) is int and n > 0 for n in shape):
            fail(f"weight_shape is {shape!r}; it must be 3 or 4 positive integers")
        if type(nnz) is not int or not 0 <= nnz <= math.prod(shape):
            fail(f"nnz is {nnz!r}; it must be an integer from 0 to the weight's {math.prod(shape)}")
        groups = layer["groups"]
        if type(groups) is not int or groups < 1 or shape[0] % groups:
            fail(f"groups is {groups!r}; it must be a positive integer that divides {shape[0]}")
        try:
            check_shape(*_split(layer))
            size = unit_size(*_split(layer))
        except ValueError as error:
            fail(str(error))
        if nnz % size:
            fail(f"nnz is {nnz}, which is no multiple of {size} (granularity {layer['granularity']!r})")
        if not isinstance(dtype, str) or dtype not in _VALUE_DTYPES:
            fail(f"dtype is {dtype!r}; it must be one of {', '.join(map(repr, _VALUE_DTYPES))}")
        for part, wanted in (("values", _VALUE_DTYPES[dtype]), ("support", torch.uint8)):
            tensor = self.tensors.get(_join(name, part))
            if tensor is None:
                fail(f"tensor {_join(name, part)} is missing")
            if tensor.dtype != wanted or tensor.dim() != 1:
                fail(f"{part} is {tensor.dtype} with {tensor.dim()} dimensions; it must be {wanted} with 1")
        if (stored := self.tensors[_join(name, "values")].numel()) != nnz:
            fail(f"there are {stored} values and nnz is {nnz}; the two must be equal")
        if dtype in SHORT:
            channels = shape[1] * groups if layer["transposed"] is True else shape[0]
            scales = self.tensors.get(_join(name, "scales"))
            if scales is None or scales.dtype != torch.float32 or list(scales.shape) != [channels]:
                found = "missing" if scales is None else f"{scales.dtype} {list(scales.shape)}"
                fail(f"scales is {found}; {dtype} values need torch.float32 [{channels}]")
            if not bool(((scales >= 0) & scales.isfinite()).all()):
                fail("scales must be finite and at least 0")


def _match(model: nn.Module, file: _File) -> _State:
    """The layers and tensors of the model. Raises CheckpointError unless the file has exactly the same ones."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in file.layers:
        if not isinstance(modules.get(name), (SparseConv, *DENSE_CLASSES)):
            here = f"a {type(modules[name]).__name__} in the model" if name in modules else "not in the model"
            file.fail(f"has a sparse convolution {_shown(name)}, which is {here}")
    coded = {id(modules[name]) for name in file.layers}
    for name, module in modules.items():
        if isinstance(module, SparseConv) and id(module) not in coded:
            file.fail(f"has no sparse layer {_shown(name)}, which the model has")
    state = _State(model, lambda module: id(module) in coded)
    if state.ties != file.ties or set(state.layers) != set(file.layers):
        ours, theirs = (sorted(f"{a} = {b}" for a, b in ties.items()) for ties in (state.ties, file.ties))
        file.fail(f"shares {theirs or 'nothing'} between modules; the model shares {ours or 'nothing'}")

    for name, layer in state.layers.items():
        described = file.layers[name]
        expected = _geometry(layer)
        if isinstance(layer, SparseConv):
            expected["granularity"] = layer.granularity
        for field, value in expected.items():
            if described[field] != value:
                file.fail(f"has {field} {described[field]!r} for layer {_shown(name)}; the model has {value!r}")

    expected_names = set(state.tensors) | {_join(name, part) for name in file.layers for part in file.parts(name)}
    if unknown := sorted(set(file.tensors) - expected_names):
        file.fail(f"has a tensor {unknown[0]}, which the model does not have ({len(unknown)} such tensors)")
    if missing := sorted(expected_names - set(file.tensors)):
        file.fail(f"has no tensor {missing[0]}, which the model has ({len(missing)} such tensors)")
    for name, tensor in state.tensors.items():
        stored = file.tensors[name]
        if stored.shape != tensor.shape:
            file.fail(f"has shape {list(stored.shape)} for {name}; the model has {list(tensor.shape)}")
        if stored.dtype != tensor.dtype and not (stored.is_floating_point() and tensor.is_floating_point()):
            file.fail(f"has dtype {stored.dtype} for {name}; the model has {tensor.dtype}")
    return state


def _sparse_twin(file: _File, name: str, layer: DenseConv, support: torch.Tensor, values: torch.Tensor) -> SparseConv:
    """A sparse layer that replaces the dense ``layer``. ``layer`` does not change; both have the same bias object."""
    kind = SPARSE_CLASSES[dense_class_of(layer)]
    weight = plain_weight(layer)
    granularity = file.layers[name]["granularity"]
    mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    if units_of(granularity).entry == 1:  # a support of larger units does not index weights; set_support sets it below
        mask.view(-1)[support.to(weight.device).long()] = True
    try:
        twin = kind.from_dense(layer, mask=mask, granularity=granularity)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file.path} has a bad layer {_shown(name)}: {error}") from error
    twin.set_support(support.to(weight.device), values.to(weight))
    twin.values.requires_grad_(weight.requires_grad)
    twin.bias = layer.bias  # type: ignore[assignment]  # torch's annotation leaves out that it is a Parameter
    move_hooks(layer, twin)
    return twin


def _split(layer: dict[str, Any]) -> tuple[list[int], str, bool, int]:
    """The arguments (shape, granularity, transposed, groups) for sparsegan.nn.granularity, of a described layer."""
    return layer["weight_shape"], layer["granularity"], layer["transposed"] is True, layer["groups"]


def _geometry(layer: nn.Module) -> dict[str, Any]:
    """The settings of a layer as they are written to a file."""
    fields: dict[str, Any] = {name: getattr(layer, name) for name in SETTINGS}
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    weight_shape: Any = layer.weight_shape if isinstance(layer, SparseConv) else layer.weight.shape
    return {
        **fields,
        "bias": layer.bias is not None,
        "weight_shape": [int(n) for n in weight_shape],
    }


_LAYER_KEYS = {*SETTINGS, "bias", "weight_shape", "granularity", "nnz", "dtype"}


def _rounded(name: str, values: torch.Tensor, dtype: str) -> torch.Tensor:
    """The values in the dtype of the file. Raises ``ValueError`` as ``save`` does."""
    if values.dtype == torch.float64 and dtype == "float32":
        raise ValueError(f'layer {_shown(name)} has float64 values, which float32 would round; pass values="float64"')
    stored = values.to(_VALUE_DTYPES[dtype]).contiguous()
    lost = values.isfinite() & ~stored.isfinite()
    if lost.any():
        raise ValueError(f"layer {_shown(name)} has a value of {values[lost][0].item():.6g}, which {dtype} cannot hold")
    return stored


def _digest(meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of metadata and tensors."""
    digest = hashlib.sha256(_canonical({key: value for key, value in meta.items() if key != "sha256"}).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _safetensors_bytes(tensors: dict[str, tuple[str, list[int], int]]) -> int:
    """The size of a safetensors file. ``tensors``: name -> (dtype, shape, bytes).

    safetensors writes the widest dtype first, and tensors of one dtype by name.
    """
    header = {}
    end = 0
    order = sorted(tensors.items(), key=lambda item: (-item[1][2] // max(math.prod(item[1][1]), 1), item[0]))
    for name, (dtype, shape, nbytes) in order:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return 8 + -(-len(text.encode()) // 8) * 8 + end


def _join(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if module else tensor


def _shown(name: str) -> str:
    return name or "(the model itself)"
