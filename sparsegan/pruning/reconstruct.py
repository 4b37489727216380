"""Layer-wise reconstruction: kept weights by least squares on the original's activations, without any training.

Pruning to a high sparsity changes each layer's output, and the layers behind it read the changed output. This module
walks a pruned network from input to output. For each layer, X are the inputs that the layer has in the pruned network,
and T the outputs that the layer of the same name has in the original, before any norm. The layer's values v and bias b
are replaced by those that minimise, separately for each output channel,

    sum (v X + b - T)^2 + ridge h v^2,       h = the mean of the diagonal of X X' over the channel's kept weights

Neither data nor labels nor a discriminator are needed. Batch norms keep the original's statistics, which fit because
the outputs do.

**The solver** is the method of conjugate gradients on the normal equations X X' v = X T'. A product with X X' is one
forward of the layer and the gradient in its values, so the sparse kernels do the work, for every geometry, and no
matrix X X' is ever stored. Each output channel has its own step sizes, because its equations are its own. The
preconditioner is the diagonal of X X'.

**The support** may be chosen in the same pass. With v^2 h_j for the saliency of weight j, where h_j is its entry of the
diagonal, a layer is pruned in a few rounds, each followed by least squares. v^2 h_j is the rise of the sum above
without the weight, if the other weights stayed as they are; LeCun, Denker and Solla, "Optimal Brain Damage" (NeurIPS
1989), use it with the second derivatives of the loss of the whole network. Hassibi and Stork, "Optimal Brain Surgeon"
(NeurIPS 1992), and Frantar and Alistarh, "Optimal Brain Compression" (arXiv 2208.11580), let the other weights follow
within the saliency too; here they follow between two rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..modes import in_mode
from ..nn.granularity import check_sparsity
from ..nn.layer import SparseConv
from ..nn.replace import sparse_layers
from .saliency import ranked, unit_norms
from .surgery import shrink_layer

#: A layer is fitted to no more batches once these hold `ENOUGH_IMAGES` inputs and, for each kept weight of its output
#: channels, `ENOUGH_OUTPUTS` output positions, or once its inputs and outputs hold `MOST_NUMBERS` numbers.
ENOUGH_IMAGES, ENOUGH_OUTPUTS, MOST_NUMBERS = 64, 64, 2**26

#: ``sample(network, index)`` runs a network on batch number ``index``, with the same inputs at every call.
Sample = Callable[[nn.Module, int], Any]


class Call(NamedTuple):
    """One call of a layer in the pruned network: its input ``x`` and further arguments, and the output to be reached.

    ``x`` and ``target`` are ``[N, C, *size]``.
    """

    x: Tensor
    target: Tensor
    more: Mapping[str, Any] = {}


def reconstruct(
    model: nn.Module,
    original: nn.Module,
    sample: Sample,
    batches: int = 16,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    rounds: int = 4,
    iterations: int = 8,
    ridge: float = 1e-3,
) -> dict[str, float]:
    """Fits the values of every sparse layer of ``model`` to the activations of ``original``, in place.

    Args:
        model: a network with sparse layers, float32 or float64. Layers are fitted in the order of their first calls, so
            each reads what the fitted layers before it give. A frozen layer (``values.requires_grad`` is False) and a
            layer that is never called are pruned and not fitted, the latter by magnitude.
        original: the network that ``model`` was pruned from; its layers have the same names. Not changed.
        sample: ``sample(network, index)`` runs a network on batch ``index``, from 0 to ``batches - 1``, with the same
            inputs and random numbers for both networks. Both run in evaluation mode.
        batches: the most batches for a layer. A layer takes fewer where these are enough: see
            :data:`ENOUGH_OUTPUTS`. With too few, it fits the batches and not the images of other inputs.
        sparsity: prune to this sparsity in the same pass, as in ``shrink`` but by the saliency of the module's text; or
            by layer, ``{name: sparsity}``, where a layer that is not named keeps its support. ``None`` keeps all
            supports.
        rounds: the number of prunings of each layer, with equal ratios of kept units.
        iterations: iterations of conjugate gradients after each pruning. A solution after fewer iterations than a
            channel has weights is approximate.
        ridge: the factor of the ridge, at least 0.

    Returns:
        By name, the error of each called layer afterwards, sum (output - T)^2 / sum T^2.

    Raises:
        ValueError: an argument is out of range, ``model`` has no sparse layer, ``original`` has no module of a layer's
            name, the two modules are called a different number of times or give outputs of different shapes, a value is
            not finite, or a layer has another dtype or a fused activation. Layers before the one in the text are then
            fitted already.
    """
    for name, number in (("batches", batches), ("rounds", rounds), ("iterations", iterations)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge is {ridge}; it must be a number of at least 0")
    layers, theirs = dict(sparse_layers(model)), dict(original.named_modules())
    if not layers:
        raise ValueError(f"{type(model).__name__} has no sparse layer to fit; call sparsegan.sparsify first")
    if missing := layers.keys() - theirs.keys():
        raise ValueError(
            f"original has no module {min(missing)!r}; it must have the names of the model's sparse layers"
        )
    wanted: Mapping[str, float] = {}
    if sparsity is not None:
        wanted = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(layers, sparsity)
        if unknown := wanted.keys() - layers.keys():
            raise ValueError(f"sparsity has {min(unknown)!r}; it must be for the sparse layers {sorted(layers)}")
        for value in wanted.values():
            check_sparsity(value)
    for name, layer in layers.items():
        if layer.values.dtype not in (torch.float32, torch.float64) or layer.negative_slope != 1:
            raise ValueError(
                f"{name or type(layer).__name__} has dtype {layer.values.dtype} and negative_slope "
                f"{layer.negative_slope}; it must be float32 or float64, with no fused activation (1)"
            )
    found = {}
    with in_mode(model, False), in_mode(original, False), torch.no_grad():
        order = _order(model, layers, sample)
        for name in [name for name in wanted if name not in order]:
            shrink_layer(layers[name], wanted[name], partial(ranked, layers[name], "magnitude", []))
        for name in order:
            layer = layers[name]
            share = min(1 - wanted.get(name, 0.0), 1 - layer.sparsity)
            enough = ENOUGH_OUTPUTS * share * math.prod(layer.weight_shape) / layer.out_channels
            calls = _calls(name, model, layer, original, theirs[name], sample, batches, enough)
            found[name] = _fit(layer, calls, wanted.get(name), rounds, iterations, ridge)
    return found


@torch.no_grad()
def least_squares(layer: SparseConv, calls: Sequence[Call], iterations: int = 8, ridge: float = 1e-3) -> None:
    """Fits the values and the bias of one layer to the targets of ``calls``, in place; see the module's text.

    The iterations begin at the present values, so the minimised sum never rises. A weight whose inputs are all 0 keeps
    its value without a ridge. A frozen bias stays. ``iterations`` and ``ridge`` are as in :func:`reconstruct`.
    """
    normal = _NormalEquations(layer, calls, ridge)
    unknowns = [*normal.unknowns.values()]
    solution = [one.detach().clone() for one in unknowns]
    gap = [right - product for right, product in zip(normal.right(), normal.product(solution), strict=True)]
    direction = normal.preconditioned(gap)
    size = normal.inner(gap, direction)
    eps = torch.finfo(layer.values.dtype).eps
    solved = size * eps**2
    going = size > 0
    for _ in range(iterations):
        product = normal.product(direction)
        curvature = normal.inner(direction, product)
        # Beyond these bounds a channel's numbers are rounding, and further steps would leave the solution again.
        going = going & (size > solved) & (curvature > eps * normal.inner(direction, normal.scaled(direction)))
        if not bool(going.any()):
            break
        length = torch.where(going, size / curvature, 0)
        solution = normal.added(solution, length, direction)
        gap = normal.added(gap, -length, product)
        steep = normal.preconditioned(gap)
        new = normal.inner(gap, steep)
        direction = normal.added(steep, torch.where(going, new / size, 0), direction)
        size = new
    for parameter, fitted in zip(unknowns, solution, strict=True):
        parameter.copy_(fitted)


class _NormalEquations:
    """The normal equations of a layer's output channels, for all channels at once.

    A vector of unknowns is a list: the values ``[nnz]`` and, where the layer trains a bias, the bias
    ``[out_channels]``.
    """

    def __init__(self, layer: SparseConv, calls: Sequence[Call], ridge: float) -> None:
        self.layer, self.calls, self.channels = layer, calls, output_channels(layer)
        self.unknowns = {"values": layer.values}
        self.fixed: dict[str, Tensor] = {}
        if layer.bias is not None and layer.bias.requires_grad:
            self.unknowns["bias"] = layer.bias
        elif layer.bias is not None:
            self.fixed["bias"] = torch.zeros_like(layer.bias)
        energies = input_energies(layer, calls)
        kept = torch.bincount(self.channels, minlength=layer.out_channels).clamp_min(1)
        self.ridge = ridge * (self._sums(energies) / kept)[self.channels]
        self.diagonals = [energies + self.ridge]
        if "bias" in self.unknowns:
            outputs = sum(call.target[:, 0].numel() for call in calls)
            self.diagonals.append(torch.full_like(self.unknowns["bias"], outputs))

    def product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """The left sides for a vector of unknowns."""
        found = self._gradients(vector, lambda output, call: output)
        return [found[0] + self.ridge * vector[0], *found[1:]]

    def right(self) -> list[Tensor]:
        """The right sides."""
        offset = self._per_channel(self.layer.bias.detach()) if self.fixed and self.layer.bias is not None else 0.0
        return self._gradients([*self.unknowns.values()], lambda output, call: call.target - offset)

    def preconditioned(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """The vector divided by the diagonal of the equations; 0 where an input is always 0."""
        return [torch.where(d > 0, one / d, 0) for one, d in zip(vector, self.diagonals, strict=True)]

    def scaled(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """The vector multiplied by the diagonal of the equations."""
        return [one * d for one, d in zip(vector, self.diagonals, strict=True)]

    def inner(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The inner product of two vectors per output channel, ``[out_channels]``."""
        total = self._sums(a[0] * b[0])
        return total + a[1] * b[1] if len(a) > 1 else total

    def added(self, a: Sequence[Tensor], factor: Tensor, b: Sequence[Tensor]) -> list[Tensor]:
        """``a + factor * b``. ``factor``: one per output channel."""
        factors = (factor[self.channels], factor)
        return [one + many * other for one, many, other in zip(a, factors, b, strict=False)]

    def _sums(self, numbers: Tensor) -> Tensor:
        """The sum of one number per value over each output channel."""
        return numbers.new_zeros(self.layer.out_channels).index_add_(0, self.channels, numbers)

    def _per_channel(self, numbers: Tensor) -> Tensor:
        """Numbers ``[out_channels]`` as they are added to an output."""
        return numbers.view(1, -1, *[1] * self.layer.dims)

    def _gradients(self, vector: Sequence[Tensor], weights: Callable[[Tensor, Call], Tensor]) -> list[Tensor]:
        """The sums over all calls of output times ``weights(output, call)``, as gradients in the unknowns."""
        totals = [torch.zeros_like(one) for one in vector]
        for call in self.calls:
            leaves = [one.detach().clone().requires_grad_() for one in vector]
            with torch.enable_grad():
                named = {**self.fixed, **dict(zip(self.unknowns, leaves, strict=True))}
                output = functional_call(self.layer, named, (call.x,), dict(call.more))
            for total, one in zip(
                totals, torch.autograd.grad(output, leaves, weights(output.detach(), call)), strict=True
            ):
                total += one
        return totals


