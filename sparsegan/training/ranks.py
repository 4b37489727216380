"""One run on several processes (``torchrun``) with the result of one process.

Every rank sees the whole batch and draws the same random numbers. Only the networks' work is divided: each call of a
network computes the rank's part of the inputs, and the outputs of all ranks are joined again. A loss therefore works on
the whole batch (ratios of means, image pools, gradient penalties) and is the same on every rank as in one process.
Part and join are adjoints of each other, at every order of differentiation:

    part    forward: the rank's rows of a tensor            backward: join
    join    forward: every rank's rows, one after the other  backward: part

Each rank then holds the gradient of its rows, and `sum_gradients` adds the ranks' gradients up. Batch norms compute
their statistics over all ranks, and dropouts draw for the whole batch. With one process, or without
``torch.distributed``, the functions of this module have no effect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ..outermost import Outermost, mapped
from ..randomness import CPU
from ..renamed import renamed_keywords, renamed_names


def world_size() -> int:
    """The number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process. Rank 0 writes the files."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def from_environment(device: torch.device = CPU) -> Iterator[None]:
    """Within it, a process that `torchrun` started belongs to the run's process group.

    `device`: the device of the networks. CPU tensors are exchanged through Gloo, an accelerator's tensors through
    torch's default backend for it (NCCL for GPUs). An accelerator's current device becomes `device`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if device != CPU:
        torch.accelerator.set_device_index(device.index)
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def agreed(value: float) -> float:
    """The value of rank 0, on every rank. Decisions that follow from it are then the same, whatever the rounding."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Wait until every rank has called this function."""
    if world_size() > 1:
        dist.barrier()


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        if whole.shape[0] % world_size():
            raise ValueError(
                f"a batch of {whole.shape[0]} does not divide among {world_size()} processes; its size must be a "
                "multiple of their number"
            )
        return whole.chunk(world_size())[rank()].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Join.apply(gradients[0])


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Part.apply(gradients[0])


class _Sum(torch.autograd.Function):
    """The sum over the ranks. The gradient is summed too, because every rank's result depends on each rank's part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


def joined(value: Any) -> Any:
    """The whole batch's tensors, from the tensors of each rank's part. `value` may hold them inside tuples."""
    return mapped(value, _Join.apply) if world_size() > 1 else value


class _BatchNormOverRanks(nn.BatchNorm2d):
    """A batch norm that uses the statistics of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        size = world_size() * x.numel() // x.shape[1]
        mean = _Sum.apply(x.sum((0, 2, 3))) / size
        centred = x - mean.view(-1, 1, 1)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / size
        if self.training and self.running_mean is not None:
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), momentum)
                self.running_var.lerp_(variance.to(self.running_var) * size / max(size - 1, 1), momentum)
        y = centred * (variance + self.eps).rsqrt().view(-1, 1, 1)
        return y if self.weight is None else y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class _DropoutOverRanks(nn.Dropout):
    """A dropout that draws for the whole batch and applies the rank's part, for the same result as in one process."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        whole = torch.cat([torch.ones_like(x)] * world_size())
        return x * nn.functional.dropout(whole, self.p).chunk(world_size())[rank()]


def _average_statistics(norm: nn.Module, inputs: Any, output: Any) -> None:
    """Average an instance norm's running statistics over the ranks: they are means over the batch."""
    if norm.training:
        for statistic in norm.buffers():
            if statistic.is_floating_point():
                dist.all_reduce(statistic)
                statistic /= world_size()


class _Rows:
    """The rows of one call: takes the rank's part of the inputs, and joins the outputs of all ranks.

    `padded`: where the number of rows is not a multiple of the world size, copies of the last row are added. The
    outputs of the copies are dropped.
    """

    def __init__(self, padded: bool) -> None:
        self.padded = padded
        self.count = 0

    def part(self, value: Any) -> Any:
        """This rank's part of the whole batch's tensors. `value` may hold them inside tuples."""
        return mapped(value, self._part)

    def _part(self, whole: Tensor) -> Tensor:
        self.count = len(whole)
        if self.padded and (missing := -self.count % world_size()):
            whole = torch.cat([whole, whole[-1:].expand(missing, *whole.shape[1:])])
        return _Part.apply(whole)

    def whole(self, value: Any) -> Any:
        """The whole batch's tensors, from the tensors of each rank's part. `value` may hold them inside tuples."""
        return mapped(value, self._whole)

    def _whole(self, part: Tensor) -> Tensor:
        whole = _Join.apply(part)
        return whole[: self.count] if self.padded else whole


#: The networks whose calls are divided at present.
_DIVIDED: dict[nn.Module, _Rows] = {}


def each_its_rows(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function, with its rows divided among the ranks. `function` must compute each row independently."""
    if world_size() == 1:
        return function

    def divided_among_ranks(rows: Tensor) -> Tensor:
        given = _Rows(padded=True)
        return given.whole(function(given.part(rows)))

    return divided_among_ranks


#: Layers that depend on the whole batch, and their replacements on several ranks.
_OVER_RANKS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: _BatchNormOverRanks,
    nn.Dropout: _DropoutOverRanks,
}


@contextmanager
def divided(*networks: nn.Module | None, padded: bool = False) -> Iterator[None]:
    """Within it, the rows of each network call are divided among the ranks.

    `padded`: accept batches whose size is not a multiple of the world size, for networks in evaluation mode. Without
    `padded`, a call with such a batch raises ValueError. Raises TypeError for a norm or dropout in training mode that
    cannot work over several processes. A network whose calls are divided already only gets the inner `padded`.
    """
    if world_size() == 1:
        yield
        return
    hooks: list[Any] = []
    changed: list[nn.Module] = []
    outer = {network: _DIVIDED[network].padded for network in networks if network is not None and network in _DIVIDED}
    mine = dict.fromkeys(network for network in networks if network is not None and network not in outer)
    for network in mine:
        for module in network.modules():
            if type(module) in _OVER_RANKS:
                changed.append(module)
            elif module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise TypeError(
                    f"{type(module).__name__} cannot take its statistics over several processes; only BatchNorm2d can"
                )
            elif module.training and isinstance(module, nn.modules.dropout._DropoutNd):
                raise TypeError(
                    f"{type(module).__name__} cannot drop the same elements in several processes; only Dropout can"
                )
            elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
                hooks.append(module.register_forward_hook(_average_statistics))
        rows = _Rows(padded)
        hooks.append(Outermost(network, lambda *given, rows=rows: rows.part(given), rows.whole))
        _DIVIDED[network] = rows
    for network in outer:
        _DIVIDED[network].padded = padded
    own = [type(module) for module in changed]
    for module, kind in zip(changed, own, strict=True):
        module.__class__ = _OVER_RANKS[kind]
    try:
        yield
    finally:
        for network, before in outer.items():
            _DIVIDED[network].padded = before
        for network in mine:
            _DIVIDED.pop(network, None)
        for hook in hooks:
            hook.remove()
        for module, kind in zip(changed, own, strict=True):
            module.__class__ = kind


def sum_gradients(optimizer: Optimizer) -> None:
    """Add up all ranks' partial sums of each gradient of `optimizer`, in place."""
    sum_tensors(parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None)


@renamed_keywords(shares="partial_sums")
def sum_tensors(partial_sums: Iterable[Tensor]) -> None:
    """Add up all ranks' partial sums of each tensor, in place."""
    if world_size() > 1:
        for partial_sum in partial_sums:
            dist.all_reduce(partial_sum)


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


__getattr__ = renamed_names(__name__, count="world_size", wait="barrier")
