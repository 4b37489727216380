"""Loading a layer's part of a state_dict. Everything is checked before the layer changes. Also reads old pickles."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .granularity import as_units, keep_largest, nonzero_mask, support_of, units_of
from .kept_weights import KeptWeights, assigned

#: The keys that a layer reads, without the prefix.
KEYS = ("values", "support", "weight", "weight_orig", "weight_mask", "bias", "bias_orig", "bias_mask")
#: Beginnings of the keys of a torch.nn layer that computes its weight from other tensors.
COMPUTED = ("parametrizations.", "weight_g", "weight_v", "weight_u")


def units_version(granularity: str) -> int:
    """The version of a layer's part of a state_dict: 2 for input units, 1 otherwise.

    Input units and vectors of equal size have supports and values of equal shapes. Only the version, which torch keeps
    beside the tensors, tells them apart.
    """
    return 2 if units_of(granularity).inputs > 1 else 1


class Loaded(NamedTuple):
    """The tensors to load into a layer. None leaves the layer's tensor as it is."""

    support: Tensor | None = None
    values: Tensor | None = None
    bias: Tensor | None = None


def load(
    layer: KeptWeights,
    state_dict: dict[str, Any],
    prefix: str,
    assign: bool,
    version: int | None,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """``torch.nn.Module._load_from_state_dict`` for a sparse layer. Where an entry is wrong the layer stays unchanged.

    ``assign``: the parameters are replaced, not written to, as in ``load_state_dict(assign=True)``. ``version``: of the
    part, as ``units_version`` gives it; None if it is not known.
    """
    entries = {key[len(prefix) :]: entry for key, entry in state_dict.items() if key.startswith(prefix)}
    name = prefix.rstrip(".") or type(layer).__name__
    try:
        if "support" in entries and version is not None and version != units_version(layer.granularity):
            raise ValueError(
                f"support comes from a layer {'with' if version == 2 else 'without'} input units; this layer has "
                f"granularity {layer.granularity!r} and takes the support of a layer of the same granularity"
            )
        loaded, missing = read(layer, entries)
        if layer.values.is_meta and not assign and any(entry is not None for entry in loaded):
            raise ValueError(
                "the layer is on the meta device and cannot hold numbers; give assign=True, or move the model with "
                "to_empty() first"
            )
    except (ValueError, TypeError, RuntimeError) as error:
        error_msgs.append(f"{name}: {error}")
        return
    if strict:
        known = KEYS if layer.bias is not None else [key for key in KEYS if not key.startswith("bias")]
        missing_keys += [prefix + key for key in missing]
        unexpected_keys += [
            prefix + key for key in entries if key not in known and key.split(".")[0] not in layer._modules
        ]
    if loaded.support is not None and loaded.values is not None:
        keeps_mask = layer.keeps_mask and "support" not in entries and "weight_mask" not in entries
        layer.replace_weights(loaded.support, loaded.values, assign)
        layer.keeps_mask = keeps_mask
    if loaded.bias is not None and layer.bias is not None:
        if assign:
            layer.bias = assigned(loaded.bias, layer.bias)
        else:
            with torch.no_grad():
                layer.bias.copy_(loaded.bias)


def read(layer: KeptWeights, entries: dict[str, Any]) -> tuple[Loaded, list[str]]:
    """The tensors to load, and the names of missing keys. ``entries``: a layer's part of a state_dict, without prefix.

    Raises:
        ValueError, TypeError: an entry does not fit the layer, or would have to be ignored.
    """
    computed = [name for name in entries if name.startswith(COMPUTED)]
    if computed:
        raise ValueError(
            f"{', '.join(computed)}: the checkpoint's layer computes its weight (spectral or weight normalisation, or "
            "another parametrization); load the checkpoint into the torch.nn layer, then remove the normalisation, for "
            "example with torch.nn.utils.parametrize.remove_parametrizations, and sparsify"
        )
    entries = {name: _tensor(name, entry) for name, entry in entries.items() if name in KEYS}
    weight, bias = _masked(entries, "weight"), _masked(entries, "bias")
    if weight is not None and ("values" in entries or "support" in entries):
        raise ValueError("both a dense weight and values or support are there; a layer is loaded from one of the two")
    if bias is not None and layer.bias is None:
        bias = None  # the caller reports the key as unexpected
    if bias is not None:
        _check_floating("bias", bias)
        if bias.shape != layer.bias.shape:  # type: ignore[union-attr]
            raise ValueError(f"bias has shape {tuple(bias.shape)}; the layer's is {tuple(layer.bias.shape)}")  # type: ignore[union-attr]
    wanted = ["bias"] if layer.bias is not None and bias is None else []
    if weight is not None:
        return Loaded(*_dense(layer, weight, entries.get("weight_mask")), bias), wanted
    missing = [name for name in ("values", "support") if name not in entries]
    support, values = entries.get("support"), entries.get("values")
    if values is not None:
        _check_floating("values", values)
    if support is None and values is not None:
        if values.shape != layer.values.shape:
            raise ValueError(
                f"values has shape {tuple(values.shape)} and comes without its support; the layer's values have shape "
                f"{tuple(layer.values.shape)}"
            )
        support = _own_support(layer)
    elif support is not None:
        if values is None:
            raise ValueError("support comes without its values")
        support = layer.check_entries(support, values)
    return Loaded(support, values, bias), [*missing, *wanted]


def _dense(layer: KeptWeights, weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The support and values that a layer takes from a dense weight. ``mask``: the mask of a pruning tool, or None."""
    if tuple(weight.shape) != layer.weight_shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; the layer's dense weight is {layer.weight_shape}")
    _check_floating("weight", weight)
    how = (layer.granularity, layer.transposed, layer.groups)
    if mask is not None:
        kept = nonzero_mask(mask, *how)
    elif layer.keeps_mask:
        support = _own_support(layer).to(weight.device)
        layer.check_positions(support)
        return support, weight.detach().flatten()[layer.positions_of(support)]
    elif _is_pruned(layer, weight):
        kept = nonzero_mask(weight, *how)
    else:
        kept = keep_largest(weight, layer.nnz // layer.unit_size, *how)
    support = support_of(kept, layer.granularity, layer.transposed)
    return support, weight.detach().flatten()[layer.positions_of(support)]


def _own_support(layer: KeptWeights) -> Tensor:
    """The layer's support. Raises ``ValueError`` on the meta device."""
    if layer.support.is_meta:
        raise ValueError("the layer is on the meta device and has lost its positions; load its values and support")
    return layer.support


def _is_pruned(layer: KeptWeights, weight: Tensor) -> bool:
    """Whether at least the layer's fraction of a dense weight's units is zero, and at least one unit is not."""
    if units_of(layer.granularity).stay is not None:
        return False  # choosing by magnitude gives the same: the largest weights of each quadruple are its nonzeros
    units = as_units(weight.detach(), layer.granularity, layer.transposed, layer.groups)
    nonzero, kept = int((units != 0).any(-1).sum()), layer.nnz // layer.unit_size
    return 0 < nonzero <= kept < units.shape[:-1].numel()


def _masked(entries: dict[str, Tensor], name: str) -> Tensor | None:
    """The weight or bias, or None. From torch.nn.utils.prune, it is the product of ``{name}_orig`` and its mask."""
    original, mask = entries.get(f"{name}_orig"), entries.get(f"{name}_mask")
    if (original is None) != (mask is None):
        there, other = (f"{name}_orig", f"{name}_mask") if mask is None else (f"{name}_mask", f"{name}_orig")
        raise ValueError(f"{there} comes without its {other}")
    if original is None or mask is None:
        return entries.get(name)
    if name in entries:
        raise ValueError(f"both {name} and {name}_orig are there; a layer is loaded from one of them")
    if original.shape != mask.shape:
        raise ValueError(f"{name}_orig has shape {tuple(original.shape)} and {name}_mask {tuple(mask.shape)}")
    if original.device != mask.device:
        mask = mask.to(original.device)
    return torch.where(mask != 0, original * mask, torch.zeros_like(original))


def _tensor(name: str, entry: Any) -> Tensor:
    """The entry, if it is a tensor whose numbers can be read. Raises ``TypeError`` or ``ValueError`` otherwise."""
    if not isinstance(entry, Tensor):
        raise TypeError(f"{name} is a {type(entry).__name__}; it must be a torch.Tensor")
    if entry.layout != torch.strided or entry.is_quantized:
        raise TypeError(f"{name} has layout {entry.layout} and dtype {entry.dtype}; it must be a plain strided tensor")
    if entry.is_meta:
        raise ValueError(f"{name} is on the meta device and holds no numbers")
    last = entry.storage_offset() + sum((n - 1) * step for n, step in zip(entry.shape, entry.stride(), strict=True))
    if entry.numel() and entry.untyped_storage().nbytes() < (last + 1) * entry.element_size():
        raise ValueError(f"{name} has shape {tuple(entry.shape)}, but its storage was resized and is too small")
    return entry


def _check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has dtype {tensor.dtype}; it must be a real floating-point type")


def empty_support(layer: KeptWeights, sparsity: float | None, mask: Tensor | None, kept_units: int) -> Tensor:
    """The support of a layer on the meta device: the right number of positions, without numbers.

    Raises ``ValueError`` where the number of positions is not known, or where the caller's mask would be lost.
    """
    if mask is not None:
        raise ValueError(
            "mask is given and the weight is on the meta device, which cannot hold the positions of a mask; make the "
            "layer on another device, or give sparsity= and load the weights afterwards"
        )
    if sparsity is None:
        raise ValueError(
            "the weight is on the meta device and has no zeros to take as the mask; give sparsity=, which says how "
            "many weights stay"
        )
    stay, per = units_of(layer.granularity).stay, units_of(layer.granularity).per
    weights = kept_units * layer.unit_size if stay is None else math.prod(layer.weight_shape) // per * stay
    return torch.empty(weights // layer.geometry.vector, dtype=torch.int32, device="meta")