def output_channels(layer: SparseConv) -> Tensor:
    """The output channel of each value, int64 ``[nnz]``."""
    shape, positions = layer.weight_shape, layer.positions()
    size = math.prod(layer.kernel_size)
    if not layer.transposed:
        return positions // (shape[1] * size)
    group = positions // (shape[1] * size) // (layer.in_channels // layer.groups)
    return group * shape[1] + positions // size % shape[1]


def input_energies(layer: SparseConv, calls: Sequence[Call]) -> Tensor:
    """For each value, the sum of the squares of the inputs that it is multiplied by in ``calls``, ``[nnz]``."""
    total = torch.zeros_like(layer.values)
    for call in calls:
        values = layer.values.detach().clone().requires_grad_()
        with torch.enable_grad():
            # An output is a sum of products, so its gradient in a value is the sum of the inputs: here of the squares.
            output = functional_call(layer, {"values": values}, (call.x.square(),), dict(call.more))
        total += torch.autograd.grad(output, values, torch.ones_like(output))[0]
    return total


def relative_error(layer: SparseConv, calls: Sequence[Call]) -> float:
    """The layer's error over all calls, sum (output - target)^2 / sum target^2; 0 where both are 0."""
    error = power = 0.0
    for call in calls:
        error += (layer(call.x, **call.more) - call.target).double().square().sum().item()
        power += call.target.double().square().sum().item()
    return error / power if power > 0 else math.inf if error > 0 else 0.0


