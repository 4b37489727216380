"""The saliency of weights: which units a pruning drops first, and how many of each layer.

The saliency of a unit is the L2 norm of one number per weight w:

    "magnitude"   w
    "fisher"      w sqrt(v), where v is Adam's average of the squared gradient of w

The square of the second number estimates by how much the loss rises without the weight: w^2 v / 2 is the second term of
the loss's Taylor series, with the squared gradient in the place of the second derivative (Theis et al., "Faster gaze
prediction with dense networks and Fisher pruning", arXiv 1801.05787). It is a change of the loss in every layer alike.
It can therefore be compared across layers, which magnitudes cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn.granularity import check_sparsity, magnitudes, units_of
from ..nn.layer import SparseConv
from ..nn.replace import sparse_layers
from .allocation import FIXED, LEAST

#: The names of the saliencies.
SALIENCIES = ("magnitude", "fisher")


def check_saliency(saliency: str) -> str:
    """Returns ``saliency``. Raises ``ValueError`` if it is not one of :data:`SALIENCIES`."""
    if saliency not in SALIENCIES:
        raise ValueError(f"saliency is {saliency!r}; it must be one of {', '.join(map(repr, SALIENCIES))}")
    return saliency


def ranked(layer: SparseConv, saliency: str, optimizers: Sequence[Optimizer]) -> Tensor:
    """The saliency of each unit of a layer, in the order of its support, or of ``layer.unit_rows()`` for larger units.

    A layer whose values no optimizer trains is ranked by magnitude. Raises ``ValueError`` if ``saliency`` is
    ``"fisher"`` and the optimizer of the values has no average of squared gradients.
    """
    return unit_norms(layer, layer.values.detach() if saliency == "magnitude" else _weighed(layer.values, optimizers))


def unit_norms(layer: SparseConv, numbers: Tensor) -> Tensor:
    """The L2 norm of each unit's ``numbers``, which are one per value ``[nnz]``, in the order of :func:`ranked`."""
    if units_of(layer.granularity).listed:
        return magnitudes(numbers.view(-1, layer.geometry.vector))
    return magnitudes(numbers[layer.unit_rows()])


def _weighed(values: nn.Parameter, optimizers: Sequence[Optimizer]) -> Tensor:
    """The number per value of the saliency "fisher"."""
    holding = [
        one for one in optimizers if any(values is held for group in one.param_groups for held in group["params"])
    ]
    if not holding:
        return values.detach()
    states: list[Any] = [one.state.get(values, {}) for one in holding]
    squares = next((state["exp_avg_sq"] for state in states if "exp_avg_sq" in state), None)
    if squares is None:
        raise ValueError(
            f'saliency is "fisher", and {type(holding[0]).__name__} has no average of squared gradients (exp_avg_sq); '
            "it must be an optimizer such as Adam, after its first step"
        )
    roots = squares.float().sqrt()
    # The second summand ranks weights that never had a gradient by magnitude, behind those that had one.
    return values.detach().float() * (roots + 1e-3 * roots.mean())


@contextmanager
def counting_uses(model: nn.Module) -> Iterator[dict[str, int]]:
    """Within it, the uses of a weight of each sparse layer are counted, in all images of all calls.

    The dict that the context yields is complete when the context ends. A weight is used once per output position of a
    convolution, and once per input position of a transposed convolution.
    """
    uses = {name: 0 for name, _ in sparse_layers(model)}
    hooks = [
        layer.register_forward_hook(_counting(uses, name), with_kwargs=True) for name, layer in sparse_layers(model)
    ]
    try:
        yield uses
    finally:
        for hook in hooks:
            hook.remove()


def _counting(uses: dict[str, int], name: str) -> Any:
    def count(layer: SparseConv, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        image: Tensor = output
        if layer.adjoint:
            image = inputs[0] if inputs else named["x"]
        uses[name] += image.numel() // image.shape[-1 - layer.dims]

    return count


@torch.no_grad()
def sparsities_by_saliency(
    model: nn.Module,
    sparsity: float,
    uses: Mapping[str, int],
    optimizers: Sequence[Optimizer],
    saliency: str = "fisher",
) -> dict[str, float]:
    """The sparsity of each sparse layer by name, when the least salient units of all layers are dropped together.

    All layers then have as many weights as with one sparsity for every layer, and no more multiply-accumulates. Among
    the choices that meet both budgets, the sum of the kept units' squared saliencies is the largest, except that the
    fraction :data:`~sparsegan.pruning.allocation.LEAST` of each layer's units always stays.

    `uses`: how often a weight of each layer is used, as `counting_uses` counts it; only ratios matter.
    A layer of granularity "2:4" keeps its sparsity, and a frozen layer, whose gradients are not known, gets `sparsity`.
    They count in neither budget. Raises ``ValueError`` as :func:`ranked` does.
    """
    check_sparsity(sparsity)
    frozen = {name: sparsity for name, layer in sparse_layers(model) if not layer.values.requires_grad}
    fixed = frozen | {
        name: FIXED for name, layer in sparse_layers(model) if units_of(layer.granularity).sparsity is not None
    }
    layers = {name: layer for name, layer in sparse_layers(model) if name not in fixed}
    # Units of one layer have one size and one cost, so the order within a layer holds for every price.
    squares, sizes, counts = {}, {}, {}
    for name, layer in layers.items():
        sizes[name] = layer.unit_size
        counts[name] = math.prod(layer.weight_shape) // layer.unit_size
        squares[name] = ranked(layer, saliency, optimizers).double().square().sort().values.cpu() / layer.unit_size
    most = max((float(values[-1]) for values in squares.values()), default=0.0) or 1.0
    busiest = max((uses[name] for name in layers), default=0) or 1
    costs = {name: uses[name] / busiest for name in layers}
    squares = {name: values / most for name, values in squares.items()}
    least = {name: min(max(1, math.ceil(LEAST * counts[name])), len(squares[name])) for name in layers}
    budget = (1 - sparsity) * sum(counts[name] * sizes[name] for name in layers)
    operations = (1 - sparsity) * sum(counts[name] * sizes[name] * costs[name] for name in layers)

    def kept(price: float, use_price: float) -> dict[str, int]:
        """The number of units whose squared saliency per weight is above the price of a weight of their layer."""
        found = {}
        for name, values in squares.items():
            below = torch.searchsorted(values, price + use_price * costs[name], right=True)
            found[name] = max(len(values) - int(below), least[name])
        return found

    def affordable(use_price: float) -> dict[str, int]:
        """The choice that has as many weights as the budget. The price of a weight may be negative."""
        low, high = -use_price - 1.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            found = kept(middle, use_price)
            too_many = sum(found[name] * sizes[name] for name in layers) > budget
            low, high = (middle, high) if too_many else (low, middle)
        return kept(high, use_price)

    def spent(found: Mapping[str, int]) -> float:
        return sum(found[name] * sizes[name] * costs[name] for name in layers)

    chosen = affordable(0.0)
    if spent(chosen) > operations:
        low, high = 1e-18, 1e6  # of the largest squared saliency
        chosen = affordable(high)
        while high / low > 1.01 and not 0.995 * operations <= spent(chosen) <= operations:
            middle = math.sqrt(low * high)
            found = affordable(middle)
            if spent(found) > operations:
                low = middle
            else:
                high, chosen = middle, found
    return fixed | {name: 1 - chosen[name] / counts[name] for name in layers}