def _fit(
    layer: SparseConv, calls: Sequence[Call], sparsity: float | None, rounds: int, iterations: int, ridge: float
) -> float:
    """Prunes the layer to ``sparsity`` in rounds, fits it after each of them, and returns its error."""
    start = 1 - layer.sparsity
    for done in range(1, rounds + 1) if sparsity is not None else [1]:
        if sparsity is not None:
            kept = start * ((1 - sparsity) / start) ** (done / rounds) if done < rounds else 1 - sparsity
            shrink_layer(layer, max(0.0, 1 - kept), partial(_saliency, layer, calls))
        if layer.values.requires_grad:
            least_squares(layer, calls, iterations, ridge)
    return relative_error(layer, calls)


def _saliency(layer: SparseConv, calls: Sequence[Call]) -> Tensor:
    """The root of the saliency of each unit, in the order of ``saliency.ranked``."""
    return unit_norms(layer, layer.values.detach() * input_energies(layer, calls).sqrt())


def _order(model: nn.Module, layers: Mapping[str, SparseConv], sample: Sample) -> list[str]:
    """The names of the layers that a batch calls, in the order of their first calls."""
    order: dict[str, None] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs, name=name: order.setdefault(name))
        for name, layer in layers.items()
    ]
    try:
        sample(model, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)


def _calls(
    name: str,
    model: nn.Module,
    layer: SparseConv,
    original: nn.Module,
    theirs: nn.Module,
    sample: Sample,
    batches: int,
    enough: float,
) -> list[Call]:
    """The calls of a layer in both networks, until the batches hold ``enough`` output positions (see the constants)."""
    found: list[Call] = []
    held = images = places = 0
    for index in range(batches):
        inputs, outputs = (
            _watched(network, one, sample, index) for network, one in ((model, layer), (original, theirs))
        )
        if len(inputs) != len(outputs):
            raise ValueError(
                f"{name} is called {len(inputs)} times in model and {len(outputs)} times in original; both must agree"
            )
        for (x, more, ours), (_, _, target) in zip(inputs, outputs, strict=True):
            if ours.shape != target.shape:
                raise ValueError(
                    f"{name} gives {tuple(ours.shape)} in model and {tuple(target.shape)} in original; both must agree"
                )
            if not bool(x.isfinite().all()) or not bool(target.isfinite().all()):
                raise ValueError(f"{name}: its inputs or the original's outputs hold values that are not finite")
            batched = x.dim() == layer.dims + 2
            found.append(Call(x, target, more) if batched else Call(x.unsqueeze(0), target.unsqueeze(0), more))
            held += x.numel() + target.numel()
            images += len(found[-1].x)
            places += found[-1].target[:, 0].numel()
        if held > MOST_NUMBERS or (images >= ENOUGH_IMAGES and places >= enough):
            break
    return found


def _watched(
    network: nn.Module, module: nn.Module, sample: Sample, index: int
) -> list[tuple[Tensor, dict[str, Any], Tensor]]:
    """The input, the further arguments and the output of each call of ``module`` in one batch."""
    seen: list[tuple[Tensor, dict[str, Any], Tensor]] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        more = {key: value for key, value in named.items() if key not in ("x", "input")}
        if len(inputs) > 1:
            more["output_size"] = inputs[1]
        x = inputs[0] if inputs else named["x"] if "x" in named else named["input"]
        seen.append((x.clone(), more, output.clone()))  # a later module may work in place

    hook = module.register_forward_hook(note, prepend=True, with_kwargs=True)
    try:
        sample(network, index)
    finally:
        hook.remove()
    return seen
